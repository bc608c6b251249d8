"""Which rows of several runs may become one figure: training seeds of one method, measured alike on the same data.

What does not agree is kept apart by names. A data set of the same name with other images, and one that a run brings
without judges, gets a suffix; so does a method with other weights whose trainings do not agree in data, budget of the
attacks or images seen. `none` is the same pixels everywhere, so its measurements are always joined.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence

from monai_anon.evaluation.aggregation import REFERENCE
from monai_anon.evaluation.reporting.runs import NOT_RECORDED, Run
from monai_anon.evaluation.tables import JUDGES

SETTINGS = ("attack_steps", "seed", "n_bootstrap", "hit_threshold")
"""Settings of `run.json` in which the runs of one method's training seeds agree."""
DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Joined:
    """Runs whose equal names mean equal things, and a sentence for each that had to be told apart."""

    runs: Sequence[Run]
    apart: Sequence[str]


def kept_apart(runs: Sequence[Run]) -> Joined:
    """The runs with suffixes where the same name means different things."""
    datasets = _dataset_names(runs)
    moved = [
        dataclasses.replace(run, rows=[dataclasses.replace(row, dataset=names[row.dataset]) for row in run.rows])
        for run, names in zip(runs, datasets, strict=True)
    ]
    methods = _method_names(moved)
    named = [_renamed(run, names) for run, names in zip(moved, methods, strict=True)]
    return Joined(named, [*_other_data(datasets), *_other_methods(methods), *_other_settings(runs)])


# ---- data sets ----


def _dataset_names(runs: Sequence[Run]) -> list[dict[str, str]]:
    """For each run data set -> what it is called: the same for two runs only where they show the same images."""
    names: list[dict[str, str]] = [{} for _ in runs]
    for dataset in dict.fromkeys(row.dataset for run in runs for row in run.rows):
        of_data: dict[tuple[bool, str], list[int]] = {}
        for number, run in enumerate(runs):
            if any(row.dataset == dataset for row in run.rows):
                of_data.setdefault((not _judged(run, dataset), _data(run)), []).append(number)
        digits = [_digits(runs[numbers[0]]) for numbers in of_data.values()]
        judged = [key for key in of_data if not key[0]]
        for (silent, data), numbers in of_data.items():
            label, first = _digits(runs[numbers[0]]), f"run {numbers[0] + 1}"
            if not label or digits.count(label) > 1:
                label = first
            if silent and judged:
                label = f"{first}, without judges"
            alone = len(of_data) == 1 or [(silent, data)] == judged
            for number in numbers:
                names[number][dataset] = dataset if alone else f"{dataset} [{label}]"
    return names


def _data(run: Run) -> str:
    """What two runs have in common that measure on the same images."""
    return json.dumps([run.get("cohort", name) for name in ("fingerprint", "image_size", "channels", "parts")])


def _digits(run: Run) -> str:
    fingerprint = run.get("cohort", "fingerprint")
    return "" if fingerprint == NOT_RECORDED else str(fingerprint)[:DIGITS]


def _judged(run: Run, dataset: str) -> bool:
    """Whether the run brings its own judges' quality; without it nothing may be said of its persons."""
    return any(
        row.method == JUDGES and row.dataset == dataset and row.metric == "verification_auc" and row.value is not None
        for row in run.rows
    )


def _other_data(names: Sequence[Mapping[str, str]]) -> list[str]:
    return [
        f"{before} is not of the same images in all runs, or has no judges of its own in one: it stands here as "
        f"{', '.join(after)}."
        for before, after in _changed(item for run in names for item in run.items()).items()
    ]


def _changed(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """What was renamed, with all its names."""
    found: dict[str, dict[str, None]] = {}
    for before, after in names:
        found.setdefault(before, {})[after] = None
    return {before: list(after) for before, after in found.items() if list(after) != [before]}


# ---- methods ----

Names = dict[tuple[str, str, str], str]
"""(data set, method, weights) -> what the method is called."""


@dataclasses.dataclass(frozen=True)
class _Unit:
    """What one run measured of one method with one set of weights."""

    number: int
    dataset: str
    method: str
    weights: str
    settings: Mapping[str, object]
    images_seen: int

    @property
    def alike(self) -> Hashable:
        """Units that agree in this are training seeds of one method, or the same weights measured twice."""
        seen: Hashable = self.images_seen or f"not trained, or not known: {self.weights}"
        return seen, json.dumps(self.settings, sort_keys=True)


def _method_names(runs: Sequence[Run]) -> list[Names]:
    """For each run (data set, method, weights) -> what the method is called."""
    by_method: dict[tuple[str, str], list[_Unit]] = {}
    for number, run in enumerate(runs):
        for unit in _units(number, run):
            by_method.setdefault((unit.dataset, unit.method), []).append(unit)
    names: list[Names] = [{} for _ in runs]
    for (dataset, method), units in by_method.items():
        groups: dict[Hashable, list[_Unit]] = {}
        for unit in units:
            groups.setdefault(unit.alike, []).append(unit)
        for same in groups.values():
            name = method if len(groups) == 1 else f"{method} [{_label(same, units)}]"
            for unit in same:
                names[unit.number][dataset, method, unit.weights] = name
    return names


def _units(number: int, run: Run) -> list[_Unit]:
    settings = {name: run.get("settings", name) for name in SETTINGS}
    seen: dict[tuple[str, str, str], int] = {}
    for row in run.rows:
        if row.method not in (JUDGES, REFERENCE):
            key = (row.dataset, row.method, row.weights)
            seen[key] = max(seen.get(key, 0), row.images_seen)
    return [_Unit(number, *key, settings, images) for key, images in seen.items()]


def _label(same: Sequence[_Unit], units: Sequence[_Unit]) -> str:
    """The first digits of the weights, and the settings that differ where those are not enough."""
    digits = " ".join(dict.fromkeys(unit.weights[:DIGITS] or "no digest" for unit in same))
    others = [unit for unit in units if unit.alike != same[0].alike]
    if not any(other.weights[:DIGITS] == unit.weights[:DIGITS] for other in others for unit in same):
        return digits
    differing = [name for name in SETTINGS if any(other.settings[name] != same[0].settings[name] for other in others)]
    told = [f"{name} {same[0].settings[name]}" for name in differing]
    return ", ".join([digits, *(told or [f"{same[0].images_seen} images seen"])])


def _renamed(run: Run, names: Names) -> Run:
    """A run whose rows and curves carry the new names; `named` tells which they are."""
    rows = [
        dataclasses.replace(row, method=names.get((row.dataset, row.method, row.weights), row.method))
        for row in run.rows
    ]
    named = _changed((method, name) for (_, method, _), name in names.items())
    curves = [dataclasses.replace(one, method=named.get(one.method, [one.method])[0]) for one in run.curves]
    return dataclasses.replace(run, rows=rows, curves=curves, named=named)


def _other_methods(names: Sequence[Names]) -> list[str]:
    found = _changed((key[1], name) for run in names for key, name in run.items())
    told = "; ".join(", ".join(after) for after in found.values())
    if not told:
        return []
    return [
        f"Kept apart by the first {DIGITS} digits of their weights: {told}. "
        "Runs are training seeds of one method only where they saw as many images (more than 0) and were measured with "
        "the same settings."
    ]


def _other_settings(runs: Sequence[Run]) -> list[str]:
    found = {name: list(dict.fromkeys(str(run.get("settings", name)) for run in runs)) for name in SETTINGS}
    differing = [f"{name} {', '.join(values)}" for name, values in found.items() if len(values) > 1]
    if not differing:
        return []
    return [
        f"The runs were not measured with the same settings ({'; '.join(differing)}), so compare with care; "
        f"figures of {REFERENCE} are the mean of all."
    ]
