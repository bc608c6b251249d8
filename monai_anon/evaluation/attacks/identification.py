"""P10: which of the training people is it? A classifier, in a closed set: a test image's person is in training.

The paper's privacy figure for multi-class identity (section 4.3) is the largest confidence of such a network on
anonymised images; ideally each of N people gets 1 / N. That alone says little: a network is sure of much that it has
never seen the like of, and sure of the wrong person. So confidences are calibrated (one temperature, Guo et al. 2017,
on untouched validation images), the accuracy, whose chance is known, stands beside them, and so does how sure the
network is of people whom it was never shown. A second network goes on learning from releases and is calibrated on
releases: its confidence is what who has the anonymizer may believe.
"""

from __future__ import annotations

import copy
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
COOLEST, HOTTEST = np.log(0.05), np.log(1000.0)
LEFT_OUT, LEAST_LEFT_OUT = 10, 5
"""One of so many training people is not shown to the network, where at least so many would be: strangers to it."""
ADAPTED = "identification_adapted"
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
        """(N,) place of training codes among the logits; `OUTSIDE` for who has none."""
        place = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        return np.where(self.codes[place] == codes, place, OUTSIDE)


def identification(subject: Subject, scene: Scene) -> list[Row]:
    """P10: an independent classifier of the training people, trained on real training images alone, names whom
    untouched and released test images show; then one that has gone on with releases of the training part.

    Returns:
        Of released images `identification_accuracy` (rank 1), `identification_chance`, `identification_confidence` (the
        mean of the largest, calibrated), `identification_confidence_ratio` (to chance),
        `identification_raw_confidence` (not calibrated: the paper's), `identification_true_confidence` (in the right
        person) and `identification_entropy` (0 to 1: of log N), and the same as `identification_adapted_*` of the
        network that learnt releases, calibrated on the validation part's. Before them the first one's own on untouched
        images, as the judges', and `identification_stranger_confidence`, on people whom it was not shown. No figure
        where it is too weak there, nor where the manifest is no closed set.
    """
    if scene.silence:
        return [scene.silent(subject, "identification_accuracy", scene.silence)]
    if why := not_applicable(scene):
        return [scene.silent(subject, "identification_accuracy", why)]
    own = quality_rows(scene)
    if why := verdict(own):
        return [*own, scene.silent(subject, "identification_accuracy", why)]
    found, asked = identifier(scene), scene.releases(subject, "test")
    rows = figures(subject, scene, found, [found.logits(one.images) for one in asked])
    rows.insert(1, scene.plain(subject, "identification_chance", found.chance, n=len(found.codes)))
    after = adapted(subject, scene)
    return [*own, *rows, *figures(subject, scene, after, [after.logits(one.images) for one in asked], ADAPTED)]


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
    found = identifier(scene)
    return figures(subject, scene, found, [found.logits(generated)], prefix)[:2]


# ---- figures ----


def quality_rows(scene: Scene) -> list[Row]:
    """The network's own figures on untouched test images, as the judges'; their confidence less their accuracy tells
    whether they are calibrated.
    """
    if "identification quality" not in scene.memo:
        found, untouched = identifier(scene), Subject(JUDGES, lambda images, _: images)
        logits = found.logits(scene.test.images)
        rows = figures(untouched, scene, found, [logits])
        rows.insert(1, scene.plain(untouched, "identification_chance", found.chance, n=len(found.codes)))
        p = probabilities(logits, found.temperature)
        largest, true = p.max(axis=1), found.classes(scene.known)
        stranger = np.where(true == OUTSIDE, largest, np.nan)
        scene.memo["identification quality"] = [
            *rows,
            scene.mean(untouched, "identification_overconfidence", largest - hits(p, true)),
            scene.mean(untouched, "identification_stranger_confidence", stranger),
        ]
    rows = scene.memo["identification quality"]
    return list(rows)


def figures(
    subject: Subject, scene: Scene, found: Identifier, logits: Sequence[Array], prefix: str = "identification"
) -> list[Row]:
    """The rows of logits (N, K) of the test images, one for each release; every figure is the mean over them."""
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
    state on validation images, and is calibrated on them. One person in ten is left out.
    """
    training, schedule, seed = scene.training, scene.schedule, SEED + scene.seed
    people = np.unique(training.patient.numpy())
    strangers = len(people) // LEFT_OUT if len(people) // LEFT_OUT >= LEAST_LEFT_OUT else 0
    codes = np.sort(np.random.default_rng(seed).choice(people, len(people) - strangers, replace=False))
    device = torch.device(scene.device)
    network: Any = seeded(lambda: backbone(training.images.shape[1], schedule.planes, len(codes)), seed, device)
    images = [] if scene.validation is None else [scene.validation.images]
    return learn(Identifier(network, codes, None, device), scene, [training.images], images, "identification")


def adapted(subject: Subject, scene: Scene) -> Identifier:
    """The scene's identifier after as many batches more, of releases of the training part; the best state on releases
    of the validation part is kept, and calibrated on them.
    """
    found = identifier(scene)
    known = [one.images for one in scene.releases(subject, "training")]
    checked = [] if scene.validation is None else [one.images for one in scene.releases(subject, "validation")]
    start = dataclasses.replace(found, network=copy.deepcopy(found.network))
    return learn(start, scene, known, checked, f"{subject.name}: identification, adapted")


def learn(
    start: Identifier, scene: Scene, known: Sequence[Tensor], checked: Sequence[Tensor], title: str
) -> Identifier:
    """Fits a network to the training people whom it can name.

    Args:
        known: uint8 (N, C, S, S) versions of the training images, from which each batch is drawn.
        checked: versions of the validation images, by which it stops and is calibrated; none for neither.
    """
    schedule, device, seed = scene.schedule, start.device, SEED + scene.seed
    target = start.classes(scene.training.patient.numpy())
    there, targets = np.flatnonzero(target != OUTSIDE), torch.from_numpy(target)
    draw, generator = np.random.default_rng(seed), torch.Generator(device).manual_seed(seed)

    def loss() -> Tensor:
        index = draw.choice(there, min(schedule.batch_size, len(there)), replace=False)
        images = known[int(draw.integers(len(known)))]
        shown = augment(take(images, index, device), generator, schedule.blur)
        return F.cross_entropy(start.network(shown), targets[torch.from_numpy(index)].to(device))

    where, true = checked_images(scene, start)
    seen = [images[where] for images in checked] if len(true) else []

    def score() -> float:
        return float(np.mean([hits(start.logits(images), true).mean() for images in seen])) if seen else float("nan")

    fit(start.network, loss, score, scene.steps, schedule, scene.title(title))
    if not seen:
        return dataclasses.replace(start, temperature=None)
    logits = np.concatenate([start.logits(images) for images in seen])
    return dataclasses.replace(start, temperature=temperature_of(logits, np.tile(true, len(seen))))


def checked_images(scene: Scene, found: Identifier) -> tuple[Tensor, Array]:
    """Which validation images show somebody whom the network can name (N,), and whom; none without such a part."""
    if scene.validation is None:
        return torch.empty(0, dtype=torch.int64), np.empty(0, dtype=np.int64)
    true = found.classes(codes_among(scene.training, scene.validation))
    there = np.flatnonzero(true != OUTSIDE)
    return torch.from_numpy(there), true[there]


def temperature_of(logits: Array, true: Array) -> float:
    """The temperature at which logits (N, K) give the right ones (N,) the largest likelihood (Guo et al. 2017)."""

    def surprise(log_temperature: float) -> float:
        return -float(own(log_softmax(logits / np.exp(log_temperature), axis=1), true).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(COOLEST, HOTTEST), method="bounded").x))
