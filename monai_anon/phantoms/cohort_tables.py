"""Tables of factors, whatever is drawn from them: who has how many images, and what is drawn once a person or an image.

Every draw is a pure function of its keys: the seed, the part, what is drawn, and the number of the person or image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from monai_anon.manifest import PARTS
from monai_anon.phantoms import counter

Keys = tuple[int, int]
Columns = dict[str, np.ndarray]

# The keys under which a seed's random numbers are told apart; a new kind of draw gets a new key, so that the old ones
# stay as they are.
KEY_IDENTITY, KEY_TEXTURE, KEY_COUNT, KEY_FINDING, KEY_SEVERITY, KEY_RESIDUAL, KEY_NOISE, KEY_MEDICAL = range(1, 9)
# Severity of the slightest finding, where nothing is made difficult.
_MIN_SEVERITY = 0.25
# Decimals that are kept of a factor: a table read back from its CSV file gives the same pixels.
_DECIMALS = 6


def seeds(*keys: int | np.ndarray) -> np.ndarray:
    """Seeds that a table of numbers can hold exactly: int64 from 0 to 2^53, one for each combination of keys."""
    return (counter.random_bits(*keys) >> np.uint64(11)).astype(np.int64)


def least_severity(difficulty: float) -> float:
    """Severity of the slightest finding: .25, down to .05 at difficulty 1.

    Raises:
        ValueError: a difficulty out of range.
    """
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty is {difficulty}; it must lie in [0, 1]")
    return _MIN_SEVERITY * (1 - 0.8 * difficulty)


def images_per_patient(keys: Keys, images: int, patients: int, bounds: tuple[int, int]) -> np.ndarray:
    """How many images each patient has, with a heavy tail, adding up to `images`: int64 (patients,).

    Args:
        keys: seed and part.
        bounds: the fewest and the most that a patient can have.

    Raises:
        ValueError: no such counts exist.
    """
    fewest, greatest = bounds
    if not fewest * patients <= images <= greatest * patients:
        raise ValueError(
            f"{PARTS[keys[1]]}: {images} images of {patients} patients cannot be made with {fewest} to "
            f"{greatest} images a patient; {patients} patients have {fewest * patients} to "
            f"{greatest * patients}"
        )
    extra, most = images - fewest * patients, greatest - fewest
    weight = (counter.uniform(*keys, KEY_COUNT, np.arange(patients)) + 0.04) ** -0.9
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
    return counts + fewest


def identity_columns(
    keys: Keys, people: np.ndarray, factors: Mapping[str, tuple[float, float]], spread: float
) -> Columns:
    """Factors of people, each (people,): `spread` times as far from the mean as the standard deviation says.

    Args:
        people: their numbers, as keys.
        factors: mean and standard deviation by name; clipped at 2.2 standard deviations.
    """
    return {
        name: mean + spread * deviation * counter.normal(*keys, KEY_IDENTITY, people, index)
        for index, (name, (mean, deviation)) in enumerate(factors.items())
    }


def medical_columns(keys: Keys, images: int, share: float, least: float) -> Columns:
    """`med_present`, `med_side` and `med_severity` of the images of a part, each (images,), whoever is on them.

    Args:
        share: of the images with the finding, half of them on either side (-1, 1); rounded down.
        least: severity where the finding is present lies between this and 1.
    """
    rank = np.empty(images, dtype=np.int64)
    rank[np.argsort(counter.random_bits(*keys, KEY_FINDING, np.arange(images)), kind="stable")] = np.arange(images)
    present = (rank < int(share * images + 1e-9)).astype(np.int64)
    severity = least + (1 - least) * counter.uniform(*keys, KEY_SEVERITY, np.arange(images))
    return {"med_present": present, "med_side": present * (1 - 2 * (rank % 2)), "med_severity": present * severity}


def residual_columns(
    keys: Keys, images: int, half_ranges: Mapping[str, float], noise: tuple[float, float], difficulty: float
) -> Columns:
    """Residual factors of the images of a part, each (images,), with `res_noise` and `res_noise_seed` after them.

    Args:
        half_ranges: half the range by name, uniformly about zero (about one for zoom, gain and gamma;
            there need be no gamma).
        noise: least and greatest standard deviation of the noise.
        difficulty: 0 to 1; at 1 ranges are 1.6 times as wide and the noise is three times as strong.
    """
    image = np.arange(images)
    columns = {}
    for index, (name, half_range) in enumerate(half_ranges.items()):
        swing = half_range * (1 + 0.6 * difficulty) * (2 * counter.uniform(*keys, KEY_RESIDUAL, image, index) - 1)
        columns[name] = swing
    columns["res_zoom"] += 1
    columns["res_gain"] += 1
    if "res_gamma" in columns:
        columns["res_gamma"] = np.exp(columns["res_gamma"])
    low, high = noise
    share = counter.uniform(*keys, KEY_RESIDUAL, image, len(half_ranges))
    columns["res_noise"] = (low + (high - low) * share) * (1 + 2 * difficulty)
    columns["res_noise_seed"] = seeds(*keys, KEY_NOISE, image)
    return columns


def cohort_table(
    seed: int,
    images: tuple[int, int, int],
    patients: tuple[int, int, int],
    bounds: tuple[int, int],
    identity: Callable[[Keys, np.ndarray], Columns],
    captures: Callable[[Keys, int], Columns],
    shared: bool = False,
) -> pd.DataFrame:
    """Draw a cohort: one row an image, with `part`, `patient`, `image` (a path), `finding` and every factor.

    Args:
        bounds: the fewest and the most images that a patient can have in a part.
        identity: (keys, people) -> factors drawn once a person; `people` are numbers from 0, in the whole cohort.
        captures: (keys, images) -> medical and residual factors, one of them `med_present`.
        shared: the same people are in every part (a closed set); else every part has people of its own.

    Raises:
        ValueError: counts that cannot be met.
    """
    if len(images) != len(PARTS) or len(patients) != len(PARTS):
        raise ValueError(f"images {images} and patients {patients} must give three numbers each: {', '.join(PARTS)}")
    tables, first = [], 0
    shown = np.zeros(max(patients) if shared else sum(patients), dtype=np.int64)
    for part, name in enumerate(PARTS):
        keys = (int(seed) % 2**64, part)
        counts = images_per_patient(keys, images[part], patients[part], bounds)
        people = np.arange(patients[part]) + (0 if shared else first)
        of_image = np.repeat(np.arange(patients[part]), counts)
        within = np.arange(images[part]) - np.searchsorted(of_image, of_image) + shown[people][of_image]
        shown[people] += counts
        patient = [f"p{number + 1:05d}" for number in people[of_image]]
        columns: dict[str, object] = {"part": name, "patient": patient}
        columns["image"] = [f"images/{who}_{index + 1:02d}.png" for who, index in zip(patient, within, strict=True)]
        drawn = captures(keys, images[part])
        columns["finding"] = drawn["med_present"]
        columns |= {column: values[of_image] for column, values in identity(keys, people).items()}
        tables.append(pd.DataFrame(columns | drawn))
        first += patients[part]
    return pd.concat([table for table in tables if len(table)] or tables, ignore_index=True).round(_DECIMALS)
