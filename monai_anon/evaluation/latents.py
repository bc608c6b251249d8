"""Latents of many images, and images of many latents, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from monai_anon.networks import Latents
from monai_anon.readers import to_model_range

if TYPE_CHECKING:
    from monai_anon.evaluation.scene import Scene
    from monai_anon.evaluation.subjects import Subject


class Disentangling(Protocol):
    """What is measured: images (B, C, S, S) in [-1, 1] to `Latents` and back, and logits of the finding."""

    def encode(self, image: Tensor, /) -> Latents:
        """The latents of images."""

    def decode(self, latents: Latents, /) -> Tensor:
        """The images of latents."""

    def classify(self, medical: Tensor, /) -> Tensor:
        """Finding logits (B, K) of medical latents."""


def real_latents(subject: Subject, scene: Scene, part: str) -> Latents:
    """The latents of a part's real images, computed once a subject.

    Raises:
        ValueError: the subject has no latents.
    """
    if subject.networks is None:
        raise ValueError(f"{subject.name} has no latents")
    key = f"latents of {part} {subject.name} {subject.weights}"
    if key not in scene.memo:
        scene.memo[key] = encode(subject.networks.disentangler, getattr(scene, part).images)
    found: Latents = scene.memo[key]
    return found


@torch.no_grad()
def encode(model: Disentangling, images: Tensor, batch_size: int = 128) -> Latents:
    """Latents of images (N, C, S, S), uint8 or float in [-1, 1], on the CPU."""
    device, parts = device_of(model), []
    for batch in images.split(batch_size):
        batch = to_model_range(batch) if batch.dtype == torch.uint8 else batch
        parts.append([latent.float().cpu() for latent in model.encode(batch.to(device))])
    return Latents(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def decode(model: Disentangling, latents: Latents, batch_size: int = 128) -> Tensor:
    """Images (N, C, S, S) in [-1, 1] of latents, on the CPU."""
    device, batches = device_of(model), zip(*(latent.split(batch_size) for latent in latents), strict=True)
    parts = [model.decode(Latents(*(latent.to(device) for latent in batch))) for batch in batches]
    return torch.cat([part.float().clamp(-1, 1).cpu() for part in parts])


def device_of(model: Disentangling) -> torch.device:
    """Where a model's weights are; the CPU where it has none."""
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device
