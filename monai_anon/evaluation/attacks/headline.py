"""The headline: the strongest of all attacks that try to link a released image to its patient."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from monai_anon.evaluation.tables import Row

LINKING_AUC = re.compile(r"static_auc|adaptive_auc|inversion_auc|repeated_(patient_)?\d+_auc")
LINKING_RANK = re.compile(r"(static|adaptive_(released-real|released-released|mixed)|linkage|inversion)_rank_1")


def headline(rows: Sequence[Row]) -> list[Row]:
    """`privacy_auc` and `privacy_rank_1` of one subject: of P1 to P4 and P6 the AUC farthest from 0.5, on either side,
    and the highest rank-1; the note names the attack.

    The strongest of several measured on the same patients is a little too strong by chance alone: an error to the safe
    side. Nothing where no such attack was run.
    """
    found = []
    aucs = [row for row in rows if LINKING_AUC.fullmatch(row.metric) and row.value is not None]
    if aucs:
        worst = max(aucs, key=lambda row: abs((row.value or 0.0) - 0.5))
        found.append(dataclasses.replace(worst, metric="privacy_auc", note=f"strongest: {worst.metric}"))
    ranks = [row for row in rows if LINKING_RANK.fullmatch(row.metric) and row.value is not None]
    if ranks:
        worst = max(ranks, key=lambda row: row.value or 0.0)
        found.append(dataclasses.replace(worst, metric="privacy_rank_1", note=f"strongest: {worst.metric}"))
    return found
