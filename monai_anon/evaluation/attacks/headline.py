"""The headline: the strongest of all attacks that try to link a released image to its patient."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from monai_anon.evaluation.tables import Row

# Attack of the registry -> the metrics by which it links a released image to its patient.
AUCS = {
    "static": r"static_auc",
    "adaptive": r"adaptive_auc",
    "inversion": r"inversion_auc",
    "repeated": r"repeated_(patient_)?\d+_auc",
}
RANKS = {
    "static": r"static_rank_1",
    "adaptive": r"adaptive_(released-real|released-released|mixed|lowest-bits)_rank_1",
    "linkage": r"linkage_rank_1",
    "inversion": r"inversion_rank_1",
    "repeated": r"repeated_\d+_rank_1",
}
LINKING_AUC, LINKING_RANK = (re.compile("|".join(patterns.values())) for patterns in (AUCS, RANKS))


def headline(rows: Sequence[Row]) -> list[Row]:
    """`privacy_auc` and `privacy_rank_1` of one subject: of P1 to P4 and P6 the AUC farthest from 0.5, on either side,
    and the highest rank-1; the note names the attack.

    The strongest of several measured on the same patients is a little too strong by chance alone: an error to the safe
    side. Where one of the attacks was not made there is no value, and the note says which; nothing where none was.
    """
    found = []
    for metric, patterns in (("privacy_auc", AUCS), ("privacy_rank_1", RANKS)):
        made = {attack: _values(rows, pattern) for attack, pattern in patterns.items()}
        known = [row for each in made.values() for row in each]
        if not known:
            continue
        worst = max(known, key=lambda row: abs(_value(row) - 0.5) if metric == "privacy_auc" else _value(row))
        if missing := [attack for attack, each in made.items() if not each]:
            note = f"not measured: no headline without {', '.join(missing)}"
            found.append(dataclasses.replace(worst, metric=metric, value=None, ci_low=None, ci_high=None, note=note))
        else:
            found.append(dataclasses.replace(worst, metric=metric, note=f"strongest: {worst.metric}"))
    return found


def _values(rows: Sequence[Row], pattern: str) -> list[Row]:
    return [row for row in rows if re.fullmatch(pattern, row.metric) and row.value is not None]


def _value(row: Row) -> float:
    return 0.0 if row.value is None else row.value
