"""The report's figures as SVG: colour-blind safe (Okabe and Ito, 2008), and never by colour alone.

Every figure is drawn without a display, names its methods beside their marks or in a legend, and is the same text for
the same figures. Sizes suit a phone: about 350 points wide, letters of 9 to 10.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from monai_anon.evaluation.aggregation import REFERENCE
from monai_anon.evaluation.reporting.runs import Curve
from monai_anon.evaluation.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe, Ito: Color Universal Design (2008); black is kept for `none`, yellow is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
SPARSE: Any = (0, (1, 3))
SIZE = (5.2, 4.0)  # inches
CHANCE = "#595959"
UNTOUCHED = "untouched images"
SETTINGS: Any = {
    "svg.fonttype": "none",  # letters stay letters: they scale, and a search finds them
    "svg.hashsalt": "monai-anon",
    "text.parse_math": False,  # a method may be called $x$
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}

Chance = Mapping[float, float] | Literal["auc"]
"""What a guess gets: 0.5, or a value at each count."""


@dataclasses.dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure."""

    colour: str
    marker: str
    dashes: Any


@dataclasses.dataclass(frozen=True)
class Series:
    """One line with its intervals: y, low and high at x; bounds may be None."""

    method: str
    x: Sequence[float]
    rows: Sequence[Row]


class Point(NamedTuple):
    """A method in a plot of privacy and utility; both rows have values."""

    method: str
    leakage: Row
    finding: Row


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """One look a method; `none` is black. Colour, marker and dashes repeat at different lengths."""
    others = [method for method in dict.fromkeys(methods) if method != REFERENCE]
    found = {
        method: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, method in enumerate(others)
    }
    return found | {REFERENCE: Look("#000000", "*", "-")}


@contextmanager
def _figure(name: str, size: tuple[float, float] = SIZE) -> Iterator[tuple[Axes, Callable[[], str]]]:
    """Axes, and a function that gives their SVG as text without its prolog."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    def svg() -> str:
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return _embeddable(written.getvalue(), name)

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), svg


def _embeddable(text: str, name: str) -> str:
    """An SVG document as an element: no prolog, and ids of its own, since several stand in one page."""
    text = text[text.index("<svg") :]
    tag = re.sub(r"\W+", "-", name)
    text = re.sub(r'(?<= id=")(?=[^"]+")', f"{tag}-", text)
    text = re.sub(r'(?<=xlink:href="#)', f"{tag}-", text)
    return re.sub(r"(?<=url\(#)", f"{tag}-", text)


def privacy_utility(
    name: str, points: Sequence[Point], look: Mapping[str, Look], label: str, best: float | None = None
) -> str:
    """Methods by leakage (x) and finding AUC (y), with intervals both ways and their names beside them.

    Args:
        label: of the axis of leakage.
        best: the judge's own finding AUC on untouched images.
    """
    with _figure(name) as (axes, svg):
        labels = []
        for method, leak, finding in points:
            style = look[method]
            assert leak.value is not None and finding.value is not None
            axes.errorbar(
                leak.value, finding.value, xerr=_spread(leak), yerr=_spread(finding),
                color=style.colour, marker=style.marker, markersize=9 if style.marker == "*" else 7,
                elinewidth=1, capsize=2, linestyle="",
            )  # fmt: skip
            labels.append((leak.value, finding.value, method))
        if best is not None:
            axes.axhline(best, color=CHANCE, linestyle=":", linewidth=1)
            axes.annotate(
                "judge on untouched images", (0.41, best), xytext=(0, -3), textcoords="offset points",
                ha="right", va="top", fontsize=8, color=CHANCE,
            )  # fmt: skip
        axes.set_xlim(-0.02, 0.52)
        low = min([0.5, *(y for _, y, _ in labels)])
        axes.set_ylim(low - 0.04, 1.03)
        _label(axes, labels)
        axes.set_xlabel(label)
        axes.set_ylabel("finding AUC on released images")
        return svg()


def _label(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Names beside their marks, moved up or down until none covers another."""
    x_span, y_span = (high - low for low, high in (axes.get_xlim(), axes.get_ylim()))
    taken = [(x - 0.015 * x_span, x + 0.015 * x_span, y) for x, y, _ in points]
    for x, y, text in sorted(points, key=lambda point: -point[1]):
        text = text if len(text) <= 32 else text[:31] + "…"
        width, height = 0.0165 * x_span * len(text), 0.05 * y_span
        right = x + 0.025 * x_span + width > axes.get_xlim()[1]
        start = x - 0.025 * x_span - width if right else x + 0.025 * x_span
        middle = y + 0.032 * y_span
        while any(start < b and a < start + width and abs(middle - c) < height for a, b, c in taken):
            middle -= 0.25 * height
        taken.append((start, start + width, middle))
        far = abs(middle - y) > 2 * height
        axes.annotate(
            text, (x, y), xytext=(start + (width if right else 0), middle), va="center", fontsize=9,
            ha="right" if right else "left", arrowprops={"arrowstyle": "-", "color": "#999999"} if far else None,
        )  # fmt: skip


def attack_curves(name: str, curves: Sequence[Curve], look: Mapping[str, Look]) -> str:
    """The curves of one attack, one line a method."""
    with _figure(name) as (axes, svg):
        named: set[str] = set()
        for curve in sorted(curves, key=lambda curve: curve.method != REFERENCE):
            style = look[curve.method]
            label = None if curve.method in named else _legend(curve.method)  # several runs of one method: one name
            named.add(curve.method)
            axes.plot(
                curve.x, curve.y, color=style.colour, linestyle=style.dashes, marker=style.marker, markersize=5,
                markevery=0.12, linewidth=1.6, label=label,
            )  # fmt: skip
        axes.plot([0, 1], [0, 1], color=CHANCE, linestyle=":", linewidth=1, label="chance")
        axes.set_xlabel(curves[0].x_label)
        axes.set_ylabel(curves[0].y_label)
        _name(axes)
        return svg()


def against_count(
    name: str,
    series: Sequence[Series],
    labels: tuple[str, str],
    look: Mapping[str, Look],
    chance: Chance,
) -> str:
    """Figures with intervals against a count (x, doubling from tick to tick), over the line of chance."""
    with _figure(name) as (axes, svg):
        ticks = sorted({x for one in series for x in one.x})
        for one in sorted(series, key=lambda one: one.method != REFERENCE):
            _line(axes, one, look[one.method])
        if chance == "auc":
            axes.axhline(0.5, color=CHANCE, linestyle=":", linewidth=1, label="chance")
        elif chance:
            axes.plot(*zip(*sorted(chance.items()), strict=True), color=CHANCE, linestyle=":", label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        _name(axes)
        return svg()


def against_bits(name: str, series: Sequence[Series], untouched: Mapping[str, float]) -> str:
    """What is kept (y) by the bits that a release says at most (x): one line a figure, dotted for untouched images.

    Args:
        series: `method` is what a figure is called.
        untouched: what the judge reads from the images themselves, by the same names.
    """
    with _figure(name) as (axes, svg):
        look = looks([one.method for one in series])
        for one in series:
            _line(axes, one, look[one.method])
            if one.method in untouched:
                axes.axhline(untouched[one.method], color=look[one.method].colour, linestyle=SPARSE, linewidth=1)
        if untouched:
            axes.plot([], [], color=CHANCE, linestyle=SPARSE, linewidth=1, label=UNTOUCHED)
        axes.set_xlabel("bits that a release says of its original, at most")
        axes.set_ylabel("by the medical judge, on released images")
        _name(axes)
        return svg()


def _line(axes: Axes, one: Series, style: Look) -> None:
    """A line through its marks, with intervals."""
    spreads = [_spread(row) for row in one.rows]
    errors = [[spread[side][0] for spread in spreads] for side in (0, 1)]
    axes.errorbar(
        one.x, [row.value or 0.0 for row in one.rows], yerr=errors, color=style.colour, linestyle=style.dashes,
        marker=style.marker, markersize=6, linewidth=1.6, elinewidth=1, capsize=2, label=_legend(one.method),
    )  # fmt: skip


def _name(axes: Axes) -> None:
    """A legend above the axes, where it covers no line; what lines are compared with comes last."""
    pairs = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: pair[1] in ("chance", UNTOUCHED)
    )
    handles, names = zip(*pairs, strict=True)
    shown = [name if len(name) <= 40 else name[:39] + "…" for name in names]
    columns = 3 if max(map(len, shown)) <= 16 else 2 if max(map(len, shown)) <= 26 else 1
    axes.figure.legend(handles, shown, loc="outside upper center", ncols=columns)


def _spread(row: Row) -> list[list[float]]:
    """What matplotlib draws as error bars: how far the interval goes down and up, 0 where there is none."""
    assert row.value is not None
    down = 0.0 if row.ci_low is None else max(0.0, row.value - row.ci_low)
    up = 0.0 if row.ci_high is None else max(0.0, row.ci_high - row.value)
    return [[down], [up]]


def _legend(method: str) -> str:
    """A name that matplotlib shows: it leaves those out that begin with an underscore."""
    return f" {method}" if method.startswith("_") else method
