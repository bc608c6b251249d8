"""The certificate of a release: what was done with what, and how much the copies say; JSON, and a page for people.

It is handed over with the copies, so it holds no names, no latents, no key, and nothing of single images: counts over
the release, and how like the copies are to the *training* patients, which is decided by code and noise alone. How like
they are to their originals is no business of a recipient's (`gated_release`); `--site-record` keeps that on site. Why
images were withheld is told from `FEWEST` of them on: of a few, the reason would be another outcome. The schema is
docs/certificate.schema.json.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from monai_anon import __version__
from monai_anon.channel import Channel
from monai_anon.gate import Comparator, Gate
from monai_anon.gated_release import TRIES, default_check
from monai_anon.pages import templates
from monai_anon.pseudonyms import TOO_MANY
from monai_anon.release import Outcome
from monai_anon.whole_files import write_text

FORMAT = "monai-anon certificate 1"
JSON_FILE, PAGE_FILE = "certificate.json", "certificate.html"
FEWEST = 10
_LIBRARIES = ("torch", "monai", "numpy", "pillow", "pydicom", "nibabel", "dicom-anonymizer")
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass
class Tally:
    """What became of the files of a release, in counts that several processes add up.

    Args:
        released: copies.
        withheld: images; `reasons` has how many for each, of which one image may have several.
        beyond: images that were more of a patient than asked for.
        refused: files that could not be read, or whose copy could not be written.
        training: by comparator how many copies are how like the nearest training patient, in hundredths.
    """

    released: int = 0
    withheld: int = 0
    beyond: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    training: dict[str, Counter[float]] = field(default_factory=dict)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Count what became of some files."""
        for outcome in outcomes:
            if outcome.refusal is None:
                self.add_copy({} if outcome.decision is None else outcome.decision.shareable()["training"])
            else:
                self.add_refusal(outcome.refusal.withheld)

    def add_copy(self, training: Mapping[str, float]) -> None:
        """Count a copy, with how like it is to training patients."""
        self.released += 1
        for name, likeness in training.items():
            self.training.setdefault(name, Counter())[likeness] += 1

    def add_refusal(self, withheld: tuple[str, ...]) -> None:
        """Count a file of which there is no copy."""
        if TOO_MANY in withheld:
            self.beyond += 1
        elif withheld:
            self.withheld += 1
            self.reasons.update(withheld)
        else:
            self.refused += 1

    def join(self, other: Tally) -> None:
        """Add another one's counts."""
        self.released += other.released
        self.withheld += other.withheld
        self.beyond += other.beyond
        self.refused += other.refused
        self.reasons.update(other.reasons)
        for name, counts in other.training.items():
            self.training.setdefault(name, Counter()).update(counts)


@dataclass(frozen=True)
class Model:
    """Which model made a release."""

    name: str
    version: str
    weights: str

    @staticmethod
    def of(bundle: Path, model_file: Path) -> Model:
        """Name and version by the bundle's metadata, where it has any, and the SHA-256 of the weights."""
        file = bundle / "configs" / "metadata.json"
        about = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        weights = hashlib.sha256(model_file.read_bytes()).hexdigest()
        return Model(str(about.get("name", "unnamed")), str(about.get("version", "none")), weights)


@dataclass(frozen=True)
class Pseudonyms:
    """Who a release is of.

    Args:
        identity: whose the synthetic identity is: "patient", the same for all images of one, or "image".
        patients: where it is known from whose image is whose: "header", "table", "folders"; None where it is not.
        images: how many patients have how many images that were released or withheld.
        most: images of a patient that were to go on at most.
    """

    identity: str
    patients: str | None
    images: Mapping[int, int]
    most: int | None


def certificate(
    model: Model,
    statement: Mapping[str, Any],
    channel: Channel | None,
    gate: Gate | None,
    who: Pseudonyms,
    tally: Tally,
) -> dict[str, Any]:
    """The certificate, as the schema has it."""
    bits, epsilon = statement["bits"], statement["epsilon"]
    told = tally.withheld >= FEWEST
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "model": asdict(model),
        "policy": {name: statement[name] for name in ("policy", "prototypes", "patients", "epsilon", "form", "header")},
        "bound": {
            "bits_an_image": bits,
            "epsilon_an_image": epsilon,
            "pseudonyms": [
                {
                    "images": images,
                    "pseudonyms": count,
                    "bits": None if bits is None else round(images * bits, 3),
                    "epsilon": None if epsilon is None else images * epsilon,
                }
                for images, count in who.images.items()
            ],
        },
        "identities": {"one_for_each": who.identity, "patients_known_from": who.patients, "most_images": who.most},
        "gate": None if gate is None or channel is None else _gate(gate, channel),
        "counts": {
            "released": tally.released,
            "withheld": tally.withheld,
            "withheld_beyond_most_images": tally.beyond,
            "refused_files": tally.refused,
        },
        "withheld_for": dict(sorted(tally.reasons.items())) if told else None,
        "likeness_to_training": {name: _distribution(counts) for name, counts in sorted(tally.training.items())},
        "software": {"monai-anon": __version__, "python": platform.python_version()} | _versions(),
    }


def _gate(gate: Gate, channel: Channel) -> dict[str, Any]:
    return {
        "digest": gate.digest(),
        "judges": gate.judges is not None,
        "tolerance": gate.tolerance,
        "draws": TRIES,
        "comparison_with_original": default_check(channel).value,
        "comparators": [_comparator(comparator) for comparator in gate.comparators],
    }


def _comparator(comparator: Comparator) -> dict[str, Any]:
    found, gallery = comparator.calibration, comparator.gallery
    assert found is not None and gallery is not None  # else the gate lets nothing pass, and there is no release
    return {
        "name": comparator.name,
        "weights": comparator.encoder,
        "gallery": {"patients": gallery.patients, "images": len(gallery.vectors)},
        "thresholds": {"original": asdict(found.original), "training": asdict(found.training)},
    }


def _distribution(counts: Counter[float]) -> dict[str, float]:
    """Mean and quartiles of values that are counted."""
    total, values = sum(counts.values()), sorted(counts)
    least, lower, median, upper, most = (_quantile(counts, values, share * (total - 1)) for share in _QUANTILES)
    mean = sum(value * count for value, count in counts.items()) / total
    quartiles = {"least": least, "lower": lower, "median": median, "upper": upper, "most": most}
    return {"copies": total, "mean": round(mean, 3), **quartiles}


def _quantile(counts: Counter[float], values: list[float], place: float) -> float:
    for value in values:
        place -= counts[value]
        if place < 0:
            return value
    return values[-1]


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_certificate(folder: Path, content: Mapping[str, Any]) -> None:
    """JSON and page, each whole or not at all."""
    write_text(folder / JSON_FILE, json.dumps(content, indent=2, ensure_ascii=True) + "\n")
    write_text(folder / PAGE_FILE, page(content))


def page(content: Mapping[str, Any]) -> str:
    """The certificate for people: one file that loads nothing."""
    return templates("monai_anon").get_template("certificate.html.j2").render(c=content, fewest=FEWEST)
