"""From which similarity on two images count as of one person: thresholds from real people whom no training saw.

Two questions, two thresholds. *Is this the original's patient?* is asked of one pair: of pairs of images of two
different strangers at most the stated share is as alike. *Is this a training patient?* is asked of the most similar of
all N of them, and nearly everybody is like somebody: at the first threshold all but a few real strangers would be found
in any gallery of some size. So the second is that of the same statistic: at most the stated share of strangers' images
have a neighbour in the gallery that is as near. It belongs to the gallery it was found with, and to no other.

Both are the smallest similarities with these shares among the held-out images. Their intervals are patient bootstraps
(with the bound of Clopper and Pearson where they have no width), and a rate is refused that so few people cannot tell.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_anon.evaluation.metrics import Interval, patient_bootstrap, with_exact_bounds
from monai_anon.gallery_search import SearchableGallery, unit
from monai_anon.whole_files import write_text

RATE = 0.01
_CONFIDENCE = 0.95
_MOST_IMAGES = 4000  # held out: all pairs of so many are compared at once
_SAME_IMAGE = 1 - 1e-6


class CalibrationError(ValueError):
    """Thresholds that cannot be had from these images, or are no file of them."""


@dataclass(frozen=True)
class Threshold:
    """A similarity from which on two images count as of one person, and what it was found from. No codes, no latents.

    Args:
        similarity: cosine; at or above it is "the same".
        rate: the share of strangers that was asked for, at most.
        share, low, high: found among the strangers at this threshold, with its 95 % interval over patients.
        patients, observations: people held out; the pairs of images, or images, that the share is of.
        caught: of pairs of two images of one held-out person the share at or above; None where there are none, or where
            the threshold is not of pairs.
    """

    similarity: float
    rate: float
    share: float
    low: float
    high: float
    patients: int
    observations: int
    caught: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The two thresholds of one network that tells people apart.

    Args:
        encoder: digest of that network's weights.
        gallery: digest of the gallery that `training` is for.
        original: against one image of the original's patient.
        training: against the nearest of all training patients.
    """

    encoder: str
    gallery: str
    original: Threshold
    training: Threshold

    def write(self, path: str | Path) -> Path:
        """As JSON."""
        return write_text(path, json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(path: str | Path) -> Calibration:
        """What `write` wrote.

        Raises:
            CalibrationError: there is none, or it is another file; a threshold is no number between -1 and 1.
        """
        try:
            values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            kinds = {kind: Threshold(**values.pop(kind)) for kind in ("original", "training")}
            found = Calibration(original=kinds["original"], training=kinds["training"], **values)
        except OSError as error:
            raise CalibrationError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CalibrationError(f"{path} holds no calibration") from error
        for kind, threshold in kinds.items():
            if not isinstance(threshold.similarity, float) or not -1 <= threshold.similarity <= 1:
                raise CalibrationError(f"{path}: {kind}.similarity is {threshold.similarity}, no number from -1 to 1")
        return found


def least_patients(rate: float) -> int:
    """How many people it takes to tell a rate: if nobody of them were as alike, the bound of Clopper and Pearson on the
    rate (95 %, one-sided) would be `rate`. 299 for 1 %, 59 for 5 %.
    """
    return math.ceil(math.log(1 - _CONFIDENCE) / math.log(1 - rate))


def refuse_rate(rate: float) -> None:
    """Raises:
    CalibrationError: it is no share that a threshold can be found for.
    """
    if not 0 < rate < 0.5:
        raise CalibrationError(f"rate is {rate}; it must be above 0 and below 0.5")


def calibrate(vectors: Tensor, patient: Tensor, gallery: SearchableGallery, rate: float = RATE) -> Calibration:
    """Both thresholds from real people who are not in the gallery, nor in any training.

    Args:
        vectors: of their images, `(N, D)`, by the gallery's encoder.
        patient: their codes, `(N,)`.
        rate: share of strangers that may be taken for the same person, above 0 and below 1/2.

    Raises:
        CalibrationError: a rate out of range, or fewer people than it takes to tell it; vectors that are not finite or
            are in the gallery.
    """
    refuse_rate(rate)
    codes, patient = torch.unique(patient, return_inverse=True)
    people, fewest = min(len(codes), _MOST_IMAGES), least_patients(rate)
    if people < fewest:
        enough = 1 - (1 - _CONFIDENCE) ** (1 / max(people, 1))
        looked_at = "are held out" if people == len(codes) else "are looked at, at most"
        raise CalibrationError(
            f"{people} people {looked_at}; a rate of {rate:g} takes {fewest} or more of them. The "
            f"least that these can tell is {math.ceil(enough * 1e4) / 1e4:g}"
        )
    vectors, patient = _within_limits(unit(vectors), patient, fewest)
    if not torch.isfinite(vectors).all():
        raise CalibrationError("some held-out images have vectors that are not finite, or without a direction")
    nearest = gallery.nearest(vectors)
    if bool((nearest >= _SAME_IMAGE).any()):
        raise CalibrationError("some held-out images are in the gallery; people held out are in no training")
    original = _of_pairs(vectors, patient.numpy(), rate)
    training = _of_nearest(nearest.numpy(), patient.numpy(), rate)
    return Calibration(gallery.encoder, gallery.digest(), original, training)


def _within_limits(vectors: Tensor, patient: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    """All images, or as many people's, the first ones in a fixed random order, as make up no more than the most.

    Where that would leave fewer than `fewest` people, of each person only the first images count.
    """
    if len(vectors) <= _MOST_IMAGES:
        return vectors, patient
    count = patient.bincount()
    order = torch.randperm(len(count), generator=torch.Generator().manual_seed(0))
    kept = order[count[order].cumsum(0) <= _MOST_IMAGES]
    counted = torch.ones(len(patient), dtype=torch.bool)
    if len(kept) < fewest:
        each = _MOST_IMAGES // fewest
        sorted_rows = patient.argsort(stable=True)
        counted[sorted_rows] = torch.arange(len(patient)) - (count.cumsum(0) - count)[patient[sorted_rows]] < each
        kept = order[count[order].clamp_max(each).cumsum(0) <= _MOST_IMAGES]
    rows = counted & torch.isin(patient, kept)
    return vectors[rows], torch.unique(patient[rows], return_inverse=True)[1]


def _least(similarity: np.ndarray, rate: float) -> float:
    """The smallest float32 that at most a share `rate` of the similarities reach."""
    most = min(math.floor(rate * len(similarity) + 1e-9), len(similarity) - 1)
    at = len(similarity) - 1 - most
    return float(np.nextafter(np.partition(similarity, at)[at], np.float32(np.inf), dtype=np.float32))


def _of_pairs(vectors: Tensor, patient: np.ndarray, rate: float) -> Threshold:
    similarity = (vectors @ vectors.T).numpy()
    first, second = np.triu_indices(len(patient), 1)
    alike, same = similarity[first, second], patient[first] == patient[second]
    threshold = _least(alike[~same], rate)

    people = int(patient.max()) + 1
    count = np.bincount(patient, minlength=people).astype(np.float64)
    possible = np.outer(count, count) - np.diag(count**2)
    hit = (alike >= threshold) & ~same
    place = patient[first[hit]] * people + patient[second[hit]]
    found = np.bincount(place, minlength=people**2).reshape(people, people).astype(np.float64)
    found += found.T

    def share(weights: np.ndarray) -> float:
        total = weights @ possible @ weights
        return float(weights @ found @ weights / total) if total else float("nan")

    interval = patient_bootstrap(share, np.arange(people))
    caught = float((alike[same] >= threshold).mean()) if same.any() else None
    return _threshold(threshold, rate, interval, people, int((~same).sum()), caught)


def _of_nearest(nearest: np.ndarray, patient: np.ndarray, rate: float) -> Threshold:
    threshold = _least(nearest, rate)
    hit = (nearest >= threshold).astype(np.float64)
    interval = patient_bootstrap(lambda weights: float(np.dot(hit, weights) / weights.sum()), patient)
    return _threshold(threshold, rate, interval, len(np.unique(patient)), len(nearest), None)


def _threshold(
    similarity: float, rate: float, found: Interval, patients: int, observations: int, caught: float | None
) -> Threshold:
    found = with_exact_bounds(found, patients)
    return Threshold(similarity, rate, found.value, found.low, found.high, patients, observations, caught)
