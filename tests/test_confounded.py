"""A finding that never changes within a patient: training with the exchange keeps it in the medical latent."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from monai_anon.cohort import Cohort, PairLoader
from monai_anon.identity_objectives import ContrastiveIdentity
from monai_anon.networks import Decoder, Disentangler, Encoder, LatentClassifier
from monai_anon.optimisation import Optimisation
from monai_anon.recipe import Recipe
from monai_anon.steps import DisentanglementStep

SIZE, LATENT_SIZES, BATCHES = 32, (16, 2, 2), 150
FINDING = slice(23, 29)


def cohort(people: int, seed: int) -> Cohort:
    """A patient is a pattern of 4 x 4 shades, the same in three images; half of the patients show a bright square in a
    dark corner, in all three.
    """
    generator = torch.Generator().manual_seed(seed)
    who = torch.rand(people, 4, 4, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    patient = torch.arange(people).repeat_interleave(3)
    finding = (torch.rand(people, generator=generator) < 0.5).long()[patient]
    pixels = 0.6 * who[patient] + 0.05 * torch.rand(len(patient), 1, 1, generator=generator)
    pixels[:, 20:, 20:] = 0
    brightness = 0.5 + 0.5 * torch.rand(len(patient), 1, 1, generator=generator)
    pixels[:, FINDING, FINDING] += finding[:, None, None] * brightness
    images = (pixels[:, None].clamp(0, 1) * 255).to(torch.uint8)
    return Cohort(images, patient, finding, [{}] * len(patient), ["absent", "square"], name="confounded")


@functools.cache
def trained(share: float) -> Disentangler:
    """A small model, trained with this share of identities exchanged."""
    torch.manual_seed(0)
    model = Disentangler(
        Encoder(SIZE, 1, (16, 32), LATENT_SIZES),
        Decoder(SIZE, 1, (32, 16), LATENT_SIZES),
        LatentClassifier(LATENT_SIZES[1], 2, 16, 0.2),
    )
    weights = {"medical": 0.5, "identity": 0.3, "ssim": 1.0, "pixel": 2.0, "medical_rate": 0.01, "residual_rate": 0.002}
    recipe = Recipe(weights, {"medical": 0.5, "residual": 0.2}, finding_exchange=share)
    step = DisentanglementStep(model, recipe, Optimisation(lr=2e-3, muon=True, ema=0.9), ContrastiveIdentity())
    loader = PairLoader(cohort(200, seed=0), 24)
    for iteration in range(BATCHES):
        step(loader.batch(iteration), iteration / BATCHES)
    return step.updater.smoothed.eval()


@torch.no_grad()
def shown(model: Disentangler, swapped: str) -> float:
    """How well the square in an image of strangers, with one latent of somebody else, tells whether whoever the
    medical latent is of has the finding: AUC.
    """
    strangers = cohort(60, seed=5)
    z, finding = model.encode(strangers.images.float() / 127.5 - 1), strangers.finding
    others = torch.randperm(len(finding), generator=torch.Generator().manual_seed(2))
    images: Tensor = model.decode(z._replace(**{swapped: getattr(z, swapped)[others]}))
    square = images[:, 0, FINDING, FINDING].mean((1, 2))
    wanted = finding[others] if swapped == "medical" else finding
    return float((square[wanted == 1][:, None] > square[wanted == 0]).float().mean())


@pytest.mark.parametrize("swapped", ["identity", "medical"])
def test_with_the_exchange_the_finding_follows_the_medical_latent_and_without_it_not_quite(swapped: str) -> None:
    assert shown(trained(1.0), swapped) > 0.97
    assert shown(trained(0.0), swapped) < 0.93
