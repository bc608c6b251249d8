"""DP-Pix: as much noise as its epsilon needs, and what that epsilon covers."""

from __future__ import annotations

import math

import pytest
import torch

from monai_anon.baselines import BASELINES
from monai_anon.baselines.dp_pix import DPPix


def noise_of(module: DPPix, channels: int = 1) -> torch.Tensor:
    """The noise on cells of mid gray, in units of [0, 1]; one value a cell and channel."""
    side = 64 * module.cell
    released = module(torch.zeros(4, channels, side, side))[..., :: module.cell, :: module.cell]
    return released / 2


@pytest.mark.parametrize("channels", [1, 3])
def test_the_noise_is_laplace_of_the_scale_that_epsilon_needs(channels: int) -> None:
    module = DPPix(cell=4, pixels=2, epsilon=2.0 * channels)
    assert module.scale(channels) == pytest.approx(2 / (16 * 2))  # C m / (b^2 eps)
    noise = noise_of(module, channels)
    assert float(noise.abs().mean()) == pytest.approx(1 / 16, rel=0.03)  # E|x| is the scale
    assert float(noise.var()) == pytest.approx(2 / 16**2, rel=0.1)  # 2 scale^2: a Gaussian has 1.57 scale^2
    assert abs(float(noise.mean())) < 0.003


def test_neighbours_are_as_hard_to_tell_apart_as_epsilon_says() -> None:
    # The worst neighbour: m pixels of one cell from black to white. Counted: how much likelier a release above a
    # threshold is from the one than from the other.
    module = DPPix(cell=4, pixels=4, epsilon=1.0)
    gray, other = torch.zeros(2, 1, 1, 4, 4).unbind(0)
    gray[..., 0, :], other[..., 0, :] = -1, 1
    released = [module(one.expand(40000, 1, 4, 4))[:, 0, 0, 0] for one in (gray, other)]
    ratio = [float((values > 0.5).float().mean()) for values in released]
    assert math.log(ratio[1] / ratio[0]) == pytest.approx(1.0, abs=0.05)  # tight here, and no more than epsilon


def test_noise_is_one_value_a_cell_around_the_cells_mean() -> None:
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    released = DPPix(cell=8, epsilon=1e9)(image)
    means = torch.stack([image[:, 0, r : r + 8, c : c + 8].mean((1, 2)) for r in (0, 8) for c in (0, 8)], 1)
    assert torch.allclose(released[:, 0, 4::8, 4::8].flatten(1), means, atol=1e-5)
    noisy = DPPix(cell=8)(image)
    assert all(len(one.unique()) <= 4 for one in noisy)


def test_two_people_differ_in_every_pixel_and_the_bound_says_so() -> None:
    module = DPPix(pixels=16, epsilon=0.5)
    assert module.epsilon_between(16) == 0.5
    assert module.epsilon_between(64 * 64) == 128


def test_values_out_of_range_bring_no_more_than_the_range() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 3, 3] = 50.0
    assert float(DPPix(epsilon=1e9)(image).max()) == pytest.approx(1 / 64, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cell": 0}, "cell is 0; it must be at least 1 pixel"),
        ({"pixels": 0}, "pixels is 0; it must be"),
        ({"epsilon": 0.0}, "epsilon is 0.0; it must be above 0"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
    ],
)
def test_noise_without_a_bound_is_refused(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DPPix(**options)


def test_cells_cut_at_the_border_are_refused() -> None:
    with pytest.raises(ValueError, match="36 x 32 pixels; both must be multiples of the cell's 8"):
        DPPix()(torch.zeros(1, 1, 36, 32))


def test_it_is_compared() -> None:
    assert BASELINES["dp-pix"] is DPPix
