"""Which images are of one patient: their bits add up, with a key they share an identity, and they may be capped.

DICOM files tell by issuer and patient ID, of other files one has to be told: by a table or a manifest that names each
image's patient, or by folders. Nothing but keyed digests of patients is kept.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_anon.dicom import DicomHeader, read_header
from monai_anon.jobs import Job, Plan, Refusal, shown
from monai_anon.keys import Key
from monai_anon.manifest import load_manifest
from monai_anon.originals import quiet_decoders
from monai_anon.readers import DECODER_ERRORS, NO_DICOM, ReadError

FOLDERS = "folders"
TOO_MANY = "more images of a patient than were to be released"
_COLUMNS = ("image", "patient")
_DIGITS = 32
_AT_ONCE = 8
PatientOf = Callable[[Job], "str | Refusal"]


def patient_finder(source: str | None, key: Key) -> PatientOf:
    """Tells a job's patient as a keyed digest; empty where it is not known, a refusal where it should be and is not.

    Args:
        source: FOLDERS for the first folder below the input folder; a manifest, its folder, or a CSV file with the
            columns image, relative to that file, and patient; None for what DICOM headers say.

    Raises:
        ValueError: no such file, or one without these columns, with an empty cell, or with two patients of one image.
    """
    if source is None:
        return lambda job: _of_header(job, key)
    if source == FOLDERS:
        return lambda job: _of_folder(job, key)
    path = Path(source)
    rows = _of_manifest(path) if path.is_dir() or path.suffix == ".json" else _of_table(path)
    known: dict[Path, str] = {}
    for where, image, patient in rows:
        digest = _digest(key, "table", patient)
        if known.setdefault(image.resolve(), digest) != digest:
            raise ValueError(f"{shown(path)}: {where} names another patient for an image than an earlier one")

    def of_table(job: Job) -> str | Refusal:
        found = known.get(job.source.resolve())
        return Refusal(job.source, "--patients names no patient of it") if found is None else found

    return of_table


def group(
    plan: Plan, patient_of: PatientOf, shared: bool, header: str, most: int | None = None, progress: bool = False
) -> None:
    """Give each job of a plan its patient, and its identity where those are shared; take out what is too much, and what
    should tell its patient and does not.

    Args:
        shared: give all images of a patient one identity. A DICOM file whose header is to tell no groups (`header` is
            "none") has its own all the same.
        most: images of a patient that go on, the first ones in the order of the plan.
    """
    count: Counter[str] = Counter()
    jobs: list[Job] = []
    shown_bar = None if progress and any(job.target.suffix == ".dcm" for job in plan.jobs) else True
    with quiet_decoders(), ThreadPoolExecutor(_AT_ONCE) as pool:
        patients = pool.map(patient_of, plan.jobs)
        bar = tqdm(patients, desc="finding patients", total=len(plan.jobs), unit="file", disable=shown_bar)
        for job, found in zip(plan.jobs, bar, strict=True):
            if isinstance(found, Refusal):
                plan.refusals.append(found)
                plan.beyond.append(job)
                continue
            count[found] += bool(found)
            if most is not None and count[found] > most:
                plan.refusals.append(Refusal(job.source, f"withheld: {TOO_MANY}", (TOO_MANY,)))
                plan.beyond.append(job)
                continue
            linked = shared and not (header == "none" and job.target.suffix == ".dcm")
            jobs.append(job._replace(patient=found, identity=found if linked else ""))
    plan.jobs = jobs


def images_a_patient(jobs: Sequence[Job]) -> dict[int, int]:
    """How many patients have 1, 2, ... of these images; an image of nobody known counts as a patient of its own."""
    known = Counter(job.patient for job in jobs if job.patient)
    found = Counter(known.values())
    found[1] += sum(not job.patient for job in jobs)
    return {images: patients for images, patients in sorted(found.items()) if patients}


def digest_of(header: DicomHeader, key: Key) -> str:
    """Whose image a DICOM header says it is, as a keyed digest."""
    return _digest(key, "header", header.patient)


def _digest(key: Key, kind: str, patient: str) -> str:
    return key.digest("patient", kind, patient).hex()[:_DIGITS]


def _of_header(job: Job, key: Key) -> str | Refusal:
    if job.target.suffix != ".dcm":
        return ""
    from pydicom.errors import InvalidDicomError

    try:
        return digest_of(read_header(job.source, job.name), key)
    except InvalidDicomError:
        return Refusal(job.source, NO_DICOM)
    except ReadError as error:
        return Refusal(job.source, error.reason)
    except DECODER_ERRORS as error:  # may pass, and the file be read when its turn comes
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return Refusal(job.source, f"its header, which tells the patient, cannot be read ({why})")


def _of_folder(job: Job, key: Key) -> str | Refusal:
    parts = Path(job.name).parts
    if len(parts) < 2:
        return Refusal(job.source, "--patients folders: it lies in no folder below INPUT that would tell its patient")
    return _digest(key, "folder", parts[0])


def _of_manifest(path: Path) -> Iterator[tuple[str, Path, str]]:
    manifest = load_manifest(path)
    for part, entries in manifest.parts.items():
        for number, entry in enumerate(entries):
            yield f"{part}[{number}]", Path(manifest.image_path(entry)), str(entry["patient"])


def _of_table(path: Path) -> Iterator[tuple[str, Path, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text in UTF-8"
        raise ValueError(f"--patients {shown(path)}: {reason}; a CSV file, a manifest or the word {FOLDERS}") from error
    reader: Any = csv.DictReader(text.splitlines())
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{shown(path)} has no column {' and '.join(missing)}; its first line must name image,patient")
    for row in reader:
        where = f"line {reader.line_num}"
        if not all((row[column] or "").strip() for column in _COLUMNS):
            raise ValueError(f"{shown(path)}: {where} lacks an image or a patient")
        yield where, path.parent / row["image"].strip(), row["patient"].strip()
