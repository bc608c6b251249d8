"""What may and may not be concluded, computed from rows: the three criteria by which European law calls data anonymous.

Singling out, linkability and inference are those of the Article 29 Working Party's Opinion 05/2014 on anonymisation
techniques (WP 216, section 2). An attack can show that a criterion fails; none can show that it holds, since a stronger
attack may come. So an outcome is "fails", "open" or "not distinguishable from chance", never "anonymous", and an attack
that was not run leaves its criterion open.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from monai_anon.evaluation.aggregation import REFERENCE, Headline, attack_name, leakage, matching
from monai_anon.evaluation.tables import JUDGES, Row

Outcome = Literal["fails", "open", "chance"]
WORDS: dict[Outcome, str] = {"fails": "fails", "open": "open", "chance": "not distinguishable from chance"}


@dataclasses.dataclass(frozen=True)
class Check:
    """What one attack says of one criterion, in a sentence."""

    attack: str
    outcome: Outcome
    sentence: str


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One criterion for one method: the question, what each attack says, and what follows."""

    name: str
    question: str
    checks: Sequence[Check]
    outcome: Outcome
    sentence: str


@dataclasses.dataclass(frozen=True)
class AucAttack:
    """An attack that is at chance at 0.5.

    Args:
        pattern: its metrics, as a regular expression.
        found: what the attacker does where it succeeds.
        reference: the same metrics of `none` must be above chance, else the attack is too weak to say anything.
    """

    name: str
    pattern: str
    found: str
    reference: bool = True


STATIC = AucAttack("static attack (P1)", "static_auc|judge_original_auc", "links images to patients")
ADAPTIVE = AucAttack("adaptive attack (P2)", r"adaptive_(\S+_)?auc", "links images to patients")
INVERSION = AucAttack("inversion (P4)", "inversion_auc", "restores images that link to patients")
REPEATED = AucAttack(
    "repeated release (P6)", r"repeated_(patient_)?\d+_auc", "links patients by several of their released images"
)
MEMBERSHIP = AucAttack(
    "membership inference (P5)", r"membership_\w+_auc", "tells whose images the anonymizer was trained on", False
)
ATTRIBUTES = AucAttack("attribute inference (P7)", r"attribute_(\S+_)?auc", "reads attributes of the person")
PROBES = AucAttack(
    "latent probes (P8)", "probe_(medical|residual)_patient_auc", "links patients by the latents that pass", False
)


def privacy_line(one: Headline) -> str:
    """What the strongest attack found, with the words that its interval allows."""
    row = one.privacy
    if row is None:
        return "no attack on persons was run, so nothing is said of privacy"
    found = f"strongest attack ({row.note}): AUC {figure(row)}"
    if not _bounded(row):
        return f"{found}, without an interval, so nothing follows from it"
    if _excludes(row, 0.5):
        return f"{found}, which links {'above' if (row.value or 0.0) > 0.5 else 'below'} chance: not anonymous"
    return f"{found}, not distinguishable from chance with this attacker and this budget"


def criteria(rows: Sequence[Row], method: str, dataset: str) -> list[Criterion]:
    """The three criteria for one method on one data set, from rows after `aggregate`."""
    rows = [row for row in rows if row.dataset == dataset]
    ours = [row for row in rows if row.method == method]
    reference = [row for row in rows if row.method == REFERENCE]

    def auc(*attacks: AucAttack) -> list[Check]:
        return [auc_check(attack, ours, reference) for attack in attacks]

    factors = matching(ours, "factors_identity_r2")
    return [
        _criterion(
            "Singling out",
            "Can one person be picked out of a group by a released image?",
            [linkage_check(rows, method), *auc(INVERSION)],
        ),
        _criterion(
            "Linkability",
            "Can two records of one person be told to belong together?",
            auc(STATIC, ADAPTIVE, REPEATED),
        ),
        _criterion(
            "Inference",
            "Can something about a person be deduced from a released image or from the anonymizer?",
            [*auc(MEMBERSHIP, ATTRIBUTES, PROBES), *([factor_check(factors)] if factors else [])],
        ),
    ]


def _criterion(name: str, question: str, checks: list[Check]) -> Criterion:
    failed = [check.attack for check in checks if check.outcome == "fails"]
    undecided = [check.attack for check in checks if check.outcome == "open"]
    if failed:
        sentence = f"Not at chance: {_and(failed)}. By this criterion the release is not anonymous."
        return Criterion(name, question, checks, "fails", sentence)
    if undecided:
        sentence = f"No attack that was run and decided is above chance, but {_and(undecided)} left this open."
        return Criterion(name, question, checks, "open", sentence)
    sentence = (
        "No attack was distinguishable from chance with this attacker and this budget. That is no proof: a stronger "
        "attacker may do better."
    )
    return Criterion(name, question, checks, "chance", sentence)


def auc_check(attack: AucAttack, ours: Sequence[Row], reference: Sequence[Row]) -> Check:
    """Whether any interval of the attack leaves out 0.5, on either side."""
    rows = matching(ours, attack.pattern)
    measured = [row for row in rows if row.value is not None]
    if not measured:
        return _silent(attack.name, rows)
    strongest = max(measured, key=lambda row: leakage(row).value or 0.0)
    telling = [row for row in measured if _excludes(row, 0.5)]
    if telling:
        strongest = max(telling, key=lambda row: leakage(row).value or 0.0)
        side = "below chance, which tells as much" if (strongest.value or 0.0) < 0.5 else "above chance"
        untouched = next((row for row in reference if row.metric == strongest.metric and row.value is not None), None)
        beside = "" if untouched is None or untouched in ours else f"; on untouched images {figure(untouched)}"
        which = attack_name(strongest.metric)
        return Check(attack.name, "fails", f"{attack.found}: AUC {figure(strongest)}, {side} ({which}){beside}.")
    if any(not _bounded(row) for row in measured):
        return Check(attack.name, "open", f"AUC {figure(strongest)} has no interval, so nothing follows from it.")
    if attack.reference and (weak := _powerless(measured, reference)):
        return Check(attack.name, "open", weak)
    reach = max(leakage(row).ci_high or 0.0 for row in measured)
    return Check(
        attack.name,
        "chance",
        f"was not distinguishable from chance: AUC {figure(strongest)}; its intervals leave room for up to "
        f"{0.5 + reach:.3f}.",
    )


def _powerless(measured: Sequence[Row], reference: Sequence[Row]) -> str:
    """Why the attack says nothing although it finds nothing; empty where it works on untouched images."""
    names = {row.metric for row in measured}
    untouched = [row for row in reference if row.metric in names and row.value is not None and _bounded(row)]
    if not untouched:
        return f"finds nothing, but was not tried on untouched images ({REFERENCE}), so its strength is unknown."
    if not any(_excludes(row, 0.5) for row in untouched):
        best = max(untouched, key=lambda row: row.value or 0.0)
        return f"finds nothing on untouched images either (AUC {figure(best)}): too weak to conclude from."
    return ""


def linkage_check(rows: Sequence[Row], method: str) -> Check:
    """Whether the right patient of a gallery comes first more often than by chance, in a gallery of any size."""
    name = "linkage in a gallery (P3)"
    ours = [row for row in rows if row.method == method]
    ranks = matching(ours, r"linkage_(\d+_)?rank_1")
    measured = [row for row in ranks if row.value is not None]
    if not measured:
        return _silent(name, ranks)
    judged = [(row, _chance(row, rows, ours)) for row in measured]
    for row, chance in judged:
        if chance is not None and _excludes(row, chance):
            side = "above" if (row.value or 0.0) > chance else "below"
            return Check(
                name,
                "fails",
                f"picks out the patient in {figure(row)} of cases; {chance:.3f} is chance, this is {side} it "
                f"({attack_name(row.metric)}).",
            )
    if any(chance is None or not _bounded(row) for row, chance in judged):
        return Check(name, "open", f"comes first in {figure(measured[0])} of cases; chance or interval is not known.")
    row, chance = judged[0]
    return Check(
        name, "chance", f"was not distinguishable from chance: {figure(row)} of cases; chance is {chance:.3f}."
    )


def _chance(row: Row, rows: Sequence[Row], ours: Sequence[Row]) -> float | None:
    """The share of right answers of a guess in the gallery of a linkage figure."""
    size = re.fullmatch(r"linkage_(\d+)_rank_1", row.metric)
    known = (
        matching(ours, f"linkage_{size[1]}_chance")
        if size
        else [*matching(ours, "linkage_chance"), *matching((r for r in rows if r.method == JUDGES), "rank_1_chance")]
    )
    return next((found.value for found in known if found.value is not None), None)


def factor_check(rows: Sequence[Row]) -> Check:
    """Whether the identity factors of a generated cohort can still be regressed from released images."""
    name = "identity factors (generated cohort)"
    row = rows[0]
    if row.value is None:
        return _silent(name, rows)
    if row.ci_low is None:
        return Check(name, "open", f"R² {figure(row)} has no interval, so nothing follows from it.")
    if row.ci_low > 0:
        return Check(name, "fails", f"can still be read from released images: R² {figure(row)}.")
    return Check(name, "chance", f"could not be read from released images by this regressor: R² {figure(row)}.")


def figure(row: Row) -> str:
    """A value with its 95 % interval, in running text."""
    if row.value is None:
        return "not measured"
    return f"{row.value:.3f} ({row.ci_low:.3f} to {row.ci_high:.3f})" if _bounded(row) else f"{row.value:.3f}"


def _silent(attack: str, rows: Sequence[Row]) -> Check:
    why = next((row.note for row in rows if row.note), "")
    return Check(attack, "open", f"gave no figure ({why})." if rows and why else "was not run.")


def _bounded(row: Row) -> bool:
    return row.ci_low is not None and row.ci_high is not None


def _excludes(row: Row, value: float) -> bool:
    return row.ci_low is not None and row.ci_high is not None and not row.ci_low <= value <= row.ci_high


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
