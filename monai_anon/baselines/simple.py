"""Anonymizers that need no training: the first rows of every table, and known answers for every attack."""

import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn


class Unchanged(nn.Module):
    """The image itself: everything is kept, the person too."""

    def forward(self, image: Tensor) -> Tensor:
        """A copy of the images `(B, C, H, W)`."""
        return image.clone()


class Constant(nn.Module):
    """The same gray for everybody: nothing is kept."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        if not -1 <= value <= 1:
            raise ValueError(f"value is {value}; it must lie in [-1, 1]")
        self.value = value
        self.proved = "0 bits an image"

    def forward(self, image: Tensor) -> Tensor:
        """Images `(B, C, H, W)` of one value."""
        return torch.full_like(image, self.value)


class Blur(nn.Module):
    """Gaussian blur.

    Args:
        sigma: standard deviation as a share of the image's side; 1/16 is 4 pixels of 64.
    """

    def __init__(self, sigma: float = 1 / 16):
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"sigma is {sigma}; it must be above 0, a share of the image's side")
        self.sigma = sigma

    def forward(self, image: Tensor) -> Tensor:
        """Blurred images `(B, C, H, W)`."""
        pixels = torch.tensor(self.sigma * image.shape[-1], dtype=image.dtype, device=image.device)
        kernel = gaussian_1d(pixels, truncated=3.0, normalize=True)
        return separable_filtering(image, [kernel, kernel], mode="reflect")


class Pixelation(nn.Module):
    """The mean of every cell of a grid.

    Args:
        cells: cells along a side.
    """

    def __init__(self, cells: int = 8):
        super().__init__()
        if cells < 1:
            raise ValueError(f"cells is {cells}; it must be at least 1")
        self.cells = cells

    def forward(self, image: Tensor) -> Tensor:
        """Pixelated images `(B, C, H, W)`."""
        return F.interpolate(F.adaptive_avg_pool2d(image, self.cells), size=image.shape[-2:], mode="nearest")
