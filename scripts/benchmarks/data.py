"""Pair batches a second, and the start of a cohort: ours against MONAI's CacheDataset and DataLoader.

The library's way is a map-style dataset of pairs over a CacheDataset, collated by its DataLoader; it is given the same
pairs, and before anything is timed all candidates have delivered the same batches.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader, PILReader
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged, ScaleIntensityRanged
from torch import Tensor

from benchmarks import timing
from monai_anon.cohort import Cohort
from monai_anon.manifest import PARTS, Manifest, load_manifest
from monai_anon.pairs import PairLoader, PairSampler
from monai_anon.phantoms import chest
from monai_anon.phantoms.sizes import part_sizes

LIMIT = {"in memory": 1e9, "on disk": 0.0}  # memory_limit_mb
RECIPES = {"train": 24, "paper": 32}  # batch sizes of train.json and paper.json
STARTS = 3  # starts from the cache that are timed


def measure(
    device: str = timing.DEVICE,
    images: int = 300,
    sizes: Sequence[int] = (64, 256),
    batch_size: int = 24,
    batches: int = 40,
    rounds: int = 5,
    workers: Sequence[int] = (0, 2),
    recipes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Pair batches a second and starts on generated cohorts, and how many times the training step's demand that is.

    Args:
        device: where the batches are delivered, and where the steps are timed.
        images: of the training part; the other parts keep the paper's proportion to it.
        sizes: sides of the images in pixels, a cohort of PNG files each.
        batch_size: images I_ori a batch; three times as many are delivered.
        batches: of each candidate in each round.
        rounds: turns of each candidate.
        workers: processes of the library's DataLoader, a candidate each.
        recipes: whose step is timed, with its batch size, at the first of `sizes`; none where it is empty. By default
            those of train.json and paper.json.

    Returns:
        `sizes`: for each size `start` (seconds without and with a cache, images a second), `batches_per_s` by candidate
        and `ratio` over the library's best. `demand`: for each recipe its steps a second, our batches a second at its
        batch size and `margin`, the second over the first.

    Raises:
        ValueError: nothing to run, or too few images for two patients a part.
    """
    if min(images, batch_size, batches, rounds) < 1 or not sizes:
        raise ValueError(f"images={images}, batch_size={batch_size}, batches={batches}, rounds={rounds}: at least 1")
    result: dict[str, Any] = {"images": images, "batch_size": batch_size, "timed_batches": rounds * batches}
    with tempfile.TemporaryDirectory() as folder:
        counts, people = part_sizes(str(images), None, (chest.IMAGES, chest.PATIENTS))
        manifests = {
            size: chest.write_cohort(Path(folder) / f"{size}", 0, size, counts, people, progress=False)
            for size in sizes
        }
        cache = Path(folder) / "cache"
        result["sizes"] = {}
        for size, path in manifests.items():
            start = starts(path, size, cache)
            rates = compared(load_manifest(path), size, cache, device, batch_size, batches, rounds, workers)
            result["sizes"][str(size)] = {"start": start, **rates}
        asked = RECIPES if recipes is None else recipes
        first = next(iter(sizes))
        result["demand"] = {
            recipe: demand(recipe, size, cohorts(manifests[first], first, cache), device)
            for recipe, size in asked.items()
        }
    return result


# ---- Starts ----


def starts(manifest: Path, size: int, cache: Path) -> dict[str, float]:
    """Seconds from a manifest to a cohort that can be drawn from, the files not in the system's cache at first."""
    files = [load_manifest(manifest).image_path(entry) for entry in entries(load_manifest(manifest))]
    forget(files)
    without = seconds(lambda: opened(manifest, size, cache, "in memory"))
    found = {
        where: [seconds(lambda where=where: opened(manifest, size, cache, where)) for _ in range(STARTS)]
        for where in LIMIT
    }
    forget(files)
    library = seconds(lambda: cached_by_library(load_manifest(manifest)))
    training = len(load_manifest(manifest).parts["training"])
    return {
        "without_cache_s": without,
        "images_per_s": len(files) / without,
        "from_cache_s": statistics.median(found["in memory"]),
        "from_cache_on_disk_s": statistics.median(found["on disk"]),
        "library_s": library,
        "library_images_per_s": training / library,
    }


def opened(manifest: Path, size: int, cache: Path, where: str) -> Cohort:
    """The training part as a new process would get it: the manifest is read and validated too."""
    os.utime(manifest)  # or it would be taken from memory
    return Cohort.from_manifest(
        manifest, "training", size, cache_dir=cache, memory_limit_mb=LIMIT[where], progress=False
    )


def cohorts(manifest: Path, size: int, cache: Path) -> dict[str, Cohort]:
    return {where: opened(manifest, size, cache, where) for where in LIMIT}


def entries(manifest: Manifest) -> list[dict[str, Any]]:
    return [entry for part in PARTS for entry in manifest.parts[part]]


def forget(files: Sequence[Path]) -> None:
    """Let the system write the files and drop them from its cache; only where it can be told to."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# ---- Batches ----


def compared(
    manifest: Manifest,
    size: int,
    cache: Path,
    device: str,
    batch_size: int,
    batches: int,
    rounds: int,
    workers: Sequence[int],
) -> dict[str, Any]:
    """Batches a second of all candidates, in alternation."""
    both = cohorts(manifest.path, size, cache)
    library = Pairs(cached_by_library(manifest))
    sampler = PairSampler(both["in memory"], batch_size)
    candidates: dict[str, Iterator[dict[str, Tensor]]] = {
        "in memory": endless(PairLoader(both["in memory"], batch_size, device=device)),
        "on disk": endless(PairLoader(both["on disk"], batch_size, device=device)),
        "on disk, nothing read ahead": endless(PairLoader(both["on disk"], batch_size, device=device, prefetch=0)),
    }
    ours = list(candidates)
    for count in workers:
        candidates[f"library, {count} workers"] = delivered(library, sampler, count, device)
    refuse_differences(candidates)
    timings = timing.alternate({name: taking(it, batches) for name, it in candidates.items()}, rounds, device)
    best = min(set(candidates) - set(ours), key=timings.median, default="in memory")
    return {
        "batches_per_s": {name: batches / timings.median(name) for name in candidates},
        "library_at_best": best,
        "ratio": {name: str(timings.speed_up(name, best)) for name in ours},
        "cohort_mb": both["in memory"].images.nbytes / 1e6,
        "library_cohort_mb": sum(item["image"].nbytes for item in library.items) / 1e6,
    }


def endless(loader: PairLoader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


def taking(batches: Iterator[dict[str, Tensor]], count: int) -> Callable[[], None]:
    def take() -> None:
        for _ in itertools.islice(batches, count):
            pass

    return take


def refuse_differences(candidates: Mapping[str, Iterator[dict[str, Tensor]]]) -> None:
    """Raise where the candidates' next batches are not the same."""
    batches = {name: next(batches) for name, batches in candidates.items()}
    expected = batches["in memory"]
    for name, batch in batches.items():
        if any(not torch.allclose(batch[key].float(), expected[key].float(), atol=1e-5) for key in expected):
            raise RuntimeError(f"'{name}' delivers other batches than 'in memory': they cannot be compared")


def cached_by_library(manifest: Manifest) -> CacheDataset:
    """The training part in memory, decoded and scaled once."""
    steps = [
        LoadImaged("image", reader=PILReader(reverse_indexing=False)),
        EnsureChannelFirstd("image", channel_dim="no_channel"),
        ScaleIntensityRanged("image", 0, 255, -1, 1),
        EnsureTyped("image", dtype=torch.float32, track_meta=False),
    ]
    part = manifest.parts["training"]
    codes = {name: code for code, name in enumerate(sorted({entry["patient"] for entry in part}))}
    items = [
        {"image": str(manifest.image_path(e)), "finding": e["finding"], "patient": codes[e["patient"]]} for e in part
    ]
    return CacheDataset(items, Compose(steps), num_workers=os.cpu_count(), progress=False)


class Pairs(torch.utils.data.Dataset):
    """I_ori, I_tar and I_same of a triple of indices."""

    def __init__(self, items: CacheDataset) -> None:
        self.items = items

    def __getitem__(self, where: tuple[int, int, int]) -> dict[str, Any]:
        chosen = dict(zip(("ori", "tar", "same"), (self.items[index] for index in where), strict=True))
        return {
            **{f"i_{which}": item["image"] for which, item in chosen.items()},
            **{f"finding_{which}": item["finding"] for which, item in chosen.items()},
            **{f"patient_{which}": chosen[which]["patient"] for which in ("ori", "tar")},
            "has_same": where[0] != where[2],
        }


class Drawn:
    """The sampler's pairs as a batch sampler of `Pairs`, without an end."""

    def __init__(self, sampler: PairSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        for iteration in itertools.count():
            drawn = self.sampler.indices(iteration)
            yield list(zip(*(drawn[name].tolist() for name in ("ori", "tar", "same")), strict=True))


def delivered(pairs: Pairs, sampler: PairSampler, workers: int, device: str) -> Iterator[dict[str, Tensor]]:
    """The library's batches on the device; its processes start once."""
    cuda = torch.device(device).type == "cuda"
    loader = DataLoader(pairs, batch_sampler=Drawn(sampler), num_workers=workers, pin_memory=cuda)
    for batch in loader:
        yield {name: values.to(device, non_blocking=True) for name, values in batch.items()}


# ---- What the step asks for ----


def demand(recipe: str, batch_size: int, both: Mapping[str, Cohort], device: str) -> dict[str, Any]:
    """Steps a second of a recipe with the device's own settings, and batches a second that are there for it."""
    from benchmarks import step
    from monai_anon.compute import chosen

    compute = chosen(device)
    size = both["in memory"].images.shape[-1]
    iteration, batch = step.iteration(compute, recipe, device, size), step.random_batch(batch_size, size, device)

    def one_step() -> int:
        iteration(batch, step.MIDDLE)
        timing.synchronise(device)
        return 1

    for _ in range(3 if compute.compiled else 0):
        one_step()
    steps = timing.rate(one_step, 2)
    rates = {}
    for where, cohort in both.items():
        batches = endless(PairLoader(cohort, batch_size, device=device))

        def ten(batches: Iterator[dict[str, Tensor]] = batches) -> int:
            taking(batches, 10)()
            timing.synchronise(device)
            return 10

        rates[where] = timing.rate(ten, 1)
    return {
        "batch_size": batch_size,
        "steps_per_s": steps,
        "batches_per_s": rates,
        "margin": {where: found / steps for where, found in rates.items()},
    }
