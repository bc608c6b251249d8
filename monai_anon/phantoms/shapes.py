"""Building blocks of every phantom's shapes: the posed frame, anti-aliased edges, fillets.

Everything is float32 sums, products, quotients and square roots, whose result is the same on every machine.
"""

from __future__ import annotations

import numpy as np

Rows = dict[str, np.ndarray]


def smooth(value: np.ndarray) -> np.ndarray:
    """Cubic step from 0 at value <= 0 to 1 at value >= 1."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Anti-aliased inside of a shape, 0 to 1, from the distance to its edge (positive inside)."""
    return smooth(distance * np.float32(0.5 / width) + np.float32(0.5))


def bump(value: np.ndarray) -> np.ndarray:
    """(1 - value^2)^2 within +-1, 0 elsewhere."""
    inside = np.maximum(1 - value * value, 0)
    return inside * inside


def soft_minimum(one: np.ndarray, other: np.ndarray, radius: float) -> np.ndarray:
    """Minimum of two distances, with a fillet where they cross."""
    blend = np.maximum(np.float32(radius) - np.abs(one - other), 0)
    return np.minimum(one, other) - blend * blend * np.float32(0.25 / radius)


class PosedFrame:
    """Coordinates of the pixels of a chunk where shift, rotation and zoom are undone, and its rows' factors.

    `x` and `y` are float32 (n, size, size), [-1, 1] across and down in an image without shift, rotation or zoom;
    `frame[name]` is a factor as float32 (n, 1, 1).
    """

    def __init__(self, rows: Rows, size: int) -> None:
        self.rows = {name: values.astype(np.float32)[:, None, None] for name, values in rows.items()}
        self.pixel = 2 / size
        centre = ((2 * np.arange(size) + 1) / size - 1).astype(np.float32)
        angle = rows["res_rotation"].astype(np.float64)[:, None, None]
        self.cosine, self.sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        across = (centre[None, None, :] - self["res_shift_x"]) / self["res_zoom"]
        down = (centre[None, :, None] - self["res_shift_y"]) / self["res_zoom"]
        self.x = self.cosine * across + self.sine * down
        self.y = self.cosine * down - self.sine * across

    def __getitem__(self, name: str) -> np.ndarray:
        return self.rows[name]

    def width(self, least: float) -> float:
        """Width of an edge that is `least` wide in the body and never thinner than the pixels can show."""
        return float(np.hypot(least, 0.9 * self.pixel))
