"""P7: what else of the person can be read from a released image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anon.evaluation import metrics
from monai_anon.evaluation.judge_networks import backbone, batched
from monai_anon.evaluation.judge_training import fit, seeded, take
from monai_anon.evaluation.scene import Released, Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import Row

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

Array = np.ndarray
ATTRIBUTES = ("sex", "age", "view")
OF_THE_IMAGE = ("view",)  # no property of the person
LEAST_IMAGES = 5  # of a value in the test part
UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A column of the manifest as classes: codes of every part's images, `UNKNOWN` where not stated."""

    name: str
    note: str
    codes: dict[str, Array]
    classes: int


def attributes(subject: Subject, scene: Scene) -> list[Row]:
    """P7: sex, age (above or below the training part's median) and view, by a network trained on released images.

    Returns:
        `attribute_NAME_auc` for every such column that the manifest has; that of the method "none" is what the original
        gives away.
    """
    parts = {name: part for name in ("training", "validation", "test") if (part := scene.part(name)) is not None}
    found = [attribute for name in ATTRIBUTES if (attribute := read_attribute(name, parts)) is not None]
    if not found:
        return [
            scene.silent(subject, "attribute_auc", f"not measured: the manifest has none of {', '.join(ATTRIBUTES)}")
        ]
    return [attribute_row(subject, scene, attribute) for attribute in found]


def attribute_row(subject: Subject, scene: Scene, attribute: Attribute) -> Row:
    """The attribute's AUC on the released test images."""
    metric = f"attribute_{attribute.name}_auc"
    true = attribute.codes["test"]
    stated = true != UNKNOWN
    counts = np.bincount(true[stated], minlength=attribute.classes)
    if scene.silence and attribute.name not in OF_THE_IMAGE:
        return scene.silent(subject, metric, scene.silence)
    if (counts >= LEAST_IMAGES).sum() < 2:
        return scene.silent(subject, metric, f"not measured: too few test images state {attribute.name}")
    checked = scene.released(subject, "validation") if scene.validation else None
    network = train_reader(
        scene.releases(subject, "training"), checked, attribute, scene, f"{subject.name}: {attribute.name}"
    )
    shown = [one.images[torch.from_numpy(stated)] for one in scene.releases(subject, "test")]
    aucs = [metrics.finding_auc(probabilities(network, images, scene), true[stated]) for images in shown]

    def statistic(weights: Array) -> float:
        return float(np.mean([auc(weights[stated]) for auc in aucs]))

    return scene.row(subject, metric, statistic, n=int(stated.sum()), note=attribute.note)


def train_reader(
    known: Sequence[Released], checked: Released | None, attribute: Attribute, scene: Scene, title: str
) -> torch.nn.Module:
    """A network that reads the attribute from released images."""
    codes, draw = attribute.codes["training"], np.random.default_rng(scene.seed)
    usable = np.flatnonzero(codes != UNKNOWN)
    targets = torch.from_numpy(codes).to(scene.device)
    channels, planes = scene.training.images.shape[1], scene.schedule.planes
    network: torch.nn.Module = seeded(lambda: backbone(channels, planes, attribute.classes), scene.seed, scene.device)
    size = min(scene.schedule.batch_size, len(usable))

    def loss() -> Tensor:
        index = draw.choice(usable, size, replace=False)
        images = known[int(draw.integers(len(known)))].images
        return F.cross_entropy(network(take(images, index, scene.device)), targets[index])

    def score() -> float:
        if checked is None:
            return float("nan")
        true = attribute.codes["validation"]
        stated = true != UNKNOWN
        if len(np.unique(true[stated])) < 2:
            return float("nan")
        guesses = probabilities(network, checked.images[torch.from_numpy(stated)], scene)
        return metrics.finding_auc(guesses, true[stated])(np.ones(int(stated.sum())))

    trained: torch.nn.Module = fit(
        network, loss, score, scene.schedule.verifier_steps, scene.schedule, scene.title(title)
    )
    return trained


@torch.no_grad()
def probabilities(network: torch.nn.Module, images: Tensor, scene: Scene) -> Array:
    """(N, K) of uint8 images."""
    network.eval()
    return batched(lambda batch: network(batch).softmax(dim=1), images, scene.device, 256)[0]


def read_attribute(name: str, parts: dict[str, Cohort]) -> Attribute | None:
    """The column as classes; None where the training part states fewer than two values."""
    columns = {part: [_stated(entry.get(name)) for entry in cohort.entries] for part, cohort in parts.items()}
    values = [value for value in columns["training"] if value is not None]
    numbers = {part: [_number(value) for value in column] for part, column in columns.items()}
    if len(set(values)) > 2 and all(_number(value) is not None for value in values):
        middle = float(np.median([number for number in numbers["training"] if number is not None]))
        codes = {
            part: np.array([UNKNOWN if number is None else int(number > middle) for number in column], dtype=np.int64)
            for part, column in numbers.items()
        }
        note = f"above {middle:g} or not"
        names = 2
    else:
        known = sorted(set(values))
        index = {value: code for code, value in enumerate(known)}
        codes = {
            part: np.array(
                [index.get(value, UNKNOWN) if value is not None else UNKNOWN for value in column], dtype=np.int64
            )
            for part, column in columns.items()
        }
        note, names = f"{len(known)} values", len(known)
    if len(np.unique(codes["training"][codes["training"] != UNKNOWN])) < 2:
        return None
    return Attribute(name, note, codes, names)


def _stated(value: object) -> str | None:
    text = "" if value is None else str(value).strip()
    return text if text and text.lower() not in ("nan", "none", "unknown") else None


def _number(value: str | None) -> float | None:
    """A number, an age as DICOM writes it (058Y) or as tables do (90+); None for anything else."""
    found = None if value is None else re.fullmatch(r"(-?\d+(?:\.\d+)?)[Yy+]?", value)
    return None if found is None else float(found[1])
