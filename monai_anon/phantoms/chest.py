"""Chest radiographs of generated people, with and without pleural effusion: the default data of demos and tests.

Identity, finding and residual (pose, exposure, breath, noise) are known exactly for every image, so that
anonymisation can be checked against truth; `chest_factors` documents the factors, `chest_render` the picture. These
images are *easier* than real radiographs: people and findings are told apart almost without error. `difficulty`
narrows that gap.
"""

from __future__ import annotations

from monai_anon.phantoms.chest_factors import CLASSES, MAX_IMAGES, MIN_IMAGES, SIDES, sample_factors
from monai_anon.phantoms.chest_render import COLUMNS, render
from monai_anon.phantoms.kinds import Phantom, Protocol
from monai_anon.phantoms.rendering import check_size

__all__ = [
    "CLASSES", "IMAGES", "PATIENTS", "PHANTOM", "SIDES", "check_size", "ensure_cohort", "render", "sample_factors",
    "write_cohort",
]  # fmt: skip

# Sizes of training, validation and test in the paper's tables.
IMAGES = (6000, 200, 300)
PATIENTS = (1791, 84, 130)
# Goes up with every change of a pixel, so that a cohort of an older version is not taken for one of this version.
VERSION = 1

PHANTOM = Phantom(
    name="chest",
    version=VERSION,
    classes=CLASSES,
    sides=SIDES,
    protocols={"disjoint": Protocol(IMAGES, PATIENTS)},
    bounds=(MIN_IMAGES, MAX_IMAGES),
    columns=COLUMNS,
    sample=sample_factors,
    render=render,
)
write_cohort, ensure_cohort = PHANTOM.write_cohort, PHANTOM.ensure_cohort
