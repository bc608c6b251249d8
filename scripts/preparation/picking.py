"""A subset of whole patients with exact numbers of images, from a seed.

The paper says how many images of how many patients each part has, and the share of the finding, not which ones. Here
the numbers of images are exact and every image of a chosen patient is used. The numbers of patients are exact where
whole patients allow it (no 1,791 patients with two images each have 6,000), and the share is as near as they allow.

All parts are first picked together and then divided. Picked one after the other, a small part could take the patients
that the large one cannot do without: 650 celebrities with 8,849 of 30,000 images are nearly those with the most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_anon.manifest import PARTS, ManifestError, split_patients
from preparation.tables import present

Entry = dict[str, Any]
Parts = dict[str, list[Entry]]
Pool = tuple[tuple[str, ...], list[Entry]]  # the parts that are taken from these entries

_NEAR = 5  # numbers of patients, more and fewer, that are tried where the asked one cannot be had
_ATTEMPTS = 4  # draws for each of them
_IMAGE = 1_000_000  # cost of an image too few or too many, in images of the wrong class: the number comes first


@dataclass(frozen=True)
class Subset:
    """What is to be picked: `images` and `patients` in the order of PARTS.

    `share` of the images have the finding, of every part; None keeps the share of what is picked from. `take_all`
    takes every image and divides the patients as `patients` are.
    """

    images: tuple[int, ...]
    patients: tuple[int, ...]
    share: float | None = None
    seed: int = 0
    take_all: bool = False

    def of(self, parts: Sequence[str]) -> tuple[int, int]:
        """Images and patients of some parts together."""
        chosen = [PARTS.index(part) for part in parts]
        return sum(self.images[i] for i in chosen), sum(self.patients[i] for i in chosen)


def pick_parts(pools: Sequence[Pool], subset: Subset) -> Parts:
    """Entries of whole patients in parts that share none.

    Args:
        pools: where each part is taken from, e.g. training and validation from one and test from another.

    Raises:
        ManifestError: there are too few images or patients (all pools at once), or no whole patients have the number.
    """
    if subset.take_all:
        return _all_of(pools, subset)
    problems = [problem for pool in pools for problem in _shortage(pool, subset)]
    if problems:
        raise ManifestError("the dataset is smaller than the subset:", problems)
    generator = np.random.default_rng(subset.seed)
    picked: Parts = {}
    for parts, entries in pools:
        share = present(entries) / len(entries) if subset.share is None else subset.share
        rest = _pick(entries, subset.of(parts), share, generator, " + ".join(parts))
        for part in parts[:0:-1]:
            picked[part] = _pick(rest, subset.of([part]), share, generator, part)
            taken = {entry["patient"] for entry in picked[part]}
            rest = [entry for entry in rest if entry["patient"] not in taken]
        picked[parts[0]] = rest
    return {part: picked[part] for part in PARTS}


def closed_set_parts(entries: list[Entry], subset: Subset) -> Parts:
    """Entries in parts that share patients: every patient is in training, and each part has the classes' ratio.

    Raises:
        ManifestError: there are too few images or patients, or training is too small to have one image of each.
    """
    images = subset.images
    if not entries:
        raise ManifestError("no usable image is left, so there is nothing to divide")
    if subset.take_all:
        cuts = np.rint(np.cumsum([0, *images]) / sum(images) * len(entries)).astype(int)
        images = tuple(np.diff(cuts).tolist())
    elif problems := _shortage((PARTS, entries), subset):
        raise ManifestError("the dataset is smaller than the subset:", problems)
    generator = np.random.default_rng(subset.seed)
    if not subset.take_all and len(_by_patient(entries)) > sum(subset.patients):
        share = present(entries) / len(entries)
        entries = _pick(entries, subset.of(PARTS), share, generator, "all parts")
    patients = _by_patient(entries)
    if len(patients) > images[0]:
        raise ManifestError(
            f"{images[0]} training images cannot be of all {len(patients)} patients; ask for more with --images, or "
            "for fewer patients with --patients"
        )
    kept = {int(generator.choice(patients[name])) for name in sorted(patients)}  # one training image of each patient
    free: list[list[int]] = [[], []]
    for index in generator.permutation(len(entries)).tolist():
        if index not in kept:
            free[entries[index]["finding"] > 0].append(index)
    share = present(entries) / len(entries)
    numbers: dict[str, list[int]] = {}
    for part, count in zip(PARTS[:0:-1], images[:0:-1], strict=True):
        numbers[part] = _draw(free, count, round(share * count))
    here = sum(entries[index]["finding"] > 0 for index in kept)
    numbers[PARTS[0]] = [*kept, *_draw(free, images[0] - len(kept), round(share * images[0]) - here)]
    return {part: [entries[index] for index in sorted(numbers[part])] for part in PARTS}


def _draw(free: list[list[int]], count: int, with_finding: int) -> list[int]:
    """Take `count` indices off `free`, by class, of which `with_finding` from the second class as far as there are."""
    with_finding = min(max(with_finding, count - len(free[0]), 0), len(free[1]), count)
    numbers = [count - with_finding, with_finding]
    taken = [index for indices, number in zip(free, numbers, strict=True) for index in indices[:number]]
    free[:] = [indices[number:] for indices, number in zip(free, numbers, strict=True)]
    return taken


def _by_patient(entries: Sequence[Entry]) -> dict[str, list[int]]:
    """The entries' indices of each patient."""
    patients: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        patients[entry["patient"]].append(index)
    return patients


def _shortage(pool: Pool, subset: Subset) -> list[str]:
    """Whether a pool has too few images or patients for its parts."""
    parts, entries = pool
    images, patients = subset.of(parts)
    there = len(_by_patient(entries))
    if len(entries) >= images and there >= patients:
        return []
    return [
        f"{' + '.join(parts)}: {images} images of {patients} patients are asked, {len(entries)} usable images of "
        f"{there} patients are there; give smaller numbers with --images and --patients, or take everything with --all"
    ]


def _all_of(pools: Sequence[Pool], subset: Subset) -> Parts:
    """Every entry, patients divided in the asked proportion."""
    picked: Parts = {part: [] for part in PARTS}
    for parts, entries in pools:
        shares = np.array([subset.patients[PARTS.index(part)] * (part in parts) for part in PARTS], dtype=float)
        for part, chosen in split_patients(entries, tuple(shares / shares.sum()), subset.seed).items():
            picked[part] += chosen
    empty = [part for part in PARTS if not picked[part]]
    if empty:
        raise ManifestError(f"the dataset has too few patients: nothing is left for {' and '.join(empty)}")
    return picked


def _pick(
    entries: list[Entry], wanted: tuple[int, int], share: float, generator: np.random.Generator, name: str
) -> list[Entry]:
    """The entries of whole patients, `wanted` images of about `wanted` patients."""
    images, patients = wanted
    grouped = _by_patient(entries)
    names = sorted(grouped)  # the order of the dataset's rows shall not matter
    size = np.array([len(grouped[patient]) for patient in names])
    positive = np.array([present(entries[index] for index in grouped[patient]) for patient in names])
    nearest = None
    for count in _numbers_of_patients(size, images, patients):
        for _ in range(_ATTEMPTS):
            chosen = _exchange(size, positive, count, (images, round(share * images)), generator)
            got = int(size[chosen].sum())
            if got == images:
                taken = {names[index] for index in np.flatnonzero(chosen)}
                return [entry for entry in entries if entry["patient"] in taken]
            nearest = got if nearest is None or abs(got - images) < abs(nearest - images) else nearest
    raise ManifestError(
        f"{name}: no {patients} or so whole patients with exactly {images} images were found, the nearest have "
        f"{nearest}; ask for that with --images"
    )


def _numbers_of_patients(size: np.ndarray, images: int, patients: int) -> list[int]:
    """Numbers of patients that can have so many images, the asked one (or the nearest to it) first."""
    ascending = np.sort(size)
    fewest = int(np.searchsorted(np.cumsum(ascending[::-1]), images)) + 1
    most = int(np.searchsorted(np.cumsum(ascending), images, side="right"))
    start = min(max(patients, fewest), most)
    near = sorted(range(start - _NEAR, start + _NEAR + 1), key=lambda count: abs(count - start))
    return [count for count in near if fewest <= count <= most] or [start]


def _exchange(
    size: np.ndarray, positive: np.ndarray, count: int, wanted: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    """Draw `count` patients and exchange some until they have `wanted` images and images with the finding.

    Each exchange is drawn among those that bring the sums nearer, so that patients are no more alike than the sums ask.
    It ends where none does. Returns a mask (patients,).
    """
    chosen: np.ndarray = np.zeros(len(size), dtype=bool)
    chosen[generator.permutation(len(size))[:count]] = True
    lacking = wanted[0] - int(size[chosen].sum()), wanted[1] - int(positive[chosen].sum())
    going = iter(generator.permutation(np.flatnonzero(chosen)).tolist())
    while any(lacking):
        leaving = next(going, None)
        if leaving is None:
            break
        after = lacking[0] + size[leaving] - size, lacking[1] + positive[leaving] - positive
        cost = _IMAGE * np.abs(after[0]) + np.abs(after[1])
        better = np.flatnonzero(~chosen & (cost < _IMAGE * abs(lacking[0]) + abs(lacking[1])))
        if better.size:
            entering = int(generator.choice(better))
            chosen[[leaving, entering]] = False, True
            lacking = int(after[0][entering]), int(after[1][entering])
            going = iter(generator.permutation(np.flatnonzero(chosen)).tolist())
    return chosen
