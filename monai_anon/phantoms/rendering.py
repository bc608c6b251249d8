"""From a table of factors to pixels, whatever is drawn: checks, chunks on threads, exposure and noise."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from monai_anon.phantoms import counter
from monai_anon.phantoms.shapes import PosedFrame, Rows

MIN_SIZE, MAX_SIZE = 32, 512
# Pixels that are worked on at once: small enough for the arrays of a chunk to stay in a core's cache.
_CHUNK_PIXELS = 2**16


def check_size(size: int) -> None:
    """Raise ValueError unless `size` is a side that images can have."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size is {size}; it must lie between {MIN_SIZE} and {MAX_SIZE} pixels")


def film_curve(light: np.ndarray, f: PosedFrame) -> np.ndarray:
    """Gray of an amount of light (n, size, size), about 0 to 1: a toe and a shoulder instead of clipping, then gamma.

    The power is taken in double precision, so that it is the same on every machine.
    """
    toe, knee = np.float32(0.06), np.float32(0.72)
    shown = np.where(light < toe, toe * toe / (2 * toe - np.minimum(light, toe)), light)
    over = np.maximum(shown - knee, 0) / (1 - knee)
    shown = np.minimum(shown, knee) + (1 - knee) * over / (1 + over)
    return np.power(shown.astype(np.float64), f["res_gamma"].astype(np.float64)).astype(np.float32)


def with_noise(shown: np.ndarray, f: PosedFrame, seeds: np.ndarray) -> np.ndarray:
    """Grays (n, size, size) with noise that grows with brightness, of each image's own seed (n,)."""
    noise = counter.pixel_noise(seeds, shown.shape[1] * shown.shape[2]).reshape(shown.shape)
    return shown + noise * f["res_noise"] * (np.float32(0.5) + shown)


def as_gray(shown: np.ndarray) -> np.ndarray:
    """Grays from 0 to 1 as uint8."""
    return (np.clip(shown, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def render_rows(
    factors: pd.DataFrame,
    columns: Sequence[str],
    size: int,
    draw: Callable[[Rows, int], np.ndarray],
    progress: Callable[[int, int], None] | None = None,
    channels: tuple[int, ...] = (),
    dtype: type[np.generic] = np.uint8,
) -> np.ndarray:
    """Render one image a row, in chunks on a thread a core: (N, size, size, *channels).

    Args:
        columns: the factors that `draw` needs.
        draw: (rows of a chunk as float64 by name, size) -> (n, size, size, *channels), each row on its own.
        progress: called with the number of images done and their total.
        channels: () for gray, (3,) for colour.
        dtype: of the result.

    Raises:
        ValueError: a size out of range, missing columns, or factors that are not finite.
    """
    check_size(size)
    missing = [name for name in columns if name not in factors]
    if missing:
        raise ValueError(f"factors have no column {', '.join(missing)}; start from the table of sample_factors")
    table = {name: factors[name].to_numpy(dtype=np.float64) for name in columns}
    for name, values in table.items():
        if not np.isfinite(values).all():
            raise ValueError(f"factors: {name} of row {int(np.argmin(np.isfinite(values)))} is not finite")
    images = np.empty((len(factors), size, size, *channels), dtype=dtype)
    step = max(1, _CHUNK_PIXELS // size**2)
    starts = range(0, len(factors), step)

    def work(start: int) -> int:
        rows = {name: values[start : start + step] for name, values in table.items()}
        images[start : start + step] = draw(rows, size)
        return min(start + step, len(factors))

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for done in pool.map(work, starts):
            if progress is not None:
                progress(done, len(factors))
    return images
