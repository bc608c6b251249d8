"""Building blocks of the iris phantom: the frame of the eye, angles, noise on a lattice around a circle, crypts.

Everything is float32 sums, products, quotients and square roots, whose result is the same on every machine; angles
are therefore a rational approximation, in turns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from monai_anon.phantoms import counter
from monai_anon.phantoms.shapes import PosedFrame, Rows, smooth

# Radius of the pupil at rest, in radii of the iris; `res_dilation` is added.
PUPIL = 0.38
CRYPTS = 14


def turn_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Angle of a point in turns, 0 to 1 from +x towards +y, right to .002 of a turn (atan by a quadratic)."""
    across, down = np.abs(x), np.abs(y)
    ratio = np.minimum(across, down) / np.maximum(np.maximum(across, down), np.float32(1e-6))
    turn = ratio * (np.float32(0.125) + np.float32(0.04345) * (1 - ratio))
    turn = np.where(down > across, np.float32(0.25) - turn, turn)
    turn = np.where(x < 0, np.float32(0.5) - turn, turn)
    return np.where(y < 0, 1 - turn, turn)


class EyeFrame(PosedFrame):
    """Coordinates of the pixels of a chunk, each (n, size, size) float32.

    `x`, `y` are those of the lids; `across`, `down` are those of the globe, which gaze moves between the lids, in radii
    of the iris about its centre, `radius` their length; `depth` is 0 at the pupil's margin and 1 at the limbus.
    """

    def __init__(self, rows: Rows, size: int) -> None:
        super().__init__(rows, size)
        self.across = (self.x - self["res_gaze_x"]) / self["id_radius"]
        self.down = (self.y - self["res_gaze_y"]) / self["id_radius"]
        self.radius = np.sqrt(self.across * self.across + self.down * self.down)
        self.pupil = np.float32(PUPIL) + self["res_dilation"]
        self.depth = self._depth()

    def _depth(self) -> np.ndarray:
        """Which of the circles that lead from pupil to limbus a pixel is on: the larger root of a quadratic.

        The circle of depth s has its centre at (1 - s) times the pupil's and the radius pupil + s (1 - pupil).
        """
        off_x, off_y = self["id_pupil_x"], self["id_pupil_y"]
        grow = 1 - self.pupil
        x, y = self.across - off_x, self.down - off_y
        a = grow * grow - off_x * off_x - off_y * off_y
        b = self.pupil * grow - x * off_x - y * off_y
        c = x * x + y * y - self.pupil * self.pupil
        return (np.sqrt(np.maximum(b * b + a * c, 0)) - b) / a


class Around:
    """Noise on a lattice around a circle, for a list of pixels: which row each belongs to, its turn and its depth."""

    def __init__(self, seeds: np.ndarray, row: np.ndarray, turn: np.ndarray, depth: np.ndarray) -> None:
        self.seeds, self.row, self.turn, self.depth = seeds.astype(np.int64), row, turn, np.clip(depth, 0, 1)

    def draws(self, *keys: int | np.ndarray) -> np.ndarray:
        """Uniform float32 in (-1, 1), for each row and combination of keys: (n, ...)."""
        shape = (len(self.seeds),) + (1,) * np.broadcast(*keys).ndim
        return (2 * counter.uniform(self.seeds.reshape(shape), *keys) - 1).astype(np.float32)

    def noise(self, layer: int, cells: int, rings: int = 0) -> np.ndarray:
        """Smooth noise in (-1, 1) for each pixel, of `cells` around and `rings` + 1 knots from pupil to limbus."""
        table = self.draws(layer, np.arange(cells)[:, None], np.arange(rings + 1)[None, :]).reshape(-1)
        along = self.turn * np.float32(cells)
        cell = np.floor(along)
        part = smooth(along - cell)
        first = cell.astype(np.int64) % cells
        second = (first + 1) % cells
        deep = self.depth * np.float32(rings)
        ring = np.minimum(np.floor(deep), max(rings - 1, 0))
        base, knot = self.row * cells, ring.astype(np.int64)

        def at(offset: int) -> np.ndarray:
            one, other = ((base + index) * (rings + 1) + knot + offset for index in (first, second))
            return table[one] * (1 - part) + table[other] * part

        inner = at(0)
        return inner if rings == 0 else inner + (at(1) - inner) * smooth(deep - ring)

    def crypts(self, layer: int, collarette: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Lozenge-shaped holes, 0 to 1, most of them just outside the collarette, for each pixel.

        Args:
            collarette: its depth, (n,).
            scale: size of the holes, (n,).
        """
        index = np.arange(CRYPTS)[None, :]
        place, shift, wide, long, deep = (self.draws(layer, index[0], number) for number in range(5))
        turn = (index + np.float32(0.5) + np.float32(0.27) * place) / np.float32(CRYPTS)
        # Every fourth lies in the pupillary zone.
        beyond = collarette[:, None] + np.float32(0.17) + np.float32(0.13) * shift
        depth = np.where(index % 4 == 3, np.float32(0.5) * collarette[:, None], beyond)
        wide = scale[:, None] * (np.float32(0.026) + np.float32(0.010) * wide)
        long = scale[:, None] * (np.float32(0.12) + np.float32(0.05) * long)
        share = np.float32(0.65) + np.float32(0.35) * deep
        total = np.zeros_like(self.turn)
        # A hole reaches no further than into the sectors beside its own.
        sector = np.floor(self.turn * np.float32(CRYPTS)).astype(np.int64)
        for neighbour in (-1, 0, 1):
            hole = self.row * CRYPTS + (sector + neighbour) % CRYPTS
            aside = np.abs(self.turn - turn.ravel()[hole])
            aside = np.minimum(aside, 1 - aside) / wide.ravel()[hole]
            away = (self.depth - depth.ravel()[hole]) / long.ravel()[hole]
            inside = np.maximum(1 - aside * aside - away * away, 0)
            total = np.maximum(total, share.ravel()[hole] * inside * inside)
        return total


def comb(
    rows: Rows, layer: int, along: np.ndarray, out: np.ndarray, longest: np.ndarray, width: Callable[[float], float]
) -> np.ndarray:
    """Lashes, 0 to 1: one in each cell of a line, which leans its own way and thins out: (n, size, size).

    Args:
        rows: hold `res_lash_seed`.
        along: where a pixel lies along the lid, in cells.
        out: how far it lies from the lid's margin, and `longest` how far a lash can reach.
        width: of an edge, in cells.
    """
    cells = 64
    seed = rows["res_lash_seed"].astype(np.int64)[:, None]
    place, lean, length = (
        (2 * counter.uniform(seed, layer, np.arange(cells)[None, :], number) - 1).astype(np.float32)
        for number in range(3)
    )
    near = (out > 0) & (out < longest)
    row, along, out = np.nonzero(near)[0], along[near], out[near]
    cell = np.floor(along)
    lash = cell.astype(np.int64) % cells + row * cells
    reach = out / (longest.reshape(-1)[row] * (np.float32(0.66) + np.float32(0.34) * length.reshape(-1)[lash]))
    middle = np.float32(0.5) + np.float32(0.2) * place.reshape(-1)[lash]
    middle = middle + np.float32(0.26) * lean.reshape(-1)[lash] * np.square(np.minimum(reach, 1))
    thick = np.float32(0.09) * (1 - np.minimum(reach, 1))
    blur = np.float32(width(0.06))
    share = np.minimum(2 * thick / blur, 1)
    inside = (np.float32(0.5) * blur + thick - np.abs(along - cell - middle)) / blur
    shown = np.zeros(near.shape, dtype=np.float32)
    shown[near] = share * smooth(inside) * smooth((1 - reach) * 4)
    return shown
