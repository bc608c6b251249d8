"""The privacy gate: whether a finished image may leave. What cannot be checked does not.

Looked at are the pixels as they would be written, after rounding to 8 bits, not the latents that were drawn. Each
`Comparator`, the model's own encoder and where there is one the site's verifier, must find them far from every training
patient and from the original's; the model's classifier and the medical judge must find the finding. Thresholds are
those of `gate_calibration`. `Gate.inspect` looks at what was drawn alone, `Gate.compare` at the original as well:
`gated_release` says why that is not one question.

A gate that lacks something is still a gate: it withholds everything, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.copies import RANGE_TOLERANCE
from monai_anon.datasets import file_digest
from monai_anon.evaluation.judges import Judges
from monai_anon.gallery_search import GalleryError, OtherModelError, SearchableGallery, unit
from monai_anon.gate_calibration import Calibration, CalibrationError
from monai_anon.readers import to_model_range, to_uint8

logger = logging.getLogger("monai_anon")

TOLERANCE = 0.2
"""By how much the probability of the finding may change."""
GALLERY, CALIBRATION = "gallery_{}.safetensors", "calibration_{}.json"
"""Files of a comparator in the site's folder, by its name."""


class Reason(str, Enum):
    """Why an image is withheld, in fixed words."""

    NO_GALLERY = "no gallery to compare with"
    NO_CALIBRATION = "no thresholds"
    OTHER_MODEL = "gallery or thresholds of another model"
    OTHER_GALLERY = "thresholds of another gallery"
    NO_JUDGES = "no judges"
    CHECK_FAILED = "a check could not be made"
    NOT_FINITE = "values that are not finite"
    OUT_OF_RANGE = "values out of range"
    CONSTANT = "a constant image"
    NEAR_TRAINING = "near a training patient"
    NOT_AS_DRAWN = "another finding than was drawn"
    NEAR_ORIGINAL = "near the original's patient"
    NOT_KEPT = "another finding than the original's"


@dataclass(frozen=True)
class Decision:
    """About one image, without identifiers.

    All but `shareable` stays on site: distances to an original are numbers that no bound on what passes counts.

    Args:
        reasons: why it is withheld; empty if it is released.
        training, original: similarity with the nearest training patient and with the original's, by comparator.
        change: of the finding's probability, by what it is compared with: "drawn", "original", "judge".
        tries: draws made.
    """

    reasons: tuple[Reason, ...] = ()
    training: Mapping[str, float] = field(default_factory=dict)
    original: Mapping[str, float] = field(default_factory=dict)
    change: Mapping[str, float] = field(default_factory=dict)
    tries: int = 1

    @property
    def released(self) -> bool:
        """Whether the image may leave."""
        return not self.reasons

    def joined(self, other: Decision) -> Decision:
        """Both: released where both release."""
        return Decision(
            tuple(dict.fromkeys(self.reasons + other.reasons)),
            {**self.training, **other.training},
            {**self.original, **other.original},
            {**self.change, **other.change},
            max(self.tries, other.tries),
        )

    def shareable(self) -> dict[str, Any]:
        """What a recipient may be told of one image: nothing that depends on the original but by its code, and whether
        it was released.
        """
        if not self.released:
            return {"released": False}
        return {"released": True, "training": {name: round(value, 2) for name, value in self.training.items()}}


@dataclass(frozen=True)
class Comparator:
    """One way to tell people apart, with the training patients as it sees them.

    Args:
        name: "model", "verifier".
        encoder: digest of its weights.
        embed: images `(B, C, S, S)` in [-1, 1] to vectors `(B, D)`.
        gallery, calibration: by the same weights; None where they are missing.
        trouble: why they are missing, where that is known.
    """

    name: str
    encoder: str
    embed: Callable[[Tensor], Tensor]
    gallery: SearchableGallery | None
    calibration: Calibration | None
    trouble: Reason | None = None

    def fault(self) -> Reason | None:
        """Why it cannot be used; None if it can."""
        if self.trouble is not None:
            return self.trouble
        if self.gallery is None:
            return Reason.NO_GALLERY
        if self.calibration is None:
            return Reason.NO_CALIBRATION
        if not self.encoder == self.gallery.encoder == self.calibration.encoder:
            return Reason.OTHER_MODEL
        return None if self.gallery.digest() == self.calibration.gallery else Reason.OTHER_GALLERY


def embedding(network: LatentSwapAnonymizer | Judges) -> Callable[[Tensor], Tensor]:
    """The vectors by which a model's encoder, or the judges' verifier, tells people apart."""
    if isinstance(network, Judges):
        return lambda images: torch.from_numpy(network.embed(images))
    device = next(network.parameters()).device
    return lambda images: network.disentangler.encode(images.to(device)).identity.float().cpu()


def read_comparator(name: str, network: LatentSwapAnonymizer | Judges, encoder: str, folder: Path) -> Comparator:
    """A comparator with its files in the site's folder; says what is wrong with them, and raises nothing."""
    gallery = calibration = trouble = None
    try:
        gallery = SearchableGallery.read(folder / GALLERY.format(name), encoder)
        calibration = Calibration.read(folder / CALIBRATION.format(name))
    except (GalleryError, CalibrationError) as error:
        logger.error("everything will be withheld: %s", error)
        trouble = Reason.OTHER_MODEL if isinstance(error, OtherModelError) else None
    return Comparator(name, encoder, embedding(network), gallery, calibration, trouble)


def read_gate(
    network: LatentSwapAnonymizer,
    model_file: str | Path,
    folder: str | Path,
    judges_file: str | Path | None = None,
    tolerance: float = TOLERANCE,
) -> Gate:
    """The gate of a site: its folder has the galleries and thresholds that `site.make_site` wrote.

    What is missing or does not fit is logged, and the gate then withholds everything.
    """
    return gate_of(network, file_digest(str(model_file)), folder, judges_file, tolerance)


def gate_of(
    network: LatentSwapAnonymizer,
    model: str,
    folder: str | Path,
    judges_file: str | Path | None = None,
    tolerance: float = TOLERANCE,
) -> Gate:
    """As `read_gate`, for a network whose file is not at hand: `model` is that file's digest."""
    comparators = [read_comparator("model", network, model, Path(folder))]
    judges, faults = None, []
    if judges_file is not None:
        try:
            judges = Judges.load(judges_file, next(network.parameters()).device)
            comparators.append(read_comparator("verifier", judges, file_digest(str(judges_file)), Path(folder)))
        except Exception as error:  # whatever the file is: without the judges nothing leaves
            logger.error("everything will be withheld: %s holds no judges (%s)", judges_file, type(error).__name__)
            faults = [Reason.NO_JUDGES]
    return Gate(network, comparators, judges, tolerance, faults)


class Gate:
    """Decides about finished images.

    Args:
        network: the anonymizer, for its classifier.
        comparators: at least one.
        judges: whose medical judge reads the finding, too; its classes must be the network's, in that order.
        tolerance: by how much the probability of the finding may change.
        faults: reasons to withhold everything, beside those found here.
    """

    def __init__(
        self,
        network: LatentSwapAnonymizer,
        comparators: Sequence[Comparator],
        judges: Judges | None = None,
        tolerance: float = TOLERANCE,
        faults: Sequence[Reason] = (),
    ):
        if not 0 < tolerance <= 1:
            raise ValueError(f"tolerance is {tolerance}; it must be above 0 and at most 1")
        self.network, self.comparators, self.judges, self.tolerance = network, list(comparators), judges, tolerance
        found = [fault for comparator in comparators if (fault := comparator.fault()) is not None]
        if not comparators:
            found.append(Reason.NO_GALLERY)
        self.faults: tuple[Reason, ...] = tuple(dict.fromkeys([*faults, *found]))

    def digest(self) -> str:
        """16 hex digits that tell this gate from another: its networks, galleries, thresholds and tolerance."""
        parts: list[Any] = [self.tolerance, self.judges is not None]
        for comparator in self.comparators:
            found = comparator.calibration
            parts.append([comparator.name, comparator.encoder, None if found is None else asdict(found)])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def inspect(self, generated: Tensor, drawn: Tensor) -> list[Decision]:
        """What can be said of images without their originals.

        Args:
            generated: the decoder's, `(B, C, S, S)`.
            drawn: probabilities `(B, K)` of the findings that the medical latents they are decoded from stand for.
        """
        return _fail_closed(self._inspect, self.faults, generated, drawn)

    def compare(self, pixels: Tensor, originals: Sequence[Tensor]) -> list[Decision]:
        """What their originals add.

        Args:
            pixels: finished images, uint8 `(B, C, S, S)`.
            originals: of each all known images of its patient, `(M, C, S, S)` in [-1, 1]; the first is the original.
        """
        return _fail_closed(self._compare, self.faults, pixels, originals)

    def findings(self, medical: Tensor) -> Tensor:
        """Probabilities `(B, K)` by the model's classifier of medical latents `(B, D)`, on the CPU."""
        return self.network.disentangler.classify(medical).float().softmax(1).cpu()

    def _read(self, images: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return self.findings(self.network.disentangler.encode(images.to(device)).medical)

    def _inspect(self, generated: Tensor, drawn: Tensor) -> list[Decision]:
        notes = [_Note() for _ in generated]
        finite = torch.isfinite(generated).flatten(1).all(1).cpu()
        _mark(notes, Reason.NOT_FINITE, finite)
        _mark(notes, Reason.OUT_OF_RANGE, ~(generated.abs().flatten(1).amax(1).cpu() > 1 + RANGE_TOLERANCE))
        pixels = written(generated)
        _mark(notes, Reason.CONSTANT, pixels.flatten(1).amax(1) > pixels.flatten(1).amin(1))
        images = to_model_range(pixels)
        for comparator in self.comparators:
            assert comparator.gallery is not None and comparator.calibration is not None  # else there is a fault
            similarity = comparator.gallery.nearest(comparator.embed(images))
            _mark_near(notes, "training", comparator.name, similarity, comparator.calibration.training.similarity)
        _mark_finding(notes, "drawn", self._read(images), drawn, self.tolerance)
        if self.judges is not None:
            finding = torch.from_numpy(self.judges.read(images)[0])
            _mark(notes, Reason.NOT_AS_DRAWN, finding.argmax(1) == drawn.argmax(1))
        return [note.decision() for note in notes]

    def _compare(self, pixels: Tensor, originals: Sequence[Tensor]) -> list[Decision]:
        notes, images = [_Note() for _ in pixels], to_model_range(pixels)
        known, counts = torch.cat(list(originals)), [len(images) for images in originals]
        for comparator in self.comparators:
            assert comparator.calibration is not None  # else there is a fault
            ours, theirs = unit(comparator.embed(images)), unit(comparator.embed(known))
            pairs = (ours.repeat_interleave(torch.tensor(counts), 0) * theirs).sum(1)
            similarity = torch.stack([part.max() for part in pairs.split(counts)])
            _mark_near(notes, "original", comparator.name, similarity, comparator.calibration.original.similarity)
        before = torch.stack([images[0] for images in originals])
        _mark_finding(notes, "original", self._read(images), self._read(before), self.tolerance)
        if self.judges is not None:
            seen, was = (torch.from_numpy(self.judges.read(batch)[0]) for batch in (images, before))
            _mark_finding(notes, "judge", seen, was, self.tolerance)
        return [note.decision() for note in notes]


def written(generated: Tensor) -> Tensor:
    """The pixels that would be written of images `(B, C, S, S)`, uint8 on the CPU; 0 for what is not finite."""
    return to_uint8(torch.nan_to_num(generated, nan=-1, posinf=-1, neginf=-1)).cpu()


# ---- What is found of each image ----


@dataclass
class _Note:
    reasons: list[Reason] = field(default_factory=list)
    numbers: dict[str, dict[str, float]] = field(default_factory=lambda: {"training": {}, "original": {}, "change": {}})

    def decision(self) -> Decision:
        training, original, change = (self.numbers[name] for name in ("training", "original", "change"))
        return Decision(tuple(dict.fromkeys(self.reasons)), training, original, change)


def _mark(notes: Sequence[_Note], reason: Reason, passes: Tensor) -> None:
    """Add a reason where an image does not pass."""
    for note, passed in zip(notes, passes.tolist(), strict=True):
        if not passed:
            note.reasons.append(reason)


def _mark_near(notes: Sequence[_Note], whom: str, name: str, similarity: Tensor, threshold: float) -> None:
    for note, value in zip(notes, similarity.tolist(), strict=True):
        note.numbers[whom][name] = value
    _mark(notes, Reason.CHECK_FAILED, torch.isfinite(similarity))
    _mark(notes, Reason.NEAR_ORIGINAL if whom == "original" else Reason.NEAR_TRAINING, ~(similarity >= threshold))


def _mark_finding(notes: Sequence[_Note], whom: str, after: Tensor, before: Tensor, tolerance: float) -> None:
    """The class that is likeliest before must be so after, and about as likely."""
    finding = before.argmax(1)
    change = (after - before).gather(1, finding[:, None])[:, 0].abs()
    for note, value in zip(notes, change.tolist(), strict=True):
        note.numbers["change"][whom] = value
    reason = Reason.NOT_AS_DRAWN if whom == "drawn" else Reason.NOT_KEPT
    _mark(notes, reason, (after.argmax(1) == finding) & (change <= tolerance))


def _fail_closed(
    check: Callable[[Any, Any], list[Decision]], faults: tuple[Reason, ...], first: Any, second: Any
) -> list[Decision]:
    """A check's decisions; where it breaks down, of each image alone, so that one does not take the others along."""
    if faults or not len(first):
        return [Decision(faults) for _ in first]
    try:
        return check(first, second)
    except Exception as error:  # whatever it is: what was not checked is withheld
        if len(first) > 1:
            return [
                d
                for row in range(len(first))
                for d in _fail_closed(check, (), first[row : row + 1], second[row : row + 1])
            ]
        logger.error("an image is withheld: a check of the gate ended with %s", type(error).__name__)
        return [Decision((Reason.CHECK_FAILED,))]
