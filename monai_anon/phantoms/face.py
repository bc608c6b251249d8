"""Colour faces of generated people, neutral and smiling: the stand-in for CelebAMask-HQ.

Identity, finding (the smile) and residual (pose, gaze, light, exposure, background, clothes, noise) are known exactly
for every image; `face_factors` documents the factors, `face_render` the picture. These are paintings by formula,
*easier* than photographs. `difficulty` narrows that gap.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from monai_anon.manifest import MANIFEST_NAME
from monai_anon.phantoms.chest_render import check_size
from monai_anon.phantoms.face_factors import CLASSES, sample_factors
from monai_anon.phantoms.face_render import person_mask, render
from monai_anon.phantoms.writing import recorded_settings, write_folder

__all__ = ["CLASSES", "IMAGES", "PATIENTS", "ensure_cohort", "person_mask", "render", "sample_factors", "write_cohort"]

# Sizes of training, validation and test in the paper's tables.
IMAGES = (8210, 268, 371)
PATIENTS = (600, 20, 30)
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
    background: bool = True,
) -> Path:
    """Write a cohort to OUT/manifest.json, OUT/images/*.png (RGB) and OUT/factors.csv; returns the manifest's path.

    Entries also have `severity` (0 to 1); a smile has no side. All of the cohort is written or nothing.

    Args:
        out: a folder, absent or empty.
        seed: the same seed gives the same cohort everywhere.
        size: side of the images in pixels, 32 to 512.
        images, patients: of training, validation and test; 2 to 30 images a person.
        difficulty: 0 to 1, see `sample_factors`.
        overwrite: replace `out` where it holds a generated cohort.
        progress: show progress on a terminal.
        background: False replaces what is behind the person by mid-gray, as the paper does with CelebAMask-HQ's masks.

    Raises:
        FileExistsError: `out` holds something and is not to be overwritten, or is no generated cohort.
        ValueError: settings out of range.
    """
    check_size(size)
    return write_folder(
        out,
        sample_factors(seed, images, patients, difficulty, background),
        partial(render, background=background),
        _settings(seed, size, images, patients, difficulty, background),
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
    background: bool = True,
) -> Path:
    """The manifest's path of the cohort with these settings: written where absent, reused where it is there already.

    Raises:
        ValueError: the folder holds a cohort of other settings (each one that differs is named), a broken manifest,
            or settings are out of range.
    """
    found = recorded_settings(out)
    if found is None:
        return write_cohort(out, seed, size, images, patients, difficulty, progress=progress, background=background)
    wanted = _settings(seed, size, images, patients, difficulty, background)
    if found != wanted:
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        differences = ", ".join(f"{name} is {found.get(name)}, not {wanted.get(name)}" for name in names)
        raise ValueError(f"{out} holds another cohort: {differences}; choose another place or write it anew")
    return Path(out) / MANIFEST_NAME


def _settings(
    seed: int,
    size: int,
    images: tuple[int, int, int],
    patients: tuple[int, int, int],
    difficulty: float,
    background: bool,
) -> dict[str, Any]:
    """What decides a cohort's content, as the manifest records it."""
    return {
        "name": "face",
        "version": VERSION,
        "seed": int(seed),
        "size": int(size),
        "images": [int(count) for count in images],
        "patients": [int(count) for count in patients],
        "difficulty": float(difficulty),
        "background": bool(background),
    }


def _extra_columns(row: Any) -> dict[str, Any]:
    """Columns of a manifest entry that only this phantom has."""
    return {"severity": float(row.med_severity)}
