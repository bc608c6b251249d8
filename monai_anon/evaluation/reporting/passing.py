"""What passes of an original into its release, in words, from the rows of the channel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai_anon.channel import round_up
from monai_anon.evaluation.aggregation import matching
from monai_anon.evaluation.tables import Row

NOT_COVERED = (
    "More from a bound in bits than it says: it holds for one release of one image. The bits of several releases of a "
    "person add up, and what the networks remember of the people they were trained on is not in it."
)


def in_words(rows: Sequence[Row], methods: Sequence[str]) -> list[str]:
    """A sentence a method that the channel was measured of, from rows before `aggregate`: the weakest seed's bound."""
    return [sentence for method in methods if (sentence := _sentence([row for row in rows if row.method == method]))]


def _sentence(rows: Sequence[Row]) -> str:
    said = matching(rows, "channel_bits")
    if not said:
        return ""
    method = said[0].method
    if unbounded := [row.note for row in said if row.value is None]:
        return f"{method} has {unbounded[0]}."
    bits = max(_values(said))
    patients = min(_values(matching(rows, "channel_patients")), default=0)
    shared = f", each shared by {patients:g} or more training patients" if patients else ""
    epsilon = max(_values(matching(rows, "channel_epsilon")), default=None)
    return (
        f"{method}: on average a release's pixels say at most {round_up(bits, 2):.2f} bits of its original, whoever "
        f"looks: which of {round(2**bits)} prototypes it has{shared}. Identity and residual are drawn."
        f"{_noisy(bits, epsilon)}"
    )


def _noisy(bits: float, epsilon: float | None) -> str:
    """What a randomised response does, and how often."""
    if epsilon is None:
        return ""
    kept = 1 / (1 + (2**bits - 1) * math.exp(-epsilon))
    return (
        f" It passes the right one with a probability of {kept:.2f}, else any other (randomised response): a release "
        f"is locally differentially private, epsilon {epsilon:g}."
    )


def bounded(rows: Sequence[Row], methods: Sequence[str]) -> bool:
    """Whether something bounds what a release of any of the methods says."""
    return any(row.method in methods and row.value is not None for row in matching(rows, "channel_bits"))


def _values(rows: Sequence[Row]) -> list[float]:
    return [row.value for row in rows if row.value is not None]
