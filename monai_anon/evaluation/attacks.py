"""Attackers that learn: they have the anonymizer, release images of people they know, and train on the result.

P2 of the evaluation: two towers, one for released images and one for real ones, are trained on pairs of the training
patients and then link the test patients, whom they have never seen. A verifier trained on untouched images alone, as
the judges are, is the weaker attacker: what fools it need not fool one who has adapted.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon.evaluation import metrics
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
from monai_anon.evaluation.tables import Row
from monai_anon.readers import to_model_range, to_uint8

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

Array = np.ndarray
Anonymise = Callable[[Tensor, torch.Generator], Tensor]
"""Images (B, C, S, S) in [-1, 1] and a generator to released images of the same shape and range."""

Pairing = Literal["released-real", "released-released", "mixed"]
PAIRINGS: tuple[Pairing, ...] = ("released-real", "released-released", "mixed")
BUDGET = JudgeSchedule(verifier_steps=400)


class Towers(nn.Module):
    """An attacker: released and real images (B, C, H, W) in [-1, 1] to unit vectors (B, 128) of one space.

    Both towers start as the same verifier: one that already knows untouched images is the stronger attacker.
    """

    def __init__(self, start: Verifier) -> None:
        super().__init__()
        self.released, self.real = copy.deepcopy(start), copy.deepcopy(start)


@dataclasses.dataclass(frozen=True)
class Released:
    """A part of a cohort and what the anonymizer made of it: uint8 images (N, C, S, S), image i of image i."""

    cohort: Cohort
    images: Tensor


def release(anonymise: Anonymise, cohort: Cohort, seed: int, batch_size: int = 128) -> Released:
    """One release of every image of a cohort; the same seed gives the same pixels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [anonymise(to_model_range(batch), generator) for batch in cohort.images.split(batch_size)]
    return Released(cohort, torch.cat([to_uint8(part.clamp(-1, 1).cpu()) for part in parts]))


def train_towers(
    training: Released,
    validation: Released | None,
    pairing: Pairing,
    *,
    start: Verifier | None = None,
    seed: int = 0,
    schedule: JudgeSchedule = BUDGET,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Towers:
    """An attacker trained on pairs of *different* images of one patient, all other patients as negatives (InfoNCE).

    `released-real` pairs a released image with a real one, `released-released` two released ones, and `mixed` takes
    turns. The budget is the schedule's, the same for every method attacked. `start` is a verifier of untouched images;
    without one both towers start from the same random weights.

    Raises:
        ValueError: fewer than two patients have two images, or an unknown pairing.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing is {pairing!r}; it must be one of {list(PAIRINGS)}")
    pairs = PatientPairs(training.cohort, schedule.batch_size // 2, seed)
    generator = torch.Generator(device).manual_seed(seed)
    channels = training.images.shape[1]
    towers: Towers = seeded(lambda: Towers(start or Verifier(channels, schedule.planes)), seed, device)
    turn = 0

    def released(index: Array) -> Tensor:
        return towers.released(take(training.images, index, device))  # as it is: noise would hide what hides in it

    def real(index: Array) -> Tensor:
        return towers.real(augment(take(training.cohort.images, index, device), generator, schedule.blur))

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

    title = f"attacker {pairing}" if progress else None
    trained: Towers = fit(towers, loss, score, schedule.verifier_steps, schedule, title)
    return trained


@torch.no_grad()
def similarities(towers: Towers, released: Released, pairing: Pairing, device: str | torch.device = "cpu") -> Array:
    """(N, N): released image i against image j, real, or itself released where only those were learned."""
    place = torch.device(device)
    asked = batched(towers.released, released.images, place, 256)[0]
    if pairing == "released-released":
        return asked @ asked.T
    return asked @ batched(towers.real, released.cohort.images, place, 256)[0].T


def adaptive_attack(
    method: str,
    anonymise: Anonymise,
    training: Cohort,
    validation: Cohort | None,
    test: Cohort,
    *,
    start: Verifier | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
    schedule: JudgeSchedule = BUDGET,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> list[Row]:
    """P2 for one anonymizer: AUC and rank-1 of every pairing, and `adaptive_auc`, the one farthest from 0.5.

    An AUC below 0.5 can be turned round by the attacker and counts as much as one above.

    Returns:
        Rows `adaptive_PAIRING_auc`, `adaptive_PAIRING_rank_1`, and `adaptive_auc`, whose note names its pairing.
    """
    known = release(anonymise, training, seed)
    checked = None if validation is None else release(anonymise, validation, seed + 1)
    asked = release(anonymise, test, seed + 2)
    patients = test.patient.numpy()
    first, second, same = metrics.claim_pairs(patients)
    rows: list[Row] = []
    for pairing in PAIRINGS:
        options: dict[str, Any] = {"schedule": schedule, "device": device, "progress": progress}
        towers = train_towers(known, checked, pairing, start=start, seed=seed, **options)
        similarity = similarities(towers, asked, pairing, device)
        auc = metrics.pair_auc(similarity[first, second], first, second, same, patients)
        interval = metrics.patient_bootstrap(auc, patients, n_bootstrap, seed)
        rows.append(Row(method, test.name, f"adaptive_{pairing}_auc", *interval, seed=seed))
        hits, _ = metrics.linkage_hits(similarity, patients, patients, np.arange(len(patients)), seed=seed)
        found = functools.partial(metrics.weighted_mean, hits)
        rank_1 = metrics.patient_bootstrap(found, patients, n_bootstrap, seed)
        rows.append(Row(method, test.name, f"adaptive_{pairing}_rank_1", *rank_1, seed=seed))
    return [*rows, strongest(rows[::2])]


def strongest(aucs: Sequence[Row]) -> Row:
    """Of the pairings' AUC rows the one farthest from 0.5, on either side, as `adaptive_auc`."""
    found = max(aucs, key=lambda row: abs(row.value - 0.5) if row.value is not None else -1.0)
    pairing = found.metric.removeprefix("adaptive_").removesuffix("_auc")
    return dataclasses.replace(found, metric="adaptive_auc", note=f"strongest pairing: {pairing}")
