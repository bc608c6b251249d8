"""What every test relies on: one thread, a fixed seed, no display, no network."""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# before torch and matplotlib are imported: tests run side by side, one core each, and none opens a window
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from monai_anon.manifest import MANIFEST_NAME, Manifest, load_manifest

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
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(root / "scripts")):
            del sys.modules[name]


@pytest.fixture
def script(scripts: Path) -> Callable[[str], typer.Typer]:
    """The command of a script with a function `main`, by the script's name."""

    def command(name: str) -> typer.Typer:
        app = typer.Typer()
        app.command()(importlib.import_module(name).main)
        return app

    return command


@pytest.fixture
def importer(script: Callable[[str], typer.Typer], tmp_path: Path) -> Callable[..., tuple[int, str, Manifest | None]]:
    """Run an importer on `tmp_path / "data"`; gives (exit code, output, the manifest if it is there)."""

    def run(name: str, *options: str, root: str = "data", output: str = "out") -> tuple[int, str, Manifest | None]:
        words = ["--root", str(tmp_path / root), "--output", str(tmp_path / output), *options]
        result = CliRunner().invoke(script(name), words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        written = (tmp_path / output / MANIFEST_NAME).exists()
        return result.exit_code, result.output, load_manifest(tmp_path / output) if written else None

    return run


@pytest.fixture
def noise() -> Callable[..., Image.Image]:
    """A picture of noise, another one at each call."""
    generator = np.random.default_rng(0)

    def picture(*shape: int) -> Image.Image:
        return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))

    return picture
