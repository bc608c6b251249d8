"""The images of one part of a manifest as one uint8 array, and batches of (I_ori, I_tar, I_same) from it.

`Cohort.from_manifest` reads and checks the files (`monai_anon.image_store`). `PairSampler` draws the pairs of section
3.1 of the paper: I_tar is of another patient *and* has another finding, I_same (Eq. 6) is another image of I_ori's
patient. What it draws depends on (seed, rank, iteration) and on nothing else, which makes a run that resumes in
mid-epoch equal to one that was never stopped.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_anon.image_store import CohortError, load_part
from monai_anon.manifest import MANIFEST_NAME, PARTS, Manifest, load_manifest
from monai_anon.read_ahead import ReadAhead
from monai_anon.readers import to_model_range

logger = logging.getLogger(__name__)

_READ_AHEAD = 4  # batches, where the images are on disk


class Cohort(torch.utils.data.Dataset):
    """Images of one part with their patients and findings.

    Args:
        images: uint8 (N, C, S, S).
        patient: int64 (N,), equal where the patient is.
        finding: int64 (N,), indices into `classes`.
        entries: the manifest's entries, in the images' order.
        classes: names of the findings.
        name: what messages call it.
        memory_mapped: the images lie on disk and should not be moved as a whole.
        gather: reads some images from the disk faster than through the map, indices (B,) to uint8 (B, C, S, S).
    """

    def __init__(
        self,
        images: torch.Tensor,
        patient: torch.Tensor,
        finding: torch.Tensor,
        entries: Sequence[dict[str, Any]],
        classes: Sequence[str],
        name: str = "cohort",
        memory_mapped: bool = False,
        gather: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"{name}: images are {images.dtype} {tuple(images.shape)}; they must be uint8 (N, C, S, S)"
            )
        if not len(images) == len(patient) == len(finding) == len(entries):
            raise ValueError(
                f"{name}: {len(images)} images, {len(patient)} patients, {len(finding)} findings, {len(entries)} "
                "entries; one each is needed"
            )
        if len(finding) and not 0 <= int(finding.min()) <= int(finding.max()) < len(classes):
            raise ValueError(
                f"{name}: findings from {int(finding.min())} to {int(finding.max())}; there are {len(classes)} classes"
            )
        self.images = images
        self.patient = patient.long()
        self.finding = finding.long()
        self.entries = list(entries)
        self.classes = list(classes)
        self.name = name
        self.memory_mapped = memory_mapped
        self._gather = gather

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One image: "image" float (C, S, S) in [-1, 1], "patient" and "finding" int64 ()."""
        return {
            "image": to_model_range(self.images[index]),
            "patient": self.patient[index],
            "finding": self.finding[index],
        }

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """What a DataLoader asks for: items as `__getitem__` gives them, gathered in one step."""
        batch = self.batch(indices)
        return [{key: values[row] for key, values in batch.items()} for row in range(len(indices))]

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch: "image" float (B, C, S, S) in [-1, 1], "patient" and "finding" int64 (B,)."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return {
            "image": to_model_range(self.pixels(chosen)),
            "patient": self.patient[chosen],
            "finding": self.finding[chosen],
        }

    def pixels(self, indices: torch.Tensor) -> torch.Tensor:
        """Some of the images in memory, uint8 (B, C, S, S); `indices` int64 (B,), from 0."""
        if self._gather is None:
            return self.images.index_select(0, indices)  # whole rows: many times faster than images[indices]
        return torch.from_numpy(self._gather(indices.numpy()))

    def subset(self, indices: Sequence[int] | np.ndarray) -> Cohort:
        """Some of the images, in the order of `indices`, in memory."""
        chosen = torch.as_tensor(np.asarray(indices), dtype=torch.int64)
        entries = [self.entries[int(index)] for index in chosen]
        columns = self.pixels(chosen), self.patient[chosen], self.finding[chosen]
        return Cohort(*columns, entries, self.classes, self.name)

    def fingerprint(self) -> str:
        """16 hex digits that tell this cohort from another: labels and, where they are in memory, pixels."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.patient.numpy().tobytes() + self.finding.numpy().tobytes())
        if not self.memory_mapped:
            digest.update(np.ascontiguousarray(self.images.numpy()).data)
        return digest.hexdigest()[:16]

    def changing_findings(self) -> tuple[int, int]:
        """Patients whose images show more than one finding, and patients with two images or more."""
        seen = torch.zeros(int(self.patient.max()) + 1 if len(self) else 0, self.num_classes, dtype=torch.long)
        seen.index_put_((self.patient, self.finding), torch.ones_like(self.patient), accumulate=True)
        return int(((seen > 0).sum(1) > 1).sum()), int((seen.sum(1) > 1).sum())

    @property
    def num_classes(self) -> int:
        """Number of findings that an image can have, in this part or not."""
        return len(self.classes)

    @property
    def num_patients(self) -> int:
        """Number of patients in this part."""
        return len(torch.unique(self.patient))

    @classmethod
    def from_manifest(
        cls,
        manifest: Manifest | str | Path,
        part: str,
        size: int,
        channels: int = 1,
        cache_dir: str | Path | None = None,
        memory_limit_mb: float = 2048,
        progress: bool = True,
        verify: bool = False,
    ) -> Cohort:
        """Read one part of a manifest.

        All parts are checked, since an image of this part in another one is a leak; a file is decoded once per process,
        or once per `cache_dir`. A cache that was left unfinished is gone on with, a damaged one is repaired.

        Args:
            manifest: a manifest, its path or its folder.
            part: one of PARTS.
            size: side of the images in pixels; others are brought to it by `readers.fit_square`.
            channels: 1 (gray) or 3.
            cache_dir: where decoded images are kept; used again while files, size and channels are the same.
            memory_limit_mb: above this size (MB of 10^6 bytes) the array stays on disk in `cache_dir`.
            progress: show a bar.
            verify: compare all of an array on disk with its digests, not a sample; one in memory is always compared.

        Raises:
            CohortError: the part is empty, the images need `cache_dir`, or some are unusable: all with their reasons.
            NoSpaceError: `cache_dir` is on a disk that is too small.
        """
        if not isinstance(manifest, Manifest):
            manifest = _loaded(Path(manifest))
        if part not in PARTS:
            raise ValueError(f"part {part!r}; a manifest's parts are {', '.join(PARTS)}")
        if size < 1 or channels not in (1, 3):
            raise ValueError(f"size={size}, channels={channels}; size must be positive, channels 1 or 3")
        entries = manifest.parts[part]
        if not entries:
            raise CohortError(f"{manifest.path}: part '{part}' has no images")
        images, gather = load_part(manifest, part, (channels, size), cache_dir, memory_limit_mb, progress, verify)
        _, codes = np.unique([entry["patient"] for entry in entries], return_inverse=True)
        return cls(
            torch.from_numpy(images),
            torch.from_numpy(codes.astype(np.int64)),
            torch.tensor([entry["finding"] for entry in entries]),
            entries,
            manifest.classes,
            name=f"{manifest.folder.resolve().name}/{part}",
            memory_mapped=gather is not None,
            gather=gather,
        )


def _loaded(path: Path) -> Manifest:
    """A manifest, read once for all of its parts; the images' files are looked at again for each part."""
    file = path / MANIFEST_NAME if path.is_dir() else path
    status = os.stat(file) if file.is_file() else None
    return _load(path.absolute(), status and (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _load(path: Path, state: tuple[int, ...] | None) -> Manifest:
    return load_manifest(path)


class PairSampler:
    """Which images form each batch: (ori, tar, same) as a pure function of (seed, rank, iteration).

    Every epoch visits each anchor (an image for which an I_tar exists) once, in a new order, over all ranks; what does
    not fill a batch is left out until the next epoch. I_tar is uniform over all images of another patient with another
    finding, I_same uniform over the patient's other images.

    Args:
        cohort: where the images are from.
        batch_size: images of one rank's batch.
        seed, rank, world_size: ranks draw disjoint anchors of the same order.

    Raises:
        CohortError: no image has an I_tar: one patient, or one finding, or fewer anchors than ranks.
    """

    def __init__(self, cohort: Cohort, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or seed < 0 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size={batch_size}, seed={seed}, rank={rank}, world_size={world_size}: batch_size >= 1, "
                "seed >= 0, 0 <= rank < world_size"
            )
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        _, self._patient = np.unique(cohort.patient.numpy(), return_inverse=True)
        self._finding = cohort.finding.numpy()
        self._count_targets(cohort.num_classes)
        self._place_in_patients()
        self.anchors = np.flatnonzero(self._num_targets)
        self.left_out = len(cohort) - len(self.anchors)
        self._refuse_without_pairs(cohort)
        self._per_rank = len(self.anchors) // world_size
        self._batches = max(1, self._per_rank // batch_size)
        self._shuffled: tuple[int, np.ndarray] = (-1, self.anchors)
        if self.left_out:
            logger.warning(
                "%s: %d of %d images have no image of another patient with another finding; they are used as I_tar "
                "and I_same, not as I_ori",
                cohort.name, self.left_out, len(cohort),
            )  # fmt: skip

    def __len__(self) -> int:
        return self._batches

    def indices(self, iteration: int) -> dict[str, np.ndarray]:
        """The batch of an iteration (0-based, counted through all epochs).

        Returns:
            "ori", "tar", "same": int64 (B,); "has_same": bool (B,), false where the patient has one image only, and
            `same` is then `ori` itself.
        """
        epoch, batch = divmod(iteration, self._batches)
        ori = self._epoch(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        generator = np.random.default_rng([self.seed, 1, self.rank, iteration])
        has_same = self._images_of_patient[self._patient[ori]] > 1
        return {
            "ori": ori,
            "tar": self._targets(ori, generator),
            "same": self._others(ori, generator),
            "has_same": has_same,
        }

    def _epoch(self, epoch: int) -> np.ndarray:
        """This rank's anchors in the order of an epoch; the last one asked for is kept."""
        kept, order = self._shuffled  # taken in one step: a thread may ask for another epoch's
        if kept != epoch:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.anchors)
            order = order[: self._per_rank * self.world_size][self.rank :: self.world_size]
            self._shuffled = (epoch, order)
        return order

    def _count_targets(self, num_classes: int) -> None:
        """Images sorted by (finding, patient): what an image may not be paired with is one run in every finding."""
        num_patients = int(self._patient.max()) + 1
        self._by_finding = np.lexsort((self._patient, self._finding))
        counts = np.bincount(self._finding * num_patients + self._patient, minlength=num_classes * num_patients)
        self._run_start = (np.cumsum(counts) - counts).reshape(num_classes, num_patients)
        self._run_length = counts.reshape(num_classes, num_patients)
        self._images_with_finding = self._run_length.sum(axis=1)
        self._images_of_patient = self._run_length.sum(axis=0)
        own = self._run_length[self._finding, self._patient]
        excluded = self._images_with_finding[self._finding] + self._images_of_patient[self._patient] - own
        self._num_targets = len(self._patient) - excluded

    def _place_in_patients(self) -> None:
        """Images sorted by patient, and each image's place among its patient's."""
        self._by_patient = np.argsort(self._patient, kind="stable")
        self._patient_start = np.cumsum(self._images_of_patient) - self._images_of_patient
        self._place = np.empty_like(self._by_patient)
        self._place[self._by_patient] = (
            np.arange(len(self._by_patient)) - self._patient_start[self._patient[self._by_patient]]
        )

    def _targets(self, ori: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Uniform over the images that remain when the excluded runs are skipped, in ascending order."""
        place = generator.integers(0, self._num_targets[ori])
        finding, patient = self._finding[ori], self._patient[ori]
        for other in range(len(self._run_start)):
            same_finding = finding == other
            start = np.where(same_finding, self._run_start[other, 0], self._run_start[other, patient])
            length = np.where(same_finding, self._images_with_finding[other], self._run_length[other, patient])
            place += np.where(place >= start, length, 0)
        return self._by_finding[place]

    def _others(self, ori: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Uniform over the patient's other images; the image itself where there is none."""
        patient = self._patient[ori]
        place = generator.integers(0, np.maximum(self._images_of_patient[patient] - 1, 1))
        place += (place >= self._place[ori]) & (self._images_of_patient[patient] > 1)
        return self._by_patient[self._patient_start[patient] + place]

    def _refuse_without_pairs(self, cohort: Cohort) -> None:
        """Say why there is nothing to draw."""
        if len(self.anchors) >= self.world_size:
            return
        present = [cohort.classes[index] for index in np.flatnonzero(self._images_with_finding)]
        raise CohortError(
            f"{cohort.name}: {len(self.anchors)} of {len(cohort)} images have an image of another patient with "
            f"another finding, {self.world_size} needed (one "
            f"per rank). It has {len(self._images_of_patient)} patient(s) and the finding(s) {', '.join(present)}; "
            "pairs need two of each."
        )


class PairLoader:
    """Batches of pairs for a Trainer: each `iter()` goes from iteration `start` to the end of its epoch and leaves
    `start` there.

    A resumed run sets `start` to the number of iterations done. Where the device is not the CPU, a cohort in memory is
    kept on the device as uint8. A batch depends on its iteration alone, so a thread may read the next ones meanwhile.

    Args:
        cohort: where the images are from.
        batch_size, seed, rank, world_size: as in `PairSampler`.
        device: where the batches are made.
        prefetch: batches read ahead; None: some where the images are on disk, none where they are in memory.
    """

    def __init__(
        self,
        cohort: Cohort,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        prefetch: int | None = None,
    ) -> None:
        self.cohort = cohort
        self.sampler = PairSampler(cohort, batch_size, seed, rank, world_size)
        self.device = torch.device(device)
        self.start = 0
        self._foreseen = ReadAhead(self._read, _READ_AHEAD * cohort.memory_mapped if prefetch is None else prefetch)
        self._images = cohort.images if cohort.memory_mapped else cohort.images.to(self.device)
        self._labels = torch.stack([cohort.finding, cohort.patient]).to(self.device)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for iteration in range(self.start, (self.start // len(self) + 1) * len(self)):
            self.start = iteration + 1
            yield self._placed(*self._foreseen(iteration))

    def batch(self, iteration: int) -> dict[str, torch.Tensor]:
        """The batch of an iteration; does not change `start`.

        Returns:
            "i_ori", "i_tar", "i_same": float (B, C, S, S) in [-1, 1]; "finding_ori", "finding_tar", "finding_same",
            "patient_ori", "patient_tar": int64 (B,); "has_same": bool (B,), where "i_same" is not "i_ori" itself.
        """
        return self._placed(*self._read(iteration))

    def _read(self, iteration: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a batch needs of the host: indices of I_ori, I_tar and I_same (3 B,), and the images where they are on
        disk, uint8 (3 B, C, S, S).
        """
        drawn = self.sampler.indices(iteration)
        chosen = torch.from_numpy(np.concatenate([drawn["ori"], drawn["tar"], drawn["same"]]))
        return self._pinned(chosen), self._pinned(self.cohort.pixels(chosen)) if self.cohort.memory_mapped else None

    def _pinned(self, values: torch.Tensor) -> torch.Tensor:
        """In memory that a GPU can read while others compute."""
        return values.pin_memory() if self.device.type == "cuda" else values

    def _placed(self, chosen: torch.Tensor, pixels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """What `_read` gave as a batch on the device."""
        chosen = chosen.to(self.device, non_blocking=True)
        if pixels is None:
            pixels = self._images.index_select(0, chosen)
        i_ori, i_tar, i_same = to_model_range(pixels.to(self.device, non_blocking=True)).chunk(3)
        ori, _, same = chosen.chunk(3)
        finding, patient = self._labels[:, chosen]
        return {
            "i_ori": i_ori,
            "i_tar": i_tar,
            "i_same": i_same,
            **dict(zip(("finding_ori", "finding_tar", "finding_same"), finding.chunk(3), strict=True)),
            **dict(zip(("patient_ori", "patient_tar"), patient.chunk(3), strict=False)),
            "has_same": ori != same,
        }
