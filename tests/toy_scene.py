"""A scene on the toy cohort of `test_judges`, small enough for a test, and subjects with known answers."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, cast

import torch
from test_judges import toy_cohort
from torch import Tensor, nn

from monai_anon.evaluation.judge_networks import MedicalJudge, Verifier
from monai_anon.evaluation.judges import Judges, JudgeSchedule, train_judges
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


def closed_scene(people: int = 12, steps: int = 80, validation: bool = True, **options: Any) -> Scene:
    """A closed set: of each person six images to learn from, two to stop by, two to be named; chance is 1 in `people`.

    The last person has no training image. Parts number their people by themselves, as a manifest's do.
    """
    everybody = toy_cohort(people + 1, images=10, seed=4)
    place, last = torch.arange(len(everybody)) % 10, everybody.patient == people
    training, stop, test = ((place < 6) & ~last, (place >= 6) & (place < 8) & ~last, place >= 8)
    parts = [everybody.subset(mask.nonzero()[:, 0].numpy()) for mask in (training, stop, test)]
    parts[2].patient = people - parts[2].patient  # another order than the training part's
    means: dict[str, Any] = {"schedule": BUDGET, "n_bootstrap": 60, "progress": False, "closed_set": True} | options
    with torch.random.fork_rng():
        torch.manual_seed(0)  # untrained networks tell toy people apart, too, and cost nothing
        planes = BUDGET.planes
        networks = Verifier(1, planes), MedicalJudge(1, planes, 2, 2)
    judges = Judges(*networks, list(everybody.classes), ["left", "right"])
    return Scene(parts[0], parts[1] if validation else None, parts[2], judges, steps=steps, **means)
