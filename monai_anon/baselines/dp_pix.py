"""DP-Pix: pixelation with noise, and the differential privacy that this buys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DPPix(nn.Module):
    """DP-Pix (Fan, "Image Pixelization with Differential Privacy", DBSec 2018).

    The mean of every cell of `cell` x `cell` pixels, on [0, 1], with Laplace noise of scale C m / (cell^2 epsilon).
    Two images are neighbours where at most m pixels differ: then all cells' means together differ by m / cell^2 at
    most in each of the C channels, and a release is `epsilon`-differentially private between neighbours.

    What `epsilon` says. Between neighbours only: an object of m pixels, of one image, released once. Images of two
    people differ in every pixel, and n releases add up; `epsilon_between(pixels)` is the bound that holds for them, and
    is so large that it promises nothing at usual settings (64 x 64 pixels, m 16: 256 times `epsilon`). The promise is
    of ideal noise: torch's generator is no cryptographic one, its seed has to stay secret, and rounding of floating
    point noise is not made up for (Mironov 2012).

    Where it is not the paper's:

    - Images in [-1, 1] are brought to [0, 1] and clipped there, or the noise would not cover them; the paper's gray
      values are 0 to 255, with a scale of 255 m / (cell^2 epsilon).
    - A pixel of C channels counts with each of them, in the scale; the paper has gray images.
    - Noisy means are clipped to the range. A formula of the release alone costs no privacy.
    - Cell, m and epsilon are ours for images of 64 pixels; the formula is the paper's.

    Args:
        cell: pixels along a cell's side (the paper's b); the image's sides are multiples of it.
        pixels: by how many pixels neighbours differ (the paper's m).
        epsilon: the bound on how much likelier a release is from one image than from a neighbour, in nats.
    """

    def __init__(self, cell: int = 8, pixels: int = 16, epsilon: float = 1.0):
        super().__init__()
        for name, value in (("cell", cell), ("pixels", pixels)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1 pixel")
        if not epsilon > 0:
            raise ValueError(f"epsilon is {epsilon}; it must be above 0, or the noise is infinite")
        self.cell, self.pixels, self.epsilon = cell, pixels, epsilon

    def scale(self, channels: int) -> float:
        """The noise's scale, in units of [0, 1]: sensitivity of all cells' means over epsilon."""
        return channels * self.pixels / (self.cell**2 * self.epsilon)

    @property
    def proved(self) -> str:
        """What is proved of a release."""
        return f"epsilon {self.epsilon:g} between images that differ in {self.pixels} pixels"

    def epsilon_between(self, pixels: int) -> float:
        """The epsilon, in nats, of one release between images that differ in so many pixels (group privacy)."""
        return self.epsilon * pixels / self.pixels

    def forward(self, image: Tensor) -> Tensor:
        """Noisy cells `(B, C, H, W)` of the images.

        Raises:
            ValueError: a side is no multiple of the cell's: cells cut at the border would need more noise.
        """
        height, width = image.shape[-2:]
        if height % self.cell or width % self.cell:
            raise ValueError(
                f"the image has {height} x {width} pixels; both must be multiples of the cell's {self.cell}"
            )
        means = F.avg_pool2d((image.clamp(-1, 1) + 1) / 2, self.cell)
        zero, scale = means.new_zeros(()), means.new_full((), self.scale(image.shape[1]))
        noisy = means + torch.distributions.Laplace(zero, scale).sample(means.shape)
        return F.interpolate(noisy.clamp(0, 1) * 2 - 1, scale_factor=self.cell, mode="nearest")
