"""Chest radiographs as line integrals of analytic shapes, vectorised over the batch.

Attenuation = body wall + breast shadow + mediastinum, heart, aortic knob + spine + ribs + clavicles + vessels - air of
the two lungs + fluid that replaces air. Shapes are made of sums, products, quotients and square roots, whose result
is the same on every machine; the one power (gamma) is taken in double precision for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from monai_anon.phantoms.chest_factors import IDENTITY, RESIDUAL
from monai_anon.phantoms.chest_shapes import Frame, draw_vessels
from monai_anon.phantoms.rendering import as_gray, film_curve, render_rows, with_noise
from monai_anon.phantoms.shapes import Rows, bump, edge, smooth, soft_minimum

COLUMNS = (
    *IDENTITY, "id_vessel_spread", "id_vessel_seed", "med_present", "med_side", "med_severity",
    *RESIDUAL, "res_noise", "res_noise_seed",
)  # fmt: skip


def _body(f: Frame) -> np.ndarray:
    """Soft tissue of trunk, shoulders and breasts: (n, size, size)."""
    rise = np.maximum((np.float32(-0.05) - f.y) * np.float32(1 / 0.6), 0)
    half = f["id_half_width"] * (1 + np.float32(0.85) * rise * rise)
    across = f.x / half
    across *= across
    chord = np.sqrt(np.maximum(1 - across * across, 0))
    beside = np.abs(f.x) * np.float32(1 / 0.2)
    top = np.float32(-0.98) + f["id_shoulder_slope"] * np.abs(f.x) - np.float32(0.75) / (1 + np.square(beside * beside))
    chord *= np.sqrt(smooth((f.y - top) * np.float32(1 / 0.3)))
    thick = 1 - np.float32(0.12) * np.minimum(rise, 1) + np.float32(0.1) * smooth((f.y - np.float32(0.3)) * 3)
    body = f["id_habitus"] * np.float32(0.78) * chord * thick
    # A breast ends sharply below and fades upwards.
    low = (f.y - np.float32(0.13)) * np.where(f.y > np.float32(0.13), np.float32(1 / 0.26), np.float32(1 / 0.5))
    far = np.square((np.abs(f.x) / f["id_half_width"] - np.float32(0.56)) * np.float32(1 / 0.42)) + low * low
    return body + np.float32(0.6) * f["id_breast"] * smooth(1.5 * np.maximum(1 - far, 0)) * chord


class _Lungs:
    """Geometry that lungs, fluid and ribs share, all (n, size, size)."""

    def __init__(self, f: Frame) -> None:
        self.lateral = f["id_half_width"] - f["id_wall"] + np.where(f.is_left, -f["id_asymmetry"], f["id_asymmetry"])
        self.apex = f.sided("id_apex")
        self.wall = self._outline(f)
        self._diaphragm(f)
        inside = soft_minimum(self.wall, self.above, 0.06)
        self.mask = edge(inside, f.width(0.016)) * edge(f.out - np.float32(0.04), f.width(0.03))
        self.depth = np.float32(0.82) + np.float32(0.18) * smooth(self.wall * np.float32(1 / 0.3))

    def _outline(self, f: Frame) -> np.ndarray:
        """Distance to the chest wall and apex, positive inside: a superellipse about the middle of the lung."""
        middle = np.float32(0.44) * self.lateral
        radius = np.where(f.out > middle, self.lateral - middle, middle)
        x = (f.out - middle) / radius
        below = f.y - np.float32(0.12)
        height = np.where(below > 0, np.float32(1.5), np.float32(0.12) - self.apex)
        y = below / height
        bend = (f["id_lung_power"] - 2) / 2
        y2 = y * y
        level = 1 - x * x - y2 * (1 - bend + bend * y2)
        steep = np.square(x / radius) + np.square(y * (1 - bend + 2 * bend * y2) / height)
        return level / (2 * np.sqrt(steep) + np.float32(0.05))

    def _diaphragm(self, f: Frame) -> None:
        """Domes as wide as the lung itself, so that no thin spike of air is left beside a high one."""
        dome = f.sided("id_dome")
        middle = np.float32(0.5) * self.lateral + np.float32(0.03)
        half = np.float32(0.5) * self.lateral
        x = (f.out - middle) / half
        fall = np.where(x > 0, np.float32(1.2), np.float32(0.45)) * np.minimum(x * x, np.float32(1.5))
        low = f.sided("id_diaphragm") + f["res_inspiration"]
        self.base = low + np.float32(0.7) * dome
        self.dome = low - np.float32(0.35) * dome + dome * fall
        slope = 2 * dome * x / half
        self.above = (self.dome - f.y) / np.sqrt(1 + slope * slope)


def _fluid(f: Frame, lungs: _Lungs) -> np.ndarray:
    """Share of the air that fluid replaces, 0 to 1: a level with a meniscus that rises along the lateral wall."""
    severity = f["med_severity"] * f["med_present"]
    level = lungs.base - severity * (lungs.base - lungs.apex)
    near_wall = np.clip(f.out / lungs.lateral * np.float32(1 / 0.55) - np.float32(0.45 / 0.55), 0, 1)
    level -= np.float32(0.2) * np.minimum(4 * severity, 1) * near_wall * near_wall
    on_side = (f.is_left & (f["med_side"] > 0)) | (~f.is_left & (f["med_side"] < 0))
    return edge(f.y - level, f.width(0.035)) * (on_side & (severity > 0))


def _ribs(f: Frame, lungs: _Lungs) -> np.ndarray:
    """Posterior arcs and fainter anterior ones, within the chest wall and above the diaphragm only."""
    spacing, thickness, width = f["id_rib_spacing"], f["id_rib_thickness"], f.width(0.008)

    def arcs(line: np.ndarray) -> np.ndarray:
        turn = (f.y - line) / spacing
        away = np.abs(turn - np.floor(turn + np.float32(0.5))) * spacing
        cortex = np.float32(0.8) + np.float32(0.2) * np.square(np.minimum(away / thickness, 1))
        return edge(thickness - away, width) * cortex

    out, start = f.out, f["id_rib_offset"]
    back = start + np.float32(0.5) * f["id_rib_slope"] * out + np.float32(0.6) * f["id_rib_curvature"] * out * out
    front = start + (np.float32(0.35) + f["id_rib_slope"]) * (lungs.lateral - out) + np.float32(0.05)
    ribs = arcs(back) * smooth((out - np.float32(0.06)) * np.float32(1 / 0.08))
    ribs += np.float32(0.5) * arcs(front) * smooth((out - np.float32(0.25)) * np.float32(1 / 0.15))
    ribs *= smooth((lungs.wall + np.float32(0.06)) * np.float32(1 / 0.06))
    return f["id_rib_contrast"] * ribs * smooth((lungs.dome + np.float32(0.03) - f.y) * np.float32(1 / 0.08))


def _spine(f: Frame) -> np.ndarray:
    """Vertebral bodies, darker discs between them and brighter pedicles: (n, size, size)."""
    off = np.abs(f.x - f.spine)
    turn = f.y / f["id_vertebra_period"]
    disc = np.abs(turn - np.floor(turn + np.float32(0.5))) * 2
    body = np.float32(0.7) + np.float32(0.3) * smooth((np.float32(0.9) - disc) * np.float32(1 / 0.4))
    body += np.float32(0.15) * bump((off - np.float32(0.055)) * np.float32(1 / 0.03)) * bump(disc * np.float32(1 / 0.6))
    return np.float32(0.2) * edge(np.float32(0.085) - off, f.width(0.04)) * body


def _shoulder_girdle(f: Frame) -> np.ndarray:
    """Clavicles and shoulder blades: (n, size, size)."""
    along = f.out / np.float32(0.8)
    bow = (along - np.float32(0.5)) * (1 - np.square(2 * along - 1)) * 3
    line = f["id_clavicle_height"] - f["id_clavicle_slope"] * f.out + f["id_clavicle_curvature"] * bow
    thickness = f["id_clavicle_thickness"] * (np.float32(0.8) + np.float32(0.5) * np.square(2 * along - 1))
    away = np.abs(f.y - line) / thickness
    ends = edge(f.out - np.float32(0.08), f.width(0.03)) * edge(f["id_half_width"] - f.out, f.width(0.06))
    cortex = np.float32(0.75) + np.float32(0.25) * np.square(np.minimum(away, 1))
    clavicle = np.float32(0.18) * edge((1 - away) * thickness, f.width(0.012)) * cortex * ends
    # A blade narrows downwards between its two borders.
    low = f.y + np.float32(0.62)
    medial = f.out - f["id_half_width"] * np.float32(0.78) - np.float32(0.25) * low
    lateral = f["id_half_width"] * np.float32(1.32) - np.float32(0.5) * low - f.out
    within = np.minimum(np.minimum(medial, lateral), np.minimum(low, np.float32(0.56) - low))
    rim = np.float32(0.05) + np.float32(0.025) * bump((within - np.float32(0.02)) * np.float32(1 / 0.03))
    return clavicle + edge(within, f.width(0.012)) * rim


def _mediastinum(f: Frame, dome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Great vessels, heart and aortic knob as one silhouette: what they add, and their share of the space."""
    tilt = f["id_heart_tilt"].astype(np.float64)
    cosine, sine = np.cos(tilt).astype(np.float32), np.sin(tilt).astype(np.float32)
    # Drawn out downwards, so that it rests on the diaphragm however high it hangs.
    x, y = f.x - f["id_heart_x"], f.y - f["id_heart_y"]
    y = np.minimum(y, np.float32(0.5) * y)
    long, wide = (cosine * x + sine * y) / f["id_heart_radius_x"], (cosine * y - sine * x) / f["id_heart_radius_y"]
    square = long * long + wide * wide
    heart = np.minimum(f["id_heart_radius_x"], f["id_heart_radius_y"]) * (np.sqrt(square) - 1)
    x, y = f.x - f["id_knob_x"], f.y - f["id_knob_y"]
    knob = np.sqrt(x * x + y * y) - f["id_knob_radius"]
    flare = np.float32(0.72) + np.float32(0.3) * smooth((f.y + np.float32(0.45)) * np.float32(1 / 0.8))
    outside = f.out - f.sided("id_mediastinum") * flare
    outside = soft_minimum(soft_minimum(outside, heart, 0.12), knob, 0.11)
    # The heart ends on the diaphragm, whose two sides meet without a step behind it.
    level = np.float32(0.5) * (f["id_diaphragm_right"] + f["id_diaphragm_left"]) + f["res_inspiration"]
    level = level + (dome - level) * smooth(f.out * 7)
    thick = (
        np.float32(0.11) * np.sqrt(np.maximum(1 - square * square, 0)) * smooth((level + np.float32(0.06) - f.y) * 8)
    )
    added = thick + np.float32(0.05) * smooth(knob * np.float32(-1 / 0.06))
    return added, edge(-outside, f.width(0.022))


def _vessels(f: Frame, rows: Rows) -> np.ndarray:
    """Vessels that branch out from both hila, and the hila themselves: (n, size, size)."""
    hilum = f.sided("id_hilum")
    far = np.square((f.out - np.float32(0.16)) / np.float32(0.13)) + np.square((f.y - hilum) / np.float32(0.17))
    return np.float32(0.42) * draw_vessels(f, rows) + np.float32(0.2) * np.square(np.maximum(1 - far, 0))


def _trachea(f: Frame) -> np.ndarray:
    """Share of the soft tissue that the windpipe takes away: (n, size, size)."""
    off = np.abs(f.x - f.spine)
    return edge(np.float32(0.036) - off, f.width(0.03)) * smooth((np.float32(-0.22) - f.y) * np.float32(1 / 0.15))


def _attenuation(f: Frame, rows: Rows) -> np.ndarray:
    """Line integral along the beam: (n, size, size)."""
    lungs = _Lungs(f)
    body = _body(f)
    middle, aside = _mediastinum(f, lungs.dome)
    fluid = _fluid(f, lungs)
    aired = lungs.mask * (1 - fluid) * (1 - aside)
    fluid *= lungs.mask
    tissue = body * (1 - np.float32(0.8) * aired * lungs.depth - np.float32(0.16) * _trachea(f))
    # Fluid is as dense as the heart, whose border it hides, and scatters, which veils the ribs.
    soft = middle * (1 - np.float32(0.6) * fluid) + np.float32(0.08) * fluid * (1 - np.float32(0.5) * aside)
    bones = _spine(f) + _shoulder_girdle(f) + np.float32(0.55) * _ribs(f, lungs) * (1 - np.float32(0.4) * fluid)
    return tissue + (soft + bones) * smooth(body * 5) + _vessels(f, rows) * aired


def _render_chunk(rows: Rows, size: int) -> np.ndarray:
    f = Frame(rows, size)
    shown = film_curve((_attenuation(f, rows) - f["res_offset"]) * (f["res_gain"] / np.float32(1.4)), f)
    return as_gray(with_noise(shown, f, rows["res_noise_seed"]))


def render(factors: pd.DataFrame, size: int = 64, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Render one radiograph a row: uint8 (N, size, size). A row's pixels depend on that row alone.

    Args:
        factors: the table of `sample_factors`, or rows of it with factors changed.
        size: side in pixels, 32 to 512.
        progress: called with the number of images done and their total.

    Raises:
        ValueError: a size out of range, missing columns, or factors that are not finite.
    """
    return render_rows(factors, COLUMNS, size, _render_chunk, progress)
