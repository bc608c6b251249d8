"""Colour faces, painted in layers with analytic shading, vectorised over the batch.

Background, clothes, hair behind, neck, ears, the head's relief under a lamp with eyes, brows, nose and mouth on it,
hair around: each a soft-edged layer of light. Shapes are made of sums, products, quotients and square roots, whose
result is the same on every machine. A smile changes the mouth, cheeks and eyes and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from monai_anon.phantoms import counter
from monai_anon.phantoms.face_colours import Canvas
from monai_anon.phantoms.face_factors import BACKGROUND, IDENTITY, IDENTITY_SHARES, RESIDUAL, RESIDUAL_SHARES
from monai_anon.phantoms.face_hair import Hair
from monai_anon.phantoms.face_parts import (
    marked,
    paint_beard,
    paint_brows,
    paint_eyes,
    paint_mouth,
    paint_nose,
    skin_of,
)
from monai_anon.phantoms.face_relief import lamp, lit, nose_of, relief, shaded
from monai_anon.phantoms.face_shapes import Head, Pattern, mouth_of
from monai_anon.phantoms.rendering import render_rows
from monai_anon.phantoms.shapes import Rows, edge, smooth

COLUMNS = (
    *IDENTITY, *IDENTITY_SHARES, "id_skin_seed", "id_hair_seed", "med_present", "med_severity", *RESIDUAL,
    *RESIDUAL_SHARES, *BACKGROUND, "res_background", "res_background_seed", "res_noise", "res_noise_seed",
)  # fmt: skip
# What stands where the person is not, in a cohort without backgrounds: mid-gray.
BACKGROUND_LEVEL = 128


def _tints(head: Head, names: tuple[str, ...], saturation: float) -> np.ndarray:
    """Colours from three factors in [0, 1], made duller: light (3, n, 1, 1)."""
    colour = np.float32(0.10) + np.float32(0.75) * np.stack([head[name] for name in names])
    gray = colour.mean(axis=0, keepdims=True)
    return np.square(gray + np.float32(saturation) * (colour - gray))


def _background(head: Head, rows: Rows) -> np.ndarray:
    """A wall out of focus, lighter on one side, with soft patches, black where there is none: (3, n, size, size)."""
    pattern = Pattern(rows["res_background_seed"])
    near = _tints(head, BACKGROUND[:3], 0.28)
    x, y = head.column, head.row
    fall = (head["res_background_fall"] - np.float32(0.5)) * x + np.float32(0.25) * y
    patches = pattern(x * 2 + 5, y * 2) + np.float32(0.5) * pattern(x * 5, y * 5 + 9)
    lightness = 1 - np.float32(0.7) * fall + np.float32(0.5) * head["res_background_texture"] * patches
    return near * np.maximum(lightness, np.float32(0.1)) * head["res_background"]


def _paint_bust(canvas: Canvas, head: Head, hair: Hair, skin: np.ndarray) -> None:
    """Clothes, the hair behind, and the neck in the chin's shadow."""
    beside, width = np.abs(head.x), head.width(0.02)
    x, _, z = lamp(head)
    shoulder = np.float32(0.84) + np.float32(0.45) * np.square(np.maximum(beside - np.float32(0.2), 0))
    roll = smooth((head.y - shoulder) * np.float32(1 / 0.2))
    facing = z * (np.float32(0.6) + np.float32(0.4) * roll) + np.float32(0.5) * head.x * x
    canvas.paint(edge(head.y - shoulder, width), _tints(head, RESIDUAL_SHARES, 0.45) * shaded(head, facing))
    hair.paint_behind(canvas)
    half = head["id_neck_width"] * (1 + np.float32(0.5) * np.square(np.maximum(head.y - np.float32(0.72), 0) * 4))
    low = np.maximum(head.y - np.float32(0.78), 0) * np.float32(1 / 0.18)
    collar = np.where(low > 0, 1 - np.square(head.x * np.float32(1 / 0.36)) - low * low, np.float32(1))
    across = np.clip(head.x / half, -1, 1)
    facing = across * x + np.sqrt(1 - across * across) * z
    shadow = np.float32(0.38) + np.float32(0.5) * smooth((head.y - head["id_chin"]) * np.float32(1 / 0.3))
    alpha = edge(half - beside, width) * edge(np.float32(0.15) * collar, width) * edge(head.y - np.float32(0.3), width)
    canvas.paint(alpha, skin * shaded(head, facing) * shadow)


def _paint_ears(canvas: Canvas, head: Head, skin: np.ndarray, shade: np.ndarray) -> None:
    """Ears, of which a turned head hides one."""
    beside = np.abs(head.x + np.float32(0.30) * head["res_yaw"]) - head["id_face_width"] - np.float32(0.005)
    size = head["id_ear_size"]
    across, down = beside / (np.float32(0.5) * size), head.y / size
    level = 1 - across * across - down * down
    inner = np.float32(0.6) + np.float32(0.4) * smooth(1.2 - level)
    canvas.paint(edge(np.float32(0.3) * size * level, head.width(0.012)), skin * np.float32(0.75) * shade * inner)


def _paint(rows: Rows, size: int) -> tuple[Canvas, Head]:
    """The person before a background, or before nothing."""
    head = Head(rows, size)
    canvas, hair, skin = Canvas(_background(head, rows)), Hair(head, rows), skin_of(rows)
    pattern = Pattern(rows["id_skin_seed"])
    mouth, nose = mouth_of(head), nose_of(head)
    shade, gloss = lit(head, relief(head, mouth, nose))
    _paint_bust(canvas, head, hair, skin)
    _, _, z = lamp(head)
    _paint_ears(canvas, head, skin, shaded(head, z))
    within = edge(head.distance, head.width(0.014))
    canvas.paint(within, marked(head, rows, skin, pattern) * shade + np.float32(0.16) * gloss)
    paint_beard(canvas, head, hair.colour, pattern, within, shade)
    paint_nose(canvas, head, nose, within)
    paint_mouth(canvas, head, mouth, skin, within, shade)
    paint_eyes(canvas, head, rows, within, shade)
    paint_brows(canvas, head, hair.colour, within, shade)
    hair.paint_around(canvas)
    return canvas, head


def _expose(head: Head, picture: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Light (3, n, size, size) at a lamp's temperature, through a film's shoulder, as a screen shows it; with noise."""
    warm = head["res_temperature"]
    balance = np.stack([1 + warm, np.ones_like(warm), 1 - warm])
    shown = np.maximum(picture * (head["res_gain"] * np.float32(0.92) * balance), 0)
    knee = np.float32(0.55)
    over = np.maximum(shown - knee, 0) / (1 - knee)
    shown = np.sqrt(np.minimum(shown, knee) + (1 - knee) * over / (1 + over))
    images, size = shown.shape[1], shown.shape[2]
    noise = counter.pixel_noise(seeds, 3 * size * size).reshape(images, 3, size, size).swapaxes(0, 1)
    return shown + noise * head["res_noise"] * (np.float32(0.6) + np.float32(0.8) * shown)


def _draw(rows: Rows, size: int) -> np.ndarray:
    """Images of a chunk: uint8 (n, size, size, 3)."""
    canvas, head = _paint(rows, size)
    # Before nothing, the canvas holds the person's light times its share of a pixel; before a wall all is picture.
    share = np.maximum(canvas.covered, head["res_background"])
    picture = canvas.light / np.maximum(share, np.float32(1e-3))
    shown = np.clip(_expose(head, picture, rows["res_noise_seed"]), 0, 1) * 255
    shown = shown * share + BACKGROUND_LEVEL * (1 - share)
    return np.ascontiguousarray(np.moveaxis((shown + np.float32(0.5)).astype(np.uint8), 0, -1))


def render(
    factors: pd.DataFrame,
    size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Render one face a row: uint8 (N, size, size, 3), RGB. A row's pixels depend on that row alone.

    Where `res_background` is 0, everything but the person, its hair and clothes is mid-gray (128), without noise, by
    the exact mask (`person_mask`); a pixel on the border is mixed by its share.

    Args:
        factors: the table of `sample_factors`, or rows of it with factors changed.
        size: side in pixels, 32 to 512.
        progress: called with the number of images done and their total.

    Raises:
        ValueError: a size out of range, missing columns, or factors that are not finite.
    """
    return render_rows(factors, COLUMNS, size, _draw, progress, channels=(3,))


def person_mask(factors: pd.DataFrame, size: int = 64) -> np.ndarray:
    """Share of each pixel that the person, its hair and clothes cover, exactly: float32 (N, size, size) in [0, 1].

    Raises:
        ValueError: as `render`.
    """
    return render_rows(factors, COLUMNS, size, lambda rows, size: _paint(rows, size)[0].covered, dtype=np.float32)
