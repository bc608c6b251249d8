"""Decoded images of a manifest: read in parallel, checked together, kept in a cache.

Refused is what cannot be trained on or would make a measurement worthless: unreadable, empty, constant or colour
images, NaN, and images with the same pixels, above all across parts. All parts are checked whichever is asked for; all
reasons are listed at once. A cache holds the images of all parts, since all are decoded to be checked: that it is there
says that they have passed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from monai_anon.image_cache import DIGEST_BYTES, ImageFile, digest_of, threads, use_or_fill
from monai_anon.manifest import PARTS, Manifest, ManifestError
from monai_anon.readers import ReadError, fit_square, read_image, to_stored

logger = logging.getLogger(__name__)

CACHE_VERSION = 2  # raise it when reading changes, so that old caches are not used
_AT_ONCE = 16  # images that a thread reads before it hands them on
_SAMPLE = 256  # images of a memory-mapped cache that are verified whenever it is opened

Keep = Callable[[int, np.ndarray, np.ndarray], None]  # (index of the first, images (n, C, S, S), digests (n, 16))


class CohortError(ManifestError):
    """Images that a cohort cannot be made of; `problems` lists every one with its reason."""


class Part(NamedTuple):
    """The images of one part.

    `images` is uint8 (N, C, S, S), in memory, or on disk where `gather` is given: indices (B,) to uint8 (B, C, S, S),
    faster than through `images`.
    """

    images: np.ndarray
    gather: Callable[[np.ndarray], np.ndarray] | None = None


def check_images(manifest: Manifest, size: int = 64, channels: int = 1, progress: bool = True) -> None:
    """Decode every image of a manifest and refuse the unusable and the duplicate ones.

    Raises:
        CohortError: listing all of them.
    """
    _refuse(manifest, image_problems(manifest, size, channels, progress))


def image_problems(manifest: Manifest, size: int = 64, channels: int = 1, progress: bool = True) -> list[str]:
    """What `check_images` refuses, a line each that begins with the entry's part and index."""
    digests = np.zeros((_count(manifest), DIGEST_BYTES), dtype=np.uint8)
    return _read(manifest, (channels, size), digests, lambda first, images, digests: None, progress)


def load_part(
    manifest: Manifest,
    part: str,
    shape: tuple[int, int],
    cache_dir: str | Path | None,
    memory_limit_mb: float,
    progress: bool,
    verify: bool = False,
) -> Part:
    """The images of a part, from the cache or the files.

    Args:
        shape: (channels, size).
        cache_dir, memory_limit_mb, progress, verify: as in `Cohort.from_manifest`.

    Raises:
        CohortError: images are refused, or do not fit into memory and have no cache.
        NoSpaceError: the disk is too small for the cache.
    """
    channels, size = shape
    start = sum(len(manifest.parts[other]) for other in PARTS[: PARTS.index(part)])
    stop = start + len(manifest.parts[part])
    megabytes = float(stop - start) * channels * size * size / 1e6
    if cache_dir is None:
        if megabytes > memory_limit_mb:
            raise CohortError(
                f"{manifest.path}: {part} takes {megabytes:.0f} MB at {size} px, more than "
                f"memory_limit_mb={memory_limit_mb:g}; "
                "give a cache_dir to keep it on disk, or raise the limit"
            )
        return Part(_without_cache(manifest, shape, range(start, stop), progress))

    def take(cache: ImageFile) -> Part:
        if megabytes <= memory_limit_mb:
            return Part(cache.read(start, stop))  # verified, all of it
        sample = np.random.default_rng().integers(start, stop, _SAMPLE)
        cache.check(None if verify else [start, stop - 1, *sample.tolist()])
        return Part(cache.memory_map(start, stop), partial(cache.gather, start, stop))

    def fill(draft: ImageFile) -> None:
        digests = draft.sound_digests()
        if there := int(digests.any(axis=1).sum()):
            logger.info("%s: %d of %d images are there already", path, there, len(digests))
        _refuse(manifest, _read(manifest, shape, digests, draft.write, progress))

    path = Path(cache_dir) / f"{channels}x{size}_{_cache_key(manifest, shape)}.npy"
    return use_or_fill(path, (_count(manifest), channels, size, size), take, fill)


_digests: dict[
    tuple, bytes
] = {}  # what this process has decoded, so that the second part of a manifest does not decode the first again


def _without_cache(manifest: Manifest, shape: tuple[int, int], rows: range, progress: bool) -> np.ndarray:
    """The images of some rows of the manifest, all others being checked only: once per process."""
    channels, size = shape
    wanted = np.empty((len(rows), channels, size, size), dtype=np.uint8)
    states = [(*state, shape, manifest.to_gray) for state in _file_states(manifest)]
    digests = np.zeros((len(states), DIGEST_BYTES), dtype=np.uint8)
    for index, state in enumerate(states):
        if index not in rows and state in _digests:
            digests[index] = np.frombuffer(_digests[state], dtype=np.uint8)

    def keep(first: int, images: np.ndarray, found: np.ndarray) -> None:
        for index, image, digest in zip(range(first, first + len(images)), images, found, strict=True):
            if index in rows:
                wanted[index - rows.start] = image
            if digest.any():
                _digests[states[index]] = digest.tobytes()

    _refuse(manifest, _read(manifest, shape, digests, keep, progress))
    return wanted


def _cache_key(manifest: Manifest, shape: tuple[int, int]) -> str:
    """Changes with any image of any part (the check for leaks is cached too), the size and the channels."""
    counts = [len(manifest.parts[part]) for part in PARTS]
    gray = ["to gray"] if manifest.to_gray else []
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, shape, counts, *gray]).encode())
    for state in _file_states(manifest):
        digest.update(repr(state).encode())
    return digest.hexdigest()[:16]


def _file_states(manifest: Manifest) -> Iterator[tuple[str, int, int]]:
    """Each file's place, bytes and time of change; a file that is not there is refused when it is read."""
    folder = os.path.abspath(manifest.folder)
    for _, _, entry in _rows(manifest):
        path = os.path.join(folder, entry["image"])
        try:
            status = os.stat(path)
        except OSError:
            yield path, -1, -1
        else:
            yield path, status.st_size, status.st_mtime_ns


def _rows(manifest: Manifest) -> Iterator[tuple[str, int, dict]]:
    """All entries in the order of a cache: part, index in it, entry."""
    return ((part, index, entry) for part in PARTS for index, entry in enumerate(manifest.parts[part]))


def _count(manifest: Manifest) -> int:
    """Entries in all parts."""
    return sum(len(manifest.parts[part]) for part in PARTS)


def _read(manifest: Manifest, shape: tuple[int, int], digests: np.ndarray, keep: Keep, progress: bool) -> list[str]:
    """Decode the images that have no digest yet, hand them to `keep`, list unusable and duplicate ones.

    Args:
        shape: (channels, size).
        digests: uint8 (N, 16), zeros where the image is to be read; filled.
        keep: called by several threads, with images in rows beside each other; an unusable one has zeros for a digest.
    """
    from tqdm import tqdm

    rows = list(_rows(manifest))

    def read(run: range) -> tuple[int, list[str]]:
        images, problems = np.zeros((len(run), shape[0], shape[1], shape[1]), dtype=np.uint8), []
        for index, image in zip(run, images, strict=True):
            try:
                image[:] = _read_fitted(manifest.image_path(rows[index][2]), shape, manifest.to_gray)
            except ReadError as error:
                problems.append(f"{_name(rows[index])}: {error.reason}")
            else:
                digests[index] = np.frombuffer(digest_of(image), dtype=np.uint8)
        keep(run.start, images, digests[run.start : run.stop])
        return len(run), problems

    missing = np.flatnonzero(~digests.any(axis=1))
    problems = []
    with (
        ThreadPoolExecutor(threads()) as pool,
        tqdm(
            total=len(rows),
            initial=len(rows) - len(missing),
            desc=f"reading {manifest.folder.resolve().name}",
            unit="image",
            disable=not progress,
        ) as bar,
    ):
        for count, found in pool.map(read, _runs(missing)):
            problems += found
            bar.update(count)
    return problems + _duplicates(rows, digests)


def _runs(indices: np.ndarray) -> Iterator[range]:
    """Ascending indices as ranges of at most _AT_ONCE."""
    for run in np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1):
        for place in range(0, len(run), _AT_ONCE):
            piece = run[place : place + _AT_ONCE]
            yield range(int(piece[0]), int(piece[-1]) + 1)


def _refuse(manifest: Manifest, problems: list[str]) -> None:
    """Raise if there are problems."""
    if problems:
        raise CohortError(f"{manifest.path}: {len(problems)} image problem(s):", problems)


def _read_fitted(path: Path, shape: tuple[int, int], to_gray: bool) -> np.ndarray:
    """An image as the cohort stores it, uint8 (C, S, S)."""
    channels, size = shape
    image = read_image(path, channels, to_gray)
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


def _duplicates(rows: list[tuple[str, int, dict]], digests: np.ndarray) -> list[str]:
    """A line for each image whose pixels were there before; images without a digest are left aside."""
    there = np.flatnonzero(digests.any(axis=1))
    words = digests[there].view("<u8")
    order = there[np.lexsort((words[:, 1], words[:, 0]))]  # equal ones are neighbours, in ascending order
    again = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    first, problems = -1, {}
    for before, index in zip(order[:-1][again], order[1:][again], strict=True):
        first = first if before in problems else before
        leak = " (a leak between parts)" if rows[first][0] != rows[index][0] else ""
        problems[index] = f"{_name(rows[index])}: the same pixels as {_name(rows[first])}{leak}; keep one of them"
    return [problems[index] for index in sorted(problems)]


def _name(row: tuple[str, int, dict]) -> str:
    """An entry as a message names it."""
    part, index, entry = row
    return f"{part}[{index}] {entry['image']}"
