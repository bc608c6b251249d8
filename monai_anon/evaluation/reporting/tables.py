"""The report's tables as pure functions of rows; what no section knows is still in `all_figures`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from monai_anon.evaluation import tables
from monai_anon.evaluation.aggregation import REFERENCE, Headline, about_persons, is_experiment
from monai_anon.evaluation.reporting.sections import Group
from monai_anon.evaluation.tables import JUDGES, PAPERS, Row

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell; ``sort`` is what it is ordered by where it is a number."""

    text: str
    sort: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of cells; ``kind`` is "reference" (nothing hidden), "other" (printed by others, other data) or empty."""

    cells: Sequence[Cell]
    kind: str = ""


Found = dict[tuple[str, str, str], dict[str, Row]]
"""(data set, method, case) -> figure -> row."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its caption; the first cell of a line says what the line is of."""

    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    filtered: bool = False


def cell(row: Row | None) -> Cell:
    """A figure with its interval; why not where it has none, a dash where nobody asked."""
    return Cell(tables.cell(row), None if row is None else row.value)


def group_table(rows: Sequence[Row], group: Group) -> Table | None:
    """The table of a group: one line a method and case, `none` first; None where there is nothing to show.

    Where a group has cases but one figure only, cases are lines and methods are columns.
    """
    found = _found(rows, group)
    if not found:
        return None
    used = dict.fromkeys(figure for figures in found.values() for figure in figures)
    figures = [*(name for name in group.figures if name in used), *(name for name in used if name not in group.figures)]
    several = len({dataset for dataset, _, _ in found}) > 1
    silent = [*([group.note] if group.note else []), *_notes(found, group)]
    if group.case and len(figures) == 1:
        return _by_case(found, group, several, silent)
    lines = []
    for (dataset, method, case), by_figure in found.items():
        first = [Cell(method)] + ([_case(group, case)] if group.case else []) + ([Cell(dataset)] if several else [])
        lines.append(Line([*first, *(cell(by_figure.get(name)) for name in figures)], _kind(method)))
    headers = ["method"] + ([group.case] if group.case else []) + (["data"] if several else [])
    columns = [*headers, *(group.figures.get(name, name) for name in figures)]
    return Table(group.caption, columns, lines, silent)


def _found(rows: Sequence[Row], group: Group) -> Found:
    found: Found = {}
    for row in rows:
        match = re.fullmatch(group.pattern, row.metric)
        if match and row.method != JUDGES and (group.experiments or not is_experiment(row.method)):
            case = match.groupdict().get("case") or ""
            found.setdefault((row.dataset, row.method, case), {})[match["figure"]] = row
    return dict(sorted(found.items(), key=lambda item: item[0][1] != REFERENCE))


def _notes(found: Found, group: Group) -> list[str]:
    """Every note once, with what it is of: cases or columns, and the methods where it is not of all."""
    methods = {method for _, method, _ in found}
    about: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for (_, method, case), by_figure in found.items():
        for figure, row in by_figure.items():
            if row.note:
                what, whose = about.setdefault(row.note, ({}, {}))
                what[group.cases.get(case, case) if group.case else group.figures.get(figure, figure)] = None
                whose[method] = None
    return [
        f"{', '.join(what)}{'' if set(whose) == methods else ' (' + ', '.join(whose) + ')'}: {note}"
        for note, (what, whose) in about.items()
    ]


def _by_case(found: Found, group: Group, several: bool, silent: Sequence[str]) -> Table:
    figure = next(figure for figures in found.values() for figure in figures)
    methods = list(dict.fromkeys(method for _, method, _ in found))
    lines = []
    for dataset, case in dict.fromkeys((dataset, case) for dataset, _, case in found):
        values = [cell(found.get((dataset, method, case), {}).get(figure)) for method in methods]
        lines.append(Line([_case(group, case), *([Cell(dataset)] if several else []), *values]))
    columns = [group.case, *(["data"] if several else []), *methods]
    return Table(f"{group.caption}: {group.figures.get(figure, figure)}", columns, lines, silent)


def _case(group: Group, case: str) -> Cell:
    return Cell(group.cases.get(case, case), float(case) if case.isdigit() else None)


def _kind(method: str) -> str:
    return "reference" if method == REFERENCE else ""


def headline_tables(found: Sequence[Headline], silences: Container[str], chances: Mapping[str, float]) -> list[Table]:
    """Privacy and utility of every method in one line; methods that met the static attack alone have a table of theirs.

    Args:
        chances: rank-1 of a guess, by data set.
    """
    ordered = sorted(found, key=lambda one: one.method != REFERENCE)
    alone = [one for one in ordered if one.privacy and not one.adaptive]
    retrained = [one for one in ordered if one not in alone]
    several, seeds = len({one.dataset for one in found}) > 1, any(len(one.seeds) > 1 for one in found)
    guess = ", ".join(f"{value:.3f}{f' ({name})' if several else ''}" for name, value in chances.items())

    def line(one: Headline, auc: str, leak: str) -> dict[str, Cell]:
        nothing = Cell("no verdict" if one.dataset in silences else "-")
        cells = {"method": Cell(one.method)} | ({"data": Cell(one.dataset)} if several else {})
        cells |= {title: cell(row) if row else nothing for title, row in ((auc, one.privacy), (leak, one.leakage))}
        cells["which attack"] = Cell(one.privacy.note if one.privacy else "-")
        worst = {"worst training seed": cell(one.worst) if one.worst else nothing} if seeds else {}
        rank = {"rank-1": cell(one.rank) if one.rank else nothing} if one in retrained else {}
        return cells | worst | rank | _usefulness(one)

    strongest = [line(one, "AUC of the strongest attack", "|AUC - 0.5|") for one in retrained]
    static = [line(one, "AUC of the static attack", "at least |AUC - 0.5|") for one in alone]
    captions = {
        "Privacy and utility of every method, with 95 % intervals": strongest,
        "Static attack only: leakage is at least this, and not to be compared with attackers that retrain": static,
    }
    return [
        Table(
            caption,
            list(lines[0]),
            [Line(list(cells.values()), _kind(cells["method"].text)) for cells in lines],
            [f"Rank-1 by chance: {guess}."] if guess and lines is strongest else [],
        )
        for caption, lines in captions.items()
        if lines
    ]


def _usefulness(one: Headline) -> dict[str, Cell]:
    known = [row for row in (one.privacy, one.finding) if row is not None]
    seeds = max((row.seeds for row in known), default=0)
    return {
        "finding AUC": cell(one.finding),
        "images seen": count(max((row.images_seen for row in known), default=0)),
        "training seeds": Cell(str(seeds), seeds) if seeds else Cell("-"),
    }


def count(images_seen: int) -> Cell:
    """A number of images; a dash for 0, which may mean "nothing was trained" or "unknown"."""
    return Cell(f"{images_seen:,}" if images_seen else "-", images_seen or None)


def quality_table(rows: Sequence[Row]) -> Table:
    """The judges' own figures on untouched images: one line a data set."""
    frame = tables.quality_table(rows).drop(columns="method")
    seen = "whose other images they were trained on" if tables.closed_sets(rows) else "they have not seen"
    found = frame_table(f"The judges on untouched images of patients {seen}", frame)
    return dataclasses.replace(found, notes=tables.notes(row for row in rows if row.method == JUDGES))


def frame_table(caption: str, frame: pd.DataFrame) -> Table:
    """A table of `tables` whose cells are text already; the paper's lines are marked as other data."""
    lines = [
        Line([Cell(str(text), _number(str(text))) for text in line], "other" if PAPERS & set(line) else "")
        for line in frame.itertuples(index=False, name=None)
    ]
    return Table(caption, [str(column) for column in frame.columns], lines)


def as_printed(row: Row) -> Row:
    """A row as the paper's tables look for it: an experiment of one of several runs is told apart by its data."""
    method, _, which = row.method.partition(" [")
    if not which or not is_experiment(row.method):
        return row
    return dataclasses.replace(row, method=method, dataset=f"{row.dataset} [{which}")


def _number(text: str) -> float | None:
    match = re.match(r"-?\d*\.?\d+(?=$| \()", text)
    return float(match[0]) if match else None


def without_persons(frame: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    """A table of `tables` without the columns about persons, for cohorts without a verdict."""
    return frame.drop(columns=[title for title, metric in titles.items() if about_persons(metric) and title in frame])


def all_figures(rows: Sequence[Row]) -> Table:
    """Every row, whatever its metric."""
    several = len({row.dataset for row in rows}) > 1
    columns = ["metric", "method", *(["data"] if several else []), "value", "low", "high", "n"]
    columns += ["images seen", "seeds", "seed", "weights", "revision"]
    lines = []
    for row in rows:
        first = [Cell(row.metric), Cell(row.method), *([Cell(row.dataset)] if several else [])]
        value = Cell(cell(row).text if row.value is None else f"{row.value:.4g}", row.value)
        bounds = [Cell("-" if x is None else f"{x:.4g}", x) for x in (row.ci_low, row.ci_high)]
        counts = [Cell(f"{row.n:,}", row.n), count(row.images_seen), Cell(str(row.seeds), row.seeds)]
        source = [Cell(str(row.seed), row.seed), Cell(row.weights or "-"), Cell(row.revision or "unknown")]
        lines.append(Line([*first, value, *bounds, *counts, *source, Cell(row.note)]))
    return Table("All figures, as joined from the runs", [*columns, "note"], lines, filtered=True)
