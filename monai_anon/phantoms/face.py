"""Colour faces of generated people, neutral and smiling: the stand-in for CelebAMask-HQ.

Identity, finding (the smile) and residual (pose, gaze, light, exposure, background, clothes, noise) are known exactly
for every image; `face_factors` documents the factors, `face_render` the picture. In the usual protocol, the paper's,
what is behind a person is mid-gray, by the exact mask (`person_mask`); in "scenes" the same people stand before walls
that differ from image to image. These are paintings by formula, *easier* than photographs; `difficulty` narrows that
gap.
"""

from __future__ import annotations

from monai_anon.phantoms.face_factors import CLASSES, MAX_IMAGES, MIN_IMAGES, PROTOCOLS, sample_factors
from monai_anon.phantoms.face_render import COLUMNS, person_mask, render
from monai_anon.phantoms.kinds import Phantom

__all__ = [
    "CLASSES", "PHANTOM", "PROTOCOLS", "ensure_cohort", "person_mask", "render", "sample_factors", "write_cohort",
]  # fmt: skip

# Goes up with every change of a pixel, so that a cohort of an older version is not taken for one of this version.
VERSION = 1

PHANTOM = Phantom(
    name="face",
    version=VERSION,
    classes=CLASSES,
    sides={},
    protocols=PROTOCOLS,
    bounds=(MIN_IMAGES, MAX_IMAGES),
    columns=COLUMNS,
    sample=sample_factors,
    render=render,
)
write_cohort, ensure_cohort = PHANTOM.write_cohort, PHANTOM.ensure_cohort
