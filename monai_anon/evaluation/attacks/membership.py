"""P5: is somebody whose image trained the anonymizer recognisable as such, or put into what it releases?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_anon.evaluation import metrics
from monai_anon.evaluation.latents import encode
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject, release
from monai_anon.evaluation.tables import Row
from monai_anon.losses import latent_distance
from monai_anon.readers import to_model_range

Array = np.ndarray


def membership(subject: Subject, scene: Scene) -> list[Row]:
    """P5: rows `membership_{nearest,black_box,vae}_{auc,tpr_at_fpr_1}`.

    - nearest: similarity of a released test image to the nearest training patient against that of an untouched test
      image. Above 0.5 the releases look like training patients, as those of a model that hands out what it remembers.
      (The verifier's own memory of the training part is in both.)
    - black box: how well the anonymizer keeps an image that it was trained on against one it was not (Shokri et al.
      2017: what was seen is treated better). By squared error and by SSIM, the stronger counts.
    - vae: the same of the identity VAE's error on the identity latent; for the paper's networks only.
    """
    if scene.silence:
        return [scene.silent(subject, "membership_nearest_auc", scene.silence)]
    rows = nearest_rows(subject, scene)
    members = member_indices(scene.training.patient.numpy(), len(scene.test.images), scene.seed)
    images = torch.cat([scene.training.images[torch.from_numpy(members)], scene.test.images])
    inside = np.arange(len(images)) < len(members)
    patients = codes([scene.training.patient.numpy()[members], scene.patients])
    kept = kept_content(images, release(subject.anonymise, images, scene.seed))
    if any(len(np.unique(score)) > 1 for score in kept.values()):
        name = max(kept, key=lambda key: abs(metrics.verification_auc(kept[key], inside) - 0.5))
        rows += told_apart(subject, scene, "membership_black_box", kept[name], inside, patients, f"by {name}")
    else:
        rows += [scene.plain(subject, "membership_black_box_auc", 0.5, 0.5, 0.5, n=len(images), note="nothing differs")]
    if subject.networks is not None:
        rows += told_apart(subject, scene, "membership_vae", -vae_error(subject.networks, images), inside, patients)
    return rows


def nearest_rows(subject: Subject, scene: Scene) -> list[Row]:
    """Whether released test images are nearer to training patients than strangers' real images are."""
    known = scene.vectors("training")
    released = (scene.judges.embed(scene.released(subject, "test").images) @ known.T).max(axis=1)
    strangers = (scene.vectors("test") @ known.T).max(axis=1)
    scores, made = np.concatenate([released, strangers]), np.arange(2 * len(released)) < len(released)
    patients = np.concatenate([scene.patients, scene.patients])
    return told_apart(subject, scene, "membership_nearest", scores, made, patients)


def told_apart(
    subject: Subject, scene: Scene, prefix: str, scores: Array, positive: Array, patients: Array, note: str = ""
) -> list[Row]:
    """`PREFIX_auc` and `PREFIX_tpr_at_fpr_1` of scores (N,) that should tell `positive` (N,) from the others."""
    auc, roc = metrics.WeightedAuc(scores, positive), metrics.WeightedRoc(scores, positive)
    options: dict[str, Any] = {"patients": patients, "note": note}
    return [
        scene.row(subject, f"{prefix}_auc", auc, **options),
        scene.row(subject, f"{prefix}_tpr_at_fpr_1", lambda w: roc.true_accepts(w, 0.01), **options),
    ]


def member_indices(patients: Array, count: int, seed: int) -> Array:
    """Images of randomly drawn training patients, all of each, until there are about `count`."""
    names = np.random.default_rng(seed).permutation(np.unique(patients))
    sizes = np.array([(patients == name).sum() for name in names]).cumsum()
    chosen = names[: int(np.searchsorted(sizes, count)) + 1]
    return np.flatnonzero(np.isin(patients, chosen))


def codes(parts: list[Array]) -> Array:
    """Patients of several parts as codes that no two parts share."""
    first, shifted = 0, []
    for part in parts:
        _, code = np.unique(part, return_inverse=True)
        shifted.append(code + first)
        first += int(code.max()) + 1
    return np.concatenate(shifted)


def kept_content(images: Tensor, released: Tensor) -> dict[str, Array]:
    """How alike each image and its release are: (N,) by two measures, larger is more alike."""
    before, after = to_model_range(images), to_model_range(released)
    return {
        "squared error": -(before - after).square().mean(dim=(1, 2, 3)).numpy(),
        "SSIM": metrics.ssim(after, before),
    }


@torch.no_grad()
def vae_error(networks: Any, images: Tensor) -> Array:
    """The identity VAE's squared error (N,) on the images' identity latents, without its noise."""
    vae, identity = networks.identity_vae.eval(), encode(networks.disentangler, images).identity
    identity = identity.to(next(vae.parameters()).device)
    return latent_distance(identity, vae.decode(vae.encode(identity)[0])).cpu().numpy()
