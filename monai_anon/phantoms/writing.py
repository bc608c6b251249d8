"""Generated cohorts on disk: OUT/manifest.json, OUT/images/*.png and OUT/factors.csv, all of it or nothing."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from monai_anon.manifest import CLOSED_SET_KEY, MANIFEST_NAME, PARTS, load_manifest, save_manifest

FACTORS_NAME = "factors.csv"
# Key of the manifest under which the settings of a generated cohort are recorded.
SETTINGS_KEY = "phantom"
# Images that are rendered before they are written, so that no cohort has to fit into memory; in colour three times as
# many bytes.
_BATCH_PIXELS = 2**24

Render = Callable[[pd.DataFrame, int], np.ndarray]


def write_folder(
    out: str | Path,
    factors: pd.DataFrame,
    render: Render,
    settings: Mapping[str, Any],
    classes: Sequence[str],
    extra_columns: Callable[[Any], dict[str, Any]],
    *,
    overwrite: bool = False,
    progress: bool = True,
    closed_set: bool = False,
) -> Path:
    """Render a table of factors into a folder and return the path of its manifest.

    Everything is written beside `out` first and renamed into place, so that a run that is cut short leaves nothing.

    Args:
        factors: one row an image, with part, patient, image (a path relative to `out`) and finding.
        render: (rows, size) -> uint8 (n, size, size), in colour (n, size, size, 3); called with some rows at a time.
        settings: recorded in the manifest; holds `size`.
        extra_columns: further columns of a manifest entry, from a row as a named tuple.
        overwrite: replace `out` where it holds a generated cohort.
        progress: show progress on a terminal's standard error.
        closed_set: the same people are in several parts, which the manifest then says.

    Raises:
        FileExistsError: `out` holds something and is not to be overwritten, or is no generated cohort.
    """
    out = Path(out)
    _refuse_to_replace(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_images(draft, factors, render, settings["size"], progress)
        factors.to_csv(draft / FACTORS_NAME, index=False, lineterminator="\n")
        parts = {part: _entries(factors[factors["part"] == part], extra_columns) for part in PARTS}
        extra = {SETTINGS_KEY: dict(settings)} | ({CLOSED_SET_KEY: True} if closed_set else {})
        save_manifest(draft / MANIFEST_NAME, parts, classes, extra=extra)
        draft.chmod(0o777 & ~_umask())
        _put_in_place(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out / MANIFEST_NAME


def recorded_settings(out: str | Path) -> dict[str, Any] | None:
    """Settings of the generated cohort in a folder; None where the folder is absent or empty.

    Raises:
        ManifestError: the folder's manifest, or an image it names, is missing or broken.
    """
    out = Path(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    return load_manifest(out / MANIFEST_NAME).extra.get(SETTINGS_KEY, {})


def _refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Nothing but an empty folder, or a generated cohort that is to be overwritten, may stand at `out`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists already; --overwrite replaces it, or choose another place")
    # A folder of anything else is never deleted, whatever was asked for.
    manifest = out / MANIFEST_NAME
    if not manifest.is_file() or f'"{SETTINGS_KEY}"' not in manifest.read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{out} holds no generated cohort and is not overwritten; choose another place")


def _write_images(folder: Path, factors: pd.DataFrame, render: Render, size: int, progress: bool) -> None:
    for parent in sorted({str(Path(name).parent) for name in factors["image"]}):
        (folder / parent).mkdir(parents=True, exist_ok=True)

    def write(name: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(folder / name, compress_level=3)

    step = max(1, _BATCH_PIXELS // size**2 // 16)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for start in range(0, len(factors), step):
            rows = factors.iloc[start : start + step]
            list(pool.map(write, rows["image"], render(rows, size)))
            if progress and sys.stderr.isatty():
                done = min(start + step, len(factors))
                print(f"\r{done} of {len(factors)} images", end="\n" if done == len(factors) else "", file=sys.stderr)


def _entries(rows: pd.DataFrame, extra_columns: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """Manifest entries of the rows of a part."""
    return [
        {"image": row.image, "patient": row.patient, "finding": int(row.finding), **extra_columns(row)}
        for row in rows.itertuples(index=False)
    ]


def _put_in_place(draft: Path, out: Path) -> None:
    """Rename the finished draft to `out`; what stood there goes only once the new cohort is there."""
    if not out.exists():
        draft.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(aside / out.name)
    try:
        draft.rename(out)
    except OSError:
        (aside / out.name).rename(out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    """The process's file creation mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
