"""Every image of a training otherwise each time it is seen: other captures, and other people.

Networks that see an image once an epoch learn it by heart: what they rebuild best then tells who was in the training
(docs/experiments.md). A hospital has more images than people, so the people are varied too.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anon import losses

KNOTS = 4
"""Knots a side of the smooth fields that make another person: organs move and grow, ribs stay ribs."""
SHADE = 0.1
"""Largest smooth change of the gray values that makes another person, in units of [-1, 1]."""


def other_captures(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with every image shifted by up to 6 % of the side, exposed and contrasted by up to 15 %; where I_same
    is I_ori itself they come out apart. No flip, since sides matter.
    """
    names = ("i_ori", "i_same", "i_tar")
    images = losses.augment(torch.cat([batch[n] for n in names]), None, 0.15, 0.06, 0.15, flip=False).clamp(-1, 1)
    return {**batch, **dict(zip(names, images.chunk(3), strict=True))}


def other_people(batch: Mapping[str, Tensor], warp: float) -> dict[str, Tensor]:
    """The batch with every patient made another person (`as_others`). I_ori and I_same of a row, one patient's, get the
    same.
    """
    names = ("i_ori", "i_same", "i_tar")
    person, other = (person_fields(len(batch["i_ori"]), batch["i_ori"].device) for _ in range(2))
    images = as_others(torch.cat([batch[n] for n in names]), torch.cat([person, person, other]), warp)
    return {**batch, **dict(zip(names, images.chunk(3), strict=True))}


def person_fields(people: int, device: torch.device | None = None, generator: torch.Generator | None = None) -> Tensor:
    """What makes each of so many people another, `(people, 3, KNOTS, KNOTS)` in [-1, 1]: displacements and a shade."""
    return torch.rand(people, 3, KNOTS, KNOTS, device=device, generator=generator) * 2 - 1


def as_others(images: Tensor, fields: Tensor, warp: float) -> Tensor:
    """Images `(B, C, S, S)` in [-1, 1], displaced smoothly by up to `warp` of the side and shaded by up to `SHADE`.

    Args:
        fields: `person_fields`, one for each image.
    """
    fields = F.interpolate(fields, images.shape[-2:], mode="bicubic", align_corners=True)
    here = F.affine_grid(torch.eye(2, 3, device=images.device)[None], [1, *images.shape[1:]], align_corners=False)
    grid = here + 2 * warp * fields[:, :2].movedim(1, -1)
    # Bicubic: linear sampling would blur every image, and the decoder would learn blur.
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return (moved + SHADE * fields[:, 2:]).clamp(-1, 1)
