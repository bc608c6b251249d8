"""Near-infrared images of the irises of generated people, with and without a clouded cornea.

Identity is the iris itself: many classes, each with many images, as in Warsaw-BioBase. Finding and residual (pose,
gaze, dilation, lids, lashes, light, noise) are known exactly for every image, so that anonymisation can be checked
against truth; `iris_factors` documents the factors, `iris_render` the picture. In the usual protocol, the paper's,
everybody is in all three parts with other images (a closed set); "disjoint" keeps people apart, and tells how much of
a figure rests on people that are known. These images are *easier* than real ones; `difficulty` narrows that gap.
"""

from __future__ import annotations

from monai_anon.phantoms.iris_factors import CLASSES, MAX_IMAGES, MIN_IMAGES, PROTOCOLS, SIDES, sample_factors
from monai_anon.phantoms.iris_render import COLUMNS, render
from monai_anon.phantoms.kinds import Phantom

__all__ = ["CLASSES", "PHANTOM", "PROTOCOLS", "SIDES", "ensure_cohort", "render", "sample_factors", "write_cohort"]

# Goes up with every change of a pixel, so that a cohort of an older version is not taken for one of this version.
VERSION = 1

PHANTOM = Phantom(
    name="iris",
    version=VERSION,
    classes=CLASSES,
    sides=SIDES,
    protocols=PROTOCOLS,
    bounds=(MIN_IMAGES, MAX_IMAGES),
    columns=COLUMNS,
    sample=sample_factors,
    render=render,
)
write_cohort, ensure_cohort = PHANTOM.write_cohort, PHANTOM.ensure_cohort
