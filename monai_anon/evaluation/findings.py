"""How well readings of the finding, its side and its severity agree with the truth: figures of image weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from monai_anon.evaluation import metrics
from monai_anon.evaluation.judge_networks import severities, side_codes

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

Array = np.ndarray


class Truth(NamedTuple):
    """What images really show: finding (N,) class indices, side (N,) codes or -1, severity (N,) in [0, 1] or NaN."""

    finding: Array
    side: Array
    severity: Array

    @classmethod
    def of(cls, cohort: Cohort, sides: list[str]) -> Truth:
        """As the cohort's entries say; ``sides`` gives the codes."""
        return cls(cohort.finding.numpy(), side_codes(cohort, sides), severities(cohort))


class Figure(NamedTuple):
    """A statistic of image weights, and the number of images behind it."""

    statistic: metrics.Statistic
    n: int


def finding_figures(
    read: tuple[Array, Array, Array], truth: Truth, untouched: Array | None = None
) -> dict[str, Figure]:
    """How well readings agree with the truth: `finding_auc`, `finding_accuracy`, and where the truth is stated
    `side_accuracy`, `severity_correlation` (images with the finding) and `severity_correlation_all`.

    Args:
        read: finding probabilities (N, K), side scores (N, S), severity (N,), as `Judges.read` gives them.
        untouched: (N,) class read from the originals; adds `finding_agreement` and `finding_accuracy_change`.
    """
    probabilities, side_scores, severity = read
    predicted = probabilities.argmax(axis=1)
    right = (predicted == truth.finding).astype(np.float64)
    figures = {"finding_accuracy": _mean(right)}
    if len(np.unique(truth.finding)) > 1:
        figures = {"finding_auc": Figure(metrics.finding_auc(probabilities, truth.finding), len(right))} | figures
    if untouched is not None:
        figures["finding_agreement"] = _mean(predicted == untouched)
        figures["finding_accuracy_change"] = _mean(right - (untouched == truth.finding))
    if (truth.side >= 0).any() and side_scores.shape[1]:
        figures["side_accuracy"] = _mean(np.where(truth.side >= 0, side_scores.argmax(axis=1) == truth.side, np.nan))
    for which, chosen in (("", truth.severity > 0), ("_all", ~np.isnan(truth.severity))):
        if chosen.sum() > 1:
            figures[f"severity_correlation{which}"] = _correlation(severity, truth.severity, chosen)
    return figures


def _mean(values: Array) -> Figure:
    values = np.asarray(values, dtype=np.float64)
    return Figure(lambda weights: metrics.weighted_mean(values, weights), int((~np.isnan(values)).sum()))


def _correlation(read: Array, true: Array, chosen: Array) -> Figure:
    def statistic(weights: Array) -> float:
        return metrics.severity_correlation(read[chosen], true[chosen], weights[chosen])

    return Figure(statistic, int(chosen.sum()))
