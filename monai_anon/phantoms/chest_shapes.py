"""Building blocks of the chest phantom's shapes: the frame of the body, vessels.

Everything is float32 sums, products, quotients and square roots, whose result is the same on every machine.
"""

from __future__ import annotations

import numpy as np

from monai_anon.phantoms import counter
from monai_anon.phantoms.shapes import PosedFrame, Rows

# Share of the spine's bend that lungs, ribs and vessels follow.
HANG = 0.6
# Vessel segments a side.
SEGMENTS = 14


class Frame(PosedFrame):
    """Body coordinates of the pixels of a chunk, and the factors of its rows as (n, 1, 1) float32."""

    def __init__(self, rows: Rows, size: int) -> None:
        super().__init__(rows, size)
        # The spine bends, and what hangs on it follows part of the way.
        self.spine = self["id_spine_tilt"] * self.y + self["id_spine_bow"] * (self.y * self.y - np.float32(0.3))
        self.lateral = self.x - np.float32(HANG) * self.spine
        self.is_left = self.lateral > 0
        self.out = np.abs(self.lateral)

    def to_pixels(self, lateral: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Column and row, in pixels, of points of the body: (n, k) and (n, k) in, and out."""
        tilt, bow, zoom, shift_x, shift_y, cosine, sine = (
            values[:, :, 0]
            for values in (
                self["id_spine_tilt"], self["id_spine_bow"], self["res_zoom"], self["res_shift_x"], self["res_shift_y"],
                self.cosine, self.sine,
            )
        )  # fmt: skip
        x = lateral + HANG * (tilt * y + bow * (y * y - 0.3))
        column, row = (cosine * x - sine * y) * zoom + shift_x, (sine * x + cosine * y) * zoom + shift_y
        return (column + 1) / self.pixel - 0.5, (row + 1) / self.pixel - 0.5

    def sided(self, name: str) -> np.ndarray:
        """A factor that each side has its own of, by pixel: (n, size, size)."""
        return np.where(self.is_left, self[f"{name}_left"], self[f"{name}_right"])


def _vessel_tree(rows: Rows, side: int) -> np.ndarray:
    """Tree of one lung, (5, n, SEGMENTS): start (lateral, y), step (lateral, y) and width of every segment.

    Five segments leave the hilum like a fan, five go on from their ends and four branch off on the way.
    """
    seed = rows["id_vessel_seed"].astype(np.int64)[:, None]
    index = np.arange(SEGMENTS)[None, :]
    draws = [2 * counter.uniform(seed, side, index, number) - 1 for number in range(3)]
    turns, stretches, places = (draw * rows["id_vessel_spread"][:, None] for draw in draws)
    hilum = rows["id_hilum_right" if side < 0 else "id_hilum_left"]
    start_x, start_y, step_x, step_y, width = tree = np.zeros((5, len(seed), SEGMENTS))
    fan = (-1.25, -0.55, 0.1, 0.65, 1.15)
    for i in range(SEGMENTS):
        turn, stretch, place = turns[:, i], stretches[:, i], places[:, i]
        if i < 5:
            angle, length, width[:, i] = fan[i] + 0.3 * turn, 0.24 + 0.08 * stretch, 0.019 + 0.004 * place
            start_x[:, i], start_y[:, i] = 0.15, hilum + 0.03 * fan[i]
        else:
            parent, bend, share = (i - 5, 0.35, 1.0) if i < 10 else (i - 9, -0.5, 0.55 + 0.3 * place)
            angle = np.arctan2(step_y[:, parent], step_x[:, parent]) + bend * np.where(turn >= 0, 1, -1) + 0.3 * turn
            length, width[:, i] = 0.19 + 0.07 * stretch, width[:, parent] * 0.68
            start_x[:, i] = start_x[:, parent] + share * step_x[:, parent]
            start_y[:, i] = start_y[:, parent] + share * step_y[:, parent]
        step_x[:, i], step_y[:, i] = length * np.cos(angle), length * np.sin(angle)
    start_x *= side
    step_x *= side
    return tree


def draw_vessels(f: Frame, rows: Rows) -> np.ndarray:
    """Vessels of both lungs, 0 to about 1: (n, size, size). Only the pixels around each segment are worked on."""
    start_x, start_y, step_x, step_y, width = np.concatenate([_vessel_tree(rows, side) for side in (-1, 1)], axis=2)
    shown = 1.6 * np.sqrt(width**2 + 0.3 * f.pixel**2)
    windows = _windows(f, (start_x, start_y), (step_x, step_y), shown)
    x0, y0, dx, dy, wide, blur = (
        values.astype(np.float32)[:, :, None, None] for values in (start_x, start_y, step_x, step_y, width, shown)
    )
    x, y = f.lateral.ravel()[windows] - x0, f.y.ravel()[windows] - y0
    along = np.clip((x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    x -= along * dx
    y -= along * dy
    inside = np.square(np.maximum(1 - (x * x + y * y) / (blur * blur), 0))
    fade = np.array([0.3 if i < 5 else 0.75 for i in range(SEGMENTS)] * 2, dtype=np.float32)[None, :, None, None]
    value = inside * (1 - fade * along) * (wide * wide / blur * 60)
    total = np.zeros(f.y.size, dtype=np.float32)
    for i in range(value.shape[1]):
        total[windows[:, i]] = np.maximum(total[windows[:, i]], value[:, i])
    return total.reshape(f.y.shape)


def _windows(
    f: Frame, start: tuple[np.ndarray, np.ndarray], step: tuple[np.ndarray, np.ndarray], reach: np.ndarray
) -> np.ndarray:
    """Flat indices of a square of pixels around each segment: (n, k, side, side)."""
    n, size = f.y.shape[0], f.y.shape[2]
    begin, end = f.to_pixels(*start), f.to_pixels(start[0] + step[0], start[1] + step[1])
    # Two pixels more, for the bend between the ends.
    margin = reach * f["res_zoom"][:, :, 0] / f.pixel + 2
    low = [np.floor(np.minimum(a, b) - margin) for a, b in zip(begin, end, strict=True)]
    high = [np.ceil(np.maximum(a, b) + margin) for a, b in zip(begin, end, strict=True)]
    side = min(size, 1 + int(max((b - a).max() for a, b in zip(low, high, strict=True))))
    column, row = (np.clip(values, 0, size - side).astype(np.int64)[:, :, None, None] for values in low)
    offset = np.arange(side)
    image = np.arange(n)[:, None, None, None] * size * size
    return image + (row + offset[:, None]) * size + column + offset
