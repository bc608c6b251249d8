"""How near is the nearest training patient, the gate's question to a gallery: time and memory of ways to answer it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from benchmarks import timing
from monai_anon.gallery_search import SearchableGallery, unit
from monai_anon.identities import Gallery


def measure(
    patients: Sequence[int] = (65_000,),
    images: int = 1,
    queries: int = 64,
    length: int = 96,
    rounds: int = 3,
    memory: bool = True,
) -> dict[str, Any]:
    """Milliseconds a query, and peak memory above that of making the gallery, of exact searches that find the same.

    Args:
        patients: in each gallery.
        images: of each patient.
        queries: asked at once; of the memory, also four times as many (`blocks_4`, `whole_4`).
        length: of a vector.
        rounds: turns of each candidate.
        memory: measure peak memory, each in a process of its own.

    Raises:
        ValueError: the searches do not find the same.
    """
    if min(*patients, images, queries) < 1:
        raise ValueError(f"patients {list(patients)}, images {images}, queries {queries}: at least 1 each")
    return {
        "queries": queries,
        "length": length,
        "galleries": {str(people): one(people, images, queries, length, rounds, memory) for people in patients},
    }


def one(people: int, images: int, queries: int, length: int, rounds: int, memory: bool) -> dict[str, Any]:
    """A gallery's figures."""
    gallery, asked = random_gallery(people, images, queries, length)
    found = {name: way(gallery, asked) for name, way in WAYS.items()}
    furthest = max(float((value - found["blocks"]).abs().max()) for value in found.values())
    if furthest > 1e-4:
        raise ValueError(f"the searches differ by up to {furthest:.2g}; they do not find the same")
    timings = timing.alternate({name: partial(way, gallery, asked) for name, way in WAYS.items()}, rounds, warm_up=0)
    result: dict[str, Any] = {
        "vectors": len(gallery.vectors),
        "gallery_mb": gallery.vectors.nbytes / 1e6,
        "ms_per_query": {name: 1e3 * timings.median(name) / queries for name in WAYS},
        "ratio_over_whole": timings.speed_up("blocks", "whole").median,
        "ratio_over_sklearn": timings.speed_up("blocks", "sklearn").median,
    }
    if memory:
        asked_of = {"nothing": ("", 1), "blocks": ("blocks", 1), "blocks_4": ("blocks", 4), "whole_4": ("whole", 4)}
        peaks = {
            case: timing.peak_memory(search_once, name, people, images, queries * times, length)
            for case, (name, times) in asked_of.items()
        }
        result["peak_mb"] = {
            case: max(0.0, peak - peaks["nothing"]) for case, peak in peaks.items() if case != "nothing"
        }
    return result


def random_gallery(people: int, images: int, queries: int, length: int) -> tuple[SearchableGallery, Tensor]:
    """Vectors of people whose images differ a little, and of others who are asked about."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(people, length, generator=generator).repeat_interleave(images, 0)
    if images > 1:
        vectors += 0.3 * torch.randn(vectors.shape, generator=generator)
    gallery = SearchableGallery.of(Gallery(vectors, torch.arange(people).repeat_interleave(images)), "random")
    return gallery, torch.randn(queries, length, generator=generator)


def whole(gallery: SearchableGallery, asked: Tensor) -> Tensor:
    """All similarities at once."""
    return (unit(asked) @ gallery.vectors.T).amax(1)


def sklearn(gallery: SearchableGallery, asked: Tensor) -> Tensor:
    """scikit-learn's exact nearest neighbours: of unit vectors the nearest is the most similar."""
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(gallery.vectors.numpy())
    distance = torch.from_numpy(search.kneighbors(unit(asked).numpy())[0])[:, 0]
    return 1 - distance.float() ** 2 / 2


WAYS: dict[str, Callable[[SearchableGallery, Tensor], Tensor]] = {
    "blocks": lambda gallery, asked: gallery.nearest(asked),
    "whole": whole,
    "sklearn": sklearn,
}


def search_once(name: str, people: int, images: int, queries: int, length: int) -> None:
    """A gallery, and one search in it unless there is no name."""
    gallery, asked = random_gallery(people, images, queries, length)
    if name:
        WAYS[name](gallery, asked)
