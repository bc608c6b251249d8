"""The bundles as MONAI runs them, for the tests of all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT
from monai.bundle import ConfigParser, ConfigWorkflow

STAND_ALONE = ("train.json", "train_identity_vae.json", "evaluate.json", "inference.json")
TINY = {"image_size": 32, "batch_size": 8, "max_epochs": 1}  # every run takes seconds


@dataclass(frozen=True)
class Bundle:
    """A bundle of this repository."""

    name: str

    @property
    def folder(self) -> Path:
        return ROOT / "bundles" / self.name

    @property
    def configs(self) -> Path:
        return self.folder / "configs"

    @property
    def sizes(self) -> dict[str, Any]:
        """Overrides that make the generated cohort tiny; in a closed set all parts have the same people."""
        return {
            "manifest_path#images": [48, 24, 24],
            "manifest_path#patients": [12, 12, 12] if self.name == "iris" else [12, 6, 6],
        }

    def config(self, name: str) -> dict[str, Any]:
        return json.loads((self.configs / name).read_text())

    def parser(self, *names: str, **overrides: Any) -> ConfigParser:
        """The configs as MONAI merges them."""
        parser = ConfigParser()
        parser.read_config([str(self.configs / name) for name in names])
        parser.update(overrides)
        parser.parse()
        return parser

    def workflow(self, *names: str, run_id: str = "run", kind: str = "train", **overrides: Any) -> ConfigWorkflow:
        """The configs as MONAI runs them, on the CPU; the tests' own logging stays."""
        files = [str(self.configs / name) for name in names]
        return ConfigWorkflow(files, logging_file=False, run_id=run_id, workflow_type=kind, device="cpu", **overrides)

    def execute(self, *names: str, **options: Any) -> ConfigWorkflow:
        started = self.workflow(*names, **options)
        started.initialize()
        started.run()
        started.finalize()
        return started


BUNDLES = [Bundle(folder.parent.name) for folder in sorted((ROOT / "bundles").glob("*/configs"))]
CHEST, FACE, IRIS = (Bundle(name) for name in ("chest", "face", "iris"))


def command(*arguments: str, cwd: Path, module: str = "monai.bundle", **overrides: Any) -> subprocess.CompletedProcess:
    """`python -m monai.bundle run ...` as a user types it; the warning about trusted configs is MONAI's own."""
    given = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(ROOT)
    line = [sys.executable, "-m", module, *arguments, *given]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, check=False)
