"""The judges' networks, and what they read off a cohort beside the finding.

Both are MONAI ResNets with batch normalisation and a strided stem, an architecture the anonymizer does not share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import ResNet
from torch import Tensor, nn

from monai_anon.readers import to_model_range

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

Array = np.ndarray


class Reading(NamedTuple):
    """What the medical judge says: finding logits (B, K), side logits (B, S) and severity (B,)."""

    finding: Tensor
    side: Tensor
    severity: Tensor


def backbone(channels: int, planes: tuple[int, ...], outputs: int) -> ResNet:
    """A ResNet of four basic blocks behind a strided 5x5 stem; a 64-pixel image ends as 4x4."""
    return ResNet(
        "basic",
        layers=[1, 1, 1, 1],
        block_inplanes=list(planes),
        spatial_dims=2,
        n_input_channels=channels,
        conv1_t_size=5,
        conv1_t_stride=2,
        no_max_pool=True,
        num_classes=outputs,
    )


class Verifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to unit vectors (B, 128); their inner product is the similarity of two people."""

    def __init__(self, channels: int, planes: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone(channels, planes, 128)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, 128) of length 1."""
        return F.normalize(self.backbone(images), dim=1)


class MedicalJudge(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to a `Reading`; without sides the side logits are (B, 0)."""

    def __init__(self, channels: int, planes: tuple[int, ...], num_classes: int, num_sides: int) -> None:
        super().__init__()
        self.num_classes, self.num_sides = num_classes, num_sides
        self.backbone = backbone(channels, planes, num_classes + num_sides + 1)

    def forward(self, images: Tensor) -> Reading:
        """Everything the judge reads, as logits."""
        out = self.backbone(images)
        finding, side, severity = out.split([self.num_classes, self.num_sides, 1], dim=1)
        return Reading(finding, side, severity[:, 0])


def sides_of(cohort: Cohort) -> list[str]:
    """The sides that occur in the entries, sorted; empty where the cohort has no such column."""
    return sorted({str(entry["side"]) for entry in cohort.entries if entry.get("side", "none") != "none"})


def side_codes(cohort: Cohort, sides: list[str]) -> Array:
    """(N,) index into ``sides``; -1 where the image has no side (no finding, or not stated)."""
    index = {side: code for code, side in enumerate(sides)}
    return np.array([index.get(str(entry.get("side", "none")), -1) for entry in cohort.entries], dtype=np.int64)


def severities(cohort: Cohort) -> Array:
    """(N,) severity in [0, 1], 0 without the finding; NaN where not stated."""
    return np.array([float(entry.get("severity", np.nan)) for entry in cohort.entries], dtype=np.float32)


def batched(
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], images: Tensor, device: torch.device, batch_size: int
) -> list[Array]:
    """``function`` over images (N, C, H, W), uint8 or float in [-1, 1]: each of its outputs as one (N, ...) array."""
    rows = []
    for batch in images.split(batch_size):
        batch = batch.to(device)
        out = function(to_model_range(batch) if batch.dtype == torch.uint8 else batch)
        rows.append((out,) if isinstance(out, Tensor) else tuple(out))
    return [torch.cat(column).float().cpu().numpy() for column in zip(*rows, strict=True)]
