"""An anonymizer of one's own, to be measured: a coarse copy with noise.

PYTHONPATH=docs/examples monai-anon evaluate --anonymizer my_anonymizer:CoarseCopy --output runs/coarse
monai-anon report runs/coarse
"""

import torch
import torch.nn.functional as F


class CoarseCopy(torch.nn.Module):
    """Images `(B, C, H, W)` in [-1, 1] to images of the same shape and range, repeatable under torch's seed."""

    images_seen = 0  # by its training, for tables of equal effort

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        coarse = F.interpolate(F.avg_pool2d(image, 4), size=image.shape[-2:], mode="bilinear")
        return (coarse + 0.1 * torch.randn_like(image)).clamp(-1, 1)
