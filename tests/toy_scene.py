"""A scene on the toy cohort of `test_judges`, small enough for a test, and subjects with known answers."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, cast

import torch
from test_judges import toy_cohort
from torch import Tensor, nn

from monai_anon.evaluation.judges import JudgeSchedule, train_judges
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject, subject_of
from monai_anon.networks import Latents

JUDGED = JudgeSchedule(verifier_steps=150, medical_steps=60, batch_size=64, planes=(8, 8, 16, 16), checks=1, blur=0.0)
BUDGET = JudgeSchedule(batch_size=32, planes=(8, 8, 16, 16), checks=1, blur=0.0)
PEOPLE, STRANGERS = 60, 16


@functools.cache
def toy_judges():
    """Judges that know untouched toy images, and no blur."""
    return train_judges(toy_cohort(PEOPLE), toy_cohort(8, seed=1), seed=5, schedule=JUDGED, progress=False)


def toy_scene(steps: int = 80, judges: Any = None, **columns: Any) -> Scene:
    """Sixty people to learn from, sixteen strangers to be linked; chance of rank 1 is 1 in 16."""
    parts = toy_cohort(PEOPLE, **columns), None, toy_cohort(STRANGERS, seed=2, **columns)
    options: dict[str, Any] = {"schedule": BUDGET, "n_bootstrap": 60, "progress": False}
    return Scene(*parts, judges or toy_judges(), steps=steps, **options)


class Lambda(nn.Module):
    """A function of images as an anonymizer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def subject(function: Any, name: str = "toy") -> Subject:
    return subject_of(name, function if isinstance(function, nn.Module) else Lambda(function))


def with_latents(encode: Any, name: str = "toy") -> Subject:
    """A subject whose disentangler encodes with a function of images; everything else of it is absent."""
    disentangler = SimpleNamespace(encode=lambda images: Latents(*encode(images)))
    disentangler.eval = lambda: disentangler
    networks = cast(Any, SimpleNamespace(disentangler=disentangler))
    return Subject(name, lambda images, _: images, name, networks)


def figures(rows: Any) -> dict[str, Any]:
    return {row.metric: row for row in rows}


def noise_like(images: Tensor) -> Tensor:
    return torch.randn(images.shape)
