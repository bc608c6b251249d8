"""Textures: what is where, whichever its phase."""

from __future__ import annotations

import math

import pytest
import torch

from monai_anon.texture import DIRECTIONS, FAINTEST, PERIODS, gabor_bank, texture_loss, textures


def wave(period, amplitude=0.2, direction=0, phase=0.0, size=64):
    at = torch.arange(size, dtype=torch.float32)
    angle = math.pi * direction / DIRECTIONS
    along = at[None, :] * math.cos(angle) + at[:, None] * math.sin(angle)
    return amplitude * torch.cos(2 * math.pi * along / period + phase)[None, None]


def test_flat_images_have_none():
    for gray in (-1.0, 0.0, 0.7):
        for amplitudes in textures(torch.full((2, 1, 64, 64), gray)):
            assert torch.allclose(amplitudes, torch.full_like(amplitudes, math.log(FAINTEST)), atol=1e-3)


@pytest.mark.parametrize("number", range(len(PERIODS)))
@pytest.mark.parametrize("direction", [0, 2, 5])
def test_a_wave_has_its_amplitude_in_its_direction_whichever_its_phase(number, direction):
    for phase in (0.0, 0.8, 2.0):
        found = textures(wave(PERIODS[number], 0.2, direction, phase))[number].exp()
        assert found[0, direction].mean() == pytest.approx(0.2, rel=0.15)
        assert found[0].mean((1, 2)).argmax() == direction
        assert found[0, (direction + DIRECTIONS // 2) % DIRECTIONS].mean() < 0.03


def test_a_wave_beside_its_place_costs_less_than_a_fainter_one_and_that_less_than_none():
    real = wave(6.5)
    beside, faint, none = (texture_loss(real, made) for made in (wave(6.5, phase=math.pi), 0.8 * real, 0 * real))
    assert texture_loss(real, real) == 0
    assert 0 < 5 * beside < faint < -math.log(0.8) and 3 * faint < none  # 0.8 is of the directions that have any


def test_larger_images_are_looked_at_in_octaves():
    small, large = textures(torch.zeros(1, 1, 64, 64)), textures(torch.zeros(1, 3, 128, 128))
    assert len(small) == len(PERIODS) and len(large) == 2 * len(PERIODS)
    assert large[0].shape[0] == 3


def test_only_the_reconstruction_gets_a_gradient():
    real, made = wave(4.0).requires_grad_(), wave(6.5).requires_grad_()
    texture_loss(real, made).backward()
    assert real.grad is None and made.grad.abs().sum() > 0


def test_every_filter_is_blind_to_what_is_flat():
    for period in PERIODS:
        assert gabor_bank(period).sum((1, 2, 3)).abs().max() < 1e-5
