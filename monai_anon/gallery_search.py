"""Who is most alike: exact search by cosine similarity among the vectors of many people, and the file they are kept in.

Blocks of matrix products: memory is that of the vectors and of one block, however many are asked for, and the result is
that of all similarities at once. The vectors are biometric data: the file stays on site and is readable by its owner
alone; whether the disk below it is encrypted is the owner's choice. Speed: `scripts/benchmark.py nearest`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from monai_anon.identities import Gallery
from monai_anon.whole_files import write_bytes

_ASKED, _ROWS = 64, 8192  # of a block of similarities: 2 MB, which stay in the cache until they are looked at
_LENGTH_TOLERANCE = 1e-3
_FORMAT = "monai_anon.gallery"


class GalleryError(ValueError):
    """A gallery that cannot be used: says why, and shows none of it."""


class OtherModelError(GalleryError):
    """A gallery that other weights have made."""


def unit(vectors: Tensor) -> Tensor:
    """Vectors `(N, D)` at length 1 in float32; NaN where one has no direction, so that it is like nobody and unlike
    nobody.
    """
    vectors = vectors.float()
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / length.masked_fill(length < 1e-12, torch.nan)


@dataclass(frozen=True, eq=False)
class SearchableGallery:
    """Unit vectors of real images, sorted by patient.

    Args:
        vectors: float32 `(N, D)`, each of length 1.
        patient: integer codes `(N,)`, ascending; no names.
        encoder: digest of the weights that made the vectors; those of other weights say nothing here.

    Raises:
        GalleryError: no vectors, other shapes or types, lengths that are not 1, codes that do not ascend.
    """

    vectors: Tensor = field(repr=False)
    patient: Tensor = field(repr=False)
    encoder: str = field(repr=False)

    def __post_init__(self) -> None:
        if self.vectors.dtype != torch.float32 or self.vectors.ndim != 2 or not self.vectors.numel():
            raise GalleryError(f"vectors are {self.vectors.dtype} {tuple(self.vectors.shape)}, not float32 (N, D)")
        if self.patient.dtype != torch.int64 or self.patient.shape != self.vectors.shape[:1]:
            raise GalleryError(f"codes are {self.patient.dtype} {tuple(self.patient.shape)}, not int64, one a vector")
        if (self.patient.diff() < 0).any():
            raise GalleryError("codes do not ascend; vectors are to be sorted by patient")
        if not ((torch.linalg.vector_norm(self.vectors, dim=1) - 1).abs() < _LENGTH_TOLERANCE).all():
            raise GalleryError("some vectors are not of length 1")

    def __repr__(self) -> str:
        return f"SearchableGallery({len(self.vectors)} images of {self.patients} patients)"

    @staticmethod
    def of(gallery: Gallery, encoder: str) -> SearchableGallery:
        """Identity latents, or any vectors, of real images as a gallery to search."""
        order = gallery.patient.argsort(stable=True)
        return SearchableGallery(unit(gallery.identity[order]), gallery.patient[order].long(), encoder)

    @property
    def patients(self) -> int:
        """How many people there are."""
        return 1 + int((self.patient.diff() > 0).sum())

    def digest(self) -> str:
        """16 hex digits that tell this gallery from another: thresholds hang on it."""
        found = hashlib.sha256(f"{self.encoder} {tuple(self.vectors.shape)}".encode())
        for tensor in (self.patient, self.vectors):
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()[:16]

    @torch.inference_mode()
    def nearest(self, asked: Tensor, but: Tensor | None = None) -> Tensor:
        """The cosine similarity `(Q,)` of vectors `(Q, D)` with the most similar one here, whoever that is.

        Args:
            asked: of any length; NaN where one has no direction.
            but: codes `(Q,)` of a patient whom each is not compared with: who is the nearest *other* patient.
        """
        asked = unit(asked.cpu())
        found = torch.full((len(asked),), -torch.inf)
        first, last = (None, None) if but is None else self._places(but)
        for start in range(0, len(asked), _ASKED):
            queries = slice(start, start + _ASKED)
            for row in range(0, len(self.vectors), _ROWS):
                block = self.vectors[row : row + _ROWS] @ asked[queries].T  # so round it is faster than the other way
                if first is not None and last is not None:
                    _strike(block, first[queries] - row, last[queries] - row)
                torch.maximum(found[queries], block.amax(0), out=found[queries])  # NaN stays NaN
        return found

    @torch.inference_mode()
    def own(self, asked: Tensor, patient: Tensor) -> Tensor:
        """The similarity `(Q,)` of vectors `(Q, D)` with the most similar one of the patient that each names by code;
        -inf where that patient is not here.
        """
        asked, (first, last) = unit(asked.cpu()), self._places(patient)
        found = torch.full((len(asked),), -torch.inf)
        for query, (start, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            if end > start:
                found[query] = (self.vectors[start:end] @ asked[query]).amax()
        return found

    def _places(self, patient: Tensor) -> tuple[Tensor, Tensor]:
        """Where each patient's vectors begin and end."""
        codes = patient.long().cpu().contiguous()
        return torch.searchsorted(self.patient, codes), torch.searchsorted(self.patient, codes, right=True)

    def write(self, path: str | Path) -> Path:
        """The gallery as a safetensors file that only its owner may read; whole or not at all.

        It is to be kept on site, and its name should hold "gallery" and end with .safetensors: git leaves such out.
        """
        header = {_FORMAT: json.dumps({"encoder": self.encoder})}
        content = save({"vectors": self.vectors.contiguous(), "patient": self.patient.contiguous()}, header)
        return write_bytes(path, content, mode=0o600)

    @staticmethod
    def read(path: str | Path, encoder: str) -> SearchableGallery:
        """What `write` wrote.

        Args:
            encoder: digest of the weights that are to be used with it.

        Raises:
            GalleryError: there is none, others than its owner may read or change it, it is damaged or no gallery.
            OtherModelError: it is of other weights.
        """
        path = Path(path)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise GalleryError(f"{path} cannot be read ({error.strerror})") from error
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise GalleryError(
                f"{path} holds biometric data and has the permissions {stat.S_IMODE(mode):o}; it must be for its owner "
                f"alone: chmod 600 {path}"
            )
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(_FORMAT, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise GalleryError(f"{path} is damaged, or no file of tensors") from error
        if "encoder" not in header or set(tensors) != {"vectors", "patient"}:
            raise GalleryError(f"{path} is a file of tensors, but no gallery")
        if header["encoder"] != encoder:
            raise OtherModelError(
                f"{path} was made with the weights {header['encoder']}, not {encoder}: make one with these"
            )
        return SearchableGallery(tensors["vectors"], tensors["patient"], encoder)


def _strike(block: Tensor, first: Tensor, last: Tensor) -> None:
    """Take the rows `first` to `last` of each column out of a block of similarities, as far as they are in it."""
    touched = (last > 0) & (first < len(block)) & (last > first)
    for column in touched.nonzero().flatten().tolist():
        block[max(int(first[column]), 0) : int(last[column]), column] = -torch.inf
