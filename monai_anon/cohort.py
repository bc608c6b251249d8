"""The images of one part of a manifest as one uint8 array, with their patients and findings.

`Cohort.from_manifest` reads and checks the files (`monai_anon.image_store`); `monai_anon.pairs` makes batches of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_anon.image_store import CohortError, load_part
from monai_anon.manifest import MANIFEST_NAME, PARTS, Manifest, load_manifest
from monai_anon.readers import to_model_range


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
