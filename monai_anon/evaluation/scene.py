"""What every measurement shares: the three parts, the judges, the budget, and rows with their intervals.

A measurement is a function of a `Subject` and a `Scene` that returns rows. It draws no random number of its own beside
the scene's seed, so that the same subject in the same scene gives the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from monai_anon.evaluation import galleries, metrics
from monai_anon.evaluation.judge_training import SCHEDULE, JudgeSchedule
from monai_anon.evaluation.judges import Judges, quality, verdict
from monai_anon.evaluation.people import KNOWN_PEOPLE, OUTSIDE, codes_among
from monai_anon.evaluation.subjects import Anonymise, Subject, release
from monai_anon.evaluation.tables import JUDGES, Row

if TYPE_CHECKING:
    import pandas as pd

    from monai_anon.cohort import Cohort

Array = np.ndarray
RELEASES = 4


@dataclasses.dataclass(frozen=True)
class Released:
    """A part of a cohort and what the anonymizer made of it: uint8 images (N, C, S, S), image i of image i."""

    cohort: Cohort
    images: Tensor


class Scene:
    """The data, the judges and the means of every measurement, the same for every subject.

    Args:
        training, validation, test: parts of one manifest; what learns, learns on the first, and stops by the second
            where there is one. Figures are of the third, whose patients nobody has seen, unless the set is closed.
        judges: trained on real training images.
        steps: budget of every attacker and of everything else that is trained to measure, in batches.
        schedule: how they are trained; `steps` replaces its `verifier_steps`, and bounds its `medical_steps`.
        seed: of releases, attackers and draws.
        n_bootstrap: draws of patients behind every interval.
        progress: show bars.
        turns: releases of each image by a subject that draws anew each time.
        closed_set: people are the same in all parts, by their entries' names; judges and attackers then know the test
            people by other images.
    """

    def __init__(
        self,
        training: Cohort,
        validation: Cohort | None,
        test: Cohort,
        judges: Judges,
        *,
        steps: int = 400,
        schedule: JudgeSchedule = SCHEDULE,
        seed: int = 0,
        n_bootstrap: int = 1000,
        device: str | torch.device = "cpu",
        progress: bool = True,
        closed_set: bool = False,
        turns: int = RELEASES,
    ) -> None:
        self.training, self.validation, self.test, self.judges = training, validation, test, judges
        self.schedule = dataclasses.replace(
            schedule, verifier_steps=steps, medical_steps=min(steps, schedule.medical_steps)
        )
        self.steps, self.seed, self.n_bootstrap = steps, seed, n_bootstrap
        self.device, self.progress, self.turns = torch.device(device), progress, turns
        self.patients, self.closed_set = test.patient.numpy(), closed_set
        self.known = codes_among(training, test) if closed_set else np.full(len(test), OUTSIDE, dtype=np.int64)
        """The training part's codes (N,) of the test images' people; `OUTSIDE` for who is not in training."""
        self.factors: dict[str, pd.DataFrame] | None = None
        """Exact factors of every part (one row an image), where the cohort is generated."""
        self.memo: dict[str, Any] = {}
        """What measurements keep for the next subject, such as a regressor trained on real images."""
        self.curves: list[dict[str, Any]] = []
        """ROC curves that the measurement under way has left behind, for figures."""
        self.quality = quality(judges, test, n_bootstrap=n_bootstrap, seed=seed)
        self.silence = verdict(self.quality.get("verification_auc"))
        """Why no privacy figure may be given here; empty where it may."""
        self._released: dict[tuple[Anonymise, str, int], Released] = {}

    def released(self, subject: Subject, part: str, turn: int = 0) -> Released:
        """What the subject makes of a part ("training", "validation", "test"); other turns are other releases."""
        key = (subject.anonymise, part, turn)
        if key not in self._released:
            cohort = getattr(self, part)
            seed = 3 * (self.seed * 1_000_003 + turn) + ("training", "validation", "test").index(part)
            self._released[key] = Released(cohort, release(subject.anonymise, cohort.images, seed))
        return self._released[key]

    def part(self, name: str) -> Cohort | None:
        """The part of that name; None where there is no validation part."""
        found: Cohort | None = {"training": self.training, "validation": self.validation, "test": self.test}[name]
        return found

    def vectors(self, name: str) -> Array:
        """The verifier's embeddings (N, 128) of a part's real images."""
        key = f"vectors of {name}"
        if key not in self.memo:
            self.memo[key] = self.judges.embed(getattr(self, name).images)
        found: Array = self.memo[key]
        return found

    def title(self, text: str) -> str | None:
        """What a progress bar is called; None for no bar."""
        return text if self.progress else None

    def releases(self, subject: Subject, part: str) -> list[Released]:
        """`turns` releases of a part; one alone of a subject whose releases are the same pixels.

        One release is one draw of synthetic identities: the AUC of an attack moves by .03 from one to the next.
        """
        turns = 1 if self.repeats(subject) else self.turns
        return [self.released(subject, part, turn) for turn in range(turns)]

    def repeats(self, subject: Subject) -> bool:
        """Whether the subject's releases are the same pixels whatever the seed, as far as some test images tell."""
        one, other = (release(subject.anonymise, self.test.images[:64], seed) for seed in (1, 2))
        return torch.equal(one, other)

    def forget(self, subject: Subject) -> None:
        """Free the memory of a subject's releases."""
        kept = {key: value for key, value in self._released.items() if key[0] is not subject.anonymise}
        self._released = kept

    @property
    def people(self) -> int:
        """Patients of the test part."""
        return len(np.unique(self.patients))

    # ---- rows ----

    def quality_rows(self) -> list[Row]:
        """The judges' own figures on untouched test images; the first tells why there is no verdict."""
        rows = [Row(JUDGES, self.test.name, name, *found, seed=self.seed) for name, found in self.quality.items()]
        if self.closed_set:
            inside = len(np.unique(self.known[self.known != OUTSIDE])) / self.people
            rows.append(Row(JUDGES, self.test.name, KNOWN_PEOPLE, inside, n=self.people, seed=self.seed))
        return [dataclasses.replace(rows[0], note=self.silence), *rows[1:]]

    def row(
        self,
        subject: Subject,
        metric: str,
        statistic: metrics.Statistic,
        *,
        patients: Array | None = None,
        n: int | None = None,
        note: str = "",
    ) -> Row:
        """One figure with its interval: a statistic of image weights (N,) over `patients` (default: the test part's).

        A statistic that is undefined on the whole set gives a row without a value, whose note says so.
        """
        patients = self.patients if patients is None else patients
        try:
            found = metrics.patient_bootstrap(statistic, patients, self.n_bootstrap, self.seed)
        except ValueError as error:
            return self.silent(subject, metric, f"not measured: {error}")
        return self.plain(subject, metric, *found[:3], n=found.n if n is None else n, note=note)

    def mean(
        self, subject: Subject, metric: str, values: Array, *, patients: Array | None = None, note: str = ""
    ) -> Row:
        """The mean of one value an image; NaN is "not measurable on this image"."""
        values = np.asarray(values, dtype=np.float64)
        known = int((~np.isnan(values)).sum())
        if not known:
            return self.silent(subject, metric, "not measured: it can be told of no image")
        return self.row(
            subject, metric, lambda w: metrics.weighted_mean(values, w), patients=patients, n=known, note=note
        )

    def share(self, subject: Subject, metric: str, hits: Array, *, note: str = "") -> Row:
        """The mean of hits in [0, 1], one a test image; none at all, or all, has the exact bound over patients."""
        found = self.mean(subject, metric, hits, note=note)
        if found.value is None or found.ci_low is None or found.ci_high is None:
            return found
        bounds = metrics.Interval(found.value, found.ci_low, found.ci_high, found.n)
        exact = metrics.with_exact_bounds(bounds, self.people)
        return dataclasses.replace(found, ci_low=exact.low, ci_high=exact.high)

    def plain(
        self,
        subject: Subject,
        metric: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        *,
        n: int = 0,
        note: str = "",
    ) -> Row:
        """A figure that is known already."""
        return Row(
            subject.name, self.test.name, metric, value, low, high, n, self.seed, weights=subject.weights, note=note
        )

    def silent(self, subject: Subject, metric: str, why: str) -> Row:
        """A row without a value, and why."""
        return Row(subject.name, self.test.name, metric, None, seed=self.seed, weights=subject.weights, note=why)

    def person_rows(self, subject: Subject, prefix: str, similarities: Sequence[Array], note: str = "") -> list[Row]:
        """How well similarities (N, N) of released test image i to real (or released) image j link patients.

        Args:
            similarities: one for each release of the test part; every figure is the mean over them.

        Returns:
            `PREFIX_auc`, `PREFIX_eer`, `PREFIX_tar_at_far_10`, `PREFIX_tar_at_far_1` over all pairs of two images, and
            `PREFIX_rank_1` in a gallery of one image a patient.
        """
        first, second, same = metrics.claim_pairs(self.patients)
        if same.all() or not same.any():
            return [self.silent(subject, f"{prefix}_auc", "not measured: pairs of one patient and of two are needed")]
        scores = [similarity[first, second] for similarity in similarities]
        aucs = [metrics.pair_auc(score, first, second, same, self.patients) for score in scores]
        rocs = [metrics.WeightedRoc(score, same) for score in scores]
        of_pairs = metrics.pair_weights(first, second, self.patients)

        statistics = {"auc": lambda w: float(np.mean([auc(w) for auc in aucs]))} | _off_curves(rocs, of_pairs)
        rows = [self.row(subject, f"{prefix}_{name}", statistic, note=note) for name, statistic in statistics.items()]
        self.curves.append(_curve(subject.name, prefix, rocs, of_pairs(np.ones(len(self.patients)))))
        everyone = np.arange(len(self.patients))
        hits = [
            galleries.linkage_hits(similarity, self.patients, self.patients, everyone, seed=self.seed)[0]
            for similarity in similarities
        ]
        return [*rows, self.share(subject, f"{prefix}_rank_1", np.mean(hits, axis=0), note=note)]


def _off_curves(
    rocs: Sequence[metrics.WeightedRoc], of_pairs: Callable[[Array], Array]
) -> dict[str, metrics.Statistic]:
    """Means over curves, as statistics of image weights; one pass gives all three, which a bootstrap asks in turn."""
    known: dict[bytes, Array] = {}

    def statistic_at(place: int) -> metrics.Statistic:
        def statistic(weights: Array) -> float:
            key = weights.tobytes()
            if key not in known:
                pairs = of_pairs(weights)
                known[key] = np.mean([_rates(roc, pairs) for roc in rocs], axis=0)
            return float(known[key][place])

        return statistic

    return {name: statistic_at(place) for place, name in enumerate(("eer", "tar_at_far_10", "tar_at_far_1"))}


def _rates(roc: metrics.WeightedRoc, weights: Array) -> tuple[float, float, float]:
    """Equal error rate, true accepts at 10 % and at 1 % false accepts."""
    return roc.equal_error_rate(weights), roc.true_accepts(weights, 0.10), roc.true_accepts(weights, 0.01)


def _curve(method: str, attack: str, rocs: Sequence[metrics.WeightedRoc], weights: Array) -> dict[str, Any]:
    """The mean ROC curve of several releases, at 200 false accept rates."""
    far = np.linspace(0, 1, 200)
    tar = np.mean([np.interp(far, *roc.curve(weights)) for roc in rocs], axis=0)
    points = {"x": far.round(4).tolist(), "y": tar.round(4).tolist()}
    return {"attack": attack, "method": method, "x_label": "false accepts", "y_label": "true accepts"} | points


Measure = Callable[[Subject, Scene], Sequence[Row]]
