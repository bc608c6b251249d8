"""What a generated chest radiograph is made of: exact factors by group, one row an image.

Lengths are in the frame of the body, [-1, 1] across and down where an image has no shift, rotation or
zoom; x grows towards the right of the *picture*, the patient's left (radiologic convention), y grows downwards.

| prefix | group | drawn |
|---|---|---|
| `id_` | identity | once per patient |
| `med_` | medical | per image, independent of identity |
| `res_` | residual: pose, exposure, breath, noise | per image |

`med_present` is 0 or 1; `med_side` is -1 for the patient's right lung (left half of the picture), +1 for the patient's
left lung (right half of the picture) and 0 where nothing is present; `med_severity` is the share of the lung's height,
from the costophrenic angle to the apex, that the fluid's level reaches, 0 where nothing is present.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from monai_anon.phantoms.cohort_tables import (
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

CLASSES = ("absent", "effusion")
SIDES = {-1: "right", 0: "none", 1: "left"}
MIN_IMAGES, MAX_IMAGES = 2, 11

# Mean and standard deviation of what is drawn once per patient, clipped at 2.2 standard deviations.
IDENTITY: dict[str, tuple[float, float]] = {
    "id_half_width": (0.80, 0.055),
    "id_habitus": (1.0, 0.13),
    "id_shoulder_slope": (0.30, 0.08),
    "id_apex_right": (-0.74, 0.045),
    "id_apex_left": (-0.74, 0.045),
    "id_lung_power": (2.3, 0.35),
    "id_wall": (0.10, 0.025),
    "id_asymmetry": (0.0, 0.03),
    "id_mediastinum_right": (0.15, 0.03),
    "id_mediastinum_left": (0.15, 0.03),
    "id_diaphragm_right": (0.42, 0.07),
    "id_diaphragm_left": (0.47, 0.07),
    "id_dome_right": (0.15, 0.045),
    "id_dome_left": (0.15, 0.045),
    "id_heart_x": (0.12, 0.05),
    "id_heart_y": (0.22, 0.06),
    "id_heart_radius_x": (0.29, 0.055),
    "id_heart_radius_y": (0.23, 0.04),
    "id_heart_tilt": (0.45, 0.2),
    "id_knob_x": (0.09, 0.022),
    "id_knob_y": (-0.30, 0.05),
    "id_knob_radius": (0.085, 0.022),
    "id_spine_tilt": (0.0, 0.035),
    "id_spine_bow": (0.0, 0.03),
    "id_vertebra_period": (0.135, 0.014),
    "id_rib_spacing": (0.150, 0.014),
    "id_rib_offset": (0.0, 0.045),
    "id_rib_slope": (0.30, 0.13),
    "id_rib_curvature": (0.45, 0.16),
    "id_rib_thickness": (0.026, 0.005),
    "id_rib_contrast": (0.20, 0.055),
    "id_clavicle_height": (-0.60, 0.045),
    "id_clavicle_slope": (0.12, 0.09),
    "id_clavicle_curvature": (0.06, 0.05),
    "id_clavicle_thickness": (0.034, 0.007),
    "id_breast": (0.10, 0.09),
    "id_hilum_right": (-0.02, 0.05),
    "id_hilum_left": (-0.08, 0.05),
}

# Half the range of what is drawn per image, uniformly about zero (about one for zoom, gain and gamma).
RESIDUAL: dict[str, float] = {
    "res_shift_x": 0.07,
    "res_shift_y": 0.06,
    "res_rotation": 0.07,
    "res_zoom": 0.06,
    "res_gain": 0.12,
    "res_offset": 0.08,
    "res_gamma": 0.18,
    "res_inspiration": 0.05,
}
NOISE_RANGE = (0.004, 0.012)


def _identity_columns(keys: Keys, patients: int, difficulty: float) -> Columns:
    """Identity factors of the patients of a part, each (patients,)."""
    patient = np.arange(patients)
    spread = 1 - 0.5 * difficulty
    columns = identity_columns(keys, patient, IDENTITY, spread)
    columns["id_breast"] = np.maximum(columns["id_breast"], 0)
    columns["id_vessel_spread"] = np.full(patients, spread)
    columns["id_vessel_seed"] = seeds(*keys, KEY_TEXTURE, patient)
    return columns


def sample_factors(
    seed: int,
    images: tuple[int, int, int] = (6000, 200, 300),
    patients: tuple[int, int, int] = (1791, 84, 130),
    difficulty: float = 0.0,
) -> pd.DataFrame:
    """Draw a cohort: one row an image, with `part`, `patient`, `image` (a path), `finding` and every factor.

    Patients are disjoint between parts; a part has as many images with effusion as without (one fewer where odd).

    Args:
        seed: any integer; the same seed gives the same table everywhere.
        images: of training, validation and test.
        patients: of training, validation and test; 2 to 11 images each.
        difficulty: 0 to 1. At 1 people differ half as much, the ranges of pose and exposure are 1.6 times as wide,
            noise is three times as strong and the least severity is .05 instead of .25; in between, linearly.

    Raises:
        ValueError: counts that cannot be met, or a difficulty out of range.
    """
    least = least_severity(difficulty)

    def captures(keys: Keys, images: int) -> Columns:
        medical = medical_columns(keys, images, 0.5, least)
        return medical | residual_columns(keys, images, RESIDUAL, NOISE_RANGE, difficulty)

    def identity(keys: Keys, people: np.ndarray) -> Columns:
        return _identity_columns(keys, len(people), difficulty)

    return cohort_table(seed, images, patients, (MIN_IMAGES, MAX_IMAGES), identity, captures)
