"""DICOM files of made-up people for tests: planted names, numbers and dates in every corner of a header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dicomanonymizer")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"

PLANTED = ("PLANTQ", "Plant^Quirin", "19630704", "170815.5", "1.2.3.4444.5555", "7771234567", "063Y", "777123.25")
"""What must not be in any copy. Every value of `planted_header` has one of them."""
_TEXT = {
    "AE": "PLANTQ_AE", "AS": "063Y", "CS": "PLANTQ_CS", "DA": "19630704", "DS": "777123.25", "DT": "19630704170815.5",
    "IS": "7771234567"[:9], "LO": "PLANTQ lo", "LT": "PLANTQ lt\r\nline", "PN": "Plant^Quirin", "SH": "PLANTQ sh",
    "ST": "PLANTQ st", "TM": "170815.5", "UC": "PLANTQ uc", "UI": "1.2.3.4444.5555.6", "UR": "http://PLANTQ.example",
    "UT": "PLANTQ ut",
}  # fmt: skip
_LEFT_ALONE = ("SpecificCharacterSet", "PhotometricInterpretation", "BurnedInAnnotation", "ConversionType")
GRADIENT = np.add.outer(np.arange(44), np.arange(40)) * 3  # 0 ... 246


def planted_header() -> Dataset:
    """Every standard attribute with text in it, at the top and nested, and bytes, private tags, overlays, icons."""
    from pydicom.datadict import DicomDictionary

    def fill(dataset: Dataset) -> None:
        for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
            alone = not keyword or keyword in _LEFT_ALONE or tag >> 16 in (0, 2, 4, 6) or tag >> 16 == 0x0028
            if vr in _TEXT and not alone and not retired:
                dataset.add_new(tag, vr, _TEXT[vr])

    dataset, nested, deeper = Dataset(), Dataset(), Dataset()
    fill(dataset)
    fill(nested)
    fill(deeper)
    nested.ReferencedSeriesSequence = Sequence([deeper])
    dataset.RequestAttributesSequence = Sequence([nested])
    dataset.OriginalAttributesSequence = Sequence([nested])
    icon = Dataset()
    icon.Rows = icon.Columns = 4
    icon.add_new("PixelData", "OB", b"PLANTQ icon here")
    dataset.IconImageSequence = Sequence([icon])
    dataset.add_new(0x60003000, "OW", b"PLANTQ overlay pixels ")
    dataset.add_new(0x60004000, "LT", "PLANTQ overlay comment")
    dataset.add_new(0x00420011, "OB", b"%PDF PLANTQ ")
    block = dataset.private_block(0x0009, "PLANTQ CREATOR", create=True)
    block.add_new(0x01, "LO", "PLANTQ private")
    block.add_new(0x02, "UN", b"PLANTQ unknown ")
    block.add_new(0x03, "SQ", Sequence([nested]))
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageComments = "PLANTQ Ümlaut"
    return dataset


def write_dicom(path: Path, pixels: np.ndarray | None = None, bits: int = 8, header: Any = None, **tags: Any) -> Path:
    """A DICOM file (CR, gray, 8 bits) with `tags` on top of a header; a value of None removes an attribute."""
    pixels = GRADIENT if pixels is None else pixels
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = "1.2.3.4444.5555.6"
    meta.SourceApplicationEntityTitle = "PLANTQ_AE"
    meta.ImplementationVersionName = "PLANTQ_IMPL"
    dataset = FileDataset(str(path), header or {}, file_meta=meta, preamble=b"PLANTQ".ljust(128, b"\0"))
    dataset.SOPClassUID = CR
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    dataset.add_new("PixelData", "OB" if bits <= 8 else "OW", pixels.astype("u1" if bits <= 8 else "<u2").tobytes())
    compressed = tags.pop("compressed", None)
    for keyword, value in tags.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    if compressed is not None:
        dataset.compress(compressed, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def found_in(content: bytes) -> list[str]:
    """Which of the planted words are in a file's bytes, in any usual encoding."""
    encodings = ("utf-8", "utf-16-le", "utf-16-be")
    return [word for word in PLANTED if any(word.encode(encoding) in content for encoding in encodings)]
