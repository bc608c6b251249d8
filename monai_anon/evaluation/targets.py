"""Who lends features to whom: the targets of Table 2, of counterfactuals and of the figures."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


class NoTargetError(ValueError):
    """A part in which some image has nobody to swap findings with."""


def draw_targets(patients: Array, finding: Array, seed: int) -> tuple[Array, Array]:
    """Two targets an image, each of another patient with another finding; the second of a third patient if possible.

    Raises:
        NoTargetError: an image without any target, by index.
    """
    patients, finding = np.asarray(patients), np.asarray(finding)
    draw = np.random.default_rng(seed)
    first, last = np.empty(len(patients), dtype=np.int64), np.empty(len(patients), dtype=np.int64)
    for image in range(len(patients)):
        possible = np.flatnonzero((patients != patients[image]) & (finding != finding[image]))
        if not len(possible):
            why = f"image {image} has no target: no other patient has another finding than {finding[image]}"
            raise NoTargetError(why)
        first[image] = draw.choice(possible)
        third = possible[patients[possible] != patients[first[image]]]
        last[image] = draw.choice(third if len(third) else possible)
    return first, last
