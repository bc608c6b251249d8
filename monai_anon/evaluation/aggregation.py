"""Rows of several runs as one set: training seeds joined, figures withheld without a verdict, the headline of a method.

Pure functions of rows. What may be said of privacy is decided here, on the judges' own rows, and fails closed: on a
cohort without a verdict every figure that is not known to be of content or realism loses its value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from monai_anon.evaluation.attacks.headline import LINKING_RANK
from monai_anon.evaluation.judges import verdict
from monai_anon.evaluation.metrics import Interval
from monai_anon.evaluation.tables import EXPERIMENTS, JUDGES, Row

REFERENCE = "none"
"""The method that releases the image itself: how well an attack works where nothing is hidden."""

PRIVACY_AUC = "privacy_auc"
PERSON_ATTACKS = (
    rf"{PRIVACY_AUC}|static_auc|adaptive_(\S+_)?auc|inversion_auc|repeated_(patient_)?\d+_auc|judge_original_auc"
)
"""Metrics whose distance from 0.5 says how well a patient is linked; the first is the strongest of the others."""
STATIC_ATTACK = "static_auc", "judge_original_auc"
"""The same attack by two measurements: P1 over several releases, and the paper's Table 3 over one."""
PRIVACY_RANK = "privacy_rank_1"
OF_ATTACKS = (
    rf"{PERSON_ATTACKS}|(privacy|static|adaptive|linkage|inversion|membership|repeated|attribute|probe|identification)_(?!\S*chance)\S+"
    r"|factor_id_\S+_r2|factors_identity_r2"
)
"""Metrics from which a criterion of anonymity can fail: P1 to P10, and the identity factors of a generated cohort."""

NAMES = {
    "static_auc|judge_original_auc": "static",
    "adaptive_auc": "adaptive",
    r"adaptive_(\S+)_auc": r"adaptive, \1",
    "inversion_auc": "inversion",
    r"repeated_(\d+)_auc": r"releases of an image: \1",
    r"repeated_patient_(\d+)_auc": r"released images of a patient: \1",
    "membership_nearest_auc": "nearest training patient",
    "membership_black_box_auc": "black box",
    "membership_vae_auc": "with the VAE's loss",
    "membership_reconstruction_auc": "by the reconstruction",
    "membership_pairs_auc": "by two images of a person",
    "membership_prior_auc": "by the channel's tables",
    "membership_identity_samples_auc": "by sampled identities",
    "membership_identity_nearest_auc": "sampled identities",
    r"attribute_(\S+)_auc": r"\1",
    "probe_(medical|residual)_patient_auc": r"\1 latent",
    "probe_identity_patient_auc": "identity latent",
    "static_rank_1": "static",
    r"adaptive_(\S+)_rank_1": r"adaptive, \1",
    "inversion_rank_1": "inversion",
    "identification_accuracy": "training people",
    "linkage_rank_1": "all test patients",
    r"linkage_(\d+)_rank_1": r"\1 patients",
}
"""What an attack's figure is called in a sentence, by its metric."""

WITHOUT_PERSONS = (
    r"ssim_\w+|psnr_\w+|fid|kid|precision|recall|density|coverage|retrieval_\w+|outside_evidence_\w+"
    r"|(judge|own)_finding_\w+|judge_(side|severity)_\w+|trained_on_released_\w+|factors_(medical|residual)_r2"
    r"|(channel|code_\d+)_\w+"
)
"""Metrics that say nothing of persons, and are given without a verdict as well."""


@dataclasses.dataclass(frozen=True)
class Headline:
    """What comes first about a method.

    Args:
        privacy: AUC of the strongest attack on persons; its note names the attack. None where none has a value.
        leakage: the same as ``|AUC - 0.5|``, the mean of the seeds' own.
        adaptive: the strongest was chosen among attackers that learned from released images, too.
        finding: AUC of the medical judge on released images.
        rank: rank-1 of the strongest attack by that measure.
        static: AUC of the static attack alone, which every method can be compared by.
        seeds: the strongest attack on each training seed.
        telling: the strongest of those attacks on each training seed whose interval leaves out 0.5.
    """

    method: str
    dataset: str
    privacy: Row | None
    leakage: Row | None
    adaptive: bool
    finding: Row | None
    rank: Row | None = None
    static: Row | None = None
    seeds: Sequence[Row] = ()
    telling: Sequence[Row] = ()

    @property
    def worst(self) -> Row | None:
        """The strongest attack on the training seed that leaks most."""
        return max(self.seeds, key=lambda row: _distance(row.value), default=None)


def aggregate(rows: Iterable[Row]) -> list[Row]:
    """One row a (method, dataset, metric): training seeds, told apart by their weights, are joined.

    The value is the mean of the seeds' (measurements of one seed are averaged first), the interval goes from the lowest
    lower to the highest upper bound, ``seeds`` counts them, and the note says so. The judges belong to no training seed
    of what they judge: equal rows of theirs are one.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.dataset, row.metric), []).append(row)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Row]) -> Row:
    first, judges = group[0], group[0].method == JUDGES
    distinct = {("" if judges else row.weights, row.value, row.ci_low, row.ci_high): row for row in reversed(group)}
    if len(distinct) == 1:
        return first
    rows = [row for row in group if row in distinct.values()]
    by_weights: dict[str, list[Row]] = {}
    for row in rows:
        by_weights.setdefault("" if judges else row.weights, []).append(row)
    means = [
        fmean(known) for same in by_weights.values() if (known := [row.value for row in same if row.value is not None])
    ]
    measured = [row for row in rows if row.value is not None]
    bounded = any(row.ci_low is not None or row.ci_high is not None for row in measured)
    what = "training seeds" if len(by_weights) > 1 else "measurements"
    notes = [f"mean of {len(means) if len(by_weights) > 1 else len(rows)} {what}"] if means else []
    if len(turns := dict.fromkeys(row.seed for row in rows)) > 1:
        notes.append(f"measured with the seeds {', '.join(map(str, turns))}")
    if means and len(means) < len(by_weights):
        notes.append(f"{len(by_weights) - len(means)} of {len(by_weights)} seeds not measured")
    return dataclasses.replace(
        first,
        value=fmean(means) if means else None,
        ci_low=min(_or_value(row.ci_low, row) for row in measured) if bounded else None,
        ci_high=max(_or_value(row.ci_high, row) for row in measured) if bounded else None,
        n=min(row.n for row in measured or rows),
        weights=" ".join(name for name in by_weights if name),
        revision=" ".join(name for name in dict.fromkeys(row.revision for row in rows) if name),
        note="; ".join(dict.fromkeys([*notes, *(row.note for row in rows if row.note)])),
        images_seen=max(row.images_seen for row in rows),
        seeds=sum(max(row.seeds for row in same) for same in by_weights.values()),
    )


def _or_value(bound: float | None, row: Row) -> float:
    found = row.value if bound is None else bound
    assert found is not None
    return found


def silences(rows: Sequence[Row]) -> dict[str, str]:
    """Why nothing may be said of privacy: data set -> reason, for those without a verdict only.

    Where runs bring several judges, the weakest decides.
    """
    found = {}
    for dataset in dict.fromkeys(row.dataset for row in rows):
        judged = [row for row in rows if row.dataset == dataset and row.method == JUDGES]
        values = [row.value for row in judged if row.metric == "verification_auc" and row.value is not None]
        if not judged:
            reason = "no verdict: the judges' own quality was not measured"
        else:
            reason = verdict(Interval(min(values), 0.0, 1.0, len(values)) if values else None)
        if reason:
            found[dataset] = reason
    return found


def withheld(rows: Iterable[Row], silence: dict[str, str]) -> list[Row]:
    """The rows, without values where their data set has no verdict and they may speak of persons."""
    return [
        dataclasses.replace(row, value=None, ci_low=None, ci_high=None, note=silence[row.dataset])
        if row.dataset in silence and row.method != JUDGES and about_persons(row.metric)
        else row
        for row in rows
    ]


def about_persons(metric: str) -> bool:
    """Whether `withheld` takes the figure where there is no verdict."""
    return not re.fullmatch(WITHOUT_PERSONS, metric)


def is_experiment(method: str) -> bool:
    """Whether a method is one of Table 2's experiments, kept apart from those of other runs or not."""
    return method.partition(" [")[0] in EXPERIMENTS


def attacked(row: Row) -> bool:
    """Whether the row is an attack's figure, from which a criterion of anonymity can fail."""
    return row.value is not None and re.fullmatch(OF_ATTACKS, row.metric) is not None


def headlines(rows: Sequence[Row]) -> list[Headline]:
    """One a (data set, method) with any attack's figure or a finding AUC, from rows before `aggregate`."""
    of_method: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.method != JUDGES and not is_experiment(row.method):
            of_method.setdefault((row.dataset, row.method), []).append(row)
    found = ((_headline(same, *key), any(map(attacked, same))) for key, same in of_method.items())
    return [one for one, attack in found if attack or one.finding]


def _headline(rows: list[Row], dataset: str, method: str) -> Headline:
    persons = [row for row in rows if re.fullmatch(PERSON_ATTACKS, row.metric) and row.value is not None]
    persons.sort(key=lambda row: row.metric != PRIVACY_AUC)  # of equals the one whose note names the attack
    strongest = [_named(row) for row in _of_each_seed(persons, lambda row: _distance(row.value))]
    telling = _of_each_seed([row for row in persons if excludes(row, 0.5)], lambda row: _distance(row.value))
    ranks = [row for row in rows if _is_rank(row.metric) and row.value is not None]
    ranks.sort(key=lambda row: row.metric != PRIVACY_RANK)
    ranked = [dataclasses.replace(row, metric=PRIVACY_RANK) for row in _of_each_seed(ranks, lambda row: row.value or 0)]
    finding = matching((row for row in rows if row.value is not None), "judge_finding_auc")
    static = next((found for metric in STATIC_ATTACK if (found := matching(persons, metric))), [])
    return Headline(
        method,
        dataset,
        privacy=_both_sides(_joined(strongest), strongest) if strongest else None,
        leakage=_joined([leakage(row) for row in strongest]) if strongest else None,
        adaptive=any(re.match("adaptive_|repeated_", row.metric) for row in persons),
        finding=_joined(finding) if finding else None,
        rank=_joined(ranked) if ranked else None,
        static=_joined(static) if static else None,
        seeds=strongest,
        telling=[_named(row) for row in telling],
    )


def _of_each_seed(rows: Sequence[Row], strength: Callable[[Row], float]) -> list[Row]:
    """The strongest row of each training seed; of equals the first."""
    by_weights: dict[str, list[Row]] = {}
    for row in rows:
        by_weights.setdefault(row.weights, []).append(row)
    return [max(same, key=strength) for same in by_weights.values()]


def _is_rank(metric: str) -> bool:
    return metric == PRIVACY_RANK or LINKING_RANK.fullmatch(metric) is not None


def _both_sides(joined: Row, seeds: Sequence[Row]) -> Row:
    """Seeds above and below chance have a mean that looks like chance: the note says so."""
    values = [row.value for row in seeds if row.value is not None]
    if not min(values) < 0.5 < max(values):
        return joined
    return dataclasses.replace(joined, note=f"{joined.note}; training seeds lie on both sides of chance")


def _named(row: Row) -> Row:
    """A person attack as the headline, whose note names the attack."""
    noted = row.note.removeprefix("strongest: ") if row.metric == PRIVACY_AUC else ""
    return dataclasses.replace(row, metric=PRIVACY_AUC, note=attack_name(noted or row.metric))


def attack_name(metric: str) -> str:
    """What a metric is called in a sentence; itself where nothing else is known."""
    found = (re.sub(pattern, name, metric) for pattern, name in NAMES.items() if re.fullmatch(pattern, metric))
    return next(found, metric)


def leakage(row: Row) -> Row:
    """An AUC as its distance from chance: 0 is chance, 0.5 certainty, in either direction.

    Its interval holds the distances of all AUCs of the AUC's interval.
    """
    ends = [bound for bound in (row.ci_low, row.ci_high) if bound is not None]
    low = high = None
    if len(ends) == 2:
        low = 0.0 if ends[0] <= 0.5 <= ends[1] else min(map(_distance, ends))
        high = max(map(_distance, ends))
    value = None if row.value is None else _distance(row.value)
    return dataclasses.replace(row, metric="leakage", value=value, ci_low=low, ci_high=high)


def excludes(row: Row, value: float) -> bool:
    """Whether the interval leaves a value out; never where there is no interval."""
    return row.ci_low is not None and row.ci_high is not None and not row.ci_low <= value <= row.ci_high


def _distance(auc: float | None) -> float:
    return 0.0 if auc is None else abs(auc - 0.5)


def matching(rows: Iterable[Row], pattern: str) -> list[Row]:
    """The rows whose whole metric fits a regular expression."""
    return [row for row in rows if re.fullmatch(pattern, row.metric)]
