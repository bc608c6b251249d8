"""The newcomer's path: the documented commands, one after the other, into one folder."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RATE = "0.02"
"""What the generated cohort's 214 people held out can tell; 1 % takes 299."""


@dataclass(frozen=True)
class Stage:
    """One documented command and what it is for; `partly` says that exit code 1, done in part, is no failure of it."""

    title: str
    command: list[str]
    partly: bool = False


class DemoFailed(RuntimeError):
    """A command of the demo ended with an error; names it and its exit code."""


def demo_stages(bundle: Path, output: Path, seed: int) -> list[Stage]:
    """The commands of the demo: both trainings (quick), tables, a gate, new images, the same anonymised."""
    configs, python = bundle / "configs", [sys.executable, "-m"]
    run, fresh = output / "training", output / "new_patients"
    bundle_run = [*python, "monai.bundle", "run"]
    where = ["--dataset_dir", str(output / "cohort"), "--seed", str(seed)]

    def config(*names: str) -> list[str]:
        paths = [str(configs / name) for name in names]
        return ["--config_file", paths[0] if len(paths) == 1 else str(paths)]

    stage_1 = [*bundle_run, "training", *config("train.json", "quick.json"), *where, "--output_dir", str(run)]
    stage_2 = [*bundle_run, "training", *config("train_identity_vae.json"), *where, "--output_dir", str(run)]
    tables = [*bundle_run, "evaluating", *config("evaluate.json", "quick_evaluate.json"), *where]
    tables += ["--model_file", str(run / "model.pt"), "--output_dir", str(output / "evaluation")]
    tables += ["--judges_dir", str(output / "judges")]
    model, site = ["--bundle", str(bundle), "--model", str(run / "model.pt")], str(output / "site")
    calibrate = [*python, "monai_anon", "calibrate", site, *model, "--judges", str(output / "judges")]
    calibrate += ["--manifest", str(output / "cohort" / f"{cohort_kind(bundle)}_64"), "--rate", RATE, "--overwrite"]
    phantom = [*python, "monai_anon", "phantom", cohort_kind(bundle), str(fresh), "--seed", "1", "--overwrite"]
    phantom += ["--images", "20,20,20", "--patients", "6,6,6"]
    anonymize = [*python, "monai_anon", "anonymize", str(fresh / "images"), str(output / "anonymised"), "--overwrite"]
    anonymize += [*model, "--site", site, "--seed", str(seed)]
    return [
        Stage("stage 1: split images into identity, medical and residual latents (quick.json)", stage_1),
        Stage("stage 2: a VAE that makes synthetic identities", stage_2),
        Stage("train independent judges, measure, write Tables 2 and 3", tables),
        Stage("make the privacy gate: galleries of the training patients, thresholds from people held out", calibrate),
        Stage("generate 60 images of people whom the model has never seen", phantom),
        Stage("anonymise them; what does not pass the gate is withheld", anonymize, partly=True),
    ]


def cohort_kind(bundle: Path) -> str:
    """Which generated cohort a bundle trains on.

    Raises:
        ValueError: no such bundle.
    """
    path = bundle / "configs" / "train.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; --bundle takes a bundle's folder, such as bundles/chest")
    config = json.loads(path.read_text(encoding="utf-8"))
    return str(config["manifest_path"]["kind"])


def printed(command: list[str]) -> str:
    """A command as a person would type it."""
    words = (f'"{word}"' if "'" in word else shlex.quote(word) for word in ["python", *command[1:]])
    return " ".join(words)


def run_demo(bundle: Path, output: Path, seed: int = 0, say: Callable[[str], None] = print) -> None:
    """Run the demo; the same command goes on where a stopped one was.

    Raises:
        DemoFailed: a command failed.
    """
    say("This demo uses the GENERATED cohort: phantom images, nobody's. For your own data see README, --manifest.")
    # MONAI warns at every start that configs are code; these are ours.
    environment = os.environ | {"PYTHONWARNINGS": "ignore:parsing config_file"}
    started = time.monotonic()
    stages = demo_stages(bundle, output, seed)
    for number, stage in enumerate(stages, start=1):
        say(f"\n[{number}/{len(stages)}] {stage.title}\n$ {printed(stage.command)}")
        before = time.monotonic()
        code = subprocess.run(stage.command, check=False, env=environment).returncode
        if code and not (stage.partly and code == 1):
            raise DemoFailed(
                f"step {number} ({stage.title}) ended with exit code {code}; run the command above to see more"
            )
        say(f"[{number}/{len(stages)}] took {time.monotonic() - before:.0f} s")
    say(summary(output, time.monotonic() - started, cohort_kind(bundle)))


def summary(output: Path, seconds: float, kind: str) -> str:
    """What was written, and how to look at it."""
    pictures = sorted((output / "training" / "pictures").glob("grid_*.png"))
    lines = [
        f"\nDone in {seconds / 60:.1f} minutes. Under {output}:",
        f"  cohort/{f'{kind}_64/':20}generated images, manifest.json, factors.csv (the exact truth)",
        "  training/model.pt          the anonymizer: both stages' weights, tensors only",
        f"  training/pictures/         originals, reconstructions, swaps, anonymised ({len(pictures)} sheets)",
        "  evaluation/report.md       Tables 2 and 3, the judges' own quality first; rows.jsonl and CSV beside it",
        "  site/                      the privacy gate; of real patients it would never leave",
        "  new_patients/images/       images of people the model has never seen; anonymised/ has their copies and",
        "                             certificate.html, which says how many were released and what they tell",
        f"Curves and pictures: tensorboard --logdir {output / 'training'}",
        f"The tables and pictures as one page: monai-anon report {output / 'evaluation'}",
    ]
    return "\n".join(lines)
