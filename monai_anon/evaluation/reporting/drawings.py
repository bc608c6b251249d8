"""The report's drawings, each with its caption and the same figures in words for who cannot see it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from monai_anon.evaluation.aggregation import Headline, is_experiment, leakage, matching
from monai_anon.evaluation.reporting import plots
from monai_anon.evaluation.reporting.runs import Curve
from monai_anon.evaluation.reporting.tables import Table
from monai_anon.evaluation.tables import JUDGES, KEPT, Row

GALLERY = r"linkage_(\d+)_rank_1"
CHANCE = r"linkage_(\d+)_chance"
CODE = r"code_(\d+)_"
RELEASES = {
    r"repeated_(\d+)_auc": "releases of one image",
    r"repeated_patient_(\d+)_auc": "released images of one patient",
}
OVERVIEWS = {
    "strongest": (
        "leakage: |AUC - 0.5| of the strongest attack\n(0: nobody is linked, 0.5: everybody)",
        "Privacy and utility of the methods that met attackers which retrain on released images.",
    ),
    "static": (
        "leakage: |AUC - 0.5| of the static attack alone\n(attackers that retrain may find more)",
        "Privacy and utility of all methods by the same static attack: leakage is at least this.",
    ),
}
"""Label of the axis and caption."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing: SVG, what stands below it, and its figures in words."""

    svg: Markup
    caption: str
    alt: str


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the page: a sentence, tables and figures."""

    key: str
    title: str
    sentence: str
    tables: Sequence[Table]
    figures: Sequence[Figure] = ()


class Drawings:
    """Draws what the rows have values for: a method looks the same in every figure.

    Args:
        silences: data sets without a verdict; nothing about persons is drawn of them.
    """

    def __init__(
        self, rows: Sequence[Row], headlines: Sequence[Headline], silences: Mapping[str, str], curves: Sequence[Curve]
    ) -> None:
        self.rows, self.headlines, self.silences, self.lines = rows, headlines, silences, curves
        self.datasets = list(dict.fromkeys(row.dataset for row in rows))
        methods = [row.method for row in rows if row.method != JUDGES and not is_experiment(row.method)]
        self.look = plots.looks([*methods, *(curve.method for curve in curves)])

    def judged_finding(self, dataset: str) -> float | None:
        """The medical judge's own AUC on untouched images."""
        own = (row for row in matching(self.rows, "finding_auc") if row.method == JUDGES and row.dataset == dataset)
        return next((row.value for row in own), None)

    def overview(self) -> list[Figure]:
        """Two privacy-utility plots of every data set with a verdict: by retrained attackers, and by the static one.

        A method that met the static attack alone stands in the second only: it is not comparable with the others.
        """
        figures = []
        for dataset in self.datasets:
            found = [one for one in self.headlines if one.dataset == dataset and dataset not in self.silences]
            strongest = [
                plots.Point(one.method, one.leakage, one.finding)
                for one in found
                if one.adaptive and one.leakage and one.finding
            ]
            static = [
                plots.Point(one.method, leakage(one.static), one.finding) for one in found if one.static and one.finding
            ]
            for title, points in (("strongest", strongest), ("static", static)):
                if points:
                    figures.append(self._overview(title, points, dataset))
        return figures

    def _overview(self, title: str, points: Sequence[plots.Point], dataset: str) -> Figure:
        label, caption = OVERVIEWS[title]
        best = self.judged_finding(dataset)
        svg = plots.privacy_utility(f"overview-{title}-{dataset}", points, self.look, label, best)
        words = [
            f"{one.method}: leakage {one.leakage.value:.3f}, finding AUC {one.finding.value:.3f}" for one in points
        ]
        return self._figure(svg, f"{caption} Best is top left; bars are 95 % intervals.", words, dataset)

    def of_attack(self, key: str) -> list[Figure]:
        """The figures that belong to an attack's tables."""
        if key == "P3":
            return [figure for dataset in self.datasets for figure in self._galleries(dataset)]
        if key == "P6":
            return [
                figure
                for pattern, label in RELEASES.items()
                for dataset in self.datasets
                for figure in self._against(pattern, (label, "AUC"), dataset, "auc")
            ]
        return []

    def of_content(self, key: str) -> list[Figure]:
        """The figures that belong to a section of what is kept."""
        return [figure for dataset in self.datasets for figure in self._codes(dataset)] if key == "channel" else []

    def _codes(self, dataset: str) -> list[Figure]:
        """Bits against what is kept; methods of the same networks have the same curve, which is drawn once."""
        measured = [
            row for row in matching(self.rows, rf"{CODE}\w+") if row.dataset == dataset and row.value is not None
        ]
        same: dict[tuple[Row, ...], list[str]] = {}
        for method in dict.fromkeys(row.method for row in measured):
            rows = [row for row in measured if row.method == method]
            same.setdefault(tuple(dataclasses.replace(row, method="", revision="") for row in rows), []).append(method)
        return [self._code_figure(rows, methods, dataset) for rows, methods in same.items()]

    def _code_figure(self, rows: Sequence[Row], methods: Sequence[str], dataset: str) -> Figure:
        bits = {_count(rf"{CODE}bits", row): row.value for row in matching(rows, rf"{CODE}bits")}
        series, words = [], []
        for metric, name in KEPT.items():
            pattern = rf"{CODE}{metric}"
            found = {_count(pattern, row): row for row in matching(rows, pattern)}
            at = sorted(found.keys() & bits.keys())
            if at:
                series.append(plots.Series(name, [bits[k] or 0.0 for k in at], [found[k] for k in at]))
                words.append(f"{name}: " + ", ".join(f"{found[k].value:.3f} at {bits[k]:.2f} bits" for k in at))
        own = (row for row in self.rows if row.method == JUDGES and row.dataset == dataset and row.value is not None)
        known = {KEPT[row.metric]: row.value for row in own if row.metric in KEPT and row.value is not None}
        untouched = {one.method: known[one.method] for one in series if one.method in known}
        svg = plots.against_bits(f"bits-{methods[0]}-{dataset}", series, untouched)
        whose = f"Bits against what is kept: the networks of {', '.join(methods)}; bars are 95 % intervals."
        return self._figure(svg, whose, words, dataset)

    def curves(self) -> list[Figure]:
        """One figure an attack."""
        figures = []
        for attack in dict.fromkeys(curve.attack for curve in self.lines):
            found = [curve for curve in self.lines if curve.attack == attack]
            words = [f"{one.method}: {one.y_label} up to {max(one.y):.3f} over {len(one.x)} points" for one in found]
            svg = plots.attack_curves(f"curve-{attack}", found, self.look)
            figures.append(self._figure(svg, f"Curves of the {attack} attack.", words))
        return figures

    def _galleries(self, dataset: str) -> list[Figure]:
        chance = {
            _count(CHANCE, row): row.value
            for row in matching(self.rows, CHANCE)
            if row.dataset == dataset and row.value is not None
        }
        return self._against(GALLERY, ("patients in the gallery", "rank-1"), dataset, chance)

    def _against(self, pattern: str, labels: tuple[str, str], dataset: str, chance: plots.Chance) -> list[Figure]:
        """A metric whose name holds a count, against that count; nothing to see below two counts."""
        rows = [row for row in matching(self.rows, pattern) if row.dataset == dataset and row.value is not None]
        series = []
        for method in dict.fromkeys(row.method for row in rows):
            found = sorted((row for row in rows if row.method == method), key=lambda row: _count(pattern, row))
            series.append(plots.Series(method, [_count(pattern, row) for row in found], found))
        if len({x for one in series for x in one.x}) < 2:
            return []
        words = [
            f"{one.method}: " + ", ".join(f"{row.value:.3f} at {x:g}" for x, row in zip(one.x, one.rows, strict=True))
            for one in series
        ]
        svg = plots.against_count(f"{labels[0]}-{dataset}", series, labels, self.look, chance)
        return [self._figure(svg, f"{labels[1]} against {labels[0]}; bars are 95 % intervals.", words, dataset)]

    def _figure(self, svg: str, caption: str, words: Sequence[str], dataset: str = "") -> Figure:
        where = f" Data: {dataset}." if dataset and len(self.datasets) > 1 else ""
        return Figure(Markup(svg), caption + where, "; ".join(words))


def _count(pattern: str, row: Row) -> float:
    match = re.fullmatch(pattern, row.metric)
    assert match is not None
    return float(match[1])
