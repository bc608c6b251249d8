"""An explanation's images as PNG files, page and strip: pixels only, no text chunk, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from monai_anon.explaining.counterfactuals import Series, evidence
from monai_anon.explaining.explanation import Case, Explanation, as_image, in_words
from monai_anon.pages import templates

COLOURS = "RdBu_r"
"""Diverging, blue below 0 and red above it; ColorBrewer has it among those that the colour-blind tell apart."""
_SHADES = 9
_SIDE, _GAP, _HEAD, _FOOT = 192, 8, 40, 52  # pixels of the strip: an image at least, between, above, below
_INK, _PAPER, _WARNING = (20, 24, 28), (255, 255, 255), (150, 30, 0)


# ---- Single images ----


def png(pixels: np.ndarray) -> bytes:
    """uint8 `(H, W)` or `(H, W, 3)` as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def heat(change: Tensor, most: float) -> np.ndarray:
    """Evidence `(S, S)` in gray levels as colours, uint8 `(S, S, 3)`: white at 0, red at `most`, blue at -`most`."""
    from matplotlib import colormaps

    shade = np.clip(change.numpy() / most, -1, 1) * 0.5 + 0.5
    return np.asarray(np.rint(colormaps[COLOURS](shade)[..., :3] * 255), dtype=np.uint8)


def span(change: Tensor) -> float:
    """The end of an evidence map's scale, in gray levels: its largest value, 1 at least."""
    return max(1.0, round(float(change.abs().max())))


def shades() -> list[str]:
    """The map's colours from blue to red, as a page names them."""
    from matplotlib import colormaps

    return ["#{:02x}{:02x}{:02x}".format(*map(int, row)) for row in _ramp(colormaps[COLOURS], _SHADES)]


def _ramp(colours: object, count: int) -> np.ndarray:
    return np.rint(colours(np.linspace(0, 1, count))[:, :3] * 255)  # type: ignore[operator]


# ---- The page ----


def page(explanation: Explanation) -> str:
    """One HTML page that is complete in itself and runs nothing."""
    template = templates("monai_anon.explaining").get_template("explanation.html.j2")
    record = explanation.record()
    similar = [case for case in explanation.cases if case.similar]
    shown = [_set(explanation.series, explanation, own=False)]
    if explanation.own is not None:
        shown.insert(0, _set(explanation.own, explanation, own=True))
    return template.render(
        record=record,
        words=in_words(explanation.passes, "original" if explanation.query is None else "case, but all of the query"),
        sets=shown,
        shades=shades(),
        lists=[
            ("Similar cases", _figures(similar, explanation)),
            ("Cases with another finding", _figures(explanation.cases[len(similar) :], explanation)),
        ],
        finding=explanation.classes[record["query"]["finding"]],
        source=_source,
    )


def _source(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


def _percent(value: float) -> str:
    return "over 99 %" if value > 0.99 else "under 1 %" if value < 0.01 else f"{100 * value:.0f} %"


def _set(series: Series, explanation: Explanation, own: bool) -> dict[str, object]:
    """The pictures of one series: image, counterfactual, evidence, and the query itself where they are its own."""
    change, classes = evidence(series), explanation.classes
    most = span(change)
    first, last = (int(row.argmax()) for row in (series.probabilities[0], series.probabilities[-1]))
    chances = [_percent(float(row.max())) for row in (series.probabilities[0], series.probabilities[-1])]
    label = "Reconstruction of the query" if own else "The query's finding, drawn"
    person = "person" if own else "synthetic person"
    drawn = label if own else "A synthetic person with the query's finding"
    figures = [
        (
            as_image(series.pixels[0]),
            f"{label}: {classes[first]}",
            f"Probability {chances[0]}.",
            f"{drawn}: {classes[first]}",
        ),
        (
            as_image(series.pixels[-1]),
            f"Counterfactual: {classes[last]}",
            f"Probability {chances[1]}. All but the finding is as on the left.",
            f"The same {person} with another finding: {classes[last]}",
        ),
        (
            heat(change, most),
            "Evidence: left less counterfactual",
            "Red: brighter with the finding on the left. Blue: darker.",
            f"Map of the difference; from {change.min():.0f} to {change.max():.0f} gray levels of 255",
        ),
    ]
    if own and explanation.query is not None:
        figures.insert(
            0,
            (as_image(explanation.query), "The query", "As the model sees it.", "The query's own image"),
        )
    return {
        "title": "Of the query's person" if own else "Of nobody",
        "own": own,
        "figures": figures,
        "most": f"{most:.0f}",
    }


def _figures(cases: Sequence[Case], explanation: Explanation) -> list[tuple[np.ndarray, str, str, str]]:
    found = []
    for number, case in enumerate(cases, 1):
        finding, chance = explanation.classes[case.finding], _percent(max(case.probabilities))
        whose = "query" if case.similar else "counterfactual"
        same = explanation.passes.policy == "code" and case.distance == 0
        told = f"Probability {chance}; " + (f"the {whose}'s prototype." if same else f"distance {case.distance:.2f}.")
        alt = f"A synthetic person with the finding of case {case.id}: {finding}"
        found.append((as_image(case.pixels), f"{number}. {finding}", told, alt))
    return found


# ---- The strip ----


def strip(series: Series, warning: str = "") -> bytes:
    """A series and its evidence map with a scale, side by side as one PNG file, each image enlarged to squares.

    Args:
        warning: stands in red above everything.
    """
    change = evidence(series)
    most = span(change)
    times = max(1, -(-_SIDE // series.pixels.shape[-1]))
    images = [Image.fromarray(as_image(row)).convert("RGB") for row in series.pixels]
    images.append(Image.fromarray(heat(change, most)))
    side = series.pixels.shape[-1] * times
    top = _HEAD + (24 if warning else 0)
    sheet = Image.new("RGB", (_GAP + (side + _GAP) * len(images), top + side + _FOOT), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    if warning:
        draw.text((_GAP, 6), warning, _WARNING, font)
    for place, image in enumerate(images):
        left = _GAP + place * (side + _GAP)
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top - 34), _label(series, place), _INK, ImageFont.load_default(13), spacing=2)
    _scale(sheet, draw, _GAP + (len(images) - 1) * (side + _GAP), top + side + 6, side, most)
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _label(series: Series, place: int) -> str:
    if place == len(series.pixels):
        return "evidence: first\nless last image"
    finding = int(series.probabilities[place].argmax())
    name = {0: "image", len(series.pixels) - 1: "counterfactual"}.get(place, f"step {place}")
    return f"{name}\nfinding {finding}, p {float(series.probabilities[place, finding]):.2f}"


def _scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, width: int, most: float) -> None:
    from matplotlib import colormaps

    bar = np.broadcast_to(_ramp(colormaps[COLOURS], width).astype(np.uint8), (12, width, 3))
    sheet.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, top))
    draw.rectangle((left, top, left + width - 1, top + 11), outline=_INK)
    font, middle = ImageFont.load_default(12), left + width // 2
    draw.text((left, top + 14), f"-{most:.0f}", _INK, font)
    draw.text((middle - 4, top + 14), "0", _INK, font)
    draw.text((left + width - 26, top + 14), f"+{most:.0f}", _INK, font)
    draw.text((left, top + 28), "gray levels of 255; red: brighter", _INK, font)
