"""P4: a network learns to undo the anonymizer, and the verifier is asked about what it recovers."""

from __future__ import annotations

import numpy as np
import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.evaluation import metrics
from monai_anon.evaluation.judge_training import fit, seeded, take
from monai_anon.evaluation.scene import Released, Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import Row
from monai_anon.readers import to_model_range

FEATURES = (16, 16, 32, 64, 128, 16)
FOLD = 2  # pixels a side folded into channels: four times faster, and what is fine is told all the same


class Inverter(nn.Module):
    """Released images (B, C, S, S) in [-1, 1], S even, to guesses at the originals: what is to be added is learned.

    Before training it adds nothing, so what was never changed cannot be made worse.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        network = BasicUNet(2, FOLD**2 * channels, FOLD**2 * channels, FEATURES, norm="batch")
        nn.init.zeros_(network.final_conv.weight)
        nn.init.zeros_(network.final_conv.bias)
        self.change = nn.Sequential(nn.PixelUnshuffle(FOLD), network, nn.PixelShuffle(FOLD))

    def forward(self, released: Tensor) -> Tensor:
        """The guess, not clamped."""
        changed: Tensor = released + self.change(released)
        return changed


def inversion(subject: Subject, scene: Scene) -> list[Row]:
    """P4: a U-Net trained on (released, original) of the training patients, then P1 on what it makes of the test part.

    It never sees the verifier: a network that is trained to please the judge would please it.

    Returns:
        Rows `inversion_{auc,eer,tar_at_far_10,tar_at_far_1,rank_1}`, and `inversion_ssim` of the guess to the original.
    """
    if scene.silence:
        return [scene.silent(subject, "inversion_auc", scene.silence)]
    guesses, originals = invert(subject, scene), to_model_range(scene.test.images)
    found = [scene.judges.embed(guess) @ scene.vectors("test").T for guess in guesses]
    likeness = np.mean([metrics.ssim(guess, originals) for guess in guesses], axis=0)
    return [*scene.person_rows(subject, "inversion", found), scene.mean(subject, "inversion_ssim", likeness)]


def invert(subject: Subject, scene: Scene) -> list[Tensor]:
    """The trained inverter's guesses at the test originals from each release: (N, C, S, S) in [-1, 1]."""
    known, asked = scene.releases(subject, "training"), scene.releases(subject, "test")
    checked = scene.released(subject, "validation") if scene.validation else None
    draw, size = np.random.default_rng(scene.seed), min(64, len(scene.training.images))
    inverter = seeded(lambda: Inverter(scene.training.images.shape[1]), scene.seed, scene.device)

    def error(part: Released, index: np.ndarray) -> Tensor:
        guess = inverter(take(part.images, index, scene.device))
        original = take(part.cohort.images, index, scene.device)
        return (guess - original).abs().mean() + losses.ssim_loss(original, guess)

    def loss() -> Tensor:
        one = known[int(draw.integers(len(known)))]
        return error(one, draw.choice(len(one.images), size, replace=False))

    def score() -> float:
        return float("nan") if checked is None else -float(error(checked, np.arange(len(checked.images))))

    steps = scene.schedule.verifier_steps
    fit(inverter, loss, score, steps, scene.schedule, scene.title(f"{subject.name}: inversion"))

    @torch.no_grad()
    def guesses(images: Tensor) -> Tensor:
        parts = [inverter(to_model_range(batch).to(scene.device)) for batch in images.split(128)]
        return torch.cat(parts).clamp(-1, 1).cpu()

    return [guesses(one.images) for one in asked]
