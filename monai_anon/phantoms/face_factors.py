"""What a generated face is made of: exact factors by group, one row an image.

Lengths are in the frame of the head, [-1, 1] across and down where an image has no shift, rotation or zoom; x grows
towards the right of the picture, y downwards. Tones are shares in [0, 1] along a scale of colours
(`monai_anon.phantoms.face_colours`).

| prefix | group | drawn |
|---|---|---|
| `id_` | identity: head, skin, hair, eyes, brows, nose, mouth, marks | once per person |
| `med_` | medical: the smile | per image, independent of identity |
| `res_` | residual: pose, gaze, light, exposure, background, clothes, noise | per image |

`med_present` is 0 or 1; `med_severity` is how broad, curved and open the smile is, 0 where there is none. A smile
has no side. `res_background` is 1 in all images of a cohort with backgrounds, 0 where gray is behind the person.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from monai_anon.phantoms import counter
from monai_anon.phantoms.cohort_tables import (
    KEY_IDENTITY,
    KEY_NOISE,
    KEY_RESIDUAL,
    KEY_TEXTURE,
    Columns,
    Keys,
    cohort_table,
    identity_columns,
    least_severity,
    medical_columns,
    residual_columns,
    seeds,
)
from monai_anon.phantoms.kinds import Protocol

CLASSES = ("neutral", "smiling")
# Sizes of training, validation and test in the paper's tables, and the share of images with a smile. The paper takes
# out what is behind a person with the masks of CelebAMask-HQ.
IMAGES, PATIENTS = (8210, 268, 371), (600, 20, 30)
PROTOCOLS = {"masked": Protocol(IMAGES, PATIENTS), "scenes": Protocol(IMAGES, PATIENTS)}
PREVALENCE = 0.57
MIN_IMAGES, MAX_IMAGES = 2, 30

# Mean and standard deviation of what is drawn once per person, clipped at 2.2 standard deviations.
IDENTITY: dict[str, tuple[float, float]] = {
    "id_face_width": (0.50, 0.038),
    "id_chin": (0.75, 0.045),
    "id_crown": (-0.70, 0.04),
    "id_jaw_square": (0.55, 0.28),
    "id_jaw_taper": (0.15, 0.07),
    "id_ear_size": (0.125, 0.018),
    "id_neck_width": (0.29, 0.035),
    "id_hair_volume": (0.095, 0.04),
    "id_hair_part": (0.0, 0.15),
    "id_hairline": (-0.52, 0.055),
    "id_widows_peak": (0.03, 0.035),
    "id_eye_spacing": (0.215, 0.02),
    "id_eye_height": (-0.10, 0.028),
    "id_eye_width": (0.116, 0.011),
    "id_eye_open": (0.050, 0.009),
    "id_eye_tilt": (0.02, 0.10),
    "id_eye_asymmetry": (0.0, 0.010),
    "id_lid": (0.5, 0.2),
    "id_brow_height": (0.135, 0.020),
    "id_brow_thickness": (0.024, 0.009),
    "id_brow_arch": (0.035, 0.018),
    "id_brow_slope": (-0.01, 0.07),
    "id_nose_length": (0.235, 0.032),
    "id_nose_width": (0.100, 0.019),
    "id_nose_bridge": (0.050, 0.010),
    "id_nose_height": (1.0, 0.20),
    "id_mouth_height": (0.435, 0.028),
    "id_mouth_width": (0.190, 0.020),
    "id_mouth_curve": (-0.010, 0.010),
    "id_lip_upper": (0.034, 0.010),
    "id_lip_lower": (0.046, 0.012),
    "id_cheekbone": (0.5, 0.25),
    "id_beard": (0.05, 0.45),
}
# What is drawn uniformly in (0, 1) once per person.
IDENTITY_SHARES = (
    "id_skin_tone", "id_skin_warmth", "id_blush", "id_hair_tone", "id_hair_red", "id_hair_gray", "id_hair_length",
    "id_hair_curl", "id_fringe", "id_bangs", "id_iris_tone", "id_lip_tone", "id_freckles", "id_moles",
)  # fmt: skip

# Half the range of what is drawn per image, uniformly about zero (about one for zoom and gain).
RESIDUAL: dict[str, float] = {
    "res_shift_x": 0.06,
    "res_shift_y": 0.05,
    "res_rotation": 0.09,
    "res_zoom": 0.05,
    "res_yaw": 0.22,
    "res_pitch": 0.10,
    "res_gaze_x": 0.5,
    "res_gaze_y": 0.3,
    "res_brow_raise": 0.016,
    "res_light_x": 0.8,
    "res_light_y": 0.35,
    "res_contrast": 0.10,
    "res_temperature": 0.13,
    "res_gain": 0.24,
}
# What is drawn uniformly in (0, 1) per image.
RESIDUAL_SHARES = ("res_clothes_red", "res_clothes_green", "res_clothes_blue")
BACKGROUND = (
    "res_background_red", "res_background_green", "res_background_blue", "res_background_fall",
    "res_background_texture",
)  # fmt: skip
NOISE_RANGE = (0.004, 0.014)


def _identity_columns(keys: Keys, people: np.ndarray, difficulty: float) -> Columns:
    """Identity factors of people, each (people,)."""
    spread = 1 - 0.5 * difficulty
    columns = identity_columns(keys, people, IDENTITY, spread)
    for index, name in enumerate(IDENTITY_SHARES, start=len(IDENTITY)):
        columns[name] = 0.5 + spread * (counter.uniform(*keys, KEY_IDENTITY, people, index) - 0.5)
    # Few people are red-haired, gray, freckled or have a full fringe; dark skin comes with dark hair and eyes, and no
    # beard under long hair, so that people look likely.
    dark = np.square(columns["id_skin_tone"])
    for name, power in (("id_hair_red", 4), ("id_hair_gray", 7), ("id_freckles", 2), ("id_fringe", 3)):
        columns[name] = columns[name] ** power
    for name in ("id_hair_tone", "id_hair_red", "id_iris_tone", "id_freckles"):
        columns[name] = columns[name] * (1 - 0.8 * dark)
    columns["id_beard"] = np.clip(columns["id_beard"], 0, 0.9) * (columns["id_hair_length"] < 0.5)
    for name in ("id_jaw_square", "id_widows_peak", "id_lid", "id_cheekbone"):
        columns[name] = np.maximum(columns[name], 0)
    columns["id_skin_seed"] = seeds(*keys, KEY_TEXTURE, people, 0)
    columns["id_hair_seed"] = seeds(*keys, KEY_TEXTURE, people, 1)
    return columns


def _medical_columns(keys: Keys, images: int, difficulty: float) -> Columns:
    """Medical factors of the images of a part, each (images,)."""
    columns = medical_columns(keys, images, PREVALENCE, least_severity(difficulty))
    del columns["med_side"]
    return columns


def _residual_columns(keys: Keys, images: int, difficulty: float, scenes: bool) -> Columns:
    """Residual factors of the images of a part, each (images,)."""
    image = np.arange(images)
    columns = residual_columns(keys, images, RESIDUAL, NOISE_RANGE, difficulty)
    # The light comes from above more often than not.
    columns["res_light_y"] -= 0.45
    for index, name in enumerate((*RESIDUAL_SHARES, *BACKGROUND), start=len(RESIDUAL) + 1):
        columns[name] = counter.uniform(*keys, KEY_RESIDUAL, image, index)
    if not scenes:
        # What cannot be seen is the same in every image, so that nobody asks for it.
        columns |= {name: np.full(images, 0.5) for name in BACKGROUND}
    columns["res_background"] = np.full(images, int(scenes))
    columns["res_background_seed"] = seeds(*keys, KEY_NOISE, image, 1)
    return columns


def sample_factors(
    seed: int,
    images: tuple[int, int, int] = IMAGES,
    patients: tuple[int, int, int] = PATIENTS,
    difficulty: float = 0.0,
    protocol: str = "masked",
) -> pd.DataFrame:
    """Draw a cohort: one row an image, with `part`, `patient`, `image` (a path), `finding` and every factor.

    People are disjoint between parts. In every part 57 % of the images smile, rounded down, whoever is on them.

    Args:
        seed: any integer; the same seed gives the same table everywhere.
        images, patients: of training, validation and test; 2 to 30 images a person.
        difficulty: 0 to 1. At 1 people differ half as much, the ranges of pose and light are 1.6 times as wide, noise
            is three times as strong and the least severity is .05 instead of .25; in between, linearly.
        protocol: "masked": mid-gray behind the person, and the background's factors are constant; "scenes": the same
            images with backgrounds.

    Raises:
        ValueError: counts that cannot be met, a difficulty out of range, or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
    least_severity(difficulty)

    def captures(keys: Keys, images: int) -> Columns:
        medical = _medical_columns(keys, images, difficulty)
        return medical | _residual_columns(keys, images, difficulty, protocol == "scenes")

    def identity(keys: Keys, people: np.ndarray) -> Columns:
        return _identity_columns((keys[0], 0), people, difficulty)

    return cohort_table(seed, images, patients, (MIN_IMAGES, MAX_IMAGES), identity, captures)
