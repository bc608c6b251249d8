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
    """The batch with every patient made another person: a smooth displacement by up to `warp` of the side and a smooth
    shade by up to `SHADE`. I_ori and I_same of a row, one patient's, get the same.
    """
    ori, same, tar = batch["i_ori"], batch["i_same"], batch["i_tar"]
    person, other = (torch.rand(len(ori), 3, KNOTS, KNOTS, device=ori.device) * 2 - 1 for _ in range(2))
    fields = F.interpolate(torch.cat([person, person, other]), ori.shape[-2:], mode="bicubic", align_corners=True)
    images = torch.cat([ori, same, tar])
    here = F.affine_grid(torch.eye(2, 3, device=ori.device)[None], [1, *ori.shape[1:]], align_corners=False)
    grid = here + 2 * warp * fields[:, :2].movedim(1, -1)
    # Bicubic: linear sampling would blur every image, and the decoder would learn blur.
    images = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    images = (images + SHADE * fields[:, 2:]).clamp(-1, 1)
    return {**batch, **dict(zip(("i_ori", "i_same", "i_tar"), images.chunk(3), strict=True))}
