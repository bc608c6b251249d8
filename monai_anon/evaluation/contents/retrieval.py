"""E1: a released image as the question "show me similar cases": are the answers of its class and severity?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from monai_anon.evaluation.contents.realism import judge_features, training_features
from monai_anon.evaluation.findings import Truth
from monai_anon.evaluation.latents import encode, real_latents

if TYPE_CHECKING:
    from monai_anon.evaluation.scene import Scene
    from monai_anon.evaluation.subjects import Subject
    from monai_anon.evaluation.tables import Row

Array = np.ndarray

NEAREST = 10


def retrieval(subject: Subject, scene: Scene) -> list[Row]:
    """E1: are the real training images nearest to a released one of the class and severity of its original?

    Rows `retrieval_precision_at_10` and `retrieval_ndcg_at_10` by the medical judge's features (Euclidean). Where the
    subject has latents, `retrieval_own_*` by its medical latent, and `retrieval_own_before_*` for the untouched
    images by the same; by the judge, "before" is method none's row. In a closed set a person's own images are no
    answer: they are alike by the person, and similar cases are other people's.
    """
    released = scene.released(subject, "test").images
    rows = _neighbour_rows(
        subject, scene, "retrieval", judge_features(scene.judges, released), training_features(scene)
    )
    if subject.networks is not None:
        database, before = (real_latents(subject, scene, part).medical.numpy() for part in ("training", "test"))
        after = encode(subject.networks.disentangler, released).medical.numpy()
        rows += _neighbour_rows(subject, scene, "retrieval_own", after, database)
        rows += _neighbour_rows(subject, scene, "retrieval_own_before", before, database)
    return rows


def _neighbour_rows(subject: Subject, scene: Scene, name: str, queries: Array, database: Array) -> list[Row]:
    names = f"{name}_precision_at_{NEAREST}", f"{name}_ndcg_at_{NEAREST}"
    if len(database) < NEAREST:
        return [
            scene.silent(subject, metric, f"not measured: fewer than {NEAREST} training images") for metric in names
        ]
    others = scene.known[:, None] != scene.training.patient.numpy()[None, :]
    if others.sum(axis=1).min() < NEAREST:
        return [
            scene.silent(subject, metric, f"not measured: fewer than {NEAREST} training images of other people")
            for metric in names
        ]
    nearest = nearest_of(queries, database, others)
    asked, held = Truth.of(scene.test, []), Truth.of(scene.training, [])
    same = (asked.finding[:, None] == held.finding[None, :]) & others
    gain = gains(asked, held) * others
    values = np.take_along_axis(same, nearest, axis=1).mean(axis=1), ndcg(gain, nearest)
    chances = same.sum() / others.sum(), np.nanmean(expected_ndcg(gain, NEAREST, others))
    return [
        scene.mean(subject, metric, value, note=f"{chance:.3f} by chance")
        for metric, value, chance in zip(names, values, chances, strict=True)
    ]


def nearest_of(queries: Array, database: Array, allowed: Array) -> Array:
    """The `NEAREST` places (Q, 10) of rows (N, D) that each of (Q, D) may have as answers, (Q, N), best first."""
    if allowed.all():
        search = NearestNeighbors(n_neighbors=NEAREST, algorithm="brute").fit(database)
        found: Array = search.kneighbors(queries, return_distance=False)
        return found
    apart = np.where(allowed, cdist(queries, database), np.inf)
    return np.argsort(apart, axis=1, kind="stable")[:, :NEAREST]


def gains(asked: Truth, held: Truth) -> Array:
    """(Q, N) worth in [0, 1] of image n as an answer to query q: same class, less the difference in severity.

    Where either severity is not stated, the class alone counts.
    """
    same = asked.finding[:, None] == held.finding[None, :]
    apart = np.abs(asked.severity[:, None] - held.severity[None, :])
    return same * (1.0 - np.nan_to_num(np.minimum(apart, 1.0)))


def ndcg(gain: Array, nearest: Array) -> Array:
    """Normalised discounted cumulative gain (Jarvelin and Kekalainen 2002) of each query: (Q,) in [0, 1].

    Args:
        gain: (Q, N) worth of every image for every query.
        nearest: (Q, k) the answers, best first. NaN where no image is worth anything.
    """
    discount = 1.0 / np.log2(np.arange(2, nearest.shape[1] + 2))
    found = np.take_along_axis(gain, nearest, axis=1) @ discount
    return _over_best(found, gain, discount)


def expected_ndcg(gain: Array, k: int, allowed: Array | None = None) -> Array:
    """`ndcg` of k answers drawn at random, of those that are allowed (Q, N; default: all), in expectation: (Q,)."""
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    mean = gain.mean(axis=1) if allowed is None else (gain * allowed).sum(axis=1) / allowed.sum(axis=1)
    return _over_best(mean * discount.sum(), gain, discount)


def _over_best(found: Array, gain: Array, discount: Array) -> Array:
    best = -np.sort(np.partition(-gain, len(discount) - 1, axis=1)[:, : len(discount)], axis=1) @ discount
    return np.divide(found, best, out=np.full(len(best), np.nan), where=best > 0)
