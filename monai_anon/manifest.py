"""The data contract: a MONAI datalist JSON of images, patients and findings, in parts that share no patient.

    {"training": [{"image": "images/a.png", "patient": "p1", "finding": 0}, ...], "validation": [...], "test": [...],
     "classes": ["absent", "effusion"]}

`image` is relative to the manifest file, `patient` a string, `finding` an index into `classes`. Further keys of an
entry are kept as they are, and so are further keys of the file (a generated cohort records its settings there). Errors
name entries by part, index and image, never by patient.

A closed set, whose people are to be recognised again and therefore occur in several parts, must say so itself, with
`"closed_set": true` beside `classes`. That lifts this one check; an image is in one part only all the same.
`"to_gray": true` has colour images read as gray where gray ones are asked for; else they are refused there.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_anon.whole_files import write_bytes

PARTS = ("training", "validation", "test")
MANIFEST_NAME = "manifest.json"
# Key of the file that allows a patient in several parts, where it is true.
CLOSED_SET_KEY = "closed_set"
# Key of the file that lets colour images be read as gray, where it is true.
TO_GRAY_KEY = "to_gray"
LEAST_TO_DIVIDE = 3  # images of a patient of a closed set: one to learn from, two to be compared
LISTED_PROBLEMS = 1000  # more lines than this hide the first ones; the error's `problems` holds every one


class ManifestError(ValueError):
    """A manifest, or the data it names, is refused; `problems` lists every reason found."""

    def __init__(self, headline: str, problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)
        lines = [headline, *(f"  - {problem}" for problem in self.problems[:LISTED_PROBLEMS])]
        if len(self.problems) > LISTED_PROBLEMS:
            lines.append(f"  ... and {len(self.problems) - LISTED_PROBLEMS} more")
        super().__init__("\n".join(lines))


@dataclass
class Manifest:
    """A validated manifest: `parts` maps every name of PARTS to its entries, `extra` holds the file's other keys."""

    path: Path
    classes: list[str]
    parts: dict[str, list[dict[str, Any]]]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder that image paths are relative to."""
        return self.path.parent

    @property
    def num_classes(self) -> int:
        """Number of findings that an image can have."""
        return len(self.classes)

    @property
    def closed_set(self) -> bool:
        """Whether a patient may be in several parts, each time with other images."""
        return self.extra.get(CLOSED_SET_KEY) is True

    @property
    def to_gray(self) -> bool:
        """Whether colour images may be read as gray."""
        return self.extra.get(TO_GRAY_KEY) is True

    def image_path(self, entry: Mapping[str, Any]) -> Path:
        """Where an entry's image lies."""
        return Path(os.path.normpath(self.folder / entry["image"]))


def load_manifest(path: str | Path) -> Manifest:
    """Read and validate a manifest file, or the manifest.json of a folder.

    Raises:
        ManifestError: with every problem found: unreadable JSON, missing parts or columns, labels out of range, missing
            image files, an image listed twice, a patient in two parts (unless the file is a `closed_set`). What only
            shows in the pixels is checked where they are read (`monai_anon.image_store`).
    """
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST_NAME
    path = path.parent.resolve() / path.name  # ".." in an image's path means the real folder's parent, link or not
    content = _read_json(path)
    problems = _top_level_problems(content)
    if problems:
        raise ManifestError(f"{path} is no valid manifest:", problems)
    manifest = Manifest(
        path=path,
        classes=content["classes"],
        parts={part: content[part] for part in PARTS},
        extra={key: value for key, value in content.items() if key not in (*PARTS, "classes")},
    )
    problems = entry_problems(manifest.parts, manifest.classes, manifest.folder, manifest.closed_set)
    if problems:
        raise ManifestError(f"{path}: {len(problems)} problem(s):", problems)
    return manifest


def save_manifest(
    path: str | Path,
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    classes: Sequence[str],
    *,
    extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a manifest in one step (all of it or nothing) and return its path.

    Args:
        path: the file, or an existing folder that gets a manifest.json.
        parts: entries by part; a part that is left out is written as an empty list.
        extra: further keys of the file, such as the settings of a generated cohort or `closed_set`.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and `overwrite` is false.
        ManifestError: unknown parts, classes or entries that `load_manifest` would refuse (image files included).
    """
    path = Path(path)
    if path.is_dir():
        path = path / MANIFEST_NAME
    path = path.parent.resolve() / path.name
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; --overwrite replaces it, or choose another place")
    unknown = sorted(set(parts) - set(PARTS)) + sorted(set(extra or {}) & {*PARTS, "classes"})
    if unknown:
        raise ManifestError(f"{path}: no such part(s): {', '.join(unknown)}; a manifest's parts are {', '.join(PARTS)}")
    content: dict[str, Any] = {
        **(extra or {}),
        "classes": list(classes),
        **{part: [dict(entry) for entry in parts.get(part, ())] for part in PARTS},
    }
    problems = _top_level_problems(content) or entry_problems(
        {part: content[part] for part in PARTS}, content["classes"], path.parent, content.get(CLOSED_SET_KEY) is True
    )
    if problems:
        raise ManifestError(f"{path} is not written, {len(problems)} problem(s):", problems)
    return write_bytes(path, _as_json(content).encode("utf-8"), overwrite)


def split_patients(
    entries: Sequence[dict[str, Any]], fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Split entries into training, validation and test so that no patient is in two parts.

    Patients are stratified by their findings x (they have two or more images): the patients of each stratum are
    shuffled, strata follow one another, and each patient goes to the part that lags most behind its fraction. So every
    part's share is right within about one patient in every stratum and in total. `fractions` count patients, not
    images. The result does not depend on the order of `entries`, whose order is kept inside a part.

    Raises:
        ValueError: fractions that are not three, are negative or do not sum to 1.
    """
    shares = _shares(fractions)
    findings: dict[str, list[int]] = defaultdict(list)
    for entry in entries:
        findings[entry["patient"]].append(entry["finding"])
    strata: dict[tuple, list[str]] = defaultdict(list)
    for patient in sorted(findings):
        strata[(tuple(sorted(set(findings[patient]))), len(findings[patient]) > 1)].append(patient)
    generator = np.random.default_rng(seed)
    part_of: dict[str, str] = {}
    assigned = np.zeros(len(PARTS))
    for stratum in sorted(strata):
        for patient in generator.permutation(np.asarray(strata[stratum], dtype=object)):
            part = int(np.argmax(shares * (len(part_of) + 1) - assigned))
            part_of[patient] = PARTS[part]
            assigned[part] += 1
    return {part: [entry for entry in entries if part_of[entry["patient"]] == part] for part in PARTS}


def split_images(
    entries: Sequence[dict[str, Any]], fractions: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Divide the images of each patient over training, validation and test, for a closed set.

    Everybody is in training. A patient has two images or more in another part, or none: who is compared with people
    needs two. So patients with fewer than `LEAST_TO_DIVIDE` images are in training only; `fractions` count the images
    of all others. The result does not depend on the order of `entries`, whose order is kept inside a part.

    Raises:
        ValueError: fractions that are not three, are negative, do not sum to 1, or leave nothing for training.
    """
    shares = _shares(fractions)
    if not shares[0]:
        raise ValueError(f"fractions {tuple(fractions)}: in a closed set everybody is in training, which gets nothing")
    images: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(entries)), key=lambda index: str(entries[index]["image"])):
        images[entries[index]["patient"]].append(index)
    generator = np.random.default_rng(seed)
    part_of = dict.fromkeys(range(len(entries)), PARTS[0])
    given, divided = np.zeros(len(PARTS)), 0
    for patient in generator.permutation(np.asarray(sorted(images), dtype=object)):
        own = generator.permutation(images[patient]).tolist()
        if len(own) < LEAST_TO_DIVIDE:
            continue
        divided += len(own)
        for place in range(len(PARTS) - 1, 0, -1):
            # What the part lacks, as far as the patient's first image is left for training.
            count = min(round(shares[place] * divided - given[place]), len(own) - 1)
            if count > 1:
                part_of |= dict.fromkeys(own[-count:], PARTS[place])
                given[place] += count
                del own[-count:]
    return {part: [entry for index, entry in enumerate(entries) if part_of[index] == part] for part in PARTS}


def _shares(fractions: Sequence[float]) -> np.ndarray:
    """The parts' fractions as an array; ValueError where they are not three, negative or do not sum to 1."""
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (len(PARTS),) or not np.isfinite(shares).all() or (shares < 0).any():
        raise ValueError(f"fractions {tuple(fractions)}: give three numbers >= 0, for {', '.join(PARTS)}")
    if abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"fractions {tuple(fractions)} sum to {shares.sum():g}; they must sum to 1")
    return shares


def entry_problems(
    parts: Mapping[str, Sequence[Any]], classes: Sequence[str], folder: Path, closed_set: bool = False
) -> list[str]:
    """Every reason to refuse these entries: columns, labels, image files, images listed twice, shared patients.

    Args:
        closed_set: patients may be in several parts.
    """
    problems: list[str] = []
    first_image: dict[str, str] = {}
    patient_parts: dict[str, dict[str, str]] = defaultdict(dict)
    for part, entries in parts.items():
        for index, entry in enumerate(entries):
            where = f"{part}[{index}]"
            if not isinstance(entry, dict):
                problems.append(f"{where} is {_shown(entry)}; an entry is an object with image, patient and finding")
                continue
            image = entry.get("image")
            if isinstance(image, str) and image:
                where = f"{where} {image}"
                problems += _image_problems(image, where, folder, first_image)
            problems += [f"{where}: {reason}" for reason in _column_problems(entry, classes)]
            if isinstance(entry.get("patient"), str):
                patient_parts[entry["patient"]].setdefault(part, where)
    if closed_set:
        return problems
    for places in patient_parts.values():
        if len(places) > 1:
            problems.append(
                f"one patient in {len(places)} parts: {', '.join(places.values())}; a patient's images must all be "
                f'in one part, unless the manifest says "{CLOSED_SET_KEY}": true'
            )
    return problems


def _image_problems(image: str, where: str, folder: Path, first_image: dict[str, str]) -> list[str]:
    """Is the file there, not empty and listed once; `first_image` remembers what was seen."""
    full = os.path.normpath(folder / image)
    if full in first_image:
        return [f"{where}: the same image as {first_image[full]}; list an image once"]
    first_image[full] = where
    try:
        status = os.stat(full)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return [f"{where}: no such image ({reason}); paths are relative to {folder}"]
    if os.path.isdir(full):
        return [f"{where}: is a folder, not an image"]
    return [f"{where}: the file is empty (0 bytes)"] if status.st_size == 0 else []


def _column_problems(entry: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """What is wrong with an entry's own columns."""
    reasons = [f"column '{column}' is missing" for column in ("image", "patient", "finding") if column not in entry]
    if "image" in entry and not (isinstance(entry["image"], str) and entry["image"]):
        reasons.append(f"image is {_shown(entry['image'])}; it must be a path relative to the manifest")
    if "patient" in entry and not (isinstance(entry["patient"], str) and entry["patient"].strip()):
        reasons.append(
            f"patient is a {type(entry['patient']).__name__} or empty; it must be a string that names the patient"
        )
    finding = entry.get("finding", 0)
    if isinstance(finding, bool) or not isinstance(finding, int):
        reasons.append(f"finding is {_shown(finding)}; it must be an integer from 0 to {len(classes) - 1}")
    elif not 0 <= finding < len(classes):
        reasons.append(
            f"finding {finding} is out of range; it must be from 0 to {len(classes) - 1} ({', '.join(classes)})"
        )
    return reasons


def _top_level_problems(content: Any) -> list[str]:
    """What is wrong with the file's outer form."""
    if not isinstance(content, dict):
        return [f"it holds {_shown(content)}; a manifest is an object with {', '.join(PARTS)} and classes"]
    problems = []
    for part in PARTS:
        if part not in content:
            others = [
                key for key, value in content.items() if isinstance(value, list) and key not in (*PARTS, "classes")
            ]
            hint = f" (it has {', '.join(others)})" if others else ""
            problems.append(f"part '{part}' is missing{hint}; write an empty list if there is none")
        elif not isinstance(content[part], list):
            problems.append(f"'{part}' is {_shown(content[part])}; it must be a list of entries")
    if not problems and not any(content[part] for part in PARTS):
        problems.append("all parts are empty")
    for key in (CLOSED_SET_KEY, TO_GRAY_KEY):
        if not isinstance(said := content.get(key, False), bool):
            problems.append(f"'{key}' is {_shown(said)}; it must be true or false")
    classes = content.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) and name for name in classes):
        problems.append(
            f"'classes' is {_shown(classes)}; it must be the list of the findings' names, in the order of their numbers"
        )
    elif len(set(classes)) < len(classes):
        problems.append(f"'classes' names a finding twice: {', '.join(classes)}")
    return problems


def _read_json(path: Path) -> Any:
    """The content of a JSON file; ManifestError says why it cannot be had."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ManifestError(
            f"{path}: there is no manifest here; give a manifest.json or the folder that holds one"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ManifestError(f"{path} is no valid JSON: {error}") from error


def _as_json(content: Mapping[str, Any]) -> str:
    """JSON with one line an entry, so that two manifests can be compared line by line."""
    lines = []
    for key, value in content.items():
        if key in PARTS and value:
            rows = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False, allow_nan=False)}" for entry in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _shown(value: Any) -> str:
    """A value as an error shows it: short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
