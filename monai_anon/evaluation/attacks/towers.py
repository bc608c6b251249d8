"""The two towers of every attacker that learns to link: one for released images, one for real ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon.evaluation.judge_networks import Verifier, batched
from monai_anon.evaluation.judge_training import (
    JudgeSchedule,
    PatientPairs,
    augment,
    fit,
    seeded,
    take,
    verification_score,
)
from monai_anon.evaluation.scene import Released

Array = np.ndarray
Pairing = Literal["released-real", "released-released", "mixed", "lowest-bits"]
PAIRINGS: tuple[Pairing, ...] = ("released-real", "released-released", "mixed", "lowest-bits")
BUDGET = JudgeSchedule(verifier_steps=400)
BITS = 2


class Towers(nn.Module):
    """An attacker: released and real images (B, C, H, W) in [-1, 1] to unit vectors (B, 128) of one space.

    Both towers start as the same verifier: one that already knows untouched images is the stronger attacker.

    Args:
        bits: the tower for released images sees their lowest bits beside them (`BitReader`).
    """

    def __init__(self, start: Verifier, bits: bool = False) -> None:
        super().__init__()
        self.released: nn.Module = BitReader(start) if bits else copy.deepcopy(start)
        self.real = copy.deepcopy(start)


class BitReader(nn.Module):
    """A verifier that sees the `BITS` lowest bits of its 8-bit images as channels; it starts by not heeding them.

    A picture hidden there is noise to every other eye, and this noise makes the eye weaker for all else: hence one
    attacker of its own.
    """

    def __init__(self, start: Verifier) -> None:
        super().__init__()
        self.verifier = copy.deepcopy(start)
        stem = self.verifier.backbone.conv1
        assert isinstance(stem, nn.Conv2d)
        unheeded = torch.zeros_like(stem.weight).repeat(1, BITS, 1, 1)
        stem.weight = nn.Parameter(torch.cat([stem.weight.detach(), unheeded], dim=1))
        stem.in_channels = stem.weight.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, 128) of length 1."""
        levels = images.detach().add(1).mul(127.5).round().to(torch.int32)
        planes = [((levels >> bit) & 1).to(images.dtype) * 2 - 1 for bit in range(BITS)]
        found: Tensor = self.verifier(torch.cat([images, *planes], dim=1))
        return found


def train_towers(
    training: Sequence[Released],
    validation: Released | None,
    pairing: Pairing,
    *,
    start: Verifier | None = None,
    seed: int = 0,
    schedule: JudgeSchedule = BUDGET,
    device: str | torch.device = "cpu",
    title: str | None = None,
) -> Towers:
    """An attacker trained on pairs of *different* images of one patient, all other patients as negatives (InfoNCE).

    `released-real` pairs a released image with a real one, `released-released` two released ones, and `mixed` takes
    turns; `lowest-bits` is `released-real` for an eye that also sees the lowest bits. `training` holds one release or
    several of the same images, drawn from at random: who has the anonymizer can release as often as they like. The
    budget is the schedule's, the same for every method attacked. `start` is a verifier of untouched images; without
    one both towers start from the same random weights.

    Raises:
        ValueError: fewer than two patients have two images, or an unknown pairing.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is {pairing!r}; it must be one of {list(PAIRINGS)}")
    cohort, draw = training[0].cohort, np.random.default_rng(seed)
    pairs = PatientPairs(cohort, schedule.batch_size // 2, seed)
    generator = torch.Generator(device).manual_seed(seed)
    channels = cohort.images.shape[1]
    towers: Towers = seeded(
        lambda: Towers(start or Verifier(channels, schedule.planes), pairing == "lowest-bits"), seed, device
    )
    turn = 0

    def released(index: Array) -> Tensor:
        images = training[int(draw.integers(len(training)))].images
        return towers.released(take(images, index, device))  # as they are: noise would hide what hides in them

    def real(index: Array) -> Tensor:
        return towers.real(augment(take(cohort.images, index, device), generator, schedule.blur))

    def loss() -> Tensor:
        nonlocal turn
        turn += 1
        one, other = pairs.draw()
        alike = pairing == "released-released" or (pairing == "mixed" and turn % 2)
        similarity = released(one) @ (released(other) if alike else real(other)).T / schedule.temperature
        right = torch.arange(pairs.count, device=similarity.device)
        return (F.cross_entropy(similarity, right) + F.cross_entropy(similarity.T, right)) / 2

    def score() -> float:
        if validation is None:
            return float("nan")
        return verification_score(similarities(towers, validation, pairing, device), validation.cohort)

    trained: Towers = fit(towers, loss, score, schedule.verifier_steps, schedule, title)
    return trained


@torch.no_grad()
def embedded(towers: Towers, released: Released, pairing: Pairing, device: str | torch.device = "cpu") -> list[Array]:
    """Unit vectors (N, 128) of the released images and of what they are compared with: the real ones, or the released
    ones again where only those were learned.
    """
    place = torch.device(device)
    asked = batched(towers.released, released.images, place, 256)[0]
    if pairing == "released-released":
        return [asked, asked]
    return [asked, batched(towers.real, released.cohort.images, place, 256)[0]]


def similarities(towers: Towers, released: Released, pairing: Pairing, device: str | torch.device = "cpu") -> Array:
    """(N, N): released image i against image j, real, or itself released where only those were learned."""
    asked, known = embedded(towers, released, pairing, device)
    return asked @ known.T
