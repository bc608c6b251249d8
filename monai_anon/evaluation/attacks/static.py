"""P1 and P3: the attacker's verifier was trained on untouched images and has never seen a released one."""

from __future__ import annotations

import numpy as np

from monai_anon.evaluation import galleries
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import Row

Array = np.ndarray
GALLERIES = (10, 30, 100, 300, 1000, 3000, 10000)


def static(subject: Subject, scene: Scene) -> list[Row]:
    """P1: the verifier compares a released image with *other* real images of its patient and of everybody else.

    Returns:
        Rows `static_{auc,eer,tar_at_far_10,tar_at_far_1,rank_1}`.
    """
    if scene.silence:
        return [scene.silent(subject, "static_auc", scene.silence)]
    asked = [scene.judges.embed(one.images) for one in scene.releases(subject, "test")]
    return scene.person_rows(subject, "static", [vectors @ scene.vectors("test").T for vectors in asked])


def linkage(subject: Subject, scene: Scene) -> list[Row]:
    """P3: who of N people is it, for growing galleries.

    A gallery holds one real image of every patient, never the one that the query was made from. Rows of a size are
    expectations over all galleries of that size (hypergeometric) of test and training people, not one drawn gallery.
    The verifier knows the training people, which makes those strangers a little easier. In a closed set strangers are
    only those of them who are no test people: nobody is a stranger to an image of their own.

    Returns:
        `linkage_N_rank_1`, `linkage_N_rank_5` and `linkage_N_chance` (of rank 1) for every N; `linkage_rank_1` and
        `linkage_rank_5` among the test patients; `linkage_map_at_r`, the mean average precision among all other test
        images cut at the number of the patient's own (Musgrave et al. 2020).
    """
    if scene.silence:
        return [scene.silent(subject, "linkage_rank_1", scene.silence)]
    trained = scene.training.patient.numpy()
    chosen = one_each(trained, scene.seed)
    strangers = chosen[~np.isin(trained[chosen], scene.known)]
    known = scene.vectors("test"), scene.vectors("training")[strangers]
    asked = [scene.judges.embed(one.images) for one in scene.releases(subject, "test")]
    near = [vectors @ known[0].T for vectors in asked]
    among = [own_and_others(similarity, scene.patients, scene.seed) for similarity in near]
    people = among[0][1].shape[1] + 1
    everybody = [np.hstack([others, vectors @ known[1].T]) for (_, others), vectors in zip(among, asked, strict=True)]
    largest = everybody[0].shape[1] + 1

    def rank(metric: str, strangers: list[Array], size: int, k: int) -> Row:
        pairs = zip(among, strangers, strict=True)
        found = [galleries.expected_rank_k(mates, others, size, k) for (mates, _), others in pairs]
        return scene.share(subject, metric, np.mean(found, axis=0))

    rows = [rank(f"linkage_rank_{k}", [others for _, others in among], people, k) for k in (1, 5)]
    precision = [galleries.average_precision_at_r(similarity, scene.patients) for similarity in near]
    rows.append(scene.mean(subject, "linkage_map_at_r", np.mean(precision, axis=0)))
    for size in sorted({size for size in GALLERIES if size < largest} | {largest}):
        rows += [rank(f"linkage_{size}_rank_{k}", everybody, size, k) for k in (1, 5)]
        rows.append(scene.plain(subject, f"linkage_{size}_chance", galleries.rank_k_chance(size), n=size))
    return rows


def one_each(patients: Array, seed: int) -> Array:
    """Index of one random image of every patient, in the order of the patients' codes."""
    order = np.random.default_rng(seed).permutation(len(patients))
    return order[np.unique(patients[order], return_index=True)[1]]


def own_and_others(similarity: Array, patients: Array, seed: int) -> tuple[Array, Array]:
    """For every query the similarity to another image of its patient (Q,), NaN where there is none, and to one image of
    every other patient (Q, P - 1).
    """
    gallery = one_each(patients, seed)
    names = patients[gallery]
    draw = np.random.default_rng(seed)
    mates = np.full(len(patients), np.nan)
    for query, patient in enumerate(patients):
        own = np.flatnonzero(patients == patient)
        own = own[own != query]
        if len(own):
            mates[query] = similarity[query, draw.choice(own)]
    others = np.array([similarity[query, gallery[names != patient]] for query, patient in enumerate(patients)])
    return mates, others
