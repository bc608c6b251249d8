"""Skin, eyes, brows, nose, mouth and beard of the face phantom, painted onto a head that is there already."""

from __future__ import annotations

import numpy as np

from monai_anon.phantoms import counter
from monai_anon.phantoms.face_colours import IRIS, SKIN, Canvas, light, mixed, on_scale
from monai_anon.phantoms.face_relief import Nose
from monai_anon.phantoms.face_shapes import Head, Mouth, Pattern
from monai_anon.phantoms.shapes import Rows, bump, edge, smooth

_MOLES = 3


def skin_of(rows: Rows) -> np.ndarray:
    """Colour of the bare skin: light (3, n, 1, 1)."""
    warmth = (rows["id_skin_warmth"] - 0.5).astype(np.float32)
    tilt = np.stack([1 + np.float32(0.06) * warmth, np.ones_like(warmth), 1 - np.float32(0.20) * warmth])
    return on_scale(SKIN, rows["id_skin_tone"]) * tilt[:, :, None, None]


def marked(head: Head, rows: Rows, skin: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The skin of a face: with a mottle, blushed cheeks, freckles and moles, (3, n, size, size)."""
    u, v = head.u, head.v
    mottled = skin * (1 + np.float32(0.06) * pattern(u * 8, v * 8))
    blush = (np.float32(0.05) + np.float32(0.30) * head["id_blush"]) * head.spot(0.30, 0.14, 0.22, 0.20)
    freckled = head.spot(0.19, 0.09, 0.30, 0.24) + np.float32(0.7) * head.spot(0.0, 0.10, 0.16, 0.20)
    freckles = pattern.dots(u * 21 + 7, v * 21) * np.minimum(2 * freckled, 1)
    freckles *= np.minimum(np.float32(1.4) * head["id_freckles"], 1)
    dark = freckles * np.float32(0.5)
    seed = rows["id_skin_seed"].astype(np.int64)
    for number in range(_MOLES):
        place_u, place_v = (
            counter.uniform(seed, number, axis).astype(np.float32)[:, None, None] - np.float32(0.5) for axis in (1, 2)
        )
        there = np.clip(_MOLES * head["id_moles"] - number, 0, 1)
        away = np.sqrt(np.square(u - np.float32(0.66) * place_u) + np.square(v - np.float32(0.2) - place_v))
        dark = np.maximum(dark, np.float32(0.75) * there * head.line(away, 0.017))
    fade = np.stack([1 - np.float32(0.75) * dark, 1 - np.float32(0.9) * dark, 1 - dark])
    fade[1:] *= 1 - np.float32(0.45) * blush
    return mottled * fade


def paint_eyes(canvas: Canvas, head: Head, rows: Rows, within: np.ndarray, shade: np.ndarray) -> None:
    """Lids, white, iris, pupil, a reflection of the lamp, lashes; a smile narrows them and folds the skin beside."""
    smile, width = head.smile, head.width(0.010)
    e = head.out - head["id_eye_spacing"]
    d = head.v - head["id_eye_height"] - head["id_eye_asymmetry"] * head.side + head["id_eye_tilt"] * e
    half = head["id_eye_width"]
    full = 1 - np.square(e / half)
    upper = -head["id_eye_open"] * (1 - np.float32(0.15) * smile) * full
    lower = np.float32(0.8) * head["id_eye_open"] * (1 - np.float32(0.5) * smile) * full
    ball = edge(np.minimum(d - upper, lower - d), width) * edge(half - np.abs(e), width) * within
    lidded = 1 - np.float32(0.55) * smooth(1 - (d - upper) * np.float32(1 / 0.045))
    white = light((0.86, 0.84, 0.82)) * shade * lidded
    canvas.paint(ball, white)
    # Both eyes look the same way, so their coordinates' mirror is taken back for the gaze and the reflection.
    across = e - np.float32(0.06) * head["res_gaze_x"] * head.side
    down = d + np.float32(0.006) - np.float32(0.025) * head["res_gaze_y"]
    radius = np.float32(0.060)
    away = np.sqrt(across * across + down * down)
    ring = 1 - np.float32(0.75) * smooth((away / radius - np.float32(0.65)) * np.float32(1 / 0.35))
    iris = on_scale(IRIS, rows["id_iris_tone"]) * (ring * (1 + down * 6) * lidded)
    canvas.paint(edge(radius - away, head.width(0.008)) * ball, iris)
    canvas.paint(edge(np.float32(0.40) * radius - away, head.width(0.006)) * ball, light((0.05, 0.04, 0.04)))
    gleam = np.square(across - np.float32(0.028) * head["res_light_x"] * head.side)
    gleam = np.sqrt(gleam + np.square(down - np.float32(0.024) * head["res_light_y"] + np.float32(0.008)))
    canvas.paint(np.float32(0.9) * head.line(gleam, 0.013) * ball, light((0.98, 0.98, 0.97)))
    # Lids: lashes above, folds above and below.
    span = edge(half + np.float32(0.012) - np.abs(e), head.width(0.02)) * within
    canvas.paint(np.float32(0.9) * head.line(d - upper, 0.012) * span, light((0.10, 0.07, 0.06)))
    fold = (np.float32(0.15) + np.float32(0.45) * head["id_lid"]) * head.line(d - upper + np.float32(0.034), 0.009)
    fold += np.float32(0.35) * head.line(d - lower, 0.007)
    bag = np.float32(0.55) * smile * head.line(d - lower - np.float32(0.036), 0.012)
    canvas.tint(1 - (fold + bag) * span)
    canvas.tint(1 - np.float32(0.35) * smile * within * _crows_feet(head, e, d))


def _crows_feet(head: Head, e: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Folds that fan out from the outer corners of the eyes, 0 to about 1."""
    beyond = e - head["id_eye_width"]
    fan = sum(head.line(d - np.float32(slope) * beyond, 0.008) for slope in (-0.45, 0.1, 0.6))
    return fan * bump((beyond - np.float32(0.065)) * np.float32(1 / 0.055))


def paint_brows(canvas: Canvas, head: Head, hair: np.ndarray, within: np.ndarray, shade: np.ndarray) -> None:
    """Brows, in a darker tone of the hair."""
    e = head.out - head["id_eye_spacing"] - np.float32(0.01)
    middle = head["id_eye_height"] - head["id_brow_height"] - head["res_brow_raise"] - head["id_brow_slope"] * e
    middle = middle - head["id_brow_arch"] * (1 - np.square(e * np.float32(1 / 0.15)))
    half = head["id_brow_thickness"] * (1 - np.float32(0.65) * smooth((e + np.float32(0.03)) * np.float32(1 / 0.19)))
    ends = edge(np.float32(0.155) - np.abs(e), head.width(0.03))
    alpha = edge(half - np.abs(head.v - middle), head.width(0.012)) * np.minimum(half * np.float32(1 / 0.008), 1)
    dark = mixed(np.float32(0.55) * hair, light((0.20, 0.14, 0.10)), np.float32(0.3))
    canvas.paint(np.float32(0.85) * alpha * ends * within, dark * (np.float32(0.4) + np.float32(0.6) * shade))


def paint_nose(canvas: Canvas, head: Head, nose: Nose, within: np.ndarray) -> None:
    """Nostrils, and the shadow under the tip."""
    beside = (nose.out - np.float32(0.45) * head["id_nose_width"]) * np.float32(1 / 0.034)
    below = (head.v - nose.tip - np.float32(0.037)) * np.float32(1 / 0.026)
    holes = np.square(np.maximum(1 - beside * beside - below * below, 0))
    under = np.square(nose.u / (np.float32(1.35) * head["id_nose_width"]))
    under = under + np.square((head.v - nose.tip - np.float32(0.055)) * np.float32(1 / 0.05))
    shadow = np.float32(0.30) * np.square(np.maximum(1 - under, 0))
    canvas.tint(1 - np.minimum(np.float32(0.6) * holes + shadow, np.float32(0.85)) * within)


def paint_mouth(
    canvas: Canvas, head: Head, mouth: Mouth, skin: np.ndarray, within: np.ndarray, shade: np.ndarray
) -> None:
    """Lips, teeth and the dark behind them; folds from the nose to the corners, deeper under a smile."""
    half = mouth.half
    inside = edge((1 - np.abs(mouth.across)) * half, head.width(0.014)) * within
    red = mixed(
        skin * np.float32(0.8), light((0.74, 0.30, 0.31)), np.float32(0.25) + np.float32(0.5) * head["id_lip_tone"]
    )
    red = mixed(red, skin * light((0.92, 0.66, 0.66)), head["id_skin_tone"] * np.float32(0.7))
    above = smooth(mouth.upper * np.float32(1 / 0.02))
    canvas.paint(edge(mouth.lips, head.width(0.010)) * inside, red * (shade * (1 - np.float32(0.3) * above)))
    canvas.tint(1 - np.float32(0.65) * head.line(mouth.upper, 0.008) * inside)
    # Teeth fill the upper part of the gap and lie in the shade towards the corners.
    width = head.width(0.008)
    gap = edge(mouth.gap - np.float32(0.5 * width), width) * inside
    canvas.paint(gap, light((0.26, 0.08, 0.08)))
    teeth = gap * edge(np.float32(0.075) + mouth.upper, width)
    aside = np.square(mouth.across)
    bright = (1 - np.float32(0.6) * aside * aside) * (np.float32(0.35) + np.float32(0.65) * shade[1])
    turn = head.u * np.float32(1 / 0.052)
    between = np.abs(turn - np.floor(turn + np.float32(0.5))) * np.float32(0.052)
    canvas.paint(teeth, light((0.95, 0.92, 0.87)) * (bright * (1 - np.float32(0.3) * head.line(between, 0.003))))
    canvas.tint(1 - within * _folds(head, half))


def _folds(head: Head, half: np.ndarray) -> np.ndarray:
    """How dark the folds beside the mouth are, and the dimples at its corners."""
    top, bottom = head["id_nose_length"] - np.float32(0.02), head["id_mouth_height"] + np.float32(0.05)
    t = (head.v - top) / (bottom - top)
    line = head["id_nose_width"] + np.float32(0.025) + (half + np.float32(0.02) - head["id_nose_width"]) * t * t
    depth = np.float32(0.08) + np.float32(0.42) * head.smile
    fold = depth * head.line(head.out - line, 0.016) * bump((t - np.float32(0.5)) * np.float32(1 / 0.55))
    high = head["id_mouth_height"] - np.float32(0.09) * head.smile
    return np.minimum(fold + np.float32(0.4) * head.smile * head.spot(half + np.float32(0.012), high, 0.035, 0.05), 1)


def paint_beard(
    canvas: Canvas, head: Head, hair: np.ndarray, pattern: Pattern, within: np.ndarray, shade: np.ndarray
) -> None:
    """Beard and moustache, from a shadow to full, where the person has one."""
    cheek = np.float32(0.36) - np.float32(0.30) * smooth((head.out - np.float32(0.20)) * np.float32(1 / 0.24))
    grown = smooth((head.v - cheek) * np.float32(1 / 0.14))
    lip = head["id_mouth_height"] - np.float32(0.075)
    grown = np.maximum(grown, np.minimum(np.float32(2) * head.spot(0.0, lip, 0.25, 0.085), 1))
    grown *= 1 + np.float32(0.12) * pattern(head.u * 30, head.v * 14)
    dark = np.float32(0.8) * hair * (np.float32(0.25) + np.float32(0.75) * shade)
    canvas.paint(np.clip(np.float32(0.9) * head["id_beard"] * grown, 0, 1) * within, dark)
