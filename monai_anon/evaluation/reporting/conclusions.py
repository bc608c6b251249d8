"""What may and may not be concluded, computed from rows: the three criteria by which data are judged anonymous.

Singling out, linkability and inference are those of the Article 29 Working Party's Opinion 05/2014 on anonymisation
techniques (WP 216, section 2), which binds nobody; the law itself (GDPR, recital 26) asks whether a person is
identifiable. An attack can show that a criterion fails; none can show that it holds, since a stronger attack may come.
So an outcome is "fails", "a sign", "open" or "not distinguishable from chance", never "anonymous", and an attack that
was not run leaves its criterion open.

Every training seed is judged by itself, and the worst counts: a mean over seeds can lie at chance where each leaks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from monai_anon.evaluation.aggregation import REFERENCE, Headline, aggregate, leakage
from monai_anon.evaluation.reporting.checks import (
    ADAPTIVE,
    ATTRIBUTES,
    GALLERIES,
    IDENTIFICATION,
    INVERSION,
    RANKS,
    REPEATED,
    STATIC,
    Check,
    Outcome,
    auc_check,
    bounded,
    factor_check,
    figure,
    identity_factors,
    membership_checks,
    narrow,
    on_untouched,
    probe_check,
    rank_check,
)
from monai_anon.evaluation.tables import JUDGES, Row, closed_sets

WORDS: dict[Outcome, str] = {
    "fails": "fails",
    "sign": "a sign that it fails",
    "open": "open",
    "chance": "not distinguishable from chance",
    "inapplicable": "not applicable",
}
WORST: tuple[Outcome, ...] = ("fails", "sign", "open", "chance", "inapplicable")
QUESTIONS = {
    "Singling out": "Can one person be picked out of a group by a released image?",
    "Linkability": "Can two records of one person be told to belong together?",
    "Inference": "Can something about a person be deduced from a released image or from the anonymizer?",
}


@dataclasses.dataclass(frozen=True)
class Criterion:
    """One criterion for one method: the question, what each attack says, and what follows."""

    name: str
    question: str
    checks: Sequence[Check]
    outcome: Outcome
    sentence: str


# ---- the first line ----


def privacy_line(one: Headline) -> str:
    """What the strongest attack found, with the words that its interval allows on the worst training seed."""
    row = max(one.telling, key=_leak, default=one.worst)
    if row is None:
        return "no attack that links persons was run"
    if len(one.seeds) > 1:
        return _line_of_seeds(one)
    found = f"strongest attack ({row.note}): AUC {figure(row)}"
    if one.telling:
        side = "above" if (row.value or 0.0) > 0.5 else "below"
        if narrow(row):
            return f"{found}, a sign of a link {side} chance, which its interval barely leaves out"
        return f"{found}, which links {side} chance: not anonymous"
    if not bounded(row):
        return f"{found}, without an interval, so nothing follows from it"
    return f"{found}, not distinguishable from chance with this attacker and this budget"


def _line_of_seeds(one: Headline) -> str:
    telling = {row.weights: row for row in one.telling}
    figures = ", ".join(f"{figure(row)} ({row.note})" for row in (telling.get(row.weights, row) for row in one.seeds))
    found = f"strongest attack on each of {len(one.seeds)} training seeds: AUC {figures}"
    if len(telling) == 1 and all(map(narrow, one.telling)):
        return f"{found}; one of them gives a sign of a link, which its interval barely proves"
    if telling:
        return f"{found}; {len(telling)} of them link{'s' if len(telling) == 1 else ''} persons: not anonymous"
    if not all(map(bounded, one.seeds)):
        return f"{found}, not all with an interval, so nothing follows from it"
    return f"{found}, none distinguishable from chance with this attacker and this budget"


def _leak(row: Row) -> float:
    return leakage(row).value or 0.0


# ---- the criteria ----


def criteria(rows: Sequence[Row], method: str, dataset: str) -> list[Criterion]:
    """The three criteria for one method on one data set, from rows before `aggregate`."""
    rows = [row for row in rows if row.dataset == dataset]
    shared = aggregate(row for row in rows if row.method in (REFERENCE, JUDGES))
    ours: dict[str, list[Row]] = {}
    for row in rows:
        if row.method == method:
            ours.setdefault(row.weights, []).append(row)
    generated = bool(identity_factors(row for row in rows if row.method == method))
    seeds = [_checks(same, shared, generated) for same in ours.values()]
    return [
        _criterion(name, question, [_worst_of(same) for same in zip(*(seed[name] for seed in seeds), strict=True)])
        for name, question in QUESTIONS.items()
    ]


def _checks(ours: Sequence[Row], shared: Sequence[Row], generated: bool) -> dict[str, list[Check]]:
    """What each attack says of one training seed, by criterion; the same attacks in the same order for every seed."""
    reference = [row for row in shared if row.method == REFERENCE]
    linked = on_untouched(reference)
    return {
        "Singling out": [
            rank_check(GALLERIES, ours, reference, shared),
            rank_check(RANKS, ours, reference, shared),
            auc_check(INVERSION, ours, linked, reference),
            *([rank_check(IDENTIFICATION, ours, reference, shared)] if closed_sets(shared) else []),
        ],
        "Linkability": [auc_check(attack, ours, linked, reference) for attack in (STATIC, ADAPTIVE, REPEATED)],
        "Inference": [
            *membership_checks(ours),
            auc_check(ATTRIBUTES, ours, linked, reference),
            probe_check(ours),
            *([factor_check(ours, reference)] if generated else []),
        ],
    }


def _worst_of(seeds: Sequence[Check]) -> Check:
    """One attack over all training seeds: the worst outcome, in the words of the seed where it is strongest."""
    if len(seeds) == 1:
        return seeds[0]
    worst = min((check.outcome for check in seeds), key=WORST.index)
    same = [check for check in seeds if check.outcome == worst]
    strongest = max(same, key=lambda check: check.strength)
    outcome: Outcome = "fails" if worst == "sign" and len(same) > 1 else worst
    sentence = f"(in {len(same)} of {len(seeds)} training seeds) {strongest.sentence}"
    return dataclasses.replace(strongest, outcome=outcome, sentence=sentence)


def _criterion(name: str, question: str, checks: list[Check]) -> Criterion:
    def named(*outcomes: Outcome) -> list[str]:
        return [check.attack for check in checks if check.outcome in outcomes]

    failed, undecided = named("fails", "sign"), named("open")
    outcome: Outcome
    if len(failed) == 1 and not named("fails"):
        outcome, sentence = "sign", (
            f"A sign of a leak, by one attack alone ({failed[0]}), whose interval barely leaves out chance. Until it "
            "is measured again, with other releases and another attacker's seed, take it for one."
        )  # fmt: skip
    elif failed:
        outcome, sentence = "fails", f"Not at chance: {_and(failed)}. By this criterion the release is not anonymous."
    elif undecided:
        outcome = "open"
        sentence = f"No attack that was run and decided is above chance, but {_and(undecided)} left this open."
    elif named("chance"):
        outcome, sentence = "chance", (
            "No attack was distinguishable from chance with this attacker and this budget. That is no proof: a "
            "stronger attacker may do better."
        )  # fmt: skip
    else:
        outcome, sentence = "open", "No attack here applies, so nothing is said."
    return Criterion(name, question, checks, outcome, sentence)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
