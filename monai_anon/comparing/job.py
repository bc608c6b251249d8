"""A comparison as a file: what was asked for, so that processes share it and the same command goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from monai_anon.evaluation.evaluation import Evaluation, bundle_evaluation, evaluate_config
from monai_anon.whole_files import write_text

RECORD = "comparison.json"
ATTACKS = ("static", "adaptive", "membership")
CONTENTS = ("content", "realism")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What decides every figure of a comparison, beside the code.

    Args:
        bundle: folder of the bundle: sizes, judges and data are its `evaluate.json`'s.
        manifest: path of a manifest; "" for the generated cohort.
        judges_dir: where judges and decoded images are kept; "" for the bundle's.
        budget: batches that every system is trained for.
        attack_budget: batches that every attacker is trained for, and all else that learns to measure.
        releases: of each image, by systems that draw anew each time; attackers learn from all and figures are means.
    """

    bundle: str
    manifest: str = ""
    judges_dir: str = ""
    budget: int = 600
    batch_size: int = 8
    attack_budget: int = 100
    bootstrap: int = 300
    seed: int = 0
    releases: int = 2

    def evaluation(self) -> Evaluation:
        """The bundle's evaluation with these settings; its own model is not looked at."""
        return bundle_evaluation(Path(self.bundle), self._overrides())

    def entries(self) -> dict[str, Any]:
        """Entries of `compare.json` that are the evaluation's: one image is one size."""
        found = evaluate_config(Path(self.bundle), self._overrides())
        return {name: found[name] for name in ("image_size", "channels", "num_classes")}

    def _overrides(self) -> dict[str, object]:
        return {
            "manifest": self.manifest or None,
            "judges_dir": self.judges_dir or None,
            "attack_steps": self.attack_budget,
            "bootstrap": self.bootstrap,
            "attacks": list(ATTACKS),
            "content": list(CONTENTS),
            "seed": self.seed,
        }

    def claim(self, folder: Path) -> None:
        """Write down what a folder is for.

        Raises:
            FileExistsError: it holds another comparison, or something else.
        """
        path, own = folder / RECORD, dataclasses.asdict(self)
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if differing := [name for name in own if found.get(name) != own[name]]:
                name = differing[0]
                raise FileExistsError(
                    f"{folder} holds a comparison with {name} = {found.get(name)!r}, not {own[name]!r}; "
                    "give another --output"
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} is there and is no comparison; give another --output")
        write_text(path, json.dumps(own, indent=1) + "\n")


def read_comparison(folder: Path) -> Comparison:
    """What `claim` wrote."""
    return Comparison(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
