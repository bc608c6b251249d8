"""How much fine structure of which direction and fineness is where, and a loss on that: it asks for ribs and vessels.

SSIM and the pixel loss ask for a line at its exact place. While a network does not know the place, drawing nothing
costs less than drawing it beside; so it never learns the place either (docs/experiments.md). Energies in place of
responses, pooled, have no phase: a line a little aside is right.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from skimage.filters import gabor_kernel
from torch import Tensor

PERIODS = (4.0, 6.5)
"""Of the waves that are looked for, in pixels of every octave: ribs of an image of 64 are some 5 pixels apart."""
DIRECTIONS = 6
FINEST = 64
"""Images of more than this a side are looked at in octaves, each half the size of the one before."""
FAINTEST = 0.005
"""Amplitude, in units of [-1, 1], below which there is no texture."""


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept for later calls, which may need gradients
def gabor_bank(period: float, device: torch.device | None = None) -> Tensor:
    """`(2 * DIRECTIONS, 1, K, K)`: pairs of an even and an odd Gabor filter (Daugman 1985) of a period in pixels, each
    blind to flat images; a pair's squared responses to a wave that it fits add up to about the squared amplitude.
    """
    kernels = []
    for turn in range(DIRECTIONS):
        shape = {"sigma_x": 0.45 * period, "sigma_y": 0.45 * period, "n_stds": 2}
        wave = 2 * gabor_kernel(1 / period, math.pi * turn / DIRECTIONS, **shape)
        envelope = np.abs(wave)
        kernels += [part - envelope * part.sum() / envelope.sum() for part in (wave.real, wave.imag)]
    return torch.from_numpy(np.stack(kernels)[:, None]).float().to(device)


def textures(images: Tensor) -> list[Tensor]:
    """Logarithms of the amplitudes of images `(B, C, S, S)` in [-1, 1], `(B * C, DIRECTIONS, h, w)` for each period and
    octave, in cells of 16 pixels that overlap by half.
    """
    found = []
    with torch.autocast(images.device.type, enabled=False):
        octave = images.float().flatten(0, 1)[:, None]
        while True:
            for period in PERIODS:
                response = F.conv2d(octave, gabor_bank(period, images.device), stride=2)
                energy = response.unflatten(1, (DIRECTIONS, 2)).square().sum(2)
                found.append(0.5 * torch.log(F.avg_pool2d(energy, 4, 2) + FAINTEST**2))
            if octave.shape[-1] <= FINEST:
                return found
            octave = F.avg_pool2d(octave, 2)


def texture_loss(i_ori: Tensor, i_rec: Tensor) -> Tensor:
    """Mean absolute difference of log amplitudes (ours, after the energies of Heeger and Bergen 1995): 0.1 is a texture
    10 % too faint or too strong.
    """
    with torch.no_grad():
        real = textures(i_ori)
    return torch.stack([F.l1_loss(a, b) for a, b in zip(textures(i_rec), real, strict=True)]).mean()
