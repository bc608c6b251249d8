"""Decoded images of a manifest: read in parallel, checked together, kept in a cache.

Refused is what cannot be trained on or would make a measurement worthless: unreadable, empty, constant or colour
images, NaN, and images with the same pixels, above all across parts. All parts are checked whichever is asked for; all
reasons are listed at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from monai_anon.manifest import PARTS, Manifest, ManifestError
from monai_anon.readers import ReadError, fit_square, read_image, to_stored

CACHE_VERSION = 1  # raise it when reading changes, so that old caches are not used


class CohortError(ManifestError):
    """Images that a cohort cannot be made of; `problems` lists every one with its reason."""


def check_images(manifest: Manifest, size: int = 64, channels: int = 1, progress: bool = True) -> None:
    """Decode every image of a manifest and refuse the unusable and the duplicate ones.

    Raises:
        CohortError: listing all of them.
    """
    _refuse(manifest, image_problems(manifest, size, channels, progress))


def image_problems(manifest: Manifest, size: int = 64, channels: int = 1, progress: bool = True) -> list[str]:
    """What `check_images` refuses, a line each that begins with the entry's part and index."""
    return _read_parts(manifest, (channels, size), {}, progress)


_digests: dict[
    tuple, str
] = {}  # what this process has decoded, so that the second part of a manifest does not decode the first again


def load_part(
    manifest: Manifest,
    part: str,
    shape: tuple[int, int],
    cache_dir: str | Path | None,
    memory_limit_mb: float,
    progress: bool,
) -> tuple[np.ndarray, bool]:
    """The images of a part, uint8 (N, C, S, S), from the cache or the files, and whether they are memory-mapped.

    Args:
        shape: (channels, size).
        cache_dir, memory_limit_mb, progress: as in `Cohort.from_manifest`.
    """
    channels, size = shape
    full = (len(manifest.parts[part]), channels, size, size)
    megabytes = float(np.prod(full, dtype=np.float64)) / 1e6
    mapped = megabytes > memory_limit_mb
    if cache_dir is None:
        if mapped:
            raise CohortError(
                f"{manifest.path}: {part} takes {megabytes:.0f} MB at {size} px, more than "
                f"memory_limit_mb={memory_limit_mb:g}; "
                "give a cache_dir to keep it on disk, or raise the limit"
            )
        images = np.empty(full, dtype=np.uint8)
        _refuse(manifest, _read_parts(manifest, shape, {part: images}, progress))
        return images, False
    path = Path(cache_dir) / f"{part}_{channels}x{size}_{_cache_key(manifest, part, shape)}.npy"
    if not _is_complete(path, full):
        _write_cache(
            path, full, lambda images: _refuse(manifest, _read_parts(manifest, shape, {part: images}, progress))
        )
    # "c": copy on write, since torch wants arrays that may be written to; the file itself never changes.
    return np.load(path, mmap_mode="c" if mapped else None), mapped


def _write_cache(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> None:
    """Let `fill` write a new cache file; it appears under its name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.npy")
    try:
        images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        fill(images)
        images.flush()
        del images
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_complete(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a cache file of this shape is there and whole."""
    try:
        cached = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return cached.shape == shape and cached.dtype == np.uint8


def _cache_key(manifest: Manifest, part: str, shape: tuple[int, int]) -> str:
    """Changes with any image of any part (the check for leaks is cached too), the size and the channels."""
    files = {
        name: [_file_state(manifest.image_path(entry)) for entry in entries] for name, entries in manifest.parts.items()
    }
    return hashlib.sha256(json.dumps([CACHE_VERSION, part, shape, files]).encode()).hexdigest()[:16]


def _file_state(path: Path) -> tuple[str, int, int]:
    """A file's place, bytes and time of change; a file that is not there is refused when it is read."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path), -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _read_parts(manifest: Manifest, shape: tuple[int, int], wanted: dict[str, np.ndarray], progress: bool) -> list[str]:
    """Decode all images, put those of the wanted parts into their arrays, list unusable and duplicate ones."""
    from tqdm import tqdm

    jobs = [(part, index, entry) for part in PARTS for index, entry in enumerate(manifest.parts[part])]

    def read(job: tuple[str, int, dict]) -> tuple[str, str]:
        """(digest, "") or ("", why the image is refused)."""
        part, index, entry = job
        try:
            key = (*_file_state(manifest.image_path(entry)), shape)
            if part not in wanted and key in _digests:
                return _digests[key], ""
            image = _read_fitted(manifest.image_path(entry), shape)
        except ReadError as error:
            return "", error.reason
        if part in wanted:
            wanted[part][index] = image
        _digests[key] = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        return _digests[key], ""

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        bar = tqdm(
            pool.map(read, jobs),
            total=len(jobs),
            desc=f"reading {manifest.folder.resolve().name}",
            unit="image",
            disable=not progress,
        )
        results = list(bar)
    names = [f"{part}[{index}] {entry['image']}" for part, index, entry in jobs]
    problems = [f"{name}: {reason}" for name, (_, reason) in zip(names, results, strict=True) if reason]
    return problems + _duplicates(names, [digest for digest, _ in results])


def _refuse(manifest: Manifest, problems: list[str]) -> None:
    """Raise if there are problems."""
    if problems:
        raise CohortError(f"{manifest.path}: {len(problems)} image problem(s):", problems)


def _read_fitted(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """An image as the cohort stores it, uint8 (C, S, S)."""
    channels, size = shape
    image = read_image(path, channels)
    if image.min() == image.max():
        raise ReadError(path, f"is constant: all of its {image.shape[1]}x{image.shape[2]} pixels are equal")
    stored = to_stored(fit_square(image, size))
    if stored.min() == stored.max():
        raise ReadError(
            path,
            f"is constant at 8 bit and {size} px: its values differ by {image.max() - image.min():.2g} of the full "
            "range only",
        )
    return stored


def _duplicates(names: Sequence[str], digests: Sequence[str]) -> list[str]:
    """A line for each image whose pixels were there before; images without a digest are left aside."""
    first: dict[str, str] = {}
    problems = []
    for name, digest in zip(names, digests, strict=True):
        if digest and digest in first:
            leak = first[digest].split("[")[0] != name.split("[")[0]
            problems.append(
                f"{name}: the same pixels as {first[digest]}{' (a leak between parts)' if leak else ''}; keep one "
                "of them"
            )
        elif digest:
            first[digest] = name
    return problems
