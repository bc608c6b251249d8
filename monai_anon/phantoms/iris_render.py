"""Irises as a near-infrared camera sees them (that of Warsaw-BioBase, say): gray, vectorised over the batch.

From the back to the front: pupil and iris tissue, limbus and sclera, the cornea's cloud, reflections of the lamps,
lids, lashes; then uneven light, exposure and noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from monai_anon.phantoms.iris_factors import IDENTITY, RESIDUAL
from monai_anon.phantoms.iris_shapes import Around, EyeFrame, comb, turn_of
from monai_anon.phantoms.rendering import as_gray, film_curve, render_rows, with_noise
from monai_anon.phantoms.shapes import Rows, bump, edge, smooth

COLUMNS = (
    *IDENTITY, "id_texture_spread", "id_texture_seed", "med_present", "med_side", "med_severity", "med_height",
    "med_seed", *RESIDUAL, "res_noise", "res_noise_seed", "res_lash_seed",
)  # fmt: skip
# Numbers of the layers of a seed's noise; a new layer gets a new number.
_BLOTCHES, _FURROWS, _FIBRES, _COLLARETTE, _RINGS, _RING_WAVE, _CRYPTS, _CLOUD, _MOTTLE = range(9)
_PUPIL_GRAY, _CLOUD_GRAY = np.float32(0.05), np.float32(0.88)
_LASHES_A_UNIT = 7


def _tissue(f: EyeFrame, rows: Rows) -> np.ndarray:
    """Gray of the iris tissue, between pupil and limbus and a little beyond both: (n, size, size)."""
    shown = (f.depth > np.float32(-0.25)) & (f.radius < np.float32(1.2))
    row, depth = np.nonzero(shown)[0], f.depth[shown]
    around = Around(rows["id_texture_seed"], row, turn_of(f.across, f.down)[shown], depth)
    # A cell that pixels cannot resolve would only flicker: it fades out instead.
    circle = f.radius[shown] * (np.float32(6.28) * f["id_radius"].reshape(-1)[row] / np.float32(f.pixel))

    def factor(name: str) -> np.ndarray:
        return f[name].reshape(-1)[row]

    def streaks(layer: int, cells: int, rings: int) -> np.ndarray:
        return around.noise(layer, cells, rings) * smooth((circle / np.float32(cells) - 1) * np.float32(1 / 1.3))

    collarette = factor("id_collarette") + factor("id_collarette_wave") * around.noise(_COLLARETTE, 15)
    beyond = depth - collarette
    ciliary = smooth(beyond * 8 + np.float32(0.5))
    pattern = factor("id_blotches") * around.noise(_BLOTCHES, 8, 3)
    pattern += factor("id_furrows") * streaks(_FURROWS, 30, 2) * (np.float32(0.6) + np.float32(0.4) * ciliary)
    pattern += factor("id_fibres") * streaks(_FIBRES, 84, 3)
    pattern += factor("id_collarette_contrast") * bump(beyond / factor("id_collarette_width"))
    for ring in range(2):
        wave = np.float32(0.05) * around.noise(_RING_WAVE + 100 * ring, 6)
        away = (depth - factor("id_ring_place") - np.float32(0.14 * ring) - wave) * np.float32(1 / 0.055)
        pattern -= factor("id_rings") * bump(away) * (1 + around.noise(_RINGS + 100 * ring, 5))
    pattern *= factor("id_texture_spread")
    crypts = around.crypts(_CRYPTS, rows["id_collarette"].astype(np.float32), rows["id_crypt_size"].astype(np.float32))
    gray = factor("id_pigment") + factor("id_zone") * (1 - ciliary) + pattern - factor("id_crypt_depth") * crypts
    gray -= factor("id_rim") * smooth((depth - np.float32(0.75)) * 4)
    tissue = np.zeros_like(f.depth)
    tissue[shown] = np.clip(gray, np.float32(0.18), np.float32(0.62))
    return tissue


def _cloud(f: EyeFrame, rows: Rows) -> np.ndarray:
    """Share of the light that the clouded sector of the cornea scatters, 0 to 1: (n, size, size)."""
    severity = f["med_severity"] * f["med_present"]
    x, y = f.across - np.float32(0.58) * f["med_side"], f.down - f["med_height"]
    away = np.sqrt(x * x + y * y)
    reach = np.float32(0.28) + np.float32(0.62) * severity
    inside = away < np.float32(1.5) * reach
    inside &= severity > 0
    row, turn = np.nonzero(inside)[0], turn_of(x, y)[inside]
    around = Around(rows["med_seed"], row, turn, (away / (np.float32(1.5) * reach))[inside])
    border = reach.reshape(-1)[row] * (1 + np.float32(0.26) * around.noise(_CLOUD, 7)) - away[inside]
    dense = (np.float32(0.70) + np.float32(0.22) * severity) * np.minimum(4 * severity, 1)
    dense = dense.reshape(-1)[row] * (np.float32(0.84) + np.float32(0.16) * around.noise(_MOTTLE, 9, 4))
    cloud = np.zeros_like(away)
    cloud[inside] = dense * smooth(border * np.float32(1 / 0.3) + np.float32(0.5))
    return cloud * smooth((np.float32(1.02) - f.radius) * np.float32(1 / 0.08))


def _globe(f: EyeFrame, rows: Rows) -> np.ndarray:
    """The eye without its lids: (n, size, size)."""
    hole = edge(-f.depth * (1 - f.pupil) * f["id_radius"], f.width(0.014))
    tissue = _tissue(f, rows)
    tissue += (_PUPIL_GRAY - tissue) * hole
    rounding = np.float32(0.10) * np.maximum(f.radius * f["id_radius"] - np.float32(0.7), 0)
    sclera = np.float32(0.76) + f["res_sclera"] - rounding
    # The limbus belongs to the iris: all of its blend lies inside.
    soft = np.sqrt(np.square(f["id_limbus"]) + np.float32(np.square(0.9 * f.pixel)))
    share = smooth((1 - f.radius) * f["id_radius"] / soft)
    eye = sclera + (tissue - sclera) * share
    eye += (_CLOUD_GRAY - eye) * _cloud(f, rows)
    for lamp in (-1, 1):
        x = f.across - np.float32(0.02) - np.float32(0.13 * lamp) - f["res_spot_x"]
        y = f.down + np.float32(0.10) - f["res_spot_y"]
        spot = edge((np.float32(0.055) - np.sqrt(x * x + y * y)) * f["id_radius"], f.width(0.015))
        eye += (np.float32(1.15) - eye) * spot
    return eye


def _lids(f: EyeFrame, rows: Rows, globe: np.ndarray) -> np.ndarray:
    """The eye with lids and lashes in front of it: (n, size, size)."""
    slant = f["res_lid_tilt"] * f.x
    upper = f.y + np.float32(0.53) + f["res_upper_lid"] - np.float32(0.36) * f.x * f.x - slant
    upper -= np.float32(0.4) * f["res_gaze_y"]  # the upper lid follows the gaze, the lower one hardly
    lower = np.float32(0.64) + f["res_lower_lid"] - np.float32(0.26) * f.x * f.x + slant - f.y
    is_open = edge(np.minimum(upper, lower), f.width(0.02))
    shade = 1 - np.float32(0.28) * smooth(1 - upper * np.float32(1 / 0.22))
    skin = np.float32(0.60) + f["res_skin"] - np.float32(0.06) * np.maximum(-upper, 0)
    skin = skin - np.float32(0.16) * bump((upper + np.float32(0.24)) * np.float32(1 / 0.06))
    skin = skin - np.float32(0.07) * bump((lower + np.float32(0.20)) * np.float32(1 / 0.07))
    # A moist rim on the lower lid, a shadow along the upper one.
    skin = skin + np.float32(0.10) * bump((lower + np.float32(0.035)) * np.float32(1 / 0.035))
    skin = skin - np.float32(0.18) * bump((upper + np.float32(0.02)) * np.float32(1 / 0.03))
    picture = skin + (globe * shade - skin) * is_open
    dark = np.zeros_like(picture)

    def blur(least: float) -> float:
        return float(np.hypot(least, 0.9 * f.pixel * _LASHES_A_UNIT))

    for layer in range(4):
        out = upper + np.float32(0.03 + 0.012 * layer)
        along = f.x / (1 + np.float32(0.9) * np.maximum(out, 0)) * _LASHES_A_UNIT + np.float32(8 + 0.29 * layer)
        longest = np.float32(0.26 - 0.03 * layer) + f["res_lashes"]
        dark = np.maximum(dark, comb(rows, layer, along, out, longest, blur))
    for layer in range(4, 6):
        out = np.float32(0.02) - lower
        along = f.x / (1 + np.float32(1.2) * np.maximum(out, 0)) * _LASHES_A_UNIT + np.float32(8 + 0.4 * layer)
        few = comb(rows, layer, along, out, np.float32(0.15) + np.float32(0.6) * f["res_lashes"], blur)
        dark = np.maximum(dark, np.float32(0.5) * few)
    return picture - (picture - np.float32(0.12)) * np.float32(0.8) * dark


def _render_chunk(rows: Rows, size: int) -> np.ndarray:
    f = EyeFrame(rows, size)
    picture = _lids(f, rows, _globe(f, rows))
    picture *= 1 + f["res_light_x"] * f.x + f["res_light_y"] * f.y
    shown = film_curve((picture - f["res_offset"]) * f["res_gain"], f)
    return as_gray(with_noise(shown, f, rows["res_noise_seed"]))


def render(factors: pd.DataFrame, size: int = 64, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Render one iris a row: uint8 (N, size, size). A row's pixels depend on that row alone.

    Args:
        factors: the table of `sample_factors`, or rows of it with factors changed.
        size: side in pixels, 32 to 512.
        progress: called with the number of images done and their total.

    Raises:
        ValueError: a size out of range, missing columns, or factors that are not finite.
    """
    return render_rows(factors, COLUMNS, size, _render_chunk, progress)
