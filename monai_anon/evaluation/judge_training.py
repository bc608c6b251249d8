"""How the judges learn: supervised loops on real training images, with their own seed, apart from the anonymizer."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor
from tqdm.auto import tqdm

from monai_anon.evaluation import metrics
from monai_anon.evaluation.judge_networks import (
    MedicalJudge,
    Verifier,
    batched,
    severities,
    side_codes,
    sides_of,
)
from monai_anon.readers import to_model_range

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort


LEAST_PLANES = 8


@dataclasses.dataclass(frozen=True)
class JudgeSchedule:
    """How the judges are trained: steps, images a step, AdamW's peak learning rate (cosine), widths of the ResNet, and
    the largest blur of what they look at (standard deviation over the image's side).
    """

    verifier_steps: int = 800
    medical_steps: int = 200
    medical_epochs: int = 20  # at most: more only overfits a small cohort
    batch_size: int = 128
    learning_rate: float = 3e-3
    temperature: float = 0.05
    planes: tuple[int, int, int, int] = (16, 32, 64, 128)
    blur: float = 0.025
    checks: int = 5  # times the validation part is looked at; the best state is kept

    def __post_init__(self) -> None:
        if min(self.planes) < LEAST_PLANES:
            raise ValueError(
                f"planes are {self.planes}; at least {LEAST_PLANES} each: with fewer, torch 2.13 writes beyond its "
                "memory on CPUs with AVX2 only (strided 1x1 convolutions, channels last)"
            )


SCHEDULE = JudgeSchedule()


def train_verifier(
    cohort: Cohort,
    validation: Cohort | None = None,
    *,
    seed: int = 0,
    schedule: JudgeSchedule = SCHEDULE,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Verifier:
    """Learns who is who from pairs of images of one patient (NT-Xent, Chen et al. 2020), other patients as negatives.

    Raises:
        ValueError: fewer than two patients have two images.
    """
    pairs = PatientPairs(cohort, schedule.batch_size // 2, seed)
    generator = torch.Generator(device).manual_seed(seed)
    network = seeded(lambda: Verifier(cohort.images.shape[1], schedule.planes), seed, device)

    def loss() -> Tensor:
        embedding = network(augment(take(cohort.images, pairs.draw().ravel(), device), generator, schedule.blur))
        similarity = embedding @ embedding.T / schedule.temperature
        similarity = similarity - torch.eye(len(embedding), device=similarity.device) * 1e4  # not with itself
        partner = torch.arange(len(embedding), device=similarity.device).roll(pairs.count)
        return F.cross_entropy(similarity, partner)

    def verification() -> float:
        if validation is None:
            return float("nan")
        vectors = batched(network, validation.images, torch.device(device), 256)[0]
        return verification_score(vectors @ vectors.T, validation)

    return fit(network, loss, verification, schedule.verifier_steps, schedule, "verifier" if progress else None)


def train_medical_judge(
    cohort: Cohort,
    validation: Cohort | None = None,
    *,
    seed: int = 0,
    schedule: JudgeSchedule = SCHEDULE,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> MedicalJudge:
    """Learns the finding, and side and severity where the entries state them (all three from one backbone).

    Raises:
        ValueError: the cohort shows fewer than two findings.
    """
    if len(cohort.finding.unique()) < 2:
        raise ValueError(f"{cohort.name}: only one finding occurs; a medical judge needs two of {cohort.classes}")
    sides = sides_of(cohort)
    generator = torch.Generator(device).manual_seed(seed)
    heads = len(cohort.classes), len(sides)
    network = seeded(lambda: MedicalJudge(cohort.images.shape[1], schedule.planes, *heads), seed, device)
    images, finding = cohort.images, cohort.finding.to(device)
    side, severity = side_codes(cohort, sides), severities(cohort)
    draw = np.random.default_rng(seed)

    def loss() -> Tensor:
        index = draw.choice(len(images), min(schedule.batch_size, len(images)), replace=False)
        reading = network(augment(take(images, index, device), generator, schedule.blur))
        total = F.cross_entropy(reading.finding, finding[index])
        # Which images state what is known here: the device is not waited for.
        shown, stated = np.flatnonzero(side[index] >= 0), np.flatnonzero(~np.isnan(severity[index]))
        if len(shown):
            total = total + F.cross_entropy(reading.side[shown], torch.from_numpy(side[index][shown]).to(device))
        if len(stated):
            # Severity lies in [0, 1]; the factor brings its error to the size of the other two.
            true = torch.from_numpy(severity[index][stated]).to(device)
            total = total + 10.0 * F.mse_loss(reading.severity[stated], true)
        return total

    def finding_score() -> float:
        return _finding_score(network, validation, device)

    steps = min(schedule.medical_steps, math.ceil(schedule.medical_epochs * len(images) / schedule.batch_size))
    return fit(network, loss, finding_score, steps, schedule, "medical judge" if progress else None)


def augment(images: Tensor, generator: torch.Generator, blur: float = 0.025) -> Tensor:
    """Shifts (6 %), scales (5 %), blur, brightness, contrast, a little noise; never a flip, which would move the heart.

    Half of the images are blurred, by up to `blur` of the side. What is judged is often smoother than a radiograph, and
    a judge that takes blur for another person would call any blur an anonymisation.
    """
    count, device = len(images), images.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) * 2 - 1

    if blur > 0:
        sigma = (blur * images.shape[-1] * (uniform(1) + 1) / 2).clamp_min(0.1)
        kernel = gaussian_1d(sigma, truncated=3.0, normalize=True)
        smooth = separable_filtering(images, [kernel, kernel], mode="reflect")
        images = torch.where(uniform(count, 1, 1, 1) < 0, smooth, images)
    theta = torch.zeros(count, 2, 3, device=device)
    scale = 1 + 0.05 * uniform(count)
    theta[:, 0, 0], theta[:, 1, 1] = scale, scale
    theta[:, :, 2] = 0.12 * uniform(count, 2)  # the grid is 2 wide
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    moved = moved * (1 + 0.2 * uniform(count, 1, 1, 1)) + 0.15 * uniform(count, 1, 1, 1)
    noise = torch.randn(moved.shape, generator=generator, device=device)
    return (moved + 0.03 * noise).clamp(-1, 1)


class PatientPairs:
    """Draws two different images of each of `count` patients, of those who have two.

    Args:
        cohort: where the images are.
        count: patients a draw, at most as many as can be drawn from.
        seed: of the draws.

    Raises:
        ValueError: fewer than two patients have two images.
    """

    def __init__(self, cohort: Cohort, count: int, seed: int) -> None:
        patients = cohort.patient.numpy()
        images = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
        self.images = [of_one for of_one in images if len(of_one) > 1]
        if len(self.images) < 2:
            raise ValueError(f"{cohort.name}: {len(self.images)} patients have two images; at least 2 must have")
        self.count = min(count, len(self.images))
        self._random = np.random.default_rng(seed)

    def draw(self) -> np.ndarray:
        """Indices (2, count) into the cohort; a column is one patient's."""
        chosen = self._random.choice(len(self.images), self.count, replace=False)
        return np.array([self._random.choice(self.images[one], 2, replace=False) for one in chosen]).T


def verification_score(similarity: np.ndarray, cohort: Cohort) -> float:
    """AUC of similarities (N, N) between a cohort's images; NaN where it has no pair of either kind."""
    first, second, same = metrics.claim_pairs(cohort.patient.numpy())
    if same.all() or not same.any():
        return float("nan")
    return metrics.verification_auc(similarity[first, second], same)


def _finding_score(network: MedicalJudge, validation: Cohort | None, device: str | torch.device) -> float:
    if validation is None or len(validation.finding.unique()) < 2:
        return float("nan")

    def probabilities(batch: Tensor) -> Tensor:
        return network(batch).finding.softmax(dim=1)

    found = batched(probabilities, validation.images, torch.device(device), 256)[0]
    return metrics.finding_auc(found, validation.finding.numpy())(np.ones(len(found)))


def take(images: Tensor, index: np.ndarray, device: str | torch.device) -> Tensor:
    """A batch from the (perhaps memory-mapped) uint8 images, in [-1, 1] on ``device``."""
    return to_model_range(images[torch.from_numpy(index)].to(device))


def seeded(build: Callable[[], Any], seed: int, device: str | torch.device) -> Any:
    """A network with weights drawn from ``seed``, channels last (1.5 times faster on a CPU)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().to(device, memory_format=torch.channels_last)


def fit(
    network: Any,
    loss: Callable[[], Tensor],
    score: Callable[[], float],
    steps: int,
    schedule: JudgeSchedule,
    title: str | None,
) -> Any:
    """Adam with warm-up and cosine; keeps the state with the best validation score (the last one if there is none)."""
    optimizer = torch.optim.AdamW(network.parameters(), schedule.learning_rate, weight_decay=1e-2)
    cosine = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, steps + 1, pct_start=0.15)
    every = max(1, steps // schedule.checks)
    best, state = -np.inf, None
    bar = tqdm(range(1, steps + 1), desc=title, disable=title is None, leave=False)
    for step in bar:
        network.train()
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        cosine.step()
        if step % every == 0 or step == steps:
            network.eval()
            with torch.no_grad():
                now = score()
            bar.set_postfix(loss=f"{value.item():.3f}", validation=f"{now:.3f}")
            if now >= best:
                best, state = now, copy.deepcopy(network.state_dict())
    if state is not None:
        network.load_state_dict(state)
    return network.eval()
