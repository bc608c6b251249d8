"""What one attack says of one criterion on one training seed: it finds something, it is too weak to tell, or neither.

A result at chance counts only where a positive control shows that the attack finds something where there is something
to find: the same attack on untouched images, or the same probe on the identity latent. Rows are those of one training
seed; `reference` holds those of `none`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from monai_anon.evaluation.aggregation import PRIVACY_RANK, REFERENCE, attack_name, excludes, leakage, matching
from monai_anon.evaluation.attacks.probes import NOT_PASSED
from monai_anon.evaluation.people import NOT_APPLICABLE
from monai_anon.evaluation.tables import JUDGES, Row

Outcome = Literal["fails", "sign", "open", "chance", "inapplicable"]
NARROW = 0.02
"""An interval that leaves out an AUC of 0.5 by less than this is a sign and no more."""
LEAST_HITS = 3.0
"""Fewer right answers by chance, or fewer beyond chance, are too few to tell one from the other."""
Control = Callable[[Sequence[Row]], str]
"""Why a result at chance says nothing, from the rows that gave it; empty where it does say something."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What one attack says of one criterion, in a sentence; ``strength`` orders the same attack's on several seeds."""

    attack: str
    outcome: Outcome
    sentence: str
    strength: float = 0.0


@dataclasses.dataclass(frozen=True)
class AucAttack:
    """An attack that is at chance at 0.5.

    Args:
        pattern: its metrics, as a regular expression.
        found: what the attacker does where it succeeds.
        above_only: a value below 0.5 tells the attacker nothing.
    """

    name: str
    pattern: str
    found: str
    above_only: bool = False


STATIC = AucAttack("static attack (P1)", "static_auc|judge_original_auc", "links images to patients")
ADAPTIVE = AucAttack("adaptive attack (P2)", r"adaptive_(\S+_)?auc", "links images to patients")
INVERSION = AucAttack("inversion (P4)", "inversion_auc", "restores images that link to patients")
REPEATED = AucAttack(
    "repeated release (P6)", r"repeated_(patient_)?\d+_auc", "links patients by several of their released images"
)
NEAREST = AucAttack(
    "nearest training patient (P5)",
    "membership_(identity_)?nearest_auc",
    "shows that releases look like training patients",
    True,
)
MEMBERSHIP = AucAttack(
    "membership inference (P5)",
    r"membership_(?!(identity_)?nearest_)\S+_auc",
    "tells which images the anonymizer was trained on",
)
ATTRIBUTES = AucAttack(
    "attribute inference (P7)",
    r"attribute_(?!view_)(\S+_)?auc",  # the view is a property of the image, not of the person
    "reads attributes of the person",
)
PROBES = AucAttack(
    "latent probes (P8)", "probe_(medical|residual)_patient_auc", "links patients by the latents that pass"
)
IDENTIFICATION = "identification (P10)", "identification_(adapted_)?accuracy"
GALLERIES = "linkage in a gallery (P3)", r"linkage_(\d+_)?rank_1"
RANKS = (
    "rank-1 of the other attackers (P1, P2, P4, P6)",
    rf"(static|inversion|adaptive_\S+|repeated_\d+)_rank_1|{PRIVACY_RANK}",
)


# ---- attacks with an AUC ----


def auc_check(attack: AucAttack, ours: Sequence[Row], control: Control, beside: Sequence[Row] = ()) -> Check:
    """Whether any interval of the attack leaves out 0.5, on either side where both tell.

    Args:
        beside: rows of untouched images; the figure of the same metric stands beside one that is not at chance.
    """
    rows = matching(ours, attack.pattern)
    measured = [row for row in rows if row.value is not None]
    if not measured:
        return silent(attack.name, rows)
    telling = [row for row in measured if excludes(row, 0.5) and not (attack.above_only and (row.value or 0.0) < 0.5)]
    strongest = max(telling or measured, key=_leak)
    if telling:
        side = "below chance, which tells as much" if (strongest.value or 0.0) < 0.5 else "above chance"
        words = f"AUC {figure(strongest)}, {side} ({attack_name(strongest.metric)})"
        words += "".join(f"; on untouched images {figure(row)}" for row in beside if row.metric == strongest.metric)
        if all(map(narrow, telling)):
            return Check(attack.name, "sign", f"gives a sign of it and no more: {words}.", _leak(strongest))
        return Check(attack.name, "fails", f"{attack.found}: {words}.", _leak(strongest))
    if any(not bounded(row) for row in measured):
        return Check(attack.name, "open", f"AUC {figure(strongest)} has no interval, so nothing follows from it.")
    if weak := control(measured):
        return Check(attack.name, "open", weak, _leak(strongest))
    reach = max(leakage(row).ci_high or 0.0 for row in measured)
    sentence = (
        f"was not distinguishable from chance: AUC {figure(strongest)}; its intervals leave room for up to "
        f"{0.5 + reach:.3f}."
    )
    return Check(attack.name, "chance", sentence, _leak(strongest))


def on_untouched(reference: Sequence[Row]) -> Control:
    """The control that the same attack links persons on untouched images."""

    def control(measured: Sequence[Row]) -> str:
        names = {row.metric for row in measured}
        untouched = [row for row in reference if row.metric in names and row.value is not None and bounded(row)]
        if not untouched:
            return f"finds nothing, but was not tried on untouched images ({REFERENCE}), so its strength is unknown."
        if not any(excludes(row, 0.5) for row in untouched):
            best = max(untouched, key=_leak)
            return f"finds nothing on untouched images either (AUC {figure(best)}): too weak to conclude from."
        return ""

    return control


def on_identity_latent(ours: Sequence[Row]) -> Control:
    """The control that the same probe finds patients in the identity latent."""
    known = [row for row in matching(ours, "probe_identity_patient_auc") if row.value is not None]

    def control(measured: Sequence[Row]) -> str:
        if any((row.ci_low or 0.0) > 0.5 for row in known):
            return ""
        where = f"AUC {figure(known[0])}" if known else "not measured"
        return f"finds nothing, but nothing in the identity latent either ({where}): too weak to conclude from."

    return control


def probe_check(ours: Sequence[Row]) -> Check:
    """P8: whether the latents that pass know the patient; what does not pass is nobody's to probe."""
    probed = matching(ours, PROBES.pattern)
    if probed and all(row.note.startswith(NOT_PASSED) for row in probed):
        return Check(PROBES.name, "inapplicable", "not applicable: neither the medical nor the residual latent passes.")
    passing = [row for row in ours if not row.note.startswith(NOT_PASSED)]
    return auc_check(PROBES, passing, on_identity_latent(ours))


def never(measured: Sequence[Row]) -> str:
    """The control of an attack that has none: nothing here is known to be found by it."""
    strongest = max(measured, key=_leak)
    below = (strongest.value or 0.0) < 0.5 and excludes(strongest, 0.5)
    seen = "; releases only look unlike real images" if below else ""
    return (
        f"gives no sign: AUC {figure(strongest)}{seen}. It has no positive control, so nothing tells that it would "
        "have found what there is."
    )


def membership_checks(ours: Sequence[Row]) -> list[Check]:
    """P5: releases that look like training patients, and whose images were trained on."""
    nearest = auc_check(NEAREST, ours, never)
    if max((row.images_seen for row in ours), default=0) == 0 and not matching(ours, "membership_vae_auc"):
        sentence = "not applicable: no training of it is recorded (images seen: 0), and without one nobody is a member."
        return [nearest, Check(MEMBERSHIP.name, "inapplicable", sentence)]
    if not max((row.images_seen for row in ours), default=0):
        ours = [row for row in ours if row.metric != "membership_black_box_auc"]
    return [nearest, auc_check(MEMBERSHIP, ours, never)]


# ---- attacks with a rank ----


def rank_check(attack: tuple[str, str], ours: Sequence[Row], reference: Sequence[Row], known: Sequence[Row]) -> Check:
    """Whether the right patient comes first more often than by chance; less often is no leak.

    Galleries with fewer than `LEAST_HITS` right answers by chance decide nothing, unless as many lie beyond chance.

    Args:
        known: rows that hold the chance of `linkage_rank_1` and of the other attackers: the judges'.
    """
    name, pattern = attack
    rows = [row for row in matching(ours, pattern) if not row.note.endswith("linkage_rank_1")]  # that one is P3's own
    measured = [row for row in rows if row.value is not None]
    if not measured:
        return silent(name, rows)
    chances = {row: chance for row in measured if bounded(row) and (chance := _chance(row, ours, known)) is not None}
    if not chances:
        sentence = f"comes first in {figure(measured[0])} of cases; chance or interval is not known."
        return Check(name, "open", sentence)
    beyond = {row: (row.ci_low or 0.0) - chance for row, chance in chances.items()}
    sized = [row for row, chance in chances.items() if round(chance * row.n, 1) >= LEAST_HITS]
    telling = [row for row, far in beyond.items() if far > 0 and (row in sized or far * row.n >= LEAST_HITS)]
    row = max(telling or sized or chances, key=lambda row: beyond[row])
    words = f"{figure(row)} of cases; chance is {chances[row]:.3f} ({attack_name(row.metric)})"
    if telling:
        return Check(name, "fails", f"picks out the patient in {words}.", beyond[row])
    if not sized:
        expected = f"{row.n} images have {chances[row] * row.n:.1f} right answers by chance"
        return Check(name, "open", f"was right in {words}. Too small to tell: {expected}.", beyond[row])
    if weak := _cannot_pick_out(reference, {row.metric: chances[row] for row in sized}):
        return Check(name, "open", weak, beyond[row])
    return Check(name, "chance", f"was not distinguishable from chance: {words}.", beyond[row])


def _cannot_pick_out(reference: Sequence[Row], chances: Mapping[str, float]) -> str:
    """Why ranks at chance say nothing, by the same metrics of untouched images."""
    untouched = [row for row in reference if row.metric in chances and row.ci_low is not None]
    if not untouched:
        return f"finds nothing, but was not tried on untouched images ({REFERENCE}), so its strength is unknown."
    if all((row.ci_low or 0.0) <= chances[row.metric] for row in untouched):
        return f"finds nothing on untouched images either ({figure(untouched[0])}): too weak to conclude from."
    return ""


def _chance(row: Row, ours: Sequence[Row], known: Sequence[Row]) -> float | None:
    """The share of right answers of a guess in the gallery of a rank."""
    size = re.fullmatch(r"linkage_(\d+)_rank_1", row.metric)
    if re.fullmatch(IDENTIFICATION[1], row.metric):
        rows = matching(ours, "identification_chance")
    elif size:
        rows = matching(ours, f"linkage_{size[1]}_chance")
    else:
        judges = matching((one for one in known if one.method == JUDGES), "rank_1_chance")
        rows = [*matching(ours, "linkage_chance"), *judges]
    return next((found.value for found in rows if found.value is not None), None)


# ---- exact factors ----


def factor_check(ours: Sequence[Row], reference: Sequence[Row]) -> Check:
    """Whether any identity factor of a generated cohort can still be regressed from released images."""
    name = "identity factors (generated cohort)"
    rows = identity_factors(ours)
    measured = [row for row in rows if row.value is not None]
    if not measured:
        return silent(name, rows)
    read = sorted((row for row in measured if (row.ci_low or 0.0) > 0), key=lambda row: row.value or 0.0, reverse=True)
    if read:
        best = ", ".join(f"{_factor(row)} R² {figure(row)}" for row in read[:3])
        how = f"{len(read)} of {len(measured)} can still be read from released images: {best}"
        return Check(name, "fails", f"{how}.", read[0].value or 0.0)
    strongest = max(measured, key=lambda row: row.value or 0.0)
    words = f"{_factor(strongest)} R² {figure(strongest)}"
    if any(row.ci_low is None for row in measured):
        return Check(name, "open", f"{words} has no interval, so nothing follows from it.")
    known = {row.metric for row in reference if (row.ci_low or 0.0) > 0}
    weak = [_factor(row) for row in measured if row.metric not in known]
    if weak:
        sentence = (
            f"could not be read, but {len(weak)} of {len(measured)} not from untouched images either "
            f"({', '.join(weak[:3])}{', ...' if len(weak) > 3 else ''}): the regressor is too weak to tell."
        )
        return Check(name, "open", sentence)
    return Check(name, "chance", f"could not be read from released images by this regressor: at best {words}.")


def identity_factors(rows: Iterable[Row]) -> list[Row]:
    """Every identity factor, or their mean where only that is there."""
    rows = list(rows)
    return matching(rows, r"factor_id_\S+_r2") or matching(rows, "factors_identity_r2")


def _factor(row: Row) -> str:
    name = re.sub(r"factor_id_(\S+)_r2", r"\1", row.metric)
    return "all together" if name == row.metric else name.replace("_", " ")


# ---- words ----


def figure(row: Row) -> str:
    """A value with its 95 % interval, in running text."""
    if row.value is None:
        return "not measured"
    return f"{row.value:.3f} ({row.ci_low:.3f} to {row.ci_high:.3f})" if bounded(row) else f"{row.value:.3f}"


def silent(attack: str, rows: Sequence[Row]) -> Check:
    """An attack without a figure, and why."""
    why = next((row.note for row in rows if row.note), "")
    if rows and all(row.note.startswith(NOT_APPLICABLE) for row in rows):
        return Check(attack, "inapplicable", f"{why}.")
    return Check(attack, "open", f"gave no figure ({why})." if rows and why else "was not run.")


def bounded(row: Row) -> bool:
    """Whether a figure has an interval."""
    return row.ci_low is not None and row.ci_high is not None


def narrow(row: Row) -> bool:
    """Whether an AUC's interval barely leaves out 0.5."""
    return excludes(row, 0.5) and (leakage(row).ci_low or 0.0) < NARROW


def _leak(row: Row) -> float:
    return leakage(row).value or 0.0
