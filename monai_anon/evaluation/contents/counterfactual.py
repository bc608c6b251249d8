"""E2: the finding is changed; which pixels change with it?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from monai_anon.evaluation.latents import decode, real_latents
from monai_anon.evaluation.targets import draw_targets
from monai_anon.phantoms import phantom_of

if TYPE_CHECKING:
    import pandas as pd

    from monai_anon.evaluation.scene import Scene
    from monai_anon.evaluation.subjects import Subject
    from monai_anon.evaluation.tables import Row

Array = np.ndarray

EVIDENCE_LEVELS = 2
"""Gray levels of 255 by which a pixel must differ to be part of the evidence."""


def counterfactual(subject: Subject, scene: Scene) -> list[Row]:
    """E2: which pixels change when the medical latent is replaced by that of an image with another finding.

    Rows under "medical replacement": `outside_evidence_share`, the share of the squared change (counterfactual less own
    reconstruction) outside the pixels that really differ (`evidence`), and `outside_evidence_area`, the share for a
    change spread evenly. Without exact factors there is a row without value; without latents none at all. That the
    target's class is reached and the person stays is in Table 2, under the same name.
    """
    if subject.networks is None:
        return []
    model, subject = subject.networks.disentangler, dataclasses.replace(subject, name="medical replacement")
    factors = None if scene.factors is None else scene.factors["test"]
    if factors is None or phantom_of(factors) is None:
        why = "not measured: the images' exact factors are not known, so neither is where the evidence lies"
        return [scene.silent(subject, "outside_evidence_share", why)]
    try:
        target, _ = draw_targets(scene.patients, scene.test.finding.numpy(), scene.seed)
    except ValueError as error:
        return [scene.silent(subject, "outside_evidence_share", f"not measured: {error}")]
    z = real_latents(subject, scene, "test")
    change = decode(model, z._replace(medical=z.medical[torch.from_numpy(target)])) - decode(model, z)
    inside = evidence(factors, factors.iloc[target], scene.test.images.shape[-1])
    share = outside_share(change.double().square().sum(dim=1).numpy(), inside)
    return [
        scene.mean(subject, "outside_evidence_share", share),
        scene.mean(subject, "outside_evidence_area", outside_share(np.ones(inside.shape), inside)),
    ]


def evidence(factors: pd.DataFrame, target: pd.DataFrame, size: int) -> Array:
    """Pixels that differ when row i has the medical factors of row i of ``target``: bool (N, size, size).

    Both are rendered, with the same noise; what differs by more than `EVIDENCE_LEVELS` in any channel is grown by 1/64
    of the side.

    Raises:
        ValueError: no phantom has such factors.
    """
    phantom = phantom_of(factors)
    if phantom is None:
        raise ValueError(f"factors have the columns {', '.join(factors)}; no phantom can be rendered from these")
    medical = [name for name in factors if name.startswith("med_")]
    other = factors.copy()
    other[medical] = target[medical].to_numpy()
    before, after = (phantom.render(rows, size).astype(np.int16) for rows in (factors, other))
    square = np.ones((1, 3, 3), dtype=bool)
    differs = (np.abs(after - before) > EVIDENCE_LEVELS).reshape(len(factors), size, size, -1).any(axis=-1)
    return np.asarray(binary_dilation(differs, square, iterations=max(1, round(size / 64))))


def outside_share(change: Array, inside: Array) -> Array:
    """Share of a change (N, H, W) >= 0 that lies outside a mask (N, H, W): (N,), NaN where nothing changes."""
    total = change.sum(axis=(1, 2))
    outside = (change * ~inside).sum(axis=(1, 2))
    return np.divide(outside, total, out=np.full(len(total), np.nan), where=total > 0)
