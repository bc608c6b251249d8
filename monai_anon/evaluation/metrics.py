"""The figures of the evaluation: pure functions of scores and labels that know nothing of the model they judge.

Every figure takes optional ``weights``, one an observation, so that `patient_bootstrap` resamples patients by
weighting their images, without copying anything. Scores are similarities: larger means more alike.
A blind judge scores chance (0.5, 1/N, 0), never "not a number"; a perfect one scores 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics import SSIMMetric
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score, roc_curve

Array = np.ndarray
Statistic = Callable[[Array], float]


class Interval(NamedTuple):
    """A measured value, its confidence bounds, and the number of observations behind it."""

    value: float
    low: float
    high: float
    n: int


# ---- the same person or not: pairs of images ----


def verification_auc(scores: Array, same: Array, weights: Array | None = None) -> float:
    """Area under the ROC curve of "same patient" by similarity, in [0, 1]; ``scores``, ``same`` are (P,)."""
    same = _both_kinds(same)
    return float(roc_auc_score(same, np.asarray(scores), sample_weight=weights))


def equal_error_rate(scores: Array, same: Array, weights: Array | None = None) -> float:
    """Rate at which false accepts and false rejects are equal, in [0, 1] (interpolated on the ROC curve)."""
    far, tar, _ = roc_curve(_both_kinds(same), np.asarray(scores), sample_weight=weights, drop_intermediate=False)
    gap = far - (1.0 - tar)  # rises from -1 to 1 along the curve
    return float(np.interp(0.0, gap, far))


def equal_error_threshold(scores: Array, same: Array) -> float:
    """The similarity from which on two images count as one patient when both kinds of error weigh the same."""
    far, tar, thresholds = roc_curve(_both_kinds(same), np.asarray(scores), drop_intermediate=False)
    finite = np.isfinite(thresholds)
    return float(thresholds[finite][np.argmin(np.abs(far - (1.0 - tar))[finite])])


def tar_at_far(scores: Array, same: Array, far: float, weights: Array | None = None) -> float:
    """Share of same-patient pairs accepted at the threshold that accepts at most ``far`` of the others."""
    false_accepts, true_accepts, _ = roc_curve(
        _both_kinds(same), np.asarray(scores), sample_weight=weights, drop_intermediate=False
    )
    return float(true_accepts[false_accepts <= far + 1e-12].max())


class WeightedAuc:
    """`verification_auc` of fixed scores under many weightings: sorts once, then one pass a weighting.

    Equal to scikit-learn's with ``sample_weight`` (see the tests); exists because a bootstrap asks a thousand times.
    """

    def __init__(self, scores: Array, positive: Array) -> None:
        scores, positive = np.asarray(scores, dtype=np.float64), _both_kinds(positive)
        negatives = np.flatnonzero(~positive)
        self._negatives = negatives[np.argsort(scores[negatives], kind="stable")]
        self._positives = np.flatnonzero(positive)
        ordered = scores[self._negatives]
        self._below = np.searchsorted(ordered, scores[self._positives], side="left")
        self._not_above = np.searchsorted(ordered, scores[self._positives], side="right")

    def __call__(self, weights: Array) -> float:
        """Area under the curve for ``weights`` (P,) >= 0; NaN where one of the two kinds has no weight at all."""
        return self.split(weights[self._positives], weights[self._negatives])

    def split(self, positive_weights: Array, negative_weights: Array) -> float:
        """The same for weights given in the order of `positives` and `negatives`."""
        won = np.concatenate([[0.0], np.cumsum(negative_weights, dtype=np.float64)])
        total = positive_weights.sum(dtype=np.float64) * won[-1]
        if total == 0:
            return float("nan")
        return float(np.dot(positive_weights, won[self._below] + won[self._not_above]) / (2.0 * total))

    @property
    def positives(self) -> Array:
        """Indices of the positive observations."""
        return self._positives

    @property
    def negatives(self) -> Array:
        """Indices of the others, by rising score."""
        return self._negatives


def pair_auc(scores: Array, first: Array, second: Array, same: Array, patients: Array) -> Statistic:
    """AUC of image pairs as a statistic of image weights, for `patient_bootstrap`.

    A pair within one patient counts as often as the patient was drawn; a pair of two patients as often as both were.

    Args:
        scores: (P,) similarity of image ``first[p]`` and image ``second[p]``.
        same: (P,) what the AUC separates (for swapped images not always equal patients).
        patients: (N,) patient of every image.
    """
    auc = WeightedAuc(scores, same)
    first, second, patients = np.asarray(first), np.asarray(second), np.asarray(patients)
    within = patients[first] == patients[second]
    parts = [(first[part], second[part], within[part]) for part in (auc.positives, auc.negatives)]

    def statistic(weights: Array) -> float:
        weighted = [weights[i] * np.where(inside, 1.0, weights[j]) for i, j, inside in parts]
        return auc.split(weighted[0], weighted[1])

    return statistic


class WeightedRoc:
    """The ROC curve of fixed scores under many weightings: sorts once, then one pass a weighting.

    Equal to scikit-learn's with ``sample_weight`` (see the tests); exists because a bootstrap asks a thousand times.
    """

    def __init__(self, scores: Array, positive: Array) -> None:
        positive, scores = _both_kinds(positive), np.asarray(scores, dtype=np.float64)
        self._order = np.argsort(-scores, kind="stable")
        self._positive = positive[self._order]
        falling = scores[self._order]
        self._last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)  # of equal scores

    def curve(self, weights: Array) -> tuple[Array, Array]:
        """False and true accept rates (T + 1,) from "nobody" to "everybody"; NaN where one kind has no weight."""
        weights = np.asarray(weights, dtype=np.float64)[self._order]
        rates = []
        for counted in (~self._positive, self._positive):
            total = np.cumsum(np.where(counted, weights, 0.0))
            with np.errstate(invalid="ignore"):
                rates.append(np.append(0.0, total[self._last]) / total[-1])
        return rates[0], rates[1]

    def equal_error_rate(self, weights: Array) -> float:
        """`equal_error_rate`; NaN where one kind has no weight."""
        far, tar = self.curve(weights)
        return float(np.interp(0.0, far + tar - 1.0, far)) if np.isfinite(far[-1] + tar[-1]) else float("nan")

    def true_accepts(self, weights: Array, far: float) -> float:
        """`tar_at_far`; NaN where one kind has no weight."""
        false_accepts, true_accepts = self.curve(weights)
        if not np.isfinite(false_accepts[-1] + true_accepts[-1]):
            return float("nan")
        return float(true_accepts[false_accepts <= far + 1e-12].max())


def pair_weights(first: Array, second: Array, patients: Array) -> Callable[[Array], Array]:
    """Weights (P,) of image pairs from those of images (N,): a pair within one patient counts as often as the patient
    was drawn, one of two patients as often as both were.
    """
    first, second, patients = np.asarray(first), np.asarray(second), np.asarray(patients)
    within = patients[first] == patients[second]
    return lambda weights: weights[first] * np.where(within, 1.0, weights[second])


def claim_pairs(
    patients: Array, claimed: Array | None = None, used: Array | None = None, left_out: Array | None = None
) -> tuple[Array, Array, Array]:
    """Every (generated image i, real image j) to compare when image i claims to show a patient.

    Args:
        patients: (N,) patient of real image j, and of the image that query i was made from.
        claimed: (N,) the patient that query i is compared with (default: its own).
        used: (N,) the real image that may not be compared with query i, because i was made from it (default: i).
        left_out: (N,) a patient whose images are neither right nor wrong for query i (default: none).

    Returns:
        ``i`` (P,), ``j`` (P,) and whether ``j`` shows the claimed patient (P,).
    """
    patients = np.asarray(patients)
    claimed = patients if claimed is None else np.asarray(claimed)
    used = np.arange(len(patients)) if used is None else np.asarray(used)
    compare = np.ones((len(patients), len(patients)), dtype=bool)
    compare[np.arange(len(patients)), used] = False
    if left_out is not None:
        compare &= patients[None, :] != np.asarray(left_out)[:, None]
    first, second = np.nonzero(compare)
    return first, second, patients[second] == claimed[first]


def squared_distance(a: Array, b: Array) -> Array:
    """Mean squared difference over the latent's dimensions: (..., D), (..., D) -> (...)."""
    return np.mean((np.asarray(a) - np.asarray(b)) ** 2, axis=-1)


def hit_rate(distances: Array, threshold: float, weights: Array | None = None) -> float:
    """Share of ``distances`` below ``threshold``: the paper's "accuracy" of a Siamese recogniser (section 4.3)."""
    return weighted_mean(np.asarray(distances) < threshold, weights)


# ---- the finding ----


def accuracy(predicted: Array, finding: Array, weights: Array | None = None) -> float:
    """Share of right class indices."""
    return float(accuracy_score(finding, predicted, sample_weight=weights))


def f1(predicted: Array, finding: Array, num_classes: int, weights: Array | None = None) -> float:
    """F1 score of class 1 for two classes, unweighted mean over the classes for more; 0 where undefined."""
    labels = [1] if num_classes == 2 else list(range(num_classes))
    return float(f1_score(finding, predicted, labels=labels, average="macro", sample_weight=weights, zero_division=0))


def finding_auc(probabilities: Array, finding: Array) -> Statistic:
    """AUC of the finding as a statistic of image weights: class 1 of two, mean of one-against-rest for more.

    Args:
        probabilities: (N, K).
        finding: (N,) class indices. Classes that do not occur are left out of the mean.
    """
    finding, classes = (
        np.asarray(finding),
        range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1]),
    )
    curves = [
        WeightedAuc(probabilities[:, k], finding == k) for k in classes if 0 < (finding == k).sum() < len(finding)
    ]
    if not curves:
        raise ValueError("the AUC of a finding needs images of at least two classes")
    return lambda weights: float(np.mean([curve(weights) for curve in curves]))


def severity_correlation(predicted: Array, severity: Array, weights: Array | None = None) -> float:
    """Pearson correlation in [-1, 1]; 0 where one side is constant (a blind judge knows nothing)."""
    weights = np.ones(len(predicted)) if weights is None else weights
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(severity, dtype=np.float64)
    if weights.sum() == 0:
        return float("nan")
    x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    scale = np.sqrt(np.dot(weights, x * x) * np.dot(weights, y * y))
    return float(np.dot(weights, x * y) / scale) if scale > 1e-12 else 0.0


def weighted_mean(values: Array, weights: Array | None = None) -> float:
    """Mean of the known ``values`` (N,), NaN standing for "not measurable here"; NaN where no weight is left."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    if not known.all():
        values, weights = values[known], None if weights is None else weights[known]
    if weights is None:
        return float(values.mean())
    total = weights.sum()
    return float(np.dot(weights, values) / total) if total > 0 else float("nan")


# ---- the picture ----


def ssim(generated: torch.Tensor, reference: torch.Tensor) -> Array:
    """Structural similarity (Wang et al. 2004) of each image with its reference, both (B, C, H, W) in [-1, 1]: (B,)."""
    metric = SSIMMetric(spatial_dims=2, data_range=2.0, kernel_type="gaussian", win_size=11, reduction="none")
    with torch.no_grad():
        pairs = zip(generated.split(256), reference.split(256), strict=True)
        values = [torch.as_tensor(metric(a, b)).reshape(-1) for a, b in pairs]
    return torch.cat(values).cpu().numpy()


# ---- how sure are we ----


def patient_bootstrap(
    statistic: Statistic, patients: Array, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Value of a statistic and its percentile interval when *patients*, not images, are drawn with replacement.

    Args:
        statistic: (N,) weights of the images -> value; NaN where a draw leaves it undefined (that draw is skipped).
        patients: (N,) patient of every image, any hashable codes.
        n: number of draws; 0 returns the value alone, with itself as bounds.
        level: share of the draws inside the interval.

    Raises:
        ValueError: the statistic is undefined on the whole set.
    """
    patients = np.asarray(patients)
    value = statistic(np.ones(len(patients)))
    if not np.isfinite(value):
        raise ValueError(f"the statistic is {value} on all {len(patients)} images: nothing to resample")
    if n == 0:
        return Interval(value, value, value, len(patients))
    codes, count = np.unique(patients, return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(codes), np.full(len(codes), 1.0 / len(codes)), size=n)
    values = np.array([statistic(draw[count].astype(np.float64)) for draw in draws])
    tail = (1.0 - level) / 2.0
    low, high = np.nanquantile(values, [tail, 1.0 - tail])
    return Interval(float(value), float(low), float(high), len(patients))


def with_exact_bounds(found: Interval, patients: int, level: float = 0.95) -> Interval:
    """A proportion of 0 or 1, whose bootstrap has no width, with the bound of Clopper and Pearson (1934) over patients.

    Nobody of 130 found still allows 2.8 %.
    """
    if not found.low == found.high == found.value or found.value not in (0.0, 1.0):
        return found
    reach = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / patients)
    return found._replace(high=reach) if found.value == 0.0 else found._replace(low=1.0 - reach)


def _both_kinds(same: Array) -> Array:
    same = np.asarray(same).astype(bool)
    if same.all() or not same.any():
        raise ValueError(f"both kinds of pairs are needed; got {int(same.sum())} positive of {len(same)}")
    return same
