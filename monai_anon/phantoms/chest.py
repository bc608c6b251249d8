"""Chest radiographs of generated people, with and without pleural effusion: the default data of demos and tests.

Identity, finding and residual (pose, exposure, breath, noise) are known exactly for every image, so that
anonymisation can be checked against truth; `chest_factors` documents the factors, `chest_render` the picture. These
images are *easier* than real radiographs: people and findings are told apart almost without error. `difficulty`
narrows that gap.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_anon.manifest import MANIFEST_NAME
from monai_anon.phantoms.chest_factors import CLASSES, SIDES, sample_factors
from monai_anon.phantoms.chest_render import check_size, render
from monai_anon.phantoms.writing import recorded_settings, write_folder

__all__ = ["CLASSES", "IMAGES", "PATIENTS", "ensure_cohort", "render", "sample_factors", "write_cohort"]

# Sizes of training, validation and test in the paper's tables.
IMAGES = (6000, 200, 300)
PATIENTS = (1791, 84, 130)
# Goes up with every change of a pixel, so that a cohort of an older version is not taken for one of this version.
VERSION = 1


def write_cohort(
    out: str | Path,
    seed: int = 0,
    size: int = 64,
    images: tuple[int, int, int] = IMAGES,
    patients: tuple[int, int, int] = PATIENTS,
    difficulty: float = 0.0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a cohort to OUT/manifest.json, OUT/images/*.png and OUT/factors.csv; returns the manifest's path.

    Entries of the manifest also have `side` ("right", "left": the patient's; "none") and `severity` (0 to 1). All of
    the cohort is written or nothing.

    Args:
        out: a folder, absent or empty.
        seed: the same seed gives the same cohort everywhere.
        size: side of the images in pixels, 32 to 512.
        images: of training, validation and test.
        patients: of training, validation and test; 2 to 11 images each.
        difficulty: 0 to 1, see `sample_factors`.
        overwrite: replace `out` where it holds a generated cohort.
        progress: show progress on a terminal.

    Raises:
        FileExistsError: `out` holds something and is not to be overwritten, or is no generated cohort.
        ValueError: settings out of range.
    """
    check_size(size)
    return write_folder(
        out,
        sample_factors(seed, images, patients, difficulty),
        render,
        _settings(seed, size, images, patients, difficulty),
        CLASSES,
        _extra_columns,
        overwrite=overwrite,
        progress=progress,
    )


def ensure_cohort(
    out: str | Path,
    seed: int = 0,
    size: int = 64,
    images: tuple[int, int, int] = IMAGES,
    patients: tuple[int, int, int] = PATIENTS,
    difficulty: float = 0.0,
    progress: bool = True,
) -> Path:
    """The manifest's path of the cohort with these settings: written where absent, reused where it is there already.

    Raises:
        ValueError: the folder holds a cohort of other settings (each one that differs is named), a broken manifest,
            or settings are out of range.
    """
    found = recorded_settings(out)
    if found is None:
        return write_cohort(out, seed, size, images, patients, difficulty, progress=progress)
    wanted = _settings(seed, size, images, patients, difficulty)
    if found != wanted:
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        differences = ", ".join(f"{name} is {found.get(name)}, not {wanted.get(name)}" for name in names)
        raise ValueError(f"{out} holds another cohort: {differences}; choose another place or write it anew")
    return Path(out) / MANIFEST_NAME


def _settings(
    seed: int, size: int, images: tuple[int, int, int], patients: tuple[int, int, int], difficulty: float
) -> dict[str, Any]:
    """What decides a cohort's content, as the manifest records it."""
    return {
        "name": "chest",
        "version": VERSION,
        "seed": int(seed),
        "size": int(size),
        "images": [int(count) for count in images],
        "patients": [int(count) for count in patients],
        "difficulty": float(difficulty),
    }


def _extra_columns(row: Any) -> dict[str, Any]:
    """Columns of a manifest entry that only this phantom has."""
    return {"side": SIDES[int(row.med_side)], "severity": float(row.med_severity)}
