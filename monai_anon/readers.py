"""Any supported file as an array in [0, 1], and the only place that knows of intensity ranges.

At rest an image is uint8, between file and cohort float32 in [0, 1], in networks float in [-1, 1]. The values of a file
become [0, 1] so:

| file | 0 ... 1 is |
|---|---|
| PNG, JPEG, TIFF, 8 bit | 0 ... 255 |
| PNG, TIFF, NIfTI, other whole numbers >= 0 | 0 ... the first of 255, 4095 (12 bit), 65535 that holds the maximum |
| NIfTI, TIFF, fractions inside [0, 1] | the values as they are |
| NIfTI, TIFF, anything else | the image's minimum ... maximum |
| DICOM | after the modality LUT, the VOI LUT's or window's range; without one, minimum ... maximum |

MONOCHROME1 is inverted, so that air is dark in every file. NIfTI stores columns first: a slice (W, H) or (W, H, 1)
becomes (H, W), without flips, as MONAI writes it. pydicom and nibabel are imported when needed.
"""

from __future__ import annotations

import importlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SUFFIXES = (*PICTURE_SUFFIXES, *DICOM_SUFFIXES, *NIFTI_SUFFIXES)

# Up to this ratio of its sides an image is squeezed to a square, beyond it padded: organs must not change shape much.
SQUEEZE_LIMIT = 1.2
FULL_SCALES = (255, 4095, 65535)  # 8, 12 and 16 bit
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # shares of red, green and blue (ITU-R BT.601)

# What the decoders raise on broken files; anything else is our mistake and shall surface.
DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)
NO_DICOM = "is no DICOM file"
_PICTURE_FORMATS = ("PNG", "JPEG", "TIFF")  # of PICTURE_SUFFIXES; Pillow would try all its decoders on any file
_MOST_PIXELS = 178_956_970  # where Pillow stops, for files that Pillow does not read
_MOST_UNPACKED = 6 * _MOST_PIXELS  # bytes: colour of 16 bits
_DEFLATED = "1.2.840.10008.1.2.1.99"
_META_START = 144  # preamble, mark, and the element that says how long the file's meta information is
_BLOCK = 1 << 20
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PHOTOMETRIC = (
    "PALETTE COLOR",
    "YBR_PARTIAL_420",
    "HSV",
    "ARGB",
    "CMYK",
    "XYB",
)  # terms that are not read, to be named


class ReadError(ValueError):
    """A file that cannot be used as an image: `path` and `reason`."""

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path}: {reason}")


def read_image(path: str | Path, channels: int = 1, to_gray: bool = False) -> np.ndarray:
    """Read an image file as float32 (C, H, W) in [0, 1].

    Args:
        path: a file with one of SUFFIXES, or a DICOM file under any name.
        channels: 1 or 3. With 1, an RGB file whose channels are equal is read as the gray image it is; one whose
            channels differ is refused. With 3, a gray image is given three times.
        to_gray: with 1 channel, read colour as its luma (ITU-R BT.601) instead of refusing it.

    Raises:
        ReadError: missing, empty or undecodable file, several frames or slices, transparency, NaN or infinite values,
            colour where gray is expected, more pixels than `_MOST_PIXELS` once it is padded to a square.
        ImportError: a DICOM or NIfTI file without pydicom or nibabel installed.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}; an image has 1 (gray) or 3 (colour)")
    path = Path(path)
    values = _decode(path)
    if not np.isfinite(values).all():
        raise ReadError(path, f"{int((~np.isfinite(values)).sum())} value(s) are NaN or infinite")
    height, width = values.shape[:2]
    if _is_padded(height, width) and max(height, width) ** 2 > _MOST_PIXELS:  # a strip of a few kilobytes may be long
        raise ReadError(
            path, f"is {height} x {width}: padded to a square it would have more than {_MOST_PIXELS:,} pixels; crop it"
        )
    if values.ndim == 2:
        image = values[None]
    else:
        image = np.moveaxis(values, -1, 0)
        different = (image != image[:1]).any(axis=0)
        if not different.any():
            image = image[:1]
        elif channels == 1 and to_gray:
            image = np.tensordot(LUMA, image, axes=1)[None]
        elif channels == 1:
            raise ReadError(
                path,
                f"a colour image where gray is expected (its channels differ in {different.mean():.1%} of the "
                "pixels); convert it to gray, or let it be read as gray with --to-gray",
            )
    return np.ascontiguousarray(np.broadcast_to(image, (channels, *image.shape[1:])), dtype=np.float32)


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Bring an image (C, H, W) in [0, 1] to (C, size, size).

    An image whose sides differ by a factor of SQUEEZE_LIMIT or less is squeezed; a longer one is first padded with
    black to a centred square. Resampling is antialiased (Lanczos); an image of the right size is returned unchanged.
    """
    _, height, width = image.shape
    if _is_padded(height, width):
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = np.zeros((image.shape[0], side, side), dtype=image.dtype)
        square[:, top : top + height, left : left + width] = image
        image = square
    return _resample(image, size, size)


def restore_shape(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The way back from `fit_square`: an image (C, S, S) in [0, 1] to (C, height, width), the padding cut off."""
    if not _is_padded(height, width):
        return _resample(image, height, width)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return _resample(image, side, side)[:, top : top + height, left : left + width]


def to_stored(image: np.ndarray) -> np.ndarray:
    """[0, 1] to uint8, rounded."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 images to float32 in [-1, 1]."""
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}; stored images are uint8")
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images in [-1, 1] to uint8: clamped and rounded, the inverse of `to_model_range`."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def has_image_suffix(path: str | Path) -> bool:
    """Whether the file's name ends like an image's."""
    return str(path).lower().endswith(SUFFIXES)


def _decode(path: Path) -> np.ndarray:
    """The values of any file, (H, W) or (H, W, 3), float32 in [0, 1] where finite."""
    if not path.is_file():
        raise ReadError(path, "is a folder, not an image" if path.is_dir() else "no such file")
    if path.stat().st_size == 0:
        raise ReadError(path, "the file is empty (0 bytes)")
    name = path.name.lower()
    try:
        if name.endswith(PICTURE_SUFFIXES):
            return _decode_picture(path)
        if name.endswith(NIFTI_SUFFIXES):
            return _decode_nifti(path)
        if name.endswith(DICOM_SUFFIXES) or has_dicom_mark(path):
            return _decode_dicom(path)
    except (ReadError, ImportError):
        raise
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise ReadError(path, f"cannot be decoded ({_reason(error, path, name)})") from error
    raise ReadError(path, f"is of no supported type; supported are {' '.join(SUFFIXES)}, and DICOM under any name")


def _reason(error: Exception, path: Path, name: str) -> str:
    """What a decoder said; of a DICOM or NIfTI file only the kind of error, for the message may quote its header."""
    if "missing dependencies" in str(error):
        return "no decoder for its compression is installed; monai-anon[dicom] brings them"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = str(error).replace(f" {str(path)!r}", "") if name.endswith(PICTURE_SUFFIXES) else ""
    return " ".join(said.split()) or type(error).__name__


def _refuse_huge(path: Path, *sides: int) -> None:
    """Before anything is unpacked: a small file may claim to be a large image."""
    if any(side < 1 for side in sides):
        raise ReadError(path, "says that it has no pixels")
    if math.prod(sides) > _MOST_PIXELS:
        raise ReadError(path, f"says that it has more than {_MOST_PIXELS:,} pixels")


def refuse_inflating(path: Path) -> None:
    """See how large a deflated DICOM file becomes, which pydicom unpacks whole before it knows anything of it.

    Raises:
        ReadError: larger than any image that is read.
    """
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    if str(meta.get("TransferSyntaxUID")) != _DEFLATED:
        return
    unpacking, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(_META_START + int(meta.get("FileMetaInformationGroupLength") or 0))
        block = file.read(_BLOCK)
        while block and not unpacking.eof:
            size += len(unpacking.decompress(block, _BLOCK))
            if size > _MOST_UNPACKED:
                raise ReadError(path, f"is unpacked to more than {_MOST_UNPACKED:,} bytes")
            block = unpacking.unconsumed_tail or file.read(_BLOCK)


def _decode_picture(path: Path) -> np.ndarray:
    """PNG, JPEG, TIFF."""
    with Image.open(path, formats=_PICTURE_FORMATS) as opened:
        # What phones write as JPEG may hold more pictures behind the first, such as a preview or a map of depth (MPO).
        if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
            raise ReadError(path, f"holds {opened.n_frames} pictures; one is expected")
        white_is_zero = opened.mode.startswith("I;16") and getattr(opened, "tag_v2", {}).get(262) == 0
        picture = ImageOps.exif_transpose(opened)
        if picture.mode == "P" or "transparency" in picture.info:
            picture = picture.convert("RGBA")
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            picture = picture.convert("RGBA")
            if np.asarray(picture.getchannel("A")).min() < 255:
                raise ReadError(path, "has transparent pixels; save it without an alpha channel")
            picture = picture.convert("RGB")
        elif picture.mode not in ("1", "L", "RGB", "I", "F") and not picture.mode.startswith("I;16"):
            picture = picture.convert("RGB")  # CMYK, YCbCr, LAB, HSV
        values = np.asarray(picture)
    scaled = _scaled(values)
    return 1 - scaled if white_is_zero else scaled  # Pillow inverts such TIFFs at 8 bit only


def _decode_nifti(path: Path) -> np.ndarray:
    """NIfTI with one slice."""
    import nibabel

    try:
        opened: Any = nibabel.load(path)
        _refuse_huge(path, *opened.shape)
        values = np.asarray(opened.dataobj)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise ReadError(path, f"cannot be decoded ({type(error).__name__})") from error
    if values.dtype.names or np.iscomplexobj(values):
        raise ReadError(path, f"its values are {values.dtype}; single real numbers are expected")
    shape = values.shape
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise ReadError(path, f"has the shape {'x'.join(map(str, shape))}; one slice is expected")
    return _scaled(values.T)


def _decode_dicom(path: Path) -> np.ndarray:
    """DICOM with one frame, as a viewer shows it."""
    import pydicom

    try:
        refuse_inflating(path)
        dataset = pydicom.dcmread(path)
    except pydicom.errors.InvalidDicomError as error:
        raise ReadError(path, NO_DICOM) from error
    if "PixelData" not in dataset:
        raise ReadError(path, "is a DICOM file without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ReadError(path, f"holds {frames} frames; one is expected")
    _refuse_huge(path, int(dataset.Rows), int(dataset.Columns))
    photometric = dataset.get("PhotometricInterpretation")
    if photometric in _COLOURS:
        return _scaled(_colours(dataset, photometric))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        found = photometric if photometric in _PHOTOMETRIC else "another one"
        raise ReadError(path, f"its photometric interpretation is {found}; gray, RGB or YBR is expected")
    shown = _windowed(dataset)
    return 1 - shown if photometric == "MONOCHROME1" else shown


def _colours(dataset: Any, photometric: str) -> np.ndarray:
    """Pixels (H, W, 3) in RGB."""
    pixels = dataset.pixel_array  # pydicom 3 has made RGB of YBR, what J2K stores as ICT or RCT is decoded to it
    if photometric.startswith("YBR_FULL") and not _pydicom_is_3():
        from pydicom.pixel_data_handlers.util import convert_color_space

        pixels = convert_color_space(pixels, photometric, "RGB")
    if dataset.get("PlanarConfiguration") == 1 and pixels.shape[0] == 3 and pixels.shape[-1] != 3:
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels


def _pydicom_is_3() -> bool:
    """Functions moved, and colours are converted, between the versions that we support."""
    import pydicom

    return int(pydicom.__version__.split(".")[0]) >= 3


def _windowed(dataset: Any) -> np.ndarray:
    """Modality LUT, then the first VOI LUT or window, to [0, 1]."""
    luts = importlib.import_module("pydicom.pixels" if _pydicom_is_3() else "pydicom.pixel_data_handlers.util")

    stored = dataset.pixel_array
    values = luts.apply_modality_lut(stored, dataset)
    lut = dataset.get("VOILUTSequence")
    if lut:
        low, high = 0.0, float(2 ** lut[0].LUTDescriptor[2] - 1)
        values = luts.apply_voi_lut(values, dataset)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        # The window's output range depends on bits, sign and rescale; far outside the window it shows itself.
        with np.errstate(over="ignore"):
            low, high = map(float, luts.apply_voi_lut(np.array([-1e9, 1e9]), dataset))
            values = luts.apply_voi_lut(values, dataset)
    else:
        padding = dataset.get("PixelPaddingValue")
        inside = values[stored != padding] if padding is not None and (stored != padding).any() else values
        low, high = float(inside.min()), float(inside.max())
    return _between(values, low, high)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Values without a stated range to [0, 1], by the table in this module's head; NaN and infinities stay."""
    if values.size == 0:
        raise ValueError("the image has no pixels")
    if values.dtype == bool:
        return values.astype(np.float32)
    if values.dtype == np.uint8:
        return values.astype(np.float32) / 255
    finite = values[np.isfinite(values)]
    if finite.size < values.size:
        return values.astype(np.float32)  # refused by the caller, which counts them
    low, high = float(finite.min()), float(finite.max())
    fractional = values.dtype.kind == "f" and bool((finite != np.rint(finite)).any())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return values.astype(np.float32)
    if not fractional and low >= 0 and high <= FULL_SCALES[-1]:
        low, high = 0.0, float(next(scale for scale in FULL_SCALES if high <= scale))
    return _between(values, low, high)


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Low ... high to 0 ... 1, clipped; a constant image becomes 0."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.float32)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def _resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased resampling of (C, H, W) in [0, 1]."""
    if image.shape[1:] == (height, width):
        return image
    planes = [Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)) for plane in image]
    resized = np.stack([np.asarray(plane.resize((width, height), Image.Resampling.LANCZOS)) for plane in planes])
    return np.clip(resized, 0, 1)  # Lanczos overshoots at edges


def _is_padded(height: int, width: int) -> bool:
    """Whether `fit_square` pads an image of these sides."""
    return max(height, width) > SQUEEZE_LIMIT * min(height, width)


def has_dicom_mark(path: str | Path) -> bool:
    """Whether the file begins as DICOM files do."""
    with Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"
