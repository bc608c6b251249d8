"""The frame of the face phantom's head: outline, coordinates of a turned face, mouth, patterns from a seed.

Everything is float32 sums, products, quotients and square roots, whose result is the same on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monai_anon.phantoms import counter
from monai_anon.phantoms.shapes import PosedFrame, Rows, bump, smooth

# Height at which a head is widest.
MIDDLE = -0.12
# Side of the tables that patterns are read from; a power of two.
_CELLS = 32
# How large a head of the mean size is drawn.
_SCALE = 1.14


class Head(PosedFrame):
    """Coordinates of the pixels of a chunk, (n, size, size), and the factors of its rows as (n, 1, 1) float32.

    `x`, `y` are of the picture's plane, turned and shifted with the head. `u`, `v` are of the face: what lies at
    `(u, v)` when the head looks straight ahead is found there when it looks aside or down. The nearer to the viewer,
    the further a point moves, so one half of a turned face is foreshortened. `smile` is the strength of the smile, 0
    to 1: it grows faster while it is slight, so that the slightest can be seen.
    """

    def __init__(self, rows: Rows, size: int) -> None:
        super().__init__(rows, size)
        # The picture's own coordinates, for what does not move with the head.
        centre = ((2 * np.arange(size) + 1) / size - 1).astype(np.float32)
        self.column = np.broadcast_to(centre[None, None, :], self.x.shape)
        self.row = np.broadcast_to(centre[None, :, None], self.x.shape)
        self.x, self.y = self.x / np.float32(_SCALE), self.y / np.float32(_SCALE)
        self.level, self.distance = self._outline()
        depth = np.maximum(self.level, 0)
        self.u = self.x - self["res_yaw"] * self["id_face_width"] * depth
        self.v = self.y - self["res_pitch"] * np.float32(0.6) * depth
        self.out = np.abs(self.u)
        self.side = np.where(self.u < 0, np.float32(-1), np.float32(1))
        severity = self["med_severity"] * self["med_present"]
        self.smile = severity * (np.float32(1.7) - np.float32(0.7) * severity)

    def _outline(self) -> tuple[np.ndarray, np.ndarray]:
        """Skull and jaw: 1 in the middle and 0 on the outline; and the distance to it, positive inside."""
        down = self.y - MIDDLE
        below = down > 0
        height = np.where(below, self["id_chin"] - MIDDLE, MIDDLE - self["id_crown"])
        t = np.abs(down) / height
        square = np.where(below, self["id_jaw_square"], np.float32(0.15))
        narrow = np.where(below, self["id_jaw_taper"], np.float32(0))
        half = self["id_face_width"] * (1 - narrow * smooth(t))
        across, t2 = self.x / half, t * t
        level = 1 - across * across - t2 * (1 - square + square * t2)
        steep = np.square(across / half) + np.square(t * (1 - square + 2 * square * t2) / height)
        return level, level / (2 * np.sqrt(steep) + np.float32(0.05))

    def line(self, away: np.ndarray, half: float) -> np.ndarray:
        """A line that is `half` thick on either side: where too thin for the pixels it is fainter, not thicker."""
        wide = self.width(half)
        return bump(away * np.float32(1 / (1.9 * wide))) * np.float32(half / wide)

    def spot(self, out: float | np.ndarray, v: float | np.ndarray, wide: float, high: float) -> np.ndarray:
        """A soft spot, 0 to 1, on both halves of the face, `out` from its middle: nothing beyond `wide` and `high`."""
        across, down = (self.out - out) / np.float32(wide), (self.v - v) / np.float32(high)
        inside = np.maximum(1 - across * across - down * down, 0)
        return inside * inside


class Pattern:
    """Smooth noise in [-1, 1] over the plane, a pure function of each image's own seed; repeats after 32 cells."""

    def __init__(self, seeds: np.ndarray) -> None:
        cells = np.arange(_CELLS * _CELLS)
        table = 2 * counter.uniform(seeds.astype(np.int64)[:, None], cells[None]) - 1
        self.table = table.astype(np.float32)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Value at points (n, size, size), in cells."""
        left, top = np.floor(x), np.floor(y)
        across, down = smooth(x - left), smooth(y - top)
        column, row = left.astype(np.int32), top.astype(np.int32)
        upper = self._at(column, row) * (1 - across) + self._at(column + 1, row) * across
        lower = self._at(column, row + 1) * (1 - across) + self._at(column + 1, row + 1) * across
        return upper * (1 - down) + lower * down

    def dots(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Round soft dots, 0 to 1, of differing strength, one somewhere in every other cell: at points in cells."""
        left, top = np.floor(x), np.floor(y)
        column, row = left.astype(np.int32), top.astype(np.int32)
        strength = np.maximum(self._at(column, row), 0)
        across = x - left - np.float32(0.5) - np.float32(0.2) * self._at(column + 11, row)
        down = y - top - np.float32(0.5) - np.float32(0.2) * self._at(column, row + 11)
        return bump(np.sqrt(across * across + down * down) * np.float32(1 / 0.3)) * np.minimum(2 * strength, 1)

    def _at(self, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        index = (row & (_CELLS - 1)) * _CELLS + (column & (_CELLS - 1))
        index += np.arange(0, len(index) * _CELLS * _CELLS, _CELLS * _CELLS, dtype=np.int32)[:, None, None]
        return np.take(self.table, index)


class Mouth(NamedTuple):
    """Where lips and the gap between them are, all (n, size, size); lengths are positive inside.

    `across` is -1 and 1 at the corners, `half` half the mouth's width (n, 1, 1), `upper` the height above the seam.
    """

    across: np.ndarray
    half: np.ndarray
    lips: np.ndarray
    gap: np.ndarray
    upper: np.ndarray


def mouth_of(head: Head) -> Mouth:
    """The mouth: a smile broadens it, lifts its corners and, from a third of its strength on, parts the lips."""
    smile = head.smile
    half = head["id_mouth_width"] * (1 + np.float32(0.34) * smile)
    across = head.u / half
    arch = np.minimum(across * across, np.float32(1.3))
    full = np.maximum(1 - arch, 0)
    seam = head["id_mouth_height"] + np.float32(0.035) * smile
    seam = seam + (head["id_mouth_curve"] - np.float32(0.105) * smile) * arch
    part = np.float32(0.115) * smile * smooth((smile - np.float32(0.2)) * np.float32(1 / 0.6))
    lower = seam + part * full
    bow = 1 - np.float32(0.3) * bump(across * 5)
    top = seam - head["id_lip_upper"] * (1 - np.float32(0.3) * smile) * full * bow
    bottom = lower + head["id_lip_lower"] * (1 - np.float32(0.2) * smile) * full
    v, corner = head.v, (1 - np.abs(across)) * half
    lips, gap = (
        np.minimum(np.minimum(v - above, below - v), corner) for above, below in ((top, bottom), (seam, lower))
    )
    return Mouth(across, half, lips, gap, seam - v)
