"""Generated cohorts whose identity, medical and residual factors are known exactly."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from monai_anon.phantoms.kinds import Phantom

# Each module has its `PHANTOM`; it is imported by who asks for it, so that help is there at once.
PHANTOMS: dict[str, str] = {
    "chest": "monai_anon.phantoms.chest",
    "iris": "monai_anon.phantoms.iris",
    "face": "monai_anon.phantoms.face",
}


def load_phantom(kind: str) -> Phantom:
    """The phantom of a kind.

    Raises:
        ValueError: there is none of that name.
    """
    if kind not in PHANTOMS:
        raise ValueError(f"generated cohort {kind!r}; known are {', '.join(PHANTOMS)}")
    found: Phantom = importlib.import_module(PHANTOMS[kind]).PHANTOM
    return found


def phantom_of(factors: pd.DataFrame) -> Phantom | None:
    """The phantom that can render a table of factors; None where no one can."""
    return next((found for found in map(load_phantom, PHANTOMS) if set(found.columns) <= set(factors)), None)
