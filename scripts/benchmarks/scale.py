"""A cohort of CheXpert's size: what is measured on less, what follows for all of it, and what another million costs.

Nothing here is a figure of CheXpert's own files, which are not ours to ship. Measured are: the rate at which JPEG files
of its small version's size become a cache; the rate at which pairs are drawn from a file of random pixels that the
system's cache does not hold; time and memory of manifest, cache key and sampler for cohorts of several sizes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import timing
from benchmarks.data import forget
from monai_anon import image_store
from monai_anon.cohort import Cohort
from monai_anon.image_cache import ImageFile, digest_of
from monai_anon.manifest import Manifest, load_manifest, save_manifest
from monai_anon.pairs import PairLoader, PairSampler
from monai_anon.phantoms import chest

CHEXPERT_IMAGES, CHEXPERT_PATIENTS = 224_316, 65_240  # Irvin et al. 2019
HEIGHT, WIDTH, QUALITY = 320, 390, 90  # of a file of CheXpert-small, about
DRAWINGS = 24  # phantoms that the files are varied from: drawing each anew would take longer than what is measured
CLASSES = ["absent", "effusion"]
PAUSE_S = 0.02  # what stands for a training step between two batches


def measure(
    images: int = 16_000,
    size: int = 256,
    files: int = 2000,
    folder: str | Path | None = None,
    seconds: float = 4.0,
    batch_size: int = 32,
    points: Sequence[int] = (25_000, 50_000, 100_000, 200_000),
    device: str = "cpu",
) -> dict[str, Any]:
    """Build rate, sampling rate from a file that the system's cache does not hold, and cost of a million images.

    Args:
        images: in the file that is sampled from; 224316 for CheXpert's size (14.7 GB at 256 px). A file smaller than
            the machine's memory is dropped from the system's cache before every batch, a larger one once at first.
        size: side of the stored images in pixels.
        files: JPEG files of 390 x 320 that are written and built into a cache.
        folder: where a temporary folder is made, with room for the file; the system's by default.
        seconds: of each sampling rate.
        batch_size: images I_ori a batch; three times as many are read.
        points: cohort sizes at which manifest and sampler are measured, at least two; lines are fitted to them.
        device: where the batches are delivered.

    Returns:
        `build`, `sampling`, `per_million` (the slope of each fitted line times 10^6, with `points` and `r2`) and
        `chexpert`, what all of it gives for 224,316 images; extrapolated, which its keys say.

    Raises:
        OSError: too little room for the file.
        ValueError: fewer than two points, or nothing to measure.
    """
    if len(points) < 2 or min(images, size, files, batch_size, *points) < 2:
        raise ValueError(f"images={images}, size={size}, files={files}, points={tuple(points)}: at least 2 of each")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        built = build(Path(place), files, size)
        costs = {"disk_gb": disk(Path(place), points, size), **growth(Path(place), points, batch_size)}
        sampling = sampled(Path(place), images, size, seconds, batch_size, device)
    per_million = {name: fitted(points, values) for name, values in costs.items()}
    hours = 1e6 / built["images_per_s"] / 3600
    key = {"cache_key_s": built["cache_key_s"] / files * 1e6, "validation_s": built["validation_s"] / files * 1e6}
    return {
        "size": size,
        "memory_gb": memory() / 1e9,
        "build": built,
        "sampling": sampling,
        "per_million": {**per_million, "build_hours_extrapolated": hours, "looking_at_files_extrapolated": key},
        "chexpert": planned(per_million, built, key),
    }


def planned(per_million: dict[str, Any], built: dict[str, Any], key: dict[str, float]) -> dict[str, float]:
    """The fitted lines at CheXpert's size, and the rates of the build times its images."""
    share = CHEXPERT_IMAGES / 1e6
    lines = {f"{name}_fitted": line["at_0"] + line["slope"] * share for name, line in per_million.items()}
    return {
        "images": CHEXPERT_IMAGES,
        **lines,
        "build_minutes_extrapolated": CHEXPERT_IMAGES / built["images_per_s"] / 60,
        "verification_s_extrapolated": lines["disk_gb_fitted"] / built["verified_gb_per_s"],
        **{f"{name}_extrapolated": value * share for name, value in key.items()},
    }


# ---- Building ----


def build(place: Path, files: int, size: int) -> dict[str, Any]:
    """Seconds from JPEG files, not in the system's cache, to a cache of ours, and from that to images."""
    manifest = write_files(place / "files", files)
    forget(sorted((place / "files").iterdir()))
    load = partial(image_store.load_part, manifest, "training", (1, size), place / "cache", progress=False)
    built = timed(lambda: load(memory_limit_mb=1e9), 1)
    (cache,) = (place / "cache").iterdir()
    result = {
        "files": files,
        "file_kb": sum(path.stat().st_size for path in (place / "files").glob("*.jpg")) / files / 1e3,
        "seconds": built,
        "images_per_s": files / built,
        "from_cache_s": timed(lambda: load(memory_limit_mb=1e9)),
        "from_cache_on_disk_s": timed(lambda: load(memory_limit_mb=0)),
        "cache_key_s": timed(lambda: image_store._cache_key(manifest, (1, size))),
        "validation_s": timed(lambda: load_manifest(manifest.path)),
        "verified_gb_per_s": cache.stat().st_size / timed(lambda: check_all(cache, files, size)) / 1e9,
    }
    shutil.rmtree(place / "files")
    shutil.rmtree(place / "cache")
    return result


def write_files(folder: Path, files: int) -> Manifest:
    """Gray JPEG files of CheXpert-small's size: phantoms, each shifted and with noise of its own."""
    folder.mkdir()
    people = (DRAWINGS // 2, 2, 2)
    drawn = chest.render(chest.sample_factors(0, (DRAWINGS, 4, 4), people), WIDTH)[:DRAWINGS]
    generator = np.random.default_rng(0)
    top = (WIDTH - HEIGHT) // 2
    for index in range(files):
        picture = np.roll(drawn[index % DRAWINGS], int(generator.integers(WIDTH)), 1)[top : top + HEIGHT]
        noisy = picture + generator.normal(0, 4, picture.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=QUALITY)
    parts = {"training": [{"image": f"{i}.jpg", "patient": str(i // 4), "finding": i % 2} for i in range(files)]}
    return load_manifest(save_manifest(folder, parts, CLASSES))


def check_all(cache: Path, files: int, size: int) -> None:
    ImageFile(cache, (files, 1, size, size)).check()


def timed(run: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of some runs."""
    return min(timing.alternate({"": run}, repeats, warm_up=0).seconds[""])


# ---- Sampling ----


def sampled(place: Path, images: int, size: int, seconds: float, batch_size: int, device: str) -> dict[str, Any]:
    """Pair batches a second where the file is not in the system's cache, by our reading and by a memory map, and where
    it is; and how long a step waits for its batch.
    """
    start = time.perf_counter()
    file = write_pixels(place / "pixels.npy", (images, 1, size, size))
    written = time.perf_counter() - start
    larger = file.size > memory()
    pairs = PairsOnDisk(file, batch_size, device, forgetful=not larger)
    rates = {
        "cold": pairs.rate(seconds),
        "cold, nothing read ahead": pairs.rate(seconds, prefetch=0),
        "cold, by a memory map": pairs.rate(seconds, prefetch=0, mapped=True),
    }
    waits = {"cold": pairs.wait(seconds), "cold, nothing read ahead": pairs.wait(seconds, prefetch=0)}
    if not larger:
        pairs.forgetful = False
        file.sound_digests()
        rates["warm"] = pairs.rate(seconds, forgotten=False)
    return {
        "images": images,
        "file_gb": file.size / 1e9,
        "larger_than_memory": larger,
        "dropped_from_the_systems_cache": "before each rate" if larger else "before every batch",
        "written_mb_per_s": file.size / written / 1e6,
        "batches_per_s": rates,
        "ratio_over_a_memory_map": rates["cold, nothing read ahead"] / rates["cold, by a memory map"],
        "wait_ms": waits,
    }


class PairsOnDisk:
    """Pair batches from a file.

    Args:
        file: of images.
        batch_size: as in `PairLoader`.
        device: where the batches are delivered.
        forgetful: drop the file from the system's cache before every batch.
    """

    def __init__(self, file: ImageFile, batch_size: int, device: str, forgetful: bool) -> None:
        self.file, self.batch_size, self.device, self.forgetful = file, batch_size, device, forgetful
        self.images, self.labels = torch.from_numpy(file.memory_map(0, file.shape[0])), labels(file.shape[0])
        self.seeds = itertools.count()  # other images in each measurement

    def rate(self, seconds: float, prefetch: int | None = None, mapped: bool = False, forgotten: bool = True) -> float:
        """Batches a second."""
        batches = self.batches(prefetch, mapped, forgotten)

        def take() -> int:
            next(batches)
            timing.synchronise(self.device)
            return 1

        return timing.rate(take, seconds)

    def wait(self, seconds: float, prefetch: int | None = None) -> float:
        """Median ms that a step of PAUSE_S waits for its batch."""
        batches, waits, until = self.batches(prefetch), [], time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter()
            next(batches)
            waits.append(1e3 * (time.perf_counter() - start))
            time.sleep(PAUSE_S)
        return float(np.median(waits))

    def batches(self, prefetch: int | None, mapped: bool = False, forgotten: bool = True) -> Iterator[dict]:
        """Batches without an end."""
        if forgotten:
            self.forget()
        read = self.through_a_map if mapped else self.gather
        cohort = Cohort(self.images, *self.labels, [{}] * len(self.images), CLASSES, memory_mapped=True, gather=read)
        loader = PairLoader(cohort, self.batch_size, next(self.seeds), device=self.device, prefetch=prefetch)
        return itertools.chain.from_iterable(itertools.repeat(loader))

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """As a cohort on disk does it."""
        if self.forgetful:
            self.forget()
        return self.file.gather(0, len(self.images), indices)

    def through_a_map(self, indices: np.ndarray) -> np.ndarray:
        """As numpy does it: the system reads on behind each page that is missing."""
        if self.forgetful:
            self.forget()
        return np.asarray(np.load(self.file.path, mmap_mode="r")[indices])

    def forget(self) -> None:
        """Drop the file from the system's cache, as if others had needed the memory; where that can be asked for."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def write_pixels(path: Path, shape: tuple[int, int, int, int], at_once: int = 2**25) -> ImageFile:
    """A file of random pixels, made `at_once` at a time, all of it on disk: a sparse one would not be read."""
    file, generator = ImageFile(path, shape, writable=True), np.random.default_rng(0)
    file.lay_out()
    step = max(1, at_once // (shape[2] * shape[3]))
    for first in range(0, shape[0], step):
        count = min(step, shape[0] - first)
        pixels = generator.integers(0, 256, (count, *shape[1:]), dtype=np.uint8)
        digests = [np.frombuffer(digest_of(image), dtype=np.uint8) for image in pixels]
        file.write(first, pixels, np.stack(digests))
    os.fsync(file.descriptor)
    return file


def memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---- Growth ----


def growth(place: Path, points: Sequence[int], batch_size: int) -> dict[str, list[float]]:
    """Time and memory of manifest and sampler for cohorts of some numbers of images, without their pixels."""
    found = [one_size(place / "manifest.json", count, batch_size) for count in points]
    return {name: [figures[name] for figures in found] for name in found[0]}


def one_size(path: Path, count: int, batch_size: int) -> dict[str, float]:
    """What a manifest and a sampler of `count` images take."""
    patient, finding = labels(count)
    entries = [
        {"image": f"train/patient{p:05d}/study1/view{i}_frontal.jpg", "patient": f"patient{p:05d}", "finding": f}
        for i, (p, f) in enumerate(zip(patient.tolist(), finding.tolist(), strict=True))
    ]
    path.write_text(json.dumps({"training": entries, "classes": CLASSES}))
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, -1, -1, -1)
    cohort = Cohort(pixels, patient, finding, entries, CLASSES)
    sampler = PairSampler(cohort, batch_size)
    epochs = itertools.count(1)
    return {
        "manifest_file_mb": path.stat().st_size / 1e6,
        "manifest_memory_mb": allocated(lambda: json.loads(path.read_text())),
        "manifest_parse_s": timed(lambda: json.loads(path.read_text())),
        "sampler_s": timed(lambda: PairSampler(cohort, batch_size)),
        "sampler_memory_mb": allocated(lambda: PairSampler(cohort, batch_size)),
        "permutation_ms": 1e3 * timed(lambda: sampler._epoch(next(epochs)), 5),
    }


def labels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patients and findings of a cohort with CheXpert's images a patient, int64 (N,) each."""
    generator = np.random.default_rng(0)
    people = max(2, count * CHEXPERT_PATIENTS // CHEXPERT_IMAGES)
    return torch.from_numpy(generator.integers(0, people, count)), torch.arange(count) % 2


def allocated(make: Callable[[], object]) -> float:
    """MB that the result of `make` holds, by Python's own account."""
    tracemalloc.start()
    kept = make()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return held / 1e6


def fitted(points: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    """The line through some points by least squares: `slope` a million images, `at_0`, and the share of the variance
    that it explains.
    """
    millions = np.asarray(points) / 1e6
    slope, at_0 = np.polyfit(millions, values, 1)
    rest = np.square(values - (slope * millions + at_0)).sum()
    spread = np.square(values - np.mean(values)).sum()
    return {
        "slope": float(slope),
        "at_0": float(at_0),
        "r2": float(1 - rest / spread) if spread else 1.0,
        "points": {str(point): float(value) for point, value in zip(points, values, strict=True)},
    }


def disk(place: Path, points: Sequence[int], size: int) -> list[float]:
    """GB of a cache of some numbers of images."""
    return [ImageFile(place / "size.npy", (count, 1, size, size), writable=True).size / 1e9 for count in points]
