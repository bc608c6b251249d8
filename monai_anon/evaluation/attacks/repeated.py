"""P6: an attacker who collects several releases of one image, or of one patient."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from monai_anon.evaluation import galleries, metrics
from monai_anon.evaluation.attacks.towers import embedded, train_towers
from monai_anon.evaluation.scene import Released, Scene
from monai_anon.evaluation.subjects import Subject, release
from monai_anon.evaluation.tables import Row

Array = np.ndarray
RELEASES = (1, 4, 16)
IMAGES_OF_PATIENT = (1, 2, 4)
TRAINING_IMAGES = 2000  # of whole patients; sixteen releases of a large cohort would cost more than all other attacks


def repeated(subject: Subject, scene: Scene) -> list[Row]:
    """P6: the mean of n releases of one image, each with randomness of its own, then P2 (released-real) on the means.

    `repeated_patient_n_auc` averages what the attacker sees in single releases of up to n *different* images of one
    patient instead.

    Returns:
        `repeated_N_auc` and `repeated_N_rank_1` for 1, 4, 16 releases, `repeated_patient_N_auc` for 1, 2, 4 images.
        One release is P2 again, with other releases and fewer images: how far the two are apart is the attacker's luck.
        Where the releases are the same pixels there is nothing to average: n = 1 is attacked, and the others repeat it.
    """
    if scene.silence:
        return [scene.silent(subject, "repeated_1_auc", scene.silence)]
    parts = {name: part for name in ("training", "validation", "test") if (part := scene.part(name)) is not None}
    parts["training"] = parts["training"].subset(first_patients(parts["training"].patient.numpy(), TRAINING_IMAGES))
    same = scene.repeats(subject)
    sums = {name: torch.zeros(part.images.shape) for name, part in parts.items()}
    rows: list[Row] = []
    done = 0
    for count in RELEASES[:1] if same else RELEASES:
        while done < count:
            for order, (name, part) in enumerate(parts.items()):
                seed = 3 * (scene.seed * 1_000_003 + 500_000 + done) + order
                sums[name] += release(subject.anonymise, part.images, seed).float()
            done += 1
        means = {name: Released(part, (sums[name] / count).round().to(torch.uint8)) for name, part in parts.items()}
        rows += attacked(subject, scene, means, count)
    if same:
        note, single = "every release has the same pixels", {row.metric: row for row in rows}
        for name in ("auc", "rank_1"):
            one = single[f"repeated_1_{name}"]
            rows += [dataclasses.replace(one, metric=f"repeated_{n}_{name}", note=note) for n in RELEASES[1:]]
    return rows


def attacked(subject: Subject, scene: Scene, means: dict[str, Released], count: int) -> list[Row]:
    """P2 on means of `count` releases; with single ones also on several images of a patient."""
    towers = train_towers(
        [means["training"]],
        means.get("validation"),
        "released-real",
        start=scene.judges.verifier,
        seed=scene.seed,
        schedule=scene.schedule,
        device=scene.device,
        title=scene.title(f"{subject.name}: attacker, {count} release{'s' if count > 1 else ''}"),
    )
    asked, known = embedded(towers, means["test"], "released-real", scene.device)
    patients = scene.patients
    first, second, same = metrics.claim_pairs(patients)
    auc = metrics.pair_auc((asked @ known.T)[first, second], first, second, same, patients)
    everyone = np.arange(len(patients))
    hits, _ = galleries.linkage_hits(asked @ known.T, patients, patients, everyone, seed=scene.seed)
    rows = [
        scene.row(subject, f"repeated_{count}_auc", auc),
        scene.share(subject, f"repeated_{count}_rank_1", hits),
    ]
    if count == 1:
        for images in IMAGES_OF_PATIENT:
            scores, first, second, same = patient_pairs(asked, known, patients, images, scene.seed)
            auc = metrics.pair_auc(scores, first, second, same, patients)
            rows.append(scene.row(subject, f"repeated_patient_{images}_auc", auc, n=len(np.unique(patients))))
    return rows


def patient_pairs(
    asked: Array, known: Array, patients: Array, count: int, seed: int
) -> tuple[Array, Array, Array, Array]:
    """Every patient against every real image, by the mean of up to `count` of the patient's released images.

    The release of the very image that is compared is never among them. A patient's queries stand under the index of
    its first image.

    Returns:
        scores, `first` (the patient's first image), `second` (the real image) and whether they are one person: (P,).
    """
    similarity = asked @ known.T
    draw = np.random.default_rng(seed)
    scores, first, second = [], [], []
    for patient in np.unique(patients):
        own = draw.permutation(np.flatnonzero(patients == patient))
        usual = similarity[own[:count]].mean(axis=0)
        for image in range(len(patients)):
            if patients[image] != patient:
                scores.append(usual[image])
            elif len(others := own[own != image][:count]):
                scores.append(similarity[others, image].mean())
            else:
                continue
            first.append(own.min())
            second.append(image)
    found, compared = np.array(first), np.array(second)
    return np.array(scores), found, compared, patients[found] == patients[compared]


def first_patients(patients: Array, count: int) -> Array:
    """Images of the first patients, all of each, of about `count` images; all of a part that has fewer."""
    if len(patients) <= count:
        return np.arange(len(patients))
    names, sizes = np.unique(patients, return_counts=True)
    chosen = names[: max(2, int(np.searchsorted(sizes.cumsum(), count)))]
    return np.flatnonzero(np.isin(patients, chosen))
