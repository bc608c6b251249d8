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

from monai_anon.manifest import PARTS
from monai_anon.phantoms import counter

CLASSES = ("absent", "effusion")
SIDES = {-1: "right", 0: "none", 1: "left"}
MIN_IMAGES, MAX_IMAGES = 2, 11
MIN_SEVERITY = 0.25

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

# The keys under which a seed's random numbers are told apart; a new kind of draw gets a new key, so that the old ones
# stay as they are.
_KEY_IDENTITY, _KEY_VESSELS, _KEY_COUNT, _KEY_FINDING, _KEY_SEVERITY, _KEY_RESIDUAL, _KEY_NOISE = range(1, 8)
# Decimals that are kept of a factor: a table read back from its CSV file gives the same pixels.
_DECIMALS = 6


def images_per_patient(
    keys: tuple[int, int], images: int, patients: int, least: int = MIN_IMAGES, most: int = MAX_IMAGES
) -> np.ndarray:
    """How many images each patient has, with a heavy tail, adding up to `images`: int64 (patients,).

    Args:
        keys: seed and part.
        least, most: images a patient can have.

    Raises:
        ValueError: no such counts exist.
    """
    if not least * patients <= images <= most * patients:
        raise ValueError(
            f"{PARTS[keys[1]]}: {images} images of {patients} patients cannot be made with {least} to {most} images a "
            f"patient; {patients} patients have {least * patients} to {most * patients}"
        )
    extra, most = images - least * patients, most - least
    weight = (counter.uniform(*keys, _KEY_COUNT, np.arange(patients)) + 0.04) ** -0.9
    low, high = 0.0, float(most)
    for _ in range(60):
        middle = (low + high) / 2
        if np.minimum(np.floor(weight * middle), most).sum() <= extra:
            low = middle
        else:
            high = middle
    counts = np.minimum(np.floor(weight * low), most).astype(np.int64)
    while (missing := extra - int(counts.sum())) > 0:
        open_to_more = np.flatnonzero(counts < most)
        order = np.argsort(-(weight * low - counts)[open_to_more], kind="stable")
        counts[open_to_more[order[:missing]]] += 1
    return counts + least


def _identity_columns(keys: tuple[int, int], patients: int, difficulty: float) -> dict[str, np.ndarray]:
    """Identity factors of the patients of a part, each (patients,)."""
    patient = np.arange(patients)
    spread = 1 - 0.5 * difficulty
    columns = {}
    for index, (name, (mean, deviation)) in enumerate(IDENTITY.items()):
        columns[name] = mean + spread * deviation * counter.normal(*keys, _KEY_IDENTITY, patient, index)
    columns["id_breast"] = np.maximum(columns["id_breast"], 0)
    columns["id_vessel_spread"] = np.full(patients, spread)
    columns["id_vessel_seed"] = (counter.random_bits(*keys, _KEY_VESSELS, patient) >> np.uint64(11)).astype(np.int64)
    return columns


def _medical_columns(keys: tuple[int, int], images: int, difficulty: float) -> dict[str, np.ndarray]:
    """Medical factors of the images of a part, each (images,): half with effusion, half of these on either side."""
    rank = np.empty(images, dtype=np.int64)
    rank[np.argsort(counter.random_bits(*keys, _KEY_FINDING, np.arange(images)), kind="stable")] = np.arange(images)
    present = (rank < images // 2).astype(np.int64)
    least = MIN_SEVERITY * (1 - 0.8 * difficulty)
    severity = least + (1 - least) * counter.uniform(*keys, _KEY_SEVERITY, np.arange(images))
    return {"med_present": present, "med_side": present * (1 - 2 * (rank % 2)), "med_severity": present * severity}


def _residual_columns(keys: tuple[int, int], images: int, difficulty: float) -> dict[str, np.ndarray]:
    """Residual factors of the images of a part, each (images,)."""
    image = np.arange(images)
    columns = {}
    for index, (name, half_range) in enumerate(RESIDUAL.items()):
        swing = half_range * (1 + 0.6 * difficulty) * (2 * counter.uniform(*keys, _KEY_RESIDUAL, image, index) - 1)
        columns[name] = swing
    columns["res_zoom"] += 1
    columns["res_gain"] += 1
    columns["res_gamma"] = np.exp(columns["res_gamma"])
    low, high = NOISE_RANGE
    share = counter.uniform(*keys, _KEY_RESIDUAL, image, len(RESIDUAL))
    columns["res_noise"] = (low + (high - low) * share) * (1 + 2 * difficulty)
    columns["res_noise_seed"] = (counter.random_bits(*keys, _KEY_NOISE, image) >> np.uint64(11)).astype(np.int64)
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
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty is {difficulty}; it must lie in [0, 1]")
    if len(images) != len(PARTS) or len(patients) != len(PARTS):
        raise ValueError(f"images {images} and patients {patients} must give three numbers each: {', '.join(PARTS)}")
    tables, first = [], 0
    for part, name in enumerate(PARTS):
        keys = (int(seed) % 2**64, part)
        of_image = np.repeat(np.arange(patients[part]), images_per_patient(keys, images[part], patients[part]))
        within = np.arange(images[part]) - np.searchsorted(of_image, of_image)
        patient = [f"p{first + index + 1:05d}" for index in of_image]
        columns: dict[str, object] = {"part": name, "patient": patient}
        columns["image"] = [f"images/{who}_{index + 1:02d}.png" for who, index in zip(patient, within, strict=True)]
        medical = _medical_columns(keys, images[part], difficulty)
        columns["finding"] = medical["med_present"]
        identity = _identity_columns(keys, patients[part], difficulty)
        columns |= {column: values[of_image] for column, values in identity.items()}
        columns |= medical | _residual_columns(keys, images[part], difficulty)
        tables.append(pd.DataFrame(columns))
        first += patients[part]
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True).round(_DECIMALS)
