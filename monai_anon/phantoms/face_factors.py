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
has no side.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from monai_anon.manifest import PARTS
from monai_anon.phantoms import counter
from monai_anon.phantoms.chest_factors import images_per_patient

CLASSES = ("neutral", "smiling")
MIN_IMAGES, MAX_IMAGES = 2, 30
MIN_SEVERITY = 0.25
# Share of the images with a smile, as in the paper's subset of CelebAMask-HQ.
PREVALENCE = 0.57

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

# Half the range of what is drawn per image, uniformly about zero (about one for zoom and exposure).
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
    "res_exposure": 0.24,
}
# What is drawn uniformly in (0, 1) per image.
RESIDUAL_SHARES = ("res_clothes_red", "res_clothes_green", "res_clothes_blue")
BACKGROUND = (
    "res_background_red", "res_background_green", "res_background_blue", "res_background_fall",
    "res_background_texture",
)  # fmt: skip
NOISE_RANGE = (0.004, 0.014)

SEEDS = ("id_skin_seed", "id_hair_seed", "res_background_seed", "res_noise_seed")

# The keys under which a seed's random numbers are told apart; a new kind of draw gets a new key, so that the old ones
# stay as they are. 3 is the key of the numbers of images, shared with the chest phantom.
_KEY_IDENTITY, _KEY_SHARES, _, _KEY_FINDING, _KEY_SEVERITY, _KEY_RESIDUAL, _KEY_RESIDUAL_SHARES, _KEY_SEEDS = range(
    1, 9
)
# Decimals that are kept of a factor: a table read back from its CSV file gives the same pixels.
_DECIMALS = 6


def _seed_column(keys: tuple[int, int], index: np.ndarray, name: str) -> np.ndarray:
    """Seeds of 53 bits, which a table can hold: int64, one for each index."""
    return (counter.random_bits(*keys, _KEY_SEEDS, index, SEEDS.index(name)) >> np.uint64(11)).astype(np.int64)


def _identity_columns(keys: tuple[int, int], patients: int, difficulty: float) -> dict[str, np.ndarray]:
    """Identity factors of the people of a part, each (patients,)."""
    person = np.arange(patients)
    spread = 1 - 0.5 * difficulty
    columns = {}
    for index, (name, (mean, deviation)) in enumerate(IDENTITY.items()):
        columns[name] = mean + spread * deviation * counter.normal(*keys, _KEY_IDENTITY, person, index)
    for index, name in enumerate(IDENTITY_SHARES):
        columns[name] = 0.5 + spread * (counter.uniform(*keys, _KEY_SHARES, person, index) - 0.5)
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
    return columns | {name: _seed_column(keys, person, name) for name in SEEDS if name.startswith("id_")}


def _medical_columns(keys: tuple[int, int], images: int, difficulty: float) -> dict[str, np.ndarray]:
    """Medical factors of the images of a part, each (images,): `PREVALENCE` of them smile."""
    rank = np.empty(images, dtype=np.int64)
    rank[np.argsort(counter.random_bits(*keys, _KEY_FINDING, np.arange(images)), kind="stable")] = np.arange(images)
    present = (rank < round(PREVALENCE * images)).astype(np.int64)
    least = MIN_SEVERITY * (1 - 0.8 * difficulty)
    severity = least + (1 - least) * counter.uniform(*keys, _KEY_SEVERITY, np.arange(images))
    return {"med_present": present, "med_severity": present * severity}


def _residual_columns(keys: tuple[int, int], images: int, difficulty: float, background: bool) -> dict[str, np.ndarray]:
    """Residual factors of the images of a part, each (images,)."""
    image = np.arange(images)
    columns = {}
    for index, (name, half_range) in enumerate(RESIDUAL.items()):
        swing = half_range * (1 + 0.6 * difficulty) * (2 * counter.uniform(*keys, _KEY_RESIDUAL, image, index) - 1)
        columns[name] = swing
    columns["res_zoom"] += 1
    columns["res_exposure"] = np.exp(columns["res_exposure"])
    # The light comes from above more often than not.
    columns["res_light_y"] -= 0.45
    low, high = NOISE_RANGE
    share = counter.uniform(*keys, _KEY_RESIDUAL, image, len(RESIDUAL))
    columns["res_noise"] = (low + (high - low) * share) * (1 + 2 * difficulty)
    for index, name in enumerate((*RESIDUAL_SHARES, *BACKGROUND)):
        columns[name] = counter.uniform(*keys, _KEY_RESIDUAL_SHARES, image, index)
    if not background:
        # What cannot be seen is the same in every image, so that nobody asks for it.
        columns |= {name: np.full(images, 0.5) for name in BACKGROUND}
    return columns | {name: _seed_column(keys, image, name) for name in SEEDS if name.startswith("res_")}


def sample_factors(
    seed: int,
    images: tuple[int, int, int] = (8210, 268, 371),
    patients: tuple[int, int, int] = (600, 20, 30),
    difficulty: float = 0.0,
    background: bool = True,
) -> pd.DataFrame:
    """Draw a cohort: one row an image, with `part`, `patient`, `image` (a path), `finding` and every factor.

    People are disjoint between parts; 57 % of a part's images smile, to the nearest image.

    Args:
        seed: any integer; the same seed gives the same table everywhere.
        images, patients: of training, validation and test; 2 to 30 images a person.
        difficulty: 0 to 1. At 1 people differ half as much, the ranges of pose and light are 1.6 times as wide, noise
            is three times as strong and the least severity is .05 instead of .25; in between, linearly.
        background: False for a table whose images are drawn without: the background's factors are then constant.

    Raises:
        ValueError: counts that cannot be met, or a difficulty out of range.
    """
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty is {difficulty}; it must lie in [0, 1]")
    if len(images) != len(PARTS) or len(patients) != len(PARTS):
        raise ValueError(f"images {images} and patients {patients} must give three numbers each: {', '.join(PARTS)}")
    tables, first = [], 0
    for part, part_name in enumerate(PARTS):
        keys = (int(seed) % 2**64, part)
        counts = images_per_patient(keys, images[part], patients[part], MIN_IMAGES, MAX_IMAGES)
        of_image = np.repeat(np.arange(patients[part]), counts)
        within = np.arange(images[part]) - np.searchsorted(of_image, of_image)
        person = [f"p{first + index + 1:05d}" for index in of_image]
        columns: dict[str, object] = {"part": part_name, "patient": person}
        columns["image"] = [f"images/{who}_{index + 1:02d}.png" for who, index in zip(person, within, strict=True)]
        medical = _medical_columns(keys, images[part], difficulty)
        identity = _identity_columns(keys, patients[part], difficulty)
        columns |= {"finding": medical["med_present"]} | {name: values[of_image] for name, values in identity.items()}
        columns |= medical | _residual_columns(keys, images[part], difficulty, background)
        tables.append(pd.DataFrame(columns))
        first += patients[part]
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True).round(_DECIMALS)
