"""P10: which of the training people is it? A classifier, in a closed set: a test image's person is in training.

The paper's privacy figure for multi-class identity (section 4.3) is the largest confidence of such a network on
anonymised images; ideally each of N people gets 1 / N. That alone says little: a network is sure of much that it has
never seen the like of, and sure of the wrong person. So confidences are calibrated (one temperature, Guo et al. 2017,
on untouched validation images), and the accuracy, whose chance is known, stands beside them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor, nn

from monai_anon.evaluation.judge_networks import backbone, batched
from monai_anon.evaluation.judge_training import augment, fit, seeded, take
from monai_anon.evaluation.metrics import weighted_mean
from monai_anon.evaluation.people import NOT_APPLICABLE, OUTSIDE, codes_among
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import JUDGES, Row

if TYPE_CHECKING:
    from monai_anon.evaluation.scene import Scene

Array = np.ndarray

SEED = 2000
"""Added to the scene's: the network's own, apart from the judges' and an anonymizer's."""
LEAST_BEYOND_CHANCE = 0.5
"""Of the way from chance to 1, what the accuracy on untouched images must have gone for any figure on released ones."""
COOLEST, HOTTEST = np.log(0.05), np.log(20.0)
DISJOINT = f"{NOT_APPLICABLE}: the manifest is no closed set, so no test person is among those that could be named"


@dataclasses.dataclass(frozen=True)
class Identifier:
    """The network, and how to read it.

    Args:
        network: images (B, C, H, W) in [-1, 1] to logits (B, K), one a training person.
        codes: (K,) the training part's code of each logit.
        temperature: logits are divided by it; None where no validation image could tell.
    """

    network: nn.Module
    codes: Array
    temperature: float | None
    device: torch.device

    @property
    def chance(self) -> float:
        """Accuracy of a guess, and the confidence of who knows nothing."""
        return 1.0 / len(self.codes)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Array:
        """(N, K) of images, uint8 or float in [-1, 1]."""
        self.network.eval()
        return batched(self.network, images, self.device, 256)[0].astype(np.float64)

    def classes(self, codes: Array) -> Array:
        """(N,) place of training codes among the logits; `OUTSIDE` stays what it is."""
        return np.where(codes == OUTSIDE, OUTSIDE, np.searchsorted(self.codes, codes))


def identification(subject: Subject, scene: Scene) -> list[Row]:
    """P10: an independent classifier of the training people, trained on real training images alone, names whom
    untouched and released test images show. It never sees the anonymizer; attackers that do are P2, P4 and P6.

    Returns:
        Of released images `identification_accuracy` (rank 1), `identification_chance`, `identification_confidence` (the
        mean of the largest, calibrated), `identification_confidence_ratio` (to chance),
        `identification_raw_confidence` (not calibrated: the paper's), `identification_true_confidence` (in the right
        person) and `identification_entropy` (0 to 1: of log N). Before them the network's own on untouched images, as
        the judges'. No figure where it is too weak there, nor where the manifest is no closed set.
    """
    if scene.silence:
        return [scene.silent(subject, "identification_accuracy", scene.silence)]
    if why := not_applicable(scene):
        return [scene.silent(subject, "identification_accuracy", why)]
    own = quality_rows(scene)
    if why := verdict(own):
        return [*own, scene.silent(subject, "identification_accuracy", why)]
    found = identifier(scene)
    rows = figures(subject, scene, [found.logits(one.images) for one in scene.releases(subject, "test")])
    rows.insert(1, scene.plain(subject, "identification_chance", found.chance, n=len(found.codes)))
    return [*own, *rows]


def not_applicable(scene: Scene) -> str:
    """Why nobody can be named here; empty where somebody can."""
    if not scene.closed_set:
        return DISJOINT
    if (scene.known == OUTSIDE).all():
        return f"{NOT_APPLICABLE}: the manifest says that it is a closed set, but no test person is in training"
    return "" if len(scene.training.patient.unique()) > 1 else f"{NOT_APPLICABLE}: there is one person only"


def verdict(own: Sequence[Row]) -> str:
    """Empty where the network knows enough people by untouched images, else the sentence in place of a figure."""
    named = {row.metric: row.value for row in own}
    accuracy, chance = named.get("identification_accuracy"), named.get("identification_chance")
    if accuracy is None or chance is None:
        return "no verdict on identification: the network's own accuracy was not measured"
    least = chance + LEAST_BEYOND_CHANCE * (1.0 - chance)
    if accuracy < least:
        return (
            f"no verdict on identification: the network names {accuracy:.3f} of untouched images right, below "
            f"{least:.2f} (chance is {chance:.3f})"
        )
    return ""


def identified(subject: Subject, scene: Scene, generated: Tensor) -> list[Row]:
    """Two columns of Table 3 in a closed set, of images (N, C, S, S) in [-1, 1] made of the test part:
    `judge_identification_accuracy` and `judge_identification_confidence`, the paper's overall accuracy.
    """
    prefix = "judge_identification"
    if why := scene.silence or not_applicable(scene) or verdict(quality_rows(scene)):
        return [scene.silent(subject, f"{prefix}_{name}", why) for name in ("accuracy", "confidence")]
    return figures(subject, scene, [identifier(scene).logits(generated)], prefix)[:2]


# ---- figures ----


def quality_rows(scene: Scene) -> list[Row]:
    """The network's own figures on untouched test images, as the judges'; their confidence less their accuracy tells
    whether they are calibrated.
    """
    if "identification quality" not in scene.memo:
        found, untouched = identifier(scene), Subject(JUDGES, lambda images, _: images)
        logits = found.logits(scene.test.images)
        rows = figures(untouched, scene, [logits])
        rows.insert(1, scene.plain(untouched, "identification_chance", found.chance, n=len(found.codes)))
        p = probabilities(logits, found.temperature)
        over = p.max(axis=1) - hits(p, found.classes(scene.known))
        scene.memo["identification quality"] = [*rows, scene.mean(untouched, "identification_overconfidence", over)]
    rows = scene.memo["identification quality"]
    return list(rows)


def figures(subject: Subject, scene: Scene, logits: Sequence[Array], prefix: str = "identification") -> list[Row]:
    """The rows of logits (N, K) of the test images, one for each release; every figure is the mean over them."""
    found = identifier(scene)
    true, calibrated = found.classes(scene.known), [probabilities(one, found.temperature) for one in logits]
    note = "" if found.temperature is not None else "not calibrated: no validation image of a training person"

    def mean(values: Sequence[Array]) -> Array:
        total: Array = np.mean(values, axis=0)
        return total

    largest = mean([p.max(axis=1) for p in calibrated])
    single = np.where(true == OUTSIDE, np.nan, 1.0)
    rows = [
        scene.share(subject, f"{prefix}_accuracy", mean([hits(p, true) for p in calibrated])),
        scene.mean(subject, f"{prefix}_confidence", largest, note=note),
        scene.row(
            subject, f"{prefix}_confidence_ratio", lambda w: weighted_mean(largest, w) / found.chance,
            note=note or f"times chance; 1 is ideal, {len(found.codes)} certainty",
        ),
        scene.mean(subject, f"{prefix}_raw_confidence", mean([probabilities(one, 1.0).max(axis=1) for one in logits])),
        scene.mean(subject, f"{prefix}_true_confidence", single * mean([own(p, true) for p in calibrated]), note=note),
        scene.mean(subject, f"{prefix}_entropy", mean([entropy(p) for p in calibrated]), note=note),
    ]  # fmt: skip
    return rows


def probabilities(logits: Array, temperature: float | None) -> Array:
    """(N, K) of logits (N, K) at a temperature; None is 1."""
    found: Array = np.exp(log_softmax(logits / (temperature or 1.0), axis=1))
    return found


def hits(p: Array, true: Array) -> Array:
    """Whether the right one is the most probable: (N,) in [0, 1], shared among equals; NaN for who is outside."""
    top = p >= p.max(axis=1, keepdims=True)
    return np.where(true == OUTSIDE, np.nan, own(top / top.sum(axis=1, keepdims=True), true))


def own(p: Array, true: Array) -> Array:
    """(N,) what of (N, K) belongs to the right one."""
    return np.take_along_axis(p, np.maximum(true, 0)[:, None], axis=1)[:, 0]


def entropy(p: Array) -> Array:
    """(N,) of probabilities (N, K), as a share of the largest there is, log K."""
    found: Array = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1) / np.log(p.shape[1])
    return found


# ---- the network ----


def identifier(scene: Scene) -> Identifier:
    """The scene's classifier of its training people, trained once."""
    if "identifier" not in scene.memo:
        scene.memo["identifier"] = train_identifier(scene)
    found: Identifier = scene.memo["identifier"]
    return found


def train_identifier(scene: Scene) -> Identifier:
    """Learns the training people from real training images in `Scene.steps` batches (cross entropy), keeps the best
    state on validation images, and is calibrated on them.
    """
    training, schedule, device, seed = scene.training, scene.schedule, scene.device, SEED + scene.seed
    codes, target = np.unique(training.patient.numpy(), return_inverse=True)
    targets = torch.from_numpy(target).to(device)
    network: Any = seeded(lambda: backbone(training.images.shape[1], schedule.planes, len(codes)), seed, device)
    found = Identifier(network, codes, None, torch.device(device))
    draw, generator = np.random.default_rng(seed), torch.Generator(device).manual_seed(seed)
    images, true = checked_images(scene, found)

    def loss() -> Tensor:
        index = draw.choice(len(target), min(schedule.batch_size, len(target)), replace=False)
        shown = augment(take(training.images, index, device), generator, schedule.blur)
        return F.cross_entropy(network(shown), targets[torch.from_numpy(index).to(device)])

    def score() -> float:
        return float(hits(found.logits(images), true).mean()) if len(true) else float("nan")

    fit(network, loss, score, scene.steps, schedule, scene.title("identification"))
    return dataclasses.replace(found, temperature=temperature_of(found.logits(images), true)) if len(true) else found


def checked_images(scene: Scene, found: Identifier) -> tuple[Tensor, Array]:
    """The validation images of training people, uint8 (N, C, S, S), and whom they show (N,); none without them."""
    if scene.validation is None:
        return scene.training.images[:0], np.empty(0, dtype=np.int64)
    true = found.classes(codes_among(scene.training, scene.validation))
    there = np.flatnonzero(true != OUTSIDE)
    return scene.validation.images[torch.from_numpy(there)], true[there]


def temperature_of(logits: Array, true: Array) -> float:
    """The temperature at which logits (N, K) give the right ones (N,) the largest likelihood (Guo et al. 2017)."""

    def surprise(log_temperature: float) -> float:
        return -float(own(log_softmax(logits / np.exp(log_temperature), axis=1), true).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(COOLEST, HOTTEST), method="bounded").x))
