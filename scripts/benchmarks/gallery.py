"""Identity latents of a cohort, and the search for people among them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.inferers import SimpleInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensityRanged, Transposed
from monai.utils import convert_to_tensor
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from benchmarks import timing
from benchmarks.anonymize import BUNDLE, quiet_readers
from monai_anon.bundles import load_anonymizer
from monai_anon.cohort import Cohort
from monai_anon.evaluation.galleries import rank_k_hits
from monai_anon.identities import build_gallery
from monai_anon.networks import Disentangler
from monai_anon.phantoms import chest
from monai_anon.phantoms.sizes import part_sizes

BLOCK = 64  # queries that the search in blocks looks for at once


def measure(
    images: int = 600,
    batch_size: int = 256,
    vectors: Sequence[int] = (10_000,),
    queries: int = 300,
    length: int = 96,
    rounds: int = 3,
    memory: bool = True,
    device: str = "cpu",
    bundle: str | Path = BUNDLE,
) -> dict[str, Any]:
    """Images a second of `build_gallery` against MONAI's CacheDataset, DataLoader and SimpleInferer; seconds and peak
    memory of the search for `queries` people in galleries of `vectors` people.

    Args:
        images: of the generated cohort's training part.
        batch_size: images a step, of both.
        vectors: people in each gallery, one vector a person.
        queries: people looked for.
        length: of a vector.
        rounds: turns of each candidate.
        memory: measure the search's peak memory, each candidate in a process of its own.
        device: of the encoder; the search is done on the CPU.
        bundle: whose encoder, with its own model file.

    Raises:
        ValueError: a gallery with fewer people than are looked for; the two ways to make latents do not agree.
        BundleError: no bundle there, or none with a model.
    """
    for people in vectors:
        if not 1 <= queries <= people:
            raise ValueError(f"{queries} queries in a gallery of {people}; each query's person must be in the gallery")
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "latents": latents(images, batch_size, rounds, device, bundle),
        "queries": queries,
        "length": length,
        "search": {str(people): search(people, queries, length, rounds, memory) for people in vectors},
    }


def latents(images: int, batch_size: int, rounds: int, device: str, bundle: str | Path) -> dict[str, Any]:
    """The same latents by `build_gallery` and by MONAI's parts, both from images in memory."""
    anonymizer, settings = load_anonymizer(bundle, device=device)
    disentangler, size = anonymizer.disentangler, settings.image_size
    counts, people = part_sizes(str(images), None, (chest.IMAGES, chest.PATIENTS))
    with tempfile.TemporaryDirectory() as folder:
        manifest = chest.write_cohort(Path(folder) / "cohort", 0, size, counts, people, progress=False)
        cohort = Cohort.from_manifest(manifest, "training", size, progress=False)
        with quiet_readers():
            loader = monai_loader([str(manifest.parent / entry["image"]) for entry in cohort.entries], batch_size)
    ours: Callable[[], Tensor] = lambda: build_gallery(disentangler, cohort, batch_size).identity  # noqa: E731
    theirs = partial(monai_latents, disentangler, loader, device)
    furthest = float((ours() - theirs()).abs().max())
    if furthest > 1e-3:
        raise ValueError(f"the latents differ by up to {furthest:.2g}; the two ways do not do the same")
    timings = timing.alternate({"ours": ours, "monai": theirs}, rounds, device)
    speed_up = timings.speed_up("ours", "monai")
    return {
        "images": len(cohort),
        "ratio": speed_up.median,
        "ratio_range": [speed_up.least, speed_up.largest],
        "images_per_s": len(cohort) / timings.median("ours"),
        "monai_images_per_s": len(cohort) / timings.median("monai"),
        "largest_difference": furthest,
    }


def monai_loader(files: Sequence[str], batch_size: int) -> DataLoader:
    """Batches of 8-bit gray PNG files of the encoder's size, decoded once and kept in memory."""
    transform = Compose(
        [
            LoadImaged("image", reader="PILReader", image_only=True),
            EnsureChannelFirstd("image", channel_dim="no_channel"),
            Transposed("image", (0, 2, 1)),  # the reader puts columns first
            ScaleIntensityRanged("image", 0, 255, -1.0, 1.0),
        ]
    )
    dataset = CacheDataset([{"image": file} for file in files], transform, num_workers=None, progress=False)
    return DataLoader(dataset, num_workers=0, batch_size=batch_size, shuffle=False)


@torch.no_grad()
def monai_latents(disentangler: Disentangler, loader: DataLoader, device: str) -> Tensor:
    """Identity latents as a MONAI user makes them."""
    inferer = SimpleInferer()
    found = [inferer(batch["image"].to(device), disentangler.encode).identity for batch in loader]
    return convert_to_tensor(torch.cat(found), track_meta=False).cpu()


def search(people: int, queries: int, length: int, rounds: int, memory: bool) -> dict[str, Any]:
    """Seconds, and peak memory above that of the vectors alone, of three exact searches that find the same."""
    asked, gallery = random_vectors(people, queries, length)
    found = {name: way(asked, gallery) for name, way in WAYS.items() if name != "nothing"}
    if np.ptp(list(found.values())) > 2 / queries:  # two people may be equally near but for rounding
        raise ValueError(f"the searches do not find the same: {found}")
    candidates = {name: partial(WAYS[name], asked, gallery) for name in found}
    timings = timing.alternate(candidates, rounds, warm_up=0)
    result: dict[str, Any] = {"rank_1": found["whole"]}
    result["seconds"] = {name: timings.median(name) for name in found}
    result["ratio_of_blocks"] = timings.speed_up("blocks", "whole").median
    result["ratio_over_sklearn"] = timings.speed_up("whole", "sklearn").median
    if memory:
        peaks = {name: timing.peak_memory(search_once, name, people, queries, length) for name in WAYS}
        result["peak_mb"] = {name: max(0.0, peaks[name] - peaks["nothing"]) for name in found}
    return result


def random_vectors(people: int, queries: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of `queries` people and of a gallery whose first rows are the same people, a little turned."""
    generator = np.random.default_rng(0)
    gallery = generator.standard_normal((people, length), dtype=np.float32)
    asked = gallery[:queries] + 3 * generator.standard_normal((queries, length), dtype=np.float32)
    return tuple(v / np.linalg.norm(v, axis=1, keepdims=True) for v in (asked, gallery))  # type: ignore[return-value]


def whole(asked: np.ndarray, gallery: np.ndarray) -> float:
    """As the evaluation does it: all similarities at once, then the share found first."""
    return float(rank_k_hits(asked @ gallery.T, np.arange(len(asked)), np.arange(len(gallery))).mean())


def blocks(asked: np.ndarray, gallery: np.ndarray) -> float:
    """The same, `BLOCK` queries at a time and without the evaluation's checks: what there would be to gain."""
    hits = []
    for start in range(0, len(asked), BLOCK):
        similarity = asked[start : start + BLOCK] @ gallery.T
        mine = np.take_along_axis(similarity, np.arange(start, start + len(similarity))[:, None], axis=1)
        above, tied = (np.count_nonzero(at, axis=1) for at in (similarity > mine, similarity == mine))
        hits.append(np.clip((1 - above) / tied, 0, 1))
    return float(np.concatenate(hits).mean())


def sklearn(asked: np.ndarray, gallery: np.ndarray) -> float:
    """scikit-learn's exact nearest neighbours: of unit vectors the nearest is the most similar."""
    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(gallery).kneighbors(asked, return_distance=False)
    return float((nearest[:, 0] == np.arange(len(asked))).mean())


WAYS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "nothing": lambda asked, gallery: 0.0,
    "whole": whole,
    "blocks": blocks,
    "sklearn": sklearn,
}


def search_once(name: str, people: int, queries: int, length: int) -> None:
    """One search in a process of its own."""
    WAYS[name](*random_vectors(people, queries, length))
