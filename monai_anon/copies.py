"""Generated images as files of their own: checked, in the model's form or the original's, written whole or not at all.

A file holds pixels alone: PNG without any chunk but those, NIfTI with a header and a geometry that say nothing, DICOM
as `dicom.py` writes it.
"""

from __future__ import annotations

import gzip
import io
import os
import secrets
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from monai_anon.dicom import DicomSettings, dicom_bytes
from monai_anon.originals import Original
from monai_anon.readers import restore_shape, to_uint8

_RANGE_TOLERANCE = 1e-3


class WithheldError(ValueError):
    """An image that was made but must not leave: the message says why."""


def to_levels(generated: Tensor, original: Original, keep_form: bool) -> np.ndarray:
    """A generated image (C, S, S) in [-1, 1] as values of a file, (H, W) or (H, W, 3), in its original's size, depth
    and mode or in the model's: S x S pixels of 8 bits, gray or colour.

    Raises:
        WithheldError: values that are not finite or out of range, or the original itself.
    """
    if not torch.isfinite(generated).all():
        raise WithheldError("the model gave values that are NaN or infinite")
    if float(generated.abs().max()) > 1 + _RANGE_TOLERANCE:
        raise WithheldError("the model gave values outside of [-1, 1]")
    if torch.equal(to_uint8(generated), original.pixels):
        raise WithheldError("the model gave the original back")
    if not keep_form:
        levels = to_uint8(generated).numpy()
        return levels[0] if len(levels) == 1 else np.ascontiguousarray(np.moveaxis(levels, 0, -1))
    unit = restore_shape((generated.float().numpy() + 1) / 2, original.height, original.width)
    stored = np.rint(np.clip(unit, 0, 1) * original.full_scale).astype(original.dtype)
    if original.gray:
        return _gray(np.moveaxis(stored, 0, -1))
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(stored, (3, *stored.shape[1:])), 0, -1))


def copy_bytes(
    generated: Tensor, original: Original, keep_form: bool = False, dicom: DicomSettings | None = None
) -> bytes:
    """The file of a generated image (C, S, S) in [-1, 1], of its original's kind.

    Raises:
        WithheldError: as `to_levels`.
    """
    levels = to_levels(generated, original, keep_form)
    if original.header is not None:
        bits = original.full_scale.bit_length() if keep_form else 8
        return dicom_bytes(levels, bits, original.header, dicom or DicomSettings())
    return _nifti_bytes(levels) if original.kind == "nifti" else _png_bytes(levels)


def write_whole(content: bytes, target: Path, overwrite: bool = False) -> None:
    """Write a file, all of it or nothing; its folder is made where missing.

    Raises:
        FileExistsError: `target` is there and not to be overwritten, even if it has come only now.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            file.write(content)
        if not overwrite:
            try:
                os.link(draft, target)  # unlike a rename it fails where something stands
                return
            except FileExistsError:
                raise
            except OSError as error:  # a file system without hard links
                if os.path.lexists(target):
                    raise FileExistsError(error.errno, "exists already", str(target)) from error
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _gray(levels: np.ndarray) -> np.ndarray:
    """Values (H, W, C) as (H, W): the channels' mean."""
    return levels[..., 0] if levels.shape[-1] == 1 else np.rint(levels.mean(axis=-1)).astype(levels.dtype)


def _png_bytes(levels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, format="PNG")
    return stream.getvalue()


def _nifti_bytes(levels: np.ndarray) -> bytes:
    """Compressed NIfTI of one slice: columns first, one unit a pixel, no time and no name in its wrapping."""
    import nibabel

    values = _gray(levels) if levels.ndim == 3 else levels
    return gzip.compress(nibabel.Nifti1Image(np.ascontiguousarray(values.T), np.eye(4)).to_bytes(), mtime=0)
