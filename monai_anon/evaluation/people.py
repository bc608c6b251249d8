"""Who is who across parts: a part's codes of patients are its own, only the manifest's names are common to all.

Parts share people in a closed set alone. There the test people are training people, by other images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

Array = np.ndarray

OUTSIDE = -1
"""Code of somebody who is not in the training part."""
NOT_APPLICABLE = "not applicable"
"""What a note begins with where a question cannot be asked of such data."""
NO_STRANGERS = f"{NOT_APPLICABLE}: in a closed set the test people are training people, so there are no strangers"
KNOWN_PEOPLE = "known_people"
"""Metric of the judges that a closed set alone has: the share of the test people who are in the training part."""


def codes_among(training: Cohort, cohort: Cohort) -> Array:
    """The training part's codes (N,) of the people of another part's images, by name; `OUTSIDE` for who is not there.

    To be asked in closed sets only: elsewhere equal names need not be equal people.
    """
    code = dict(zip((entry["patient"] for entry in training.entries), training.patient.tolist(), strict=True))
    return np.array([code.get(entry["patient"], OUTSIDE) for entry in cohort.entries], dtype=np.int64)
