"""Who is it: figures of a query against a gallery of people. Pure functions of similarities; larger means more alike.

Equal similarities are ranked at random and the expectation is returned, so a constant embedding is at chance.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import hypergeom

Array = np.ndarray


def rank_k_hits(similarity: Array, query_patient: Array, gallery_patient: Array, k: int = 1) -> Array:
    """Whether each query finds its patient among the ``k`` nearest of the gallery: (Q,) in [0, 1].

    Args:
        similarity: (Q, G).
        query_patient: (Q,); each must be in the gallery.
        gallery_patient: (G,), every patient once.

    Equal similarities are ranked at random and the expectation is returned, so a constant embedding is at chance.

    Raises:
        ValueError: a patient twice in the gallery, or a query without its patient there.
    """
    similarity, gallery_patient = np.asarray(similarity), np.asarray(gallery_patient)
    own = np.asarray(query_patient)[:, None] == gallery_patient[None, :]
    if len(np.unique(gallery_patient)) != len(gallery_patient):
        raise ValueError("a gallery holds every patient once; this one repeats a patient")
    if not own.any(axis=1).all():
        raise ValueError(f"{int((~own.any(axis=1)).sum())} queries have no image of their patient in the gallery")
    mine = similarity[own][:, None]
    above = (similarity > mine).sum(axis=1)
    tied = (similarity == mine).sum(axis=1)  # the right one included
    return np.clip((k - above) / tied, 0.0, 1.0)


def rank_k(similarity: Array, query_patient: Array, gallery_patient: Array, k: int = 1) -> float:
    """Share of queries whose patient is among the ``k`` nearest of the gallery; chance is `rank_k_chance`."""
    return float(rank_k_hits(similarity, query_patient, gallery_patient, k).mean())


def rank_k_chance(gallery_size: int, k: int = 1) -> float:
    """What `rank_k` is for a judge that sees nothing."""
    return min(k / gallery_size, 1.0)


def linkage_hits(
    similarity: Array, patients: Array, claimed: Array, used: Array, k: int = 1, seed: int = 0
) -> tuple[Array, int]:
    """Rank-k hits of queries in a gallery of one image per patient, never the image a query was made from.

    Args:
        similarity: (Q, N) of the queries to all real images.
        patients: (N,) patient of every real image.
        claimed: (Q,) the patient to be found.
        used: (Q,) index of the real image the query was made from; another of its patient stands in for it.
        seed: which image of each patient is in the gallery.

    Returns:
        (Q,) expected hits, NaN where the claimed patient has no other image; and the gallery's size.
    """
    patients, claimed = np.asarray(patients), np.asarray(claimed)
    order = np.random.default_rng(seed).permutation(len(patients))
    names, first = np.unique(patients[order], return_index=True)
    gallery = order[first]
    rest = np.setdiff1d(order, gallery)
    spare = {patient: image for image, patient in zip(rest, patients[rest], strict=True)}
    row = np.searchsorted(names, claimed)
    scores = np.asarray(similarity)[:, gallery].copy()
    hits = np.full(len(claimed), np.nan)
    known = np.array([patient in spare for patient in claimed], dtype=bool)
    for query in np.flatnonzero(known & (gallery[row] == used)):
        scores[query, row[query]] = similarity[query, spare[claimed[query]]]
    hits[known] = rank_k_hits(scores[known], claimed[known], names, k)
    return hits, len(names)


def expected_rank_k(mates: Array, others: Array, size: int, k: int = 1) -> Array:
    """Chance that each query's patient is among the ``k`` nearest of a random gallery of ``size`` people.

    Args:
        mates: (Q,) similarity to the right patient; NaN where there is no other image of it.
        others: (Q, M) similarities to everybody else; a gallery is the right patient and ``size - 1`` of these.
        size: people in a gallery, at most M + 1.

    Returns:
        (Q,) in [0, 1], the exact expectation over all such galleries (hypergeometric); equal similarities are ranked at
        random, so a constant embedding is at k / size.

    Raises:
        ValueError: a gallery larger than there are people.
    """
    mates, others = np.asarray(mates, dtype=np.float64), np.asarray(others)
    people = others.shape[1]
    if not 1 <= size <= people + 1:
        raise ValueError(f"a gallery of {size} people; there are {people + 1}")
    above = (others > mates[:, None]).sum(axis=1)
    tied = (others == mates[:, None]).sum(axis=1)
    # Of t people tied with the right one, 0 to t stand above it, each as likely as the other.
    hits = [
        hypergeom.cdf(k - 1, people, np.arange(a, a + t + 1), size - 1).mean() for a, t in zip(above, tied, strict=True)
    ]
    return np.where(np.isnan(mates), np.nan, np.array(hits))


def average_precision_at_r(similarity: Array, patients: Array) -> Array:
    """MAP@R (Musgrave et al. 2020): mean precision at the right ones among the R nearest, R the patient's other images.

    Args:
        similarity: (N, N) of query i, made from image i, to image j; image i itself is not in the gallery.
        patients: (N,).

    Returns:
        (N,) in [0, 1]; NaN where the patient has no other image.
    """
    patients = np.asarray(patients)
    found = np.full(len(patients), np.nan)
    for query, patient in enumerate(patients):
        gallery = np.flatnonzero(np.arange(len(patients)) != query)
        right = patients[gallery] == patient
        count = int(right.sum())
        if count:
            nearest = right[np.argsort(-similarity[query, gallery], kind="stable")[:count]]
            found[query] = (nearest * np.cumsum(nearest) / np.arange(1, count + 1)).sum() / count
    return found
