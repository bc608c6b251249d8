"""What a generated image of an iris is made of: exact factors by group, one row an image.

Lengths are in the frame of the picture, [-1, 1] across and down where an image has no shift, rotation or zoom; x grows
to the right, y downwards. What lies on the iris is in its own radii, and depths of the iris tissue go from 0 at the
pupil's margin to 1 at the limbus (the rubber sheet of Daugman 1993), so that a wide pupil presses the texture together.
All are right eyes, so the nose is on the right of the picture.

| prefix | group | drawn |
|---|---|---|
| `id_` | identity: the iris, and nothing outside it | once per person |
| `med_` | medical | per image, independent of identity |
| `res_` | residual: pose, gaze, dilation, lids, lashes, light, exposure, noise | per image |

`med_present` is 0 or 1; `med_side` is -1 where the cornea is clouded on the temporal side (left half of the picture),
+1 on the nasal side and 0 where nothing is present; `med_severity` is 0 where nothing is present, else the cloud's
radius is .28 + .62 times it; `med_height` is where the cloud's centre lies above or below the middle, and `med_seed`
shapes its border.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from monai_anon.phantoms import counter
from monai_anon.phantoms.cohort_tables import (
    KEY_MEDICAL,
    KEY_NOISE,
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

CLASSES = ("clear", "clouded cornea")
SIDES = {-1: "temporal", 0: "none", 1: "nasal"}
# Sizes of training, validation and test in the paper's tables, and the share of images with the finding. In the paper
# everybody is in all parts; apart, people are split about as the images are.
IMAGES = (1165, 270, 360)
PROTOCOLS = {
    "closed": Protocol(IMAGES, (115, 115, 115), closed_set=True),
    "disjoint": Protocol(IMAGES, (75, 17, 23)),
}
PREVALENCE = 0.24
MIN_IMAGES, MAX_IMAGES = 1, 40

# Mean and standard deviation of what is drawn once per person, clipped at 2.2 standard deviations.
IDENTITY: dict[str, tuple[float, float]] = {
    "id_radius": (0.66, 0.022),
    "id_pupil_x": (0.03, 0.025),
    "id_pupil_y": (0.01, 0.02),
    "id_pigment": (0.39, 0.075),
    "id_zone": (0.0, 0.085),
    "id_collarette": (0.37, 0.085),
    "id_collarette_wave": (0.07, 0.02),
    "id_collarette_width": (0.075, 0.015),
    "id_collarette_contrast": (0.10, 0.045),
    "id_blotches": (0.14, 0.05),
    "id_furrows": (0.15, 0.05),
    "id_fibres": (0.07, 0.02),
    "id_crypt_size": (1.0, 0.2),
    "id_crypt_depth": (0.24, 0.08),
    "id_ring_place": (0.66, 0.05),
    "id_rings": (0.09, 0.04),
    "id_limbus": (0.06, 0.015),
    "id_rim": (0.10, 0.05),
}

# Half the range of what is drawn per image, uniformly about zero (about one for zoom, gain and gamma).
RESIDUAL: dict[str, float] = {
    "res_shift_x": 0.05,
    "res_shift_y": 0.04,
    "res_rotation": 0.10,
    "res_zoom": 0.06,
    "res_gaze_x": 0.07,
    "res_gaze_y": 0.05,
    "res_dilation": 0.11,
    "res_upper_lid": 0.11,
    "res_lower_lid": 0.09,
    "res_lid_tilt": 0.07,
    "res_lashes": 0.05,
    "res_skin": 0.08,
    "res_sclera": 0.07,
    "res_light_x": 0.16,
    "res_light_y": 0.12,
    "res_spot_x": 0.16,
    "res_spot_y": 0.13,
    "res_gain": 0.12,
    "res_offset": 0.03,
    "res_gamma": 0.15,
}
NOISE_RANGE = (0.004, 0.014)
# Half the range of a cloud's centre above or below the middle, in radii of the iris.
HEIGHT = 0.3


def _identity_columns(keys: Keys, people: np.ndarray, difficulty: float) -> Columns:
    """Identity factors of people, each (people,), the same whatever part a person is in."""
    spread = 1 - 0.5 * difficulty
    columns = identity_columns((keys[0], 0), people, IDENTITY, spread)
    columns["id_texture_spread"] = np.full(len(people), spread)
    columns["id_texture_seed"] = seeds(keys[0], 0, KEY_TEXTURE, people)
    return columns


def _medical_columns(keys: Keys, images: int, difficulty: float) -> Columns:
    """Medical factors of the images of a part, each (images,), all 0 where nothing is present."""
    columns = medical_columns(keys, images, PREVALENCE, least_severity(difficulty))
    image, present = np.arange(images), columns["med_present"]
    columns["med_height"] = present * HEIGHT * (2 * counter.uniform(*keys, KEY_MEDICAL, image, 0) - 1)
    columns["med_seed"] = present * seeds(*keys, KEY_MEDICAL, image, 1)
    return columns


def sample_factors(
    seed: int,
    images: tuple[int, int, int] = IMAGES,
    patients: tuple[int, int, int] | None = None,
    difficulty: float = 0.0,
    protocol: str = "closed",
) -> pd.DataFrame:
    """Draw a cohort: one row an image, with `part`, `patient`, `image` (a path), `finding` and every factor.

    A person depends on the seed and their number alone: p00005 is the same in both protocols. In every part 24 % of
    the images have the finding, rounded down, whoever is on them.

    Args:
        seed: any integer; the same seed gives the same table everywhere.
        images: of training, validation and test.
        patients: of training, validation and test; 1 to 40 images each. The protocol's usual ones where not given.
        difficulty: 0 to 1. At 1 people differ half as much, the ranges of pose, light and exposure are 1.6 times as
            wide, noise is three times as strong and the least severity is .05 instead of .25; in between, linearly.
        protocol: "closed": the same people are in all three parts, with other images; "disjoint": each in one part.

    Raises:
        ValueError: counts that cannot be met, a difficulty out of range, or an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}; it must be one of {', '.join(PROTOCOLS)}")
    usual = PROTOCOLS[protocol]
    patients = usual.patients if patients is None else patients
    if usual.closed_set and len({count for count in patients if count}) > 1:
        raise ValueError(f"patients {patients}: in the closed protocol all parts have the same ones, so as many")
    least_severity(difficulty)

    def captures(keys: Keys, images: int) -> Columns:
        drawn = _medical_columns(keys, images, difficulty)
        drawn |= residual_columns(keys, images, RESIDUAL, NOISE_RANGE, difficulty)
        return drawn | {"res_lash_seed": seeds(*keys, KEY_NOISE, np.arange(images), 1)}

    def identity(keys: Keys, people: np.ndarray) -> Columns:
        return _identity_columns(keys, people, difficulty)

    return cohort_table(seed, images, patients, (MIN_IMAGES, MAX_IMAGES), identity, captures, usual.closed_set)
