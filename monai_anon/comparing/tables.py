"""The tables and the picture of a comparison, as pure functions of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monai_anon.evaluation.figures import save_png
from monai_anon.evaluation.tables import JUDGES, PAPER_ROWS, Row, cell, quality_table, to_markdown

if TYPE_CHECKING:
    import pandas as pd

TABLE_1 = {
    "P1 static": "static_auc",
    "P2 adaptive": "adaptive_auc",
    "rank-1": "static_rank_1",
    "everyone: near training": "membership_nearest_auc",
    "finding AUC": "judge_finding_auc",
    "accuracy, change": "judge_finding_accuracy_change",
    "side": "judge_side_accuracy",
    "KID": "kid",
    "precision": "precision",
    "SSIM": "ssim_original",
}
"""The paper's Table 1 in figures: the original patient's privacy, everyone's, the finding, realism."""
TABLE_3 = {
    "original: AUC": "static_auc",
    "original: rank-1": "static_rank_1",
    "everyone: near training": "membership_nearest_auc",
    "finding accuracy": "judge_finding_accuracy",
}
PRINTED_3 = {
    "paper: original": "own_original_accuracy",
    "paper: overall": "own_overall_accuracy",
    "paper: accuracy": "own_finding_accuracy",
}
PAPERS = {"vae-privacy": "VAE with privacy loss", "montenegro-2023": "Montenegro et al. 2023"}
"""Systems of Table 3 that the paper prints chest figures of."""
ROWS_3 = ("pp-sir", "averaging-6", "averaging-12", "averaging-all", "vae", "montenegro-2023", "vae-privacy", "ours")
LIKE_NOBODY = 0.5
TOO_NEAR = 0.025  # AUC: labels would cover each other
READING = """\
AUC .5 is chance, for P1 and P2 (is it the same patient?) and for *everyone* (is a release nearer to a training patient
than an untouched image of somebody else is? above .5 it is). 95 % intervals over patients. KID and precision are of the
judge's features against real training images; `none` is the floor. Images a second: one run, systems taking turns.
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a system: its rows, or why there are none."""

    name: str
    rows: Sequence[Row] = ()
    failed: str = ""

    def row(self, metric: str) -> Row | None:
        """The system's own row of a metric."""
        return next((row for row in self.rows if row.metric == metric and row.method == self.name), None)

    @property
    def bound(self) -> str:
        """What is proved of it; a dash where nothing is."""
        found = self.row("proved")
        return (found.note if found else "") or "-"


def table_1(outcomes: Sequence[Outcome], speeds: Mapping[str, float]) -> pd.DataFrame:
    """A line a system, those that failed too."""
    import pandas as pd

    lines = []
    for one in outcomes:
        cells = {title: cell(one.row(metric)) for title, metric in TABLE_1.items()}
        if one.failed:
            cells = dict.fromkeys(TABLE_1, "failed")
        speed = f"{speeds[one.name]:.0f}" if one.name in speeds else "-"
        lines.append({"system": one.name, **cells, "images/s": speed, "proved": one.bound})
    return pd.DataFrame(lines, columns=["system", *TABLE_1, "images/s", "proved"])


def table_3(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The systems of the paper's Table 3 by our judges, and the chest figures that it prints, of other data."""
    import pandas as pd

    printed = {(row.method, row.metric): row for row in PAPER_ROWS}
    lines = []
    for one in outcomes:
        if one.name not in ROWS_3 or one.failed:
            continue
        cells = {title: cell(one.row(metric)) for title, metric in TABLE_3.items()}
        paper = PAPERS.get(one.name, "")
        cells |= {title: cell(printed.get((paper, metric))) for title, metric in PRINTED_3.items()}
        lines.append({"system": one.name, **cells})
    return pd.DataFrame(lines, columns=["system", *TABLE_3, *PRINTED_3])


def page(outcomes: Sequence[Outcome], speeds: Mapping[str, float], about: Mapping[str, str]) -> str:
    """The comparison as Markdown: what it was, the judges' own quality, Table 1, Table 3, what failed."""
    measured = [one for one in outcomes if one.rows]
    quality = [row for one in measured[:1] for row in one.rows if row.method == JUDGES]
    parts = ["# Comparison", "".join(f"- {name}: {text}\n" for name, text in about.items()), READING]
    parts += ["## The judges on untouched images", to_markdown(quality_table(quality))]
    parts += ["## Table 1, measured", to_markdown(table_1(outcomes, speeds))]
    if len(third := table_3(outcomes)):
        parts += ["## Table 3, by independent judges", to_markdown(third)]
    if failed := [f"- {one.name}: {one.failed}" for one in outcomes if one.failed]:
        parts += ["## Failed", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def draw_trade_off(outcomes: Sequence[Outcome], path: Path) -> Path | None:
    """Finding AUC against the AUC of the stronger of P1 and P2: down and to the left everything is lost, up and to the
    left is where one wants to be. None where no system has both figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = [(one, strongest(one), one.row("judge_finding_auc")) for one in outcomes]
    drawn = [(one, x, y.value) for one, x, y in places if x is not None and y is not None and y.value is not None]
    if not drawn:
        return None
    figure = Figure(figsize=(9, 6), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(LIKE_NOBODY, color="0.7", linewidth=1, linestyle=":")
    for number, (one, x, y) in enumerate(drawn, start=1):
        color = "tab:red" if one.name == "ours" else "tab:blue"
        axes.plot(x, y, "o", markersize=6, color=color, label=f"{number}  {one.name}")
    for numbers, x, y in _clusters([(x, y) for _, x, y in drawn]):
        text = ", ".join(str(1 + number) for number in numbers)
        if x > (1 + LIKE_NOBODY) / 2:
            axes.annotate(text, (x, y), (-7, -3), textcoords="offset points", fontsize=8, ha="right")
        else:
            axes.annotate(text, (x, y), (7, -3), textcoords="offset points", fontsize=8)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, handlelength=0, frameon=False)
    axes.set_xlabel("who it is: AUC of the stronger of P1 and P2 (.5: chance)")
    axes.set_ylabel("what it shows: the judge's AUC of the finding")
    axes.grid(alpha=0.2)
    figure.tight_layout()
    return save_png(figure, path)


def _clusters(places: Sequence[tuple[float, float]]) -> list[tuple[list[int], float, float]]:
    """Places that are too near for labels of their own: which ones, and where the first of them is."""
    found: list[tuple[list[int], float, float]] = []
    for number, (x, y) in enumerate(places):
        near = (which for which, a, b in found if abs(a - x) < TOO_NEAR and abs(b - y) < TOO_NEAR)
        if (cluster := next(near, None)) is None:
            found.append(([number], x, y))
        else:
            cluster.append(number)
    return found


def strongest(one: Outcome) -> float | None:
    """Of P1 and P2 the AUC that is farthest from chance, turned round below it."""
    values = [row.value for metric in ("static_auc", "adaptive_auc") if (row := one.row(metric)) is not None]
    return max((0.5 + abs(value - 0.5) for value in values if value is not None), default=None)
