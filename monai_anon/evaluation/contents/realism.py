"""R2: how much released images look like real ones, in the features of the medical judge.

The features are the judge's own, not Inception's, and are scaled by one number, so that a real training image varies by
one per feature on average; figures can be compared between the methods of one scene and with nothing else. `none`, the
untouched test images, gives the best that can be reached: other people's real images.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from monai_anon.evaluation.judge_networks import batched
from monai_anon.evaluation.metrics import Statistic

if TYPE_CHECKING:
    from monai_anon.evaluation.judges import Judges
    from monai_anon.evaluation.scene import Scene
    from monai_anon.evaluation.subjects import Subject
    from monai_anon.evaluation.tables import Row

Array = np.ndarray

NEIGHBOURS = 5  # Naeem et al. 2020
MOST_REFERENCES = 2000
SAME_PEOPLE = "closed set: the real images are of the same people, so the floor is lower than where they are others"
NOTE = "in the medical judge's features, against real training images; method none's row is the floor"


def realism(subject: Subject, scene: Scene) -> list[Row]:
    """R2 on the released test images: `fid`, `kid`, `precision`, `recall`, `density`, `coverage`.

    The real training images (at most `MOST_REFERENCES`, drawn by the scene's seed) are the reference; for the last four
    figures as many of them as there are generated images, since balls about neighbours shrink with the number.
    Intervals draw patients of the generated images, for `recall` and `coverage` of the reference; distances to
    neighbours stay as they are.
    """
    names = ("fid", "kid", "precision", "recall", "density", "coverage")
    released = scene.released(subject, "test").images
    reference, references = _reference(scene)
    if min(len(released), len(reference)) <= NEIGHBOURS:
        why = f"not measured: {len(released)} images and {len(reference)} real ones; more than {NEIGHBOURS} are needed"
        return [scene.silent(subject, name, why) for name in names]
    centre, scale = reference.mean(axis=0), np.sqrt(reference.var(axis=0).mean()) or 1.0
    real = (reference - centre) / scale
    generated = (judge_features(scene.judges, released) - centre) / scale
    kernel_distance = kid(real, generated, references, scene.patients, scene.known[:, None] != references[None, :])
    alike = real[: len(generated)]
    of_generated = {"precision": precision(alike, generated), "density": density(alike, generated)}
    of_reference = {"recall": recall(alike, generated), "coverage": coverage(alike, generated)}
    asked = references[: len(alike)]
    rows = [
        _fid_row(subject, scene, fid(real, generated)),
        scene.row(subject, "kid", kernel_distance, note=NOTE),
        *(scene.mean(subject, name, values, note=NOTE) for name, values in of_generated.items()),
        *(scene.mean(subject, name, values, patients=asked, note=NOTE) for name, values in of_reference.items()),
    ]
    return [dataclasses.replace(row, note=f"{row.note}; {SAME_PEOPLE}") for row in rows] if scene.closed_set else rows


@torch.no_grad()
def judge_features(judges: Judges, images: Tensor, batch_size: int = 256) -> Array:
    """What the medical judge's last layer sees: (N, D) of images (N, C, H, W), uint8 or float in [-1, 1]."""
    trunk = copy.deepcopy(judges.medical.backbone).eval()
    trunk.fc = None
    return batched(trunk, images, judges.device, batch_size)[0].astype(np.float64)


def training_features(scene: Scene) -> Array:
    """`judge_features` of all real training images, computed once a scene."""
    if "training_features" not in scene.memo:
        scene.memo["training_features"] = judge_features(scene.judges, scene.training.images)
    found: Array = scene.memo["training_features"]
    return found


def _reference(scene: Scene) -> tuple[Array, Array]:
    """Features (R, D) of the real images that stand for all, and their patients (R,)."""
    features = training_features(scene)
    chosen = np.random.default_rng(scene.seed).permutation(len(features))[:MOST_REFERENCES]
    return features[chosen], scene.training.patient.numpy()[chosen]


def _fid_row(subject: Subject, scene: Scene, statistic: Statistic) -> Row:
    """FID grows when images are fewer, and a draw of patients holds fewer different images than there are: without a
    correction the interval would lie above the value. It is moved down by the mean of that excess.
    """
    values: list[float] = []

    def recorded(weights: Array) -> float:
        values.append(statistic(weights))
        return values[-1]

    row = scene.row(subject, "fid", recorded, note=f"{NOTE}; interval corrected for the draws' bias")
    if row.ci_low is None or row.ci_high is None or len(values) < 2:
        return row
    excess = float(np.nanmean(values[1:])) - values[0]
    return dataclasses.replace(row, ci_low=max(0.0, row.ci_low - excess), ci_high=row.ci_high - excess)


# ---- two clouds of features ----


def fid(real: Array, generated: Array) -> Statistic:
    """Frechet distance of two Gaussians (Heusel et al. 2017) as a statistic of weights (G,) of ``generated`` (G, D).

    ``real`` (R, D) is fixed. Covariances are divided by the number of images (total weight) less one.
    """
    root = _square_root(np.cov(real, rowvar=False))
    mean, spread = real.mean(axis=0), np.trace(root @ root)

    def statistic(weights: Array) -> float:
        total = weights.sum()
        if total <= 1:
            return float("nan")
        own_mean = weights @ generated / total
        away = generated - own_mean
        covariance = (away * weights[:, None]).T @ away / (total - 1)
        shared = np.linalg.eigvalsh(root @ covariance @ root)
        overlap = np.sqrt(np.maximum(shared, 0.0)).sum()
        return float(((mean - own_mean) ** 2).sum() + spread + np.trace(covariance) - 2.0 * overlap)

    return statistic


def kid(real: Array, generated: Array, real_patients: Array, patients: Array, apart: Array | None = None) -> Statistic:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018) as a statistic of weights (G,).

    Pairs of two images of one patient are left out on either side (there they are no independent draws), so the
    value may be negative, and is the usual one where every patient has one image. ``apart`` (G, R) says which pairs of
    a generated and a real image are of two patients; in a closed set not all are.
    """
    inside_real, inside, between = (_kernel(real, real), _kernel(generated, generated), _kernel(generated, real))
    strangers = (real_patients[:, None] != real_patients[None, :]).astype(np.float64)
    others = (patients[:, None] != patients[None, :]).astype(np.float64)
    if not strangers.any() or not others.any():
        return lambda weights: float("nan")
    constant = (inside_real * strangers).sum() / strangers.sum()
    unlike = np.ones_like(between) if apart is None else apart.astype(np.float64)
    inside, to_real, compared = inside * others, (between * unlike).sum(axis=1), unlike.sum(axis=1)

    def statistic(weights: Array) -> float:
        pairs = weights @ others @ weights
        if pairs == 0 or weights @ compared == 0:
            return float("nan")
        return float(constant + weights @ inside @ weights / pairs - 2.0 * weights @ to_real / (weights @ compared))

    return statistic


def precision(real: Array, generated: Array, k: int = NEIGHBOURS) -> Array:
    """Whether each generated image lies nearer to some real image than that one's k-th real neighbour: (G,).

    Kynkaanniemi et al. 2019; "nearer" is strict, as in Naeem et al. 2020. ``real`` (R, D), ``generated`` (G, D).
    """
    return (cdist(generated, real) < _radii(real, k)).any(axis=1).astype(np.float64)


def recall(real: Array, generated: Array, k: int = NEIGHBOURS) -> Array:
    """`precision` with the parts exchanged: whether each real image lies among the generated ones, (R,)."""
    return precision(generated, real, k)


def density(real: Array, generated: Array, k: int = NEIGHBOURS) -> Array:
    """Number of real images to which each generated one is nearer than their k-th neighbour, over k: (G,).

    Naeem et al. 2020; the mean is 1 where both are drawn alike, and may be larger.
    """
    return (cdist(generated, real) < _radii(real, k)).sum(axis=1) / k


def coverage(real: Array, generated: Array, k: int = NEIGHBOURS) -> Array:
    """Whether a generated image is nearer to each real one than its k-th real neighbour: (R,) (Naeem et al. 2020)."""
    return (cdist(generated, real) < _radii(real, k)).any(axis=0).astype(np.float64)


def _radii(points: Array, k: int) -> Array:
    """(N,) distance to the k-th nearest of the others."""
    return np.partition(cdist(points, points), k, axis=1)[:, k]  # place 0 is the point itself


def _kernel(a: Array, b: Array) -> Array:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _square_root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
