"""A site's folder: the training patients whom the privacy gate keeps away from, from which likeness on, and its judges.

`make_site` writes it and `gate.read_gate` reads it. The galleries are biometric data: the folder is its owner's alone
and stays on site.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from monai_anon import gate as gates
from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.cohort import Cohort
from monai_anon.datasets import file_digest
from monai_anon.evaluation.judges import Judges
from monai_anon.gallery_search import SearchableGallery
from monai_anon.gate import Gate, embedding, read_gate
from monai_anon.gate_calibration import RATE, Calibration, CalibrationError, calibrate
from monai_anon.identities import Gallery
from monai_anon.jobs import shown
from monai_anon.manifest import load_manifest
from monai_anon.readers import to_model_range
from monai_anon.whole_files import require_writable, write_bytes

JUDGES = "judges.safetensors"
BATCH = 64


class Part(NamedTuple):
    """A part of a manifest."""

    manifest: str
    name: str


@dataclass(frozen=True)
class People:
    """Whom a gate is made of.

    Args:
        training: everybody in the training of the model and the judges.
        images, patient: uint8 `(N, C, S, S)` and codes `(N,)` of people in no training.
    """

    training: Cohort
    images: Tensor
    patient: Tensor


def people_of(manifest: str, strangers: str | None, size: int, channels: int, progress: bool = True) -> People:
    """The people of a manifest, and the test part of `strangers` among those held out.

    Raises:
        ManifestError: no such manifest.
        CalibrationError: nobody is held out, since everybody of a closed set is in its training.
    """
    parts = [Part(manifest, "training"), *held_out_parts(manifest, strangers)]
    training, *cohorts = (Cohort.from_manifest(*part, size, channels, progress=progress) for part in parts)
    patient, before = [], 0
    for cohort in cohorts:
        patient.append(cohort.patient + before)
        before = int(patient[-1].max()) + 1
    return People(training, torch.cat([cohort.images for cohort in cohorts]), torch.cat(patient))


def held_out_parts(manifest: str, strangers: str | None) -> list[Part]:
    """The parts whose people no training has seen.

    Raises:
        CalibrationError: there is none.
    """
    loaded = load_manifest(manifest)
    own = [] if loaded.closed_set else [Part(manifest, name) for name in ("validation", "test")]
    parts = [part for part in own if loaded.parts.get(part.name)]
    if strangers is not None and load_manifest(strangers).parts.get("test"):
        parts.append(Part(strangers, "test"))
    if not parts:
        reason = "is a closed set, whose people are all in its training" if loaded.closed_set else "holds nobody out"
        raise CalibrationError(
            f"{manifest} {reason}; thresholds need people in no training: --strangers takes a manifest whose test part "
            "has such"
        )
    return parts


def site_files(folder: Path) -> list[Path]:
    """What a site's folder holds."""
    names = ("model", "verifier")
    return [folder / pattern.format(name) for name in names for pattern in (gates.GALLERY, gates.CALIBRATION)] + [
        folder / JUDGES
    ]


def refuse_site(folder: Path, overwrite: bool) -> None:
    """Refuse a place that no site's folder can be made at, before anybody waits for the galleries.

    Raises:
        CalibrationError: it is a file, or holds a site's files that are not to be overwritten.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise CalibrationError(f"SITE is {shown(folder)}, which is no folder; choose another place")
    there = [path.name for path in site_files(folder) if os.path.lexists(path)]
    if there and not overwrite:
        raise CalibrationError(f"{shown(folder)} holds {', '.join(there)} already; --overwrite replaces them")
    require_writable(folder, "SITE")


def judges_file(given: str | Path) -> Path:
    """A file of judges, or the only one of a folder, as `monai-anon judges` leaves it.

    Raises:
        CalibrationError: there is none, or several.
    """
    given = Path(given)
    found = sorted(given.glob("judges*.safetensors")) if given.is_dir() else [given]
    if len(found) != 1 or not found[0].is_file():
        how = f"{len(found)} files of judges are" if given.is_dir() else "no file of judges is"
        raise CalibrationError(
            f"{how} at {given}; monai-anon judges --judges-dir DIR trains them, and --judges takes the file"
        )
    return found[0]


def site_gate(
    network: LatentSwapAnonymizer, model_file: str | Path, folder: str | Path, judges: str | Path | None = None
) -> Gate:
    """The gate of a site's folder, with the judges in it unless others are given.

    Raises:
        CalibrationError: galleries, thresholds or judges are missing or of another model, so nothing would pass.
    """
    folder = Path(folder)
    gate = read_gate(network, model_file, folder, folder / JUDGES if judges is None else judges_file(judges))
    if gate.faults:
        reasons = ", ".join(fault.value for fault in gate.faults)
        raise CalibrationError(
            f"nothing was released, since the gate of {shown(folder)} has {reasons}; `monai-anon calibrate SITE` makes "
            "galleries, thresholds and judges of a model"
        )
    return gate


def make_site(
    folder: str | Path,
    network: LatentSwapAnonymizer,
    model_file: str | Path,
    judges: str | Path | None,
    people: People,
    rate: float = RATE,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Calibration]:
    """Write galleries, thresholds and judges into a site's folder, all that can fail before the first of them.

    Args:
        judges: file; None leaves the folder without, and a gate without judges releases nothing.

    Returns:
        The thresholds, by comparator.

    Raises:
        CalibrationError: as `calibrate`; or files are there that are not to be overwritten.
        ValueError: `judges` holds none.
    """
    folder = Path(folder)
    refuse_site(folder, overwrite)
    sources: dict[str, tuple[Any, str]] = {"model": (network, file_digest(str(model_file)))}
    # Before anything is taken away: the judges may be those that the folder holds.
    content = None if judges is None else Path(judges).read_bytes()
    if judges is not None:
        device = next(network.parameters()).device
        sources["verifier"] = (Judges.load(judges, device), file_digest(str(judges)))
    found: dict[str, tuple[SearchableGallery, Calibration]] = {}
    for name, (source, digest) in sources.items():
        seen = embedded(source, people.training.images, progress and f"{name}: training patients")
        gallery = SearchableGallery.of(Gallery(seen, people.training.patient), digest)
        strangers = embedded(source, people.images, progress and f"{name}: people held out")
        found[name] = gallery, calibrate(strangers, people.patient, gallery, rate)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in site_files(folder):
        path.unlink(missing_ok=True)
    for name, (gallery, calibration) in found.items():
        gallery.write(folder / gates.GALLERY.format(name))
        calibration.write(folder / gates.CALIBRATION.format(name))
    if content is not None:
        write_bytes(folder / JUDGES, content, mode=0o600)
    return {name: calibration for name, (_, calibration) in found.items()}


@torch.inference_mode()
def embedded(source: Any, images: Tensor, title: str | bool = False) -> Tensor:
    """Vectors `(N, D)` of images uint8 `(N, C, S, S)`, by a model's encoder or the judges' verifier."""
    embed, batches = embedding(source), images.split(BATCH)
    shown = tqdm(batches, desc=title if isinstance(title, str) else None, disable=None if title else True)
    return torch.cat([embed(to_model_range(batch)) for batch in shown])


def told(calibrations: dict[str, Calibration]) -> Sequence[str]:
    """Thresholds for a person, a line each."""
    lines = []
    for name, calibration in calibrations.items():
        for whom, found in (("the original", calibration.original), ("a training patient", calibration.training)):
            lines.append(
                f"{name}: like {whom} from {found.similarity:.3f} on; found for {found.share:.4f} "
                f"({found.low:.4f} to {found.high:.4f}) of {found.observations:,} of {found.patients} strangers"
            )
    return lines
