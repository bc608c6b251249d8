"""Generated cohorts: how fast images are rendered and written, and what a second thread adds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import timing
from monai_anon.phantoms import chest
from monai_anon.phantoms.sizes import part_sizes


def measure(size: int = 64, images: int = 600, rounds: int = 3) -> dict[str, Any]:
    """Images a second of `chest.render` on one thread and on one a core, and of a cohort written as PNG files with what
    of its time is not drawing.

    Args:
        size: side of the images in pixels, 32 to 512.
        images: of the training part; the other parts keep the paper's proportion to it.
        rounds: turns of each candidate.

    Raises:
        ValueError: a size out of range, or too few images for two patients a part.
    """
    cores = os.cpu_count() or 1
    chest.check_size(size)
    counts, people = part_sizes(str(images), None, (chest.IMAGES, chest.PATIENTS))
    factors = chest.sample_factors(0, counts, people)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"size": size, "images": counts, "patients": people, "overwrite": True, "progress": False}
        candidates: dict[str, Callable[[], object]] = {
            "one thread": lambda: _on_threads(1, lambda: chest.render(factors, size)),
            "factors": lambda: chest.sample_factors(0, counts, people),
            "render": lambda: chest.render(factors, size),
            "cohort": lambda: chest.write_cohort(Path(folder) / "cohort", **settings),
            "cohort, one thread": lambda: _on_threads(
                1, lambda: chest.write_cohort(Path(folder) / "cohort", **settings)
            ),
        }
        timings = timing.alternate(candidates, rounds)
    total = len(factors)
    drawing, writing = timings.speed_up("render", "one thread"), timings.speed_up("cohort", "cohort, one thread")
    drawn = timings.median("render") + timings.median("factors")
    return {
        "size": size,
        "images": total,
        "rounds": rounds,
        "rendering_threads": cores,
        "rendered_images_per_s": total / timings.median("render"),
        "rendered_images_per_s_on_one_thread": total / timings.median("one thread"),
        "ratio_of_threads": drawing.median,
        "ratio_of_threads_range": [drawing.least, drawing.largest],
        "written_images_per_s": total / timings.median("cohort"),
        "written_images_per_s_on_one_thread": total / timings.median("cohort, one thread"),
        "ratio_of_threads_writing": writing.median,
        "ratio_of_threads_writing_range": [writing.least, writing.largest],
        "share_of_factors": timings.median("factors") / timings.median("cohort"),
        "share_of_rendering": timings.median("render") / timings.median("cohort"),
        "share_of_writing": max(0.0, 1 - drawn / timings.median("cohort")),
    }


def _on_threads(count: int, run: Callable[[], object]) -> None:
    """Run where a machine is taken to have `count` cores: renderer and writer start a thread for each."""
    with mock.patch("os.cpu_count", return_value=count):
        run()
