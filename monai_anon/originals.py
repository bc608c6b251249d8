"""Image files as the anonymizer takes them, and what of each its copy may get back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from monai_anon.dicom import DicomHeader, read_header
from monai_anon.readers import (
    DECODER_ERRORS,
    DICOM_SUFFIXES,
    FULL_SCALES,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    ReadError,
    fit_square,
    has_dicom_mark,
    read_image,
    to_stored,
)

KINDS = ("picture", "nifti", "dicom")
_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = {"PNG": (_PNG,), "JPEG": (b"\xff\xd8\xff",), "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")}
_GRAY_TYPES = (0, 4)  # PNG colour types without colour: gray, gray with alpha
_GRAY_MODES = ("1", "L", "LA", "La", "F")


@dataclass(frozen=True)
class Original:
    """An image as the anonymizer takes it, and the form that its copy gets back.

    Args:
        pixels: uint8 (C, S, S).
        height, width: of the file, in pixels.
        gray: whether the file is gray; otherwise it has three channels.
        full_scale: the stored value of white: 255 at 8 bits; 255, 4095 or 65535 at 16; in DICOM that of its bits.
        dtype: of the file's values, uint8 or uint16.
        kind: one of KINDS, which its copy is, too.
        header: of a DICOM file.
    """

    pixels: Tensor
    height: int
    width: int
    gray: bool
    full_scale: int
    dtype: type[np.unsignedinteger]
    kind: str = "picture"
    header: DicomHeader | None = None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Without the libraries' warnings, which may quote headers."""
    log = logging.getLogger("pydicom")
    before = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            log.setLevel(before)


def kind_of(path: str | Path) -> str | None:
    """Which of KINDS a file is by its name or, where that says nothing, by its first bytes; None for any other file."""
    kind = kind_by_name(Path(path).name)
    if kind is not None or Path(path).name.lower() == "dicomdir":  # which is a list of files, with names
        return kind
    try:
        return "dicom" if Path(path).is_file() and has_dicom_mark(path) else None
    except OSError:
        return None


def kind_by_name(name: str) -> str | None:
    """Which of KINDS a name says that a file is, if any."""
    suffixes = zip(KINDS, (PICTURE_SUFFIXES, NIFTI_SUFFIXES, DICOM_SUFFIXES), strict=True)
    return next((kind for kind, known in suffixes if name.lower().endswith(known)), None)


def read_original(path: str | Path, size: int, channels: int, name: str = "", to_gray: bool = False) -> Original:
    """Read a file for an anonymizer of images `(channels, size, size)`; `name` stands in for missing UIDs of a DICOM
    file, `to_gray` lets one channel take colour.

    Raises:
        ReadError: what `read_image` refuses; a file that is not what its name says, 16-bit colour, or all pixels the
            same.
    """
    path = Path(path)
    image = read_image(path, channels, to_gray)
    kind, header = kind_of(path) or "picture", None
    try:
        if kind == "dicom":
            header = read_header(path, name)
            form = _Form(bool((image == image[:1]).all()), 2**header.bits - 1, _dtype(header.bits <= 8))
        else:
            form = _nifti_form(path) if kind == "nifti" else _picture_form(path)
    except ReadError:
        raise
    except DECODER_ERRORS as error:
        raise ReadError(path, f"cannot be decoded ({type(error).__name__})") from error
    if float(image.max() - image.min()) < 1 / 255:
        raise ReadError(path, "is constant (all pixels have the same value)")
    return Original(
        pixels=torch.from_numpy(to_stored(fit_square(image, size))),
        height=image.shape[1],
        width=image.shape[2],
        gray=form.gray,
        full_scale=form.full_scale,
        dtype=form.dtype,
        kind=kind,
        header=header,
    )


class _Form(NamedTuple):
    """Whether a file is gray, its value of white, and its depth."""

    gray: bool
    full_scale: int
    dtype: type[np.unsignedinteger]


def _picture_form(path: Path) -> _Form:
    with path.open("rb") as file:
        start = file.read(26)
    said = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}.get(path.suffix.lower(), "JPEG")
    if not start.startswith(_SIGNATURES[said]):
        raise ReadError(path, f"is no {said} file, whatever its name says")
    if said == "PNG":
        deep, gray = start[24] == 16, start[25] in _GRAY_TYPES
        if deep and start[25] != 0:
            raise ReadError(path, "has 16-bit colour or transparency; supported are 8 bits, and 16 bits in gray")
        if not deep:
            return _Form(gray, FULL_SCALES[0], np.uint8)
    with Image.open(path) as opened:
        deep = opened.mode.startswith("I") or opened.mode == "F"
        return _depth(np.asarray(opened)) if deep else _Form(opened.mode in _GRAY_MODES, FULL_SCALES[0], np.uint8)


def _nifti_form(path: Path) -> _Form:
    import nibabel

    return _depth(np.asarray(nibabel.load(path).dataobj))  # type: ignore[attr-defined]


def _depth(values: np.ndarray) -> _Form:
    """The form of gray values of a file: 8 bits where they are stored so; else 16, in the least full scale that holds
    them where they are whole numbers >= 0.
    """
    if values.dtype == np.uint8:
        return _Form(True, FULL_SCALES[0], np.uint8)
    top, whole = float(values.max()), float(values.min()) >= 0 and bool((values == np.rint(values)).all())
    scale = next((scale for scale in FULL_SCALES if whole and top <= scale), FULL_SCALES[-1])
    return _Form(True, scale, np.uint16)


def _dtype(short: bool) -> type[np.unsignedinteger]:
    return np.uint8 if short else np.uint16
