"""Colours of the face phantom, and the canvas that layers of them are painted on.

Colours are written as a screen shows them, [0, 1], and mixed as light: squared (a display gamma of 2, whose inverse is
a square root and so the same on every machine). A colour is float32 (3, n, 1, 1), a picture (3, n, size, size).
"""

from __future__ import annotations

import numpy as np

Stops = tuple[tuple[float, tuple[float, float, float]], ...]

# Scales from a tone in [0, 1] to a colour; the first number is where on the scale a colour stands.
SKIN: Stops = (
    (0.0, (0.97, 0.83, 0.76)), (0.4, (0.91, 0.75, 0.65)), (0.7, (0.78, 0.60, 0.48)), (0.88, (0.56, 0.40, 0.31)),
    (1.0, (0.37, 0.255, 0.20)),
)  # fmt: skip
HAIR: Stops = (
    (0.0, (0.08, 0.07, 0.07)), (0.35, (0.25, 0.16, 0.11)), (0.6, (0.45, 0.30, 0.18)), (0.85, (0.74, 0.57, 0.34)),
    (1.0, (0.90, 0.78, 0.55)),
)  # fmt: skip
IRIS: Stops = (
    (0.0, (0.18, 0.10, 0.06)), (0.4, (0.36, 0.22, 0.10)), (0.6, (0.42, 0.38, 0.18)), (0.75, (0.33, 0.46, 0.31)),
    (1.0, (0.36, 0.55, 0.72)),
)  # fmt: skip
RED_HAIR, GRAY_HAIR = (0.58, 0.24, 0.11), (0.68, 0.67, 0.66)


def light(colour: tuple[float, float, float]) -> np.ndarray:
    """A fixed colour as light: (3, 1, 1, 1)."""
    return np.square(np.array(colour, dtype=np.float32))[:, None, None, None]


def on_scale(stops: Stops, tone: np.ndarray) -> np.ndarray:
    """Colours of tones (n,), between the scale's stops: light (3, n, 1, 1)."""
    places, colours = [place for place, _ in stops], np.array([colour for _, colour in stops])
    shown = np.stack([np.interp(tone, places, channel) for channel in colours.T])
    return np.square(shown.astype(np.float32))[:, :, None, None]


def mixed(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`one` where the share is 0, `other` where it is 1, both exactly."""
    return one * (1 - share) + other * share


class Canvas:
    """Light of a picture (3, n, size, size), and how much of each pixel the person covers (n, size, size).

    Layers are mixed so that one that covers a pixel whole leaves nothing of what was there, to the last bit: a
    person's inner pixels are the same before any background.
    """

    def __init__(self, background: np.ndarray) -> None:
        self.light = background
        self.covered = np.zeros(background.shape[1:], dtype=np.float32)

    def paint(self, alpha: np.ndarray, colour: np.ndarray) -> None:
        """Lay a colour over the picture where `alpha` (n, size, size), 0 to 1, says so."""
        self.light *= 1 - alpha
        self.light += alpha * colour
        self.covered *= 1 - alpha
        self.covered += alpha

    def tint(self, factor: np.ndarray) -> None:
        """Multiply the light: below 1 for shadows, with a colour for blushes."""
        self.light *= factor
