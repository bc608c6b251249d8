"""Hair of the face phantom: behind the head and neck where it is long, and around the face."""

from __future__ import annotations

import numpy as np

from monai_anon.phantoms.face_colours import GRAY_HAIR, HAIR, RED_HAIR, Canvas, light, mixed, on_scale
from monai_anon.phantoms.face_relief import lamp, shaded
from monai_anon.phantoms.face_shapes import MIDDLE, Head, Pattern
from monai_anon.phantoms.shapes import Rows, bump, edge, smooth


def hair_colour(rows: Rows) -> np.ndarray:
    """Colour of a person's hair: light (3, n, 1, 1)."""
    red, gray = (rows[name].astype(np.float32)[:, None, None] for name in ("id_hair_red", "id_hair_gray"))
    colour = mixed(on_scale(HAIR, rows["id_hair_tone"]), light(RED_HAIR), np.float32(0.9) * red)
    return mixed(colour, light(GRAY_HAIR), np.float32(0.9) * gray)


class Hair:
    """Where hair is and how it shines, for a chunk of images."""

    def __init__(self, head: Head, rows: Rows) -> None:
        self.head, self.pattern = head, Pattern(rows["id_hair_seed"])
        self.long = smooth((head["id_hair_length"] - np.float32(0.35)) * np.float32(1 / 0.5))
        curl = head["id_hair_curl"] * head["id_hair_curl"]
        self.wave = curl * self.pattern(head.x * 9, head.y * 9)
        self._outline()
        self._strands(curl)
        self.colour = hair_colour(rows)

    def _outline(self) -> None:
        """Distance to the outer border, positive inside, and the direction in which its surface looks."""
        head = self.head
        volume = head["id_hair_volume"]
        half = head["id_face_width"] + volume * (np.float32(0.35) + np.float32(0.65) * self.long)
        down = head.y - MIDDLE
        half = half + np.float32(0.12) * self.long * np.maximum(down, 0)
        across, high = head.x / half, np.minimum(down, 0) / (MIDDLE - head["id_crown"] + volume)
        level = 1 - across * across - high * high * (np.float32(0.85) + np.float32(0.15) * high * high)
        steep = np.sqrt(np.square(across / half) + np.square(high / (MIDDLE - head["id_crown"] + volume)))
        self.distance = level / (2 * steep + np.float32(0.05)) + np.float32(0.035) * self.wave
        end = np.float32(-0.02) + np.float32(1.05) * self.long
        # Short hair tapers towards the sideburns.
        end = end - (1 - self.long) * 2 * np.maximum(np.abs(head.x) - np.float32(0.9) * head["id_face_width"], 0)
        self.distance = np.minimum(self.distance, end - head.y + np.float32(0.04) * self.wave)
        self.across, self.high = np.clip(across, -1, 1), high

    def _strands(self, curl: np.ndarray) -> None:
        """Light and dark strands that run from the parting, -1 to 1."""
        head = self.head
        fan = np.float32(0.35) + np.clip(head.v - head["id_crown"] + np.float32(0.05), 0, np.float32(0.7))
        lane = (head.u - head["id_hair_part"]) / fan + np.float32(0.10) * curl * self.wave
        along = head.v * np.float32(1.5)
        self.strands = np.float32(0.6) * self.pattern(lane * 13, along + curl * lane)
        if head.pixel < 1 / 30:
            self.strands = self.strands + np.float32(0.4) * self.pattern(lane * 37 + 11, along * 2)

    def _opening(self) -> np.ndarray:
        """Distance into the part of the face that no hair covers, positive inside."""
        head = self.head
        peak = head["id_widows_peak"] * bump(head.u * np.float32(1 / 0.13))
        lowest = head["id_eye_height"] - head["id_brow_height"] - np.float32(0.02) - head["id_hairline"]
        open_at_part = 1 - (1 - head["id_bangs"]) * bump((head.u - head["id_hair_part"]) * np.float32(1 / 0.34))
        top = head["id_hairline"] + np.maximum(peak, head["id_fringe"] * open_at_part * lowest)
        top = top + np.float32(0.02) * self.strands * (1 + 2 * head["id_fringe"])
        wide = head["id_face_width"] * (np.float32(0.93) - np.float32(0.05) * self.long)
        across, high = np.square(head.u / wide), np.float32(0.12) - head.v
        high = np.maximum(high, 0) / (np.float32(0.12) - top)
        return np.float32(0.25) * (1 - across * across - high * high)

    def _light(self) -> np.ndarray:
        """The hair under the lamp: (3, n, size, size)."""
        x, y, z = lamp(self.head)
        out = np.sqrt(np.maximum(1 - np.square(self.across) - np.square(self.high), np.float32(0.04)))
        facing = self.across * x + self.high * y + out * z
        # Strands shine in a band across them, where they look half way between lamp and viewer.
        band = bump((self.high - (y - np.float32(0.25)) * np.float32(0.8)) * np.float32(1 / 0.42))
        shine = np.maximum(facing, 0) * band * (np.float32(0.5) + np.float32(0.5) * self.strands)
        tone = self.colour * (1 + np.float32(0.55) * self.strands)
        return tone * shaded(self.head, facing) + np.float32(0.10) * shine * (np.float32(0.25) + np.sqrt(tone))

    def paint_behind(self, canvas: Canvas) -> None:
        """Hair behind head and neck, in their shadow."""
        shown = edge(self.distance, self.head.width(0.025))
        self.shown = self._light()
        canvas.paint(shown, self.shown * (1 - np.float32(0.45) * smooth(self.head.y * 3)))

    def paint_around(self, canvas: Canvas) -> None:
        """Hair over the skull and beside the face, with its shadow on the skin."""
        head = self.head
        opening = self._opening()
        edges = edge(self.distance, head.width(0.025))
        shadow = smooth(1 - opening * np.float32(1 / 0.05)) * edges
        canvas.tint(1 - np.float32(0.35) * shadow)
        canvas.paint(edge(-opening, head.width(0.018)) * edges, self.shown)
