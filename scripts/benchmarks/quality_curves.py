"""What time to quality is read from: bars, the curves as lines of a table, a picture and a sentence for each recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

Line = Mapping[str, Any]
"""One check of one recipe: `recipe`, `check`, `seconds`, `images`, `figures` (name -> value or None), `ended`, ..."""


class Bar(NamedTuple):
    """What a figure of Table 2 must reach: from `low` to `high`, both included."""

    title: str
    method: str
    metric: str
    low: float
    high: float = 1.0

    def met(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.2f} to {self.high:.2f}" if self.high < 1 else f"at least {self.low:.2f}"


BARS = {
    "ssim": Bar("SSIM of the reconstruction", "reconstruction", "ssim_original", 0.70),
    "auc_original": Bar("AUC, original patient", "identity replacement", "judge_original_auc", 0.40, 0.60),
    "auc_target": Bar("AUC, target's patient", "identity replacement", "judge_target_auc", 0.95),
    "finding_kept": Bar("finding after an identity swap", "identity replacement", "judge_finding_accuracy", 0.93),
    "finding_swapped": Bar("finding after a medical swap", "medical replacement", "judge_finding_accuracy", 0.93),
    "side_swapped": Bar("side after a medical swap", "medical replacement", "judge_side_accuracy", 0.80),
}
"""Of the quick run; `monai_anon.evaluation.protocol` names methods and metrics."""


def met(figures: Mapping[str, float | None]) -> list[str]:
    """Names of the bars that figures meet; a figure that is None meets none."""
    return [name for name, bar in BARS.items() if (value := figures.get(name)) is not None and bar.met(value)]


def all_met(figures: Mapping[str, float | None]) -> bool:
    """Whether all bars are met that the cohort can be judged by, and at least one is."""
    known = [name for name in BARS if figures.get(name) is not None]
    return bool(known) and met(figures) == known


def time_to_bars(lines: Sequence[Line], recipe: str) -> dict[str, Any] | None:
    """Cost of a recipe at its first check that meets all bars; None where none does."""
    first = next((line for line in lines if line["recipe"] == recipe and all_met(line["figures"])), None)
    return None if first is None else {name: first[name] for name in ("seconds", "cpu_seconds", "images", "check")}


def time_to_each_bar(lines: Sequence[Line], recipe: str) -> dict[str, float | None]:
    """Seconds of a recipe's training at its first check that meets each bar."""
    own = [line for line in lines if line["recipe"] == recipe]
    return {name: next((line["seconds"] for line in own if name in met(line["figures"])), None) for name in BARS}


def table(lines: Sequence[Line], recipes: Sequence[str]) -> str:
    """One curve below the other; what stands in brackets misses its bar."""
    rows = []
    for line in sorted(lines, key=lambda line: (recipes.index(line["recipe"]), line["check"])):
        figures, reached = line["figures"], met(line["figures"])
        cells = ["-" if (v := figures.get(n)) is None else f"{v:.3f}" if n in reached else f"({v:.3f})" for n in BARS]
        known = sum(figures.get(name) is not None for name in BARS)
        cost = [line["recipe"], f"{line['seconds']:.0f}", f"{line['cpu_seconds']:.0f}", f"{line['images']:,}"]
        rows.append([*cost, *cells, f"{len(reached)} of {known}", remark(line)])
    headers = ["recipe", "seconds", "CPU s", "images", *BARS, "bars met", ""]
    return tabulate(rows, headers, tablefmt="plain", stralign="right", disable_numparse=True)


def brief(line: Line) -> str:
    """A check in one line, for a log."""
    figures = ", ".join(f"{name} {value:.3f}" for name, value in line["figures"].items() if value is not None)
    return f"{line['recipe']}, {line['seconds']:.0f} s: {'; '.join(filter(None, [figures, remark(line)]))}"


def remark(line: Line) -> str:
    """What is to be said of a check, in a few words; `collapse` in full is what the bundle's guard says."""
    collapsed = line["collapse"] and "not finite" not in line["collapse"]
    return "; ".join(filter(None, ["latents tell nobody apart" if collapsed else "", line["ended"]]))


def sentences(lines: Sequence[Line], recipes: Sequence[str]) -> list[str]:
    """One for each recipe: when all bars were met, or which the last check misses and by how much."""
    found = []
    for recipe in recipes:
        own = [line for line in lines if line["recipe"] == recipe]
        if reached := time_to_bars(own, recipe):
            found.append(f"{recipe}: all bars met after {reached['seconds']:.0f} s and {reached['images']:,} images")
            continue
        last = own[-1]
        figures = {name: value for name, value in last["figures"].items() if value is not None}
        missed = [f"{BARS[n].title} {v:.3f} ({BARS[n]})" for n, v in figures.items() if not BARS[n].met(v)]
        cost = f"{last['seconds']:.0f} s and {last['images']:,} images"
        why = f" ({last['ended']})" if last["ended"] else ""
        found.append(f"{recipe}: not all bars met in {cost}{why}; at the end " + ("; ".join(missed) or "no figure"))
    return found


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers, too


def draw(lines: Sequence[Line], recipes: Sequence[str], path: Path) -> None:
    """Each figure over the seconds of training of every recipe, with its bar, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3, sharex=True).ravel()
    for (name, bar), place in zip(BARS.items(), axes, strict=True):
        place.axhspan(bar.low, bar.high, color="#999999", alpha=0.18, lw=0, label="bar")
        for number, recipe in enumerate(recipes):
            own = [line for line in lines if line["recipe"] == recipe and line["figures"].get(name) is not None]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "osD^"[number % 4], "ms": 4}
            place.plot([x["seconds"] for x in own], [x["figures"][name] for x in own], label=recipe, **style)
            if reached := time_to_bars(lines, recipe):
                place.axvline(reached["seconds"], color=style["color"], ls=":", lw=1)
        place.set(title=f"{bar.title}: {bar}", ylim=(-0.03, 1.03), xlim=(0, None))
        place.title.set_fontsize(10)
        place.grid(alpha=0.25)
    for place in axes[3:]:
        place.set_xlabel("seconds of training (dotted: all bars met)", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    draft = path.with_suffix(".part.png")
    figure.savefig(draft, dpi=150)
    draft.replace(path)
