"""DICOM copies: a new header around the new pixels, and of the original's what was asked for.

A copy is a Secondary Capture image that is written from nothing. Of the original's header only the attributes that are
named here are ever looked at; they go through the rules of PS3.15 Annex E, Table E.1-1, as dicom-anonymizer has them,
with keyed UIDs in place of its random ones. What is not named here (text, dates, people, places, devices, private tags,
overlays, icons, documents, sequences, file meta) has no way into a copy. docs/dicom.md says all of it for users.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from monai_anon import __version__
from monai_anon.channel import round_up
from monai_anon.keys import Key
from monai_anon.readers import refuse_inflating

HEADERS = ("none", "groups", "view")
_TABLE = "dicomfields_2026c"  # the edition of PS3.15 whose table dicom-anonymizer applies
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

# Attributes that `--header view` passes, and only with these values: any other may be somebody's text.
_VIEW = {
    "Modality": {"CR", "DX", "DR", "RG", "RF", "XA", "PX", "IO", "MG", "CT", "MR", "US", "OP", "XC", "OT"},
    "BodyPartExamined": {
        "CHEST", "LUNG", "HEART", "ABDOMEN", "PELVIS", "HEAD", "SKULL", "FACE", "EYE", "JAW", "NECK", "SPINE", "CSPINE",
        "TSPINE", "LSPINE", "SHOULDER", "ARM", "ELBOW", "WRIST", "HAND", "HIP", "LEG", "KNEE", "ANKLE", "FOOT",
        "BREAST",
    },
    "ViewPosition": {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO"},
}  # fmt: skip

# What these devices write has hardly ever text in its pixels; of all else it must be said that there is none.
_PLAIN_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.1",  # computed radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # digital X-ray, for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # and for processing
    "1.2.840.10008.5.1.4.1.1.1.2",  # mammography
    "1.2.840.10008.5.1.4.1.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.1.3",  # intra-oral X-ray
    "1.2.840.10008.5.1.4.1.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
}
_CLEAN = (
    ("113100", "DCM", "Basic Application Confidentiality Profile"),
    ("113101", "DCM", "Clean Pixel Data Option"),
    ("113102", "DCM", "Clean Recognizable Visual Features Option"),
)
_IDENTITY_DRAWN = ("IDENTITY_DRAWN", "99MONAIANON", "Patient identity replaced by a synthetic one")
_READ = (
    *_VIEW, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "IssuerOfPatientID",
    "BurnedInAnnotation", "ConversionType", "BitsStored",
)  # fmt: skip


@dataclass(frozen=True)
class DicomHeader:
    """What is looked at of an original's header.

    Args:
        instance, series, study, patient: who and what it is, as text that only a key ever sees.
        view: entries of `_VIEW` with values that are allowed to pass.
        bits: stored bits a value.
        text_risk: why text may be burned into the pixels; None where that is unlikely.
    """

    instance: str = field(repr=False)
    series: str = field(repr=False)
    study: str = field(repr=False)
    patient: str = field(repr=False)
    view: dict[str, str] = field(repr=False)
    bits: int
    text_risk: str | None


@dataclass(frozen=True)
class DicomSettings:
    """How DICOM copies are made.

    Args:
        key: makes UIDs and pseudonyms.
        header: what passes of an original's header, one of HEADERS: nothing; which copies are of one patient, study
            and series; that and what is seen from where (`_VIEW`).
        bits: the bound on what pixels say of their originals; None where there is none, and no pixel may then be said
            to be clean.
        policy: in words, for the header.
        no_text: somebody vouches for it that no original has text burned in.
        gated: copies go through the privacy gate.
    """

    key: Key = field(default_factory=Key.random)
    header: str = "groups"
    bits: float | None = None
    policy: str = "unknown"
    no_text: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        if self.header not in HEADERS:
            raise ValueError(f"header is {self.header!r}; it must be one of {', '.join(HEADERS)}")


def read_header(path: str | Path, name: str) -> DicomHeader:
    """Look at the few attributes of a DICOM file that a copy hangs on; `name` stands in for missing UIDs."""
    import pydicom

    refuse_inflating(Path(path))
    found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_READ))

    def text(keyword: str) -> str:
        return str(found.get(keyword) or "")

    instance = text("SOPInstanceUID") or f"file {name}"
    study = text("StudyInstanceUID") or f"study of {instance}"
    patient = text("PatientID")
    view = {keyword: text(keyword) for keyword, allowed in _VIEW.items() if text(keyword) in allowed}
    return DicomHeader(
        instance=instance,
        series=text("SeriesInstanceUID") or f"series of {instance}",
        study=study,
        patient=f"{text('IssuerOfPatientID')}/{patient}" if patient else f"patient of {study}",
        view=view,
        bits=min(max(int(found.get("BitsStored") or 8), 1), 16),
        text_risk=_text_risk(text("BurnedInAnnotation"), text("SOPClassUID"), bool(text("ConversionType"))),
    )


def _text_risk(burned_in: str, sop_class: str, captured: bool) -> str | None:
    """Why an image may have text in its pixels."""
    if burned_in == "NO":
        return None
    if burned_in == "YES":
        return "its header says that text is burned into its pixels"
    if captured or sop_class not in _PLAIN_IMAGES:
        return "text may be burned into its pixels: images of its kind often have some, and its header does not say no"
    return None


def dicom_bytes(levels: np.ndarray, bits: int, header: DicomHeader, settings: DicomSettings) -> bytes:
    """A DICOM file of new pixels, unsigned (H, W) or (H, W, 3), of which white is 2 ** bits - 1."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = _passed(levels, header, settings)
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate"):
        setattr(dataset, keyword, None)
    for keyword in ("PatientSex", "StudyID", "SeriesNumber", "InstanceNumber", "PatientOrientation", "Laterality"):
        setattr(dataset, keyword, None)
    dataset.PatientName = dataset.PatientID
    dataset.SOPClassUID = _SECONDARY_CAPTURE
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "SYN"
    dataset.SyntheticData = "YES"
    dataset.DerivationDescription = "Patient identity replaced by a synthetic one; every pixel was drawn by a network"
    if "Modality" not in dataset:
        dataset.Modality = "OT"
    _add_claims(dataset, settings)
    _add_pixels(dataset, levels, bits)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationVersionName = f"MONAI-ANON {__version__}"[:16]
    dataset.file_meta = meta
    return _encoded(dataset)


def _passed(levels: np.ndarray, header: DicomHeader, settings: DicomSettings) -> Any:
    """The part of a header that hangs on the original's, after PS3.15."""
    from dicomanonymizer import anonymize_dataset
    from pydicom.dataset import Dataset

    patient, study, series = header.patient, header.study, header.series
    if settings.header == "none":
        patient, study, series = (f"{kind} of {header.instance}" for kind in ("patient", "study", "series"))
    key, pixels = settings.key, hashlib.sha256(levels.tobytes()).hexdigest()
    new = {
        "PatientID": f"ANON-{key.name('patient', patient)}",
        "StudyInstanceUID": key.uid(study),
        "SeriesInstanceUID": key.uid(series),
        "SOPInstanceUID": key.uid(header.instance, pixels),  # another picture is another instance
    }
    dataset = Dataset()
    for keyword in new:
        setattr(dataset, keyword, "0")  # the original's own has no place here, not even on the way
    if settings.header == "view":
        for keyword, value in header.view.items():
            setattr(dataset, keyword, value)
    rules = _rules()
    present = {(element.tag.group, element.tag.element) for element in dataset}
    own = {_tag(keyword): _replacing(value) for keyword, value in new.items()}
    base = {tag: action for tag, action in rules.items() if tag in present}
    anonymize_dataset(dataset, own, base_rules_gen=lambda: base)
    return dataset


@cache
def _rules() -> dict[tuple[int, ...], Callable[..., None]]:
    """What PS3.15 does with each attribute, as dicom-anonymizer has it."""
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    return initialize_actions(_TABLE)


def _tag(keyword: str) -> tuple[int, int]:
    from pydicom.tag import Tag

    tag = Tag(keyword)
    return tag.group, tag.element


def _replacing(value: str) -> Callable[[Any, tuple[int, int]], None]:
    """A rule that sets a value."""

    def replace(dataset: Any, tag: tuple[int, int]) -> None:
        dataset[tag].value = value

    return replace


def _add_claims(dataset: Any, settings: DicomSettings) -> None:
    """What was done, in the standard's terms (PS3.3 C.7.1.1, PS3.16 CID 7050): nothing that is not so.

    The header is new in any case. The pixels are free of the original's text and features where a bound says so;
    without one the identity is not said to be removed, which conformance to the profile itself would need (E.1.1).
    """
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    clean = settings.bits is not None
    items = []
    for value, scheme, meaning in (*(_CLEAN if clean else ()), _IDENTITY_DRAWN):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = Sequence(items)
    bound = (
        f"{round_up(settings.bits, 2):.2f} bits of the original at most"
        if settings.bits is not None
        else "no bound on pixels"
    )
    dataset.DeidentificationMethod = [
        f"monai-anon {__version__}",
        f"policy {settings.policy}: {bound}",
        "through the privacy gate" if settings.gated else "without a privacy gate",
    ]
    dataset.PatientIdentityRemoved = "YES" if clean else "NO"
    dataset.RecognizableVisualFeatures = "NO" if clean else "YES"
    if clean or settings.no_text:
        dataset.BurnedInAnnotation = "NO"
    dataset.LongitudinalTemporalInformationModified = "REMOVED"


def _add_pixels(dataset: Any, levels: np.ndarray, bits: int) -> None:
    """Pixels, and what says how to read and show them."""
    colour = levels.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = levels.shape[:2]
    dataset.BitsAllocated = 8 if bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    if not colour:
        dataset.WindowCenter, dataset.WindowWidth = str(2 ** (bits - 1)), str(2**bits)
    content = levels.astype("<u1" if bits <= 8 else "<u2").tobytes()
    dataset.add_new("PixelData", "OB" if bits <= 8 else "OW", content + b"\0" * (len(content) % 2))


def _encoded(dataset: Any) -> bytes:
    """A dataset as a file's bytes, explicit VR little endian."""
    import pydicom

    stream = io.BytesIO()
    if int(pydicom.__version__.split(".")[0]) >= 3:
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    else:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.preamble = b"\0" * 128
        pydicom.dcmwrite(stream, dataset, write_like_original=False)
    return stream.getvalue()
