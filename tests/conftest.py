"""What every test relies on: one thread, a fixed seed, no display, no network."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# before torch and matplotlib are imported: tests run side by side, one core each, and none opens a window
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """The same random numbers for a test whichever tests ran before it, and no setting of torch left behind."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture
def scripts(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`scripts/`, whose modules can be imported during a test and are forgotten after it."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    yield root / "scripts"
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmark", "benchmarks")]:
        del sys.modules[name]
