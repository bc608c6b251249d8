"""Medical content (M1-M3) and likeness (R1): does the finding survive?

M1 and M3 ask the medical judge, which was trained on real images, about released ones. M2 trains a new one on released
images, as a recipient would, and asks it about real ones. Truth is always that of the image that was released.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from monai.metrics import PSNRMetric
from torch import Tensor

from monai_anon.cohort import Cohort
from monai_anon.evaluation import metrics
from monai_anon.evaluation.findings import Truth, finding_figures
from monai_anon.evaluation.judge_networks import sides_of
from monai_anon.evaluation.judge_training import train_medical_judge
from monai_anon.evaluation.judges import Judges
from monai_anon.readers import to_model_range

if TYPE_CHECKING:
    from monai_anon.evaluation.scene import Released, Scene
    from monai_anon.evaluation.subjects import Subject
    from monai_anon.evaluation.tables import Row

Array = np.ndarray

ROUNDING_DB = 10 * np.log10(12 * 255**2)
"""58.9 dB, the peak signal-to-noise ratio of rounding to 8 bits: more cannot be told apart."""


def content(subject: Subject, scene: Scene) -> list[Row]:
    """M1-M3 and the likeness to the original: `judge_*`, `trained_on_released_*`, `ssim_original`, `psnr_original`."""
    released, judges = scene.released(subject, "test"), scene.judges
    untouched = judges.read(scene.test.images)[0].argmax(axis=1)
    figures = finding_figures(judges.read(released.images), Truth.of(scene.test, judges.sides), untouched)
    rows = [scene.row(subject, f"judge_{name}", figure.statistic, n=figure.n) for name, figure in figures.items()]
    images, originals = to_model_range(released.images), to_model_range(scene.test.images)
    psnr_note = f"dB, at most {ROUNDING_DB:.1f} an image, which rounding to 8 bits leaves"
    return [
        *rows,
        *trained_on_released(subject, scene),
        scene.mean(subject, "ssim_original", metrics.ssim(images, originals)),
        scene.mean(subject, "psnr_original", psnr(images, originals), note=psnr_note),
    ]


def trained_on_released(subject: Subject, scene: Scene) -> list[Row]:
    """M2: a medical judge that learns from released training images and their findings, asked about real test images.

    What selects its best state is released as well: a recipient has nothing else.
    """
    if len(scene.training.finding.unique()) < 2 or len(scene.test.finding.unique()) < 2:
        why = "not measured: the training part and the test part must show two findings each"
        return [scene.silent(subject, "trained_on_released_finding_auc", why)]
    training = released_cohort(scene.released(subject, "training"))
    validation = None if scene.validation is None else released_cohort(scene.released(subject, "validation"))
    network = train_medical_judge(
        training,
        validation,
        seed=scene.seed,
        schedule=scene.schedule,
        device=scene.judges.device,
        progress=scene.progress,
    )
    judges = Judges(scene.judges.verifier, network, list(training.classes), sides_of(training))
    figures = finding_figures(judges.read(scene.test.images), Truth.of(scene.test, judges.sides))
    note = "learned from released images with the originals' findings, read on real ones; with real images: method none"
    return [
        scene.row(subject, f"trained_on_released_{name}", figure.statistic, n=figure.n, note=note)
        for name, figure in figures.items()
    ]


def released_cohort(released: Released) -> Cohort:
    """Released images with the patients, findings and entries of what they were made from."""
    of = released.cohort
    return Cohort(released.images, of.patient, of.finding, of.entries, of.classes, f"{of.name}, released")


def psnr(generated: Tensor, reference: Tensor) -> Array:
    """Peak signal-to-noise ratio (B,) in dB of each image with its reference, both (B, C, H, W) in [-1, 1].

    At most `ROUNDING_DB`, so that equal images have a value.
    """
    with torch.no_grad():
        found = torch.as_tensor(PSNRMetric(max_val=2.0, reduction="none")(generated, reference))
    return np.minimum(found.reshape(-1).double().cpu().numpy(), ROUNDING_DB)
