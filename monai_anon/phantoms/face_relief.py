"""The face phantom's relief, and the light that falls on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monai_anon.phantoms.face_shapes import Head, Mouth
from monai_anon.phantoms.shapes import bump, edge, smooth

# By how much light wraps around the terminator in red, green and blue: skin lets red light through.
_WRAP = (0.31, 0.24, 0.20)


class Nose(NamedTuple):
    """Coordinates of the nose, (n, size, size): it stands out, so a turned head moves it further than its face."""

    u: np.ndarray
    out: np.ndarray
    along: np.ndarray
    tip: np.ndarray


def nose_of(head: Head) -> Nose:
    """`along` is 0 at the root and 1 at the tip; `tip` the height of the tip."""
    tip = head["id_nose_length"]
    along = np.clip((head.v - head["id_eye_height"]) / (tip - head["id_eye_height"]), 0, np.float32(1.3))
    reach = np.float32(0.16) * head["id_nose_height"] * np.minimum(along, 1)
    u = head.u - head["res_yaw"] * reach
    return Nose(u, np.abs(u), along, tip)


def relief(head: Head, mouth: Mouth, nose: Nose) -> np.ndarray:
    """Height above the picture's plane: (n, size, size)."""
    # Beyond the outline the skull goes on falling, so that no edge of it catches the light.
    level = np.maximum(head.level, np.float32(-0.6))
    height = np.float32(0.62) * head["id_face_width"] * level * (np.float32(1.55) - np.float32(0.55) * level)
    # The nose: a ridge that rises and broadens towards the tip, which is round, and the wings beside it.
    half = head["id_nose_bridge"] + np.float32(0.45) * (head["id_nose_width"] - np.float32(0.04)) * nose.along
    ends = smooth((nose.tip + np.float32(0.05) - head.v) * np.float32(1 / 0.07))
    ridge = bump(nose.out / (np.float32(1.9) * half)) * smooth(nose.along * np.float32(0.9)) * ends
    ball = np.square((nose.out) * np.float32(1 / 0.075)) + np.square((head.v - nose.tip) * np.float32(1 / 0.07))
    wing = np.square((nose.out - np.float32(0.72) * head["id_nose_width"]) * np.float32(1 / 0.05))
    wing = wing + np.square((head.v - nose.tip - np.float32(0.012)) * np.float32(1 / 0.055))
    nose_height = np.float32(0.11) * ridge + np.float32(0.035) * np.square(np.maximum(1 - ball, 0))
    nose_height += np.float32(0.03) * np.square(np.maximum(1 - wing, 0))
    height += head["id_nose_height"] * nose_height
    # Sockets, brow ridge, cheekbones, chin.
    eye = head["id_eye_height"]
    height -= np.float32(0.05) * head.spot(head["id_eye_spacing"], eye - np.float32(0.02), 0.20, 0.13)
    height += np.float32(0.025) * head.spot(np.float32(0.17), eye - head["id_brow_height"], 0.24, 0.09)
    height += np.float32(0.06) * head["id_cheekbone"] * head.spot(0.31, 0.10, 0.19, 0.20)
    height += np.float32(0.04) * head.spot(0.0, head["id_chin"] - np.float32(0.10), 0.17, 0.10)
    height -= np.float32(0.02) * head.spot(0.0, head["id_mouth_height"] + np.float32(0.12), 0.15, 0.06)
    # Lips, and the cheeks that a smile lifts into balls.
    height += np.float32(0.02) * edge(mouth.lips - np.float32(0.01), 0.03)
    lifted = head.spot(np.float32(0.275), np.float32(0.155), 0.17, 0.14)
    return height + np.float32(0.042) * head.smile * lifted


def lamp(head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction towards the light, a unit vector, each (n, 1, 1)."""
    x, y = head["res_light_x"], head["res_light_y"]
    length = np.sqrt(x * x + y * y + 1)
    return x / length, y / length, 1 / length


def lit(head: Head, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What skin of this relief gives back of the light, (3, n, size, size), and its gloss, (n, size, size)."""
    step = np.float32(head.pixel)
    slope_y, slope_x = (slope.astype(np.float32, copy=False) for slope in np.gradient(height, step, axis=(1, 2)))
    steep = np.sqrt(slope_x * slope_x + slope_y * slope_y + 1)
    x, y, z = lamp(head)
    facing = (z - slope_x * x - slope_y * y) / steep
    # Half way between lamp and viewer, for the gloss of Blinn (1977), with a whole power.
    half = np.sqrt(np.float32(2) + 2 * z)
    gloss = np.maximum((z + 1 - slope_x * x - slope_y * y) / (half * steep), 0)
    for _ in range(4):
        gloss = gloss * gloss
    return shaded(head, facing), gloss


def shaded(head: Head, facing: np.ndarray) -> np.ndarray:
    """Light that a soft surface gives back where it faces the lamp by a cosine (n, ...): (3, n, ...)."""
    ambient = np.float32(0.26) - head["res_contrast"]
    planes = [ambient + (1 - ambient) * np.maximum(facing + wrap, 0) / np.float32(1 + wrap) for wrap in _WRAP]
    return np.stack(planes) * np.float32(1.1)
