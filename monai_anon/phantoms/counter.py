"""Random numbers that are a pure function of their keys, so that no draw depends on what was drawn before it."""

from __future__ import annotations

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def _mix(bits: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014), in place: uint64 of any shape in and out."""
    scratch = np.right_shift(bits, np.uint64(30))
    np.bitwise_xor(bits, scratch, out=bits)
    np.multiply(bits, _MULTIPLY_1, out=bits)
    np.right_shift(bits, np.uint64(27), out=scratch)
    np.bitwise_xor(bits, scratch, out=bits)
    np.multiply(bits, _MULTIPLY_2, out=bits)
    np.right_shift(bits, np.uint64(31), out=scratch)
    return np.bitwise_xor(bits, scratch, out=bits)


def random_bits(*keys: int | np.ndarray) -> np.ndarray:
    """64 random bits for each combination of integer keys; the keys broadcast, and their order counts.

    Args:
        keys: integers or integer arrays, each of 64 bits at most; negative ones wrap around.
    """
    bits = np.zeros(np.broadcast_shapes(*(np.shape(key) for key in keys)), dtype=np.uint64)
    for key in keys:
        np.add(bits, np.asarray(key).astype(np.uint64), out=bits)
        np.add(bits, _STEP, out=bits)
        _mix(bits)
    return bits


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Uniform float64 in (0, 1), one for each combination of keys."""
    return ((random_bits(*keys) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def normal(*keys: int | np.ndarray, clip: float = 2.2) -> np.ndarray:
    """Standard normal float64 by Box and Muller, clipped to +-clip, one for each combination of keys."""
    radius = np.sqrt(-2 * np.log(uniform(*keys, 0)))
    return np.clip(radius * np.cos(2 * np.pi * uniform(*keys, 1)), -clip, clip)


def pixel_noise(seeds: np.ndarray, pixels: int) -> np.ndarray:
    """Noise of mean 0 and variance 1 for each pixel of each image: float32 (N, pixels).

    The sum of four 16 bit lanes (Irwin-Hall): near enough to normal for detector noise, and free of functions whose
    last digit differs between machines.

    Args:
        seeds: uint64 (N,), one for each image; the noise of an image depends on its own seed alone.
    """
    bits = random_bits(seeds.astype(np.uint64)[:, None])
    lanes = _mix(bits + np.arange(1, pixels + 1, dtype=np.uint64) * _STEP).view(np.uint16)
    total = lanes[:, 0::4].astype(np.float32)
    for lane in range(1, 4):
        total += lanes[:, lane::4]
    total -= np.float32(2 * 65535)
    total *= np.float32(1 / np.sqrt(4 / 12 * 65536.0**2))
    return total
