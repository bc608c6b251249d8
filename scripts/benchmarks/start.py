"""From the start of a process to the first training step: what the bundle's own command takes.

`measure` starts children of this very module, which run `monai.bundle` as the command does and leave after the first
step. Nothing but the standard library is imported on top, so that a child's imports are the command's.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "bundles/chest/configs/train.json"
# Modules of the config's components, by what they are part of; the others are `config`.
MODULES = {
    "cohort": ("monai_anon.cohort", "monai_anon.datasets"),
    "networks": ("monai_anon.networks", "monai_anon.steps", "monai_anon.recognition", "monai_anon.optimisation"),
}


def measure(
    repeats: int = 3,
    images: int | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Median seconds from the start of `python -m monai.bundle run training` to the end of its first step, on a
    generated cohort that is already cached; the same without the cache, and `monai-anon --help`. Processor seconds (of
    all threads) say what an idle machine would need where others run on this one.

    The first step is stage 1's, or its recogniser's where a term of the loss asks for one. Nothing is compiled.

    Args:
        repeats: processes that are timed, after one that fills the cache.
        images: of the training part, the others in the paper's proportion to it; None for the paper's.
        device: of the training.
        threads: of a CPU's operators; None for the bundle's choice.

    Raises:
        ValueError: no repeat asked for, or too few images.
        ChildProcessError: a child did not come to its first step; with its last words.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; at least 1 is needed")
    from monai_anon.phantoms import chest
    from monai_anon.phantoms.sizes import part_sizes

    sizes = part_sizes(None if images is None else str(images), None, (chest.IMAGES, chest.PATIENTS))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        manifest = chest.write_cohort(place / "cohort", 0, 64, *sizes, progress=False)
        given = ["--manifest", str(manifest), "--cache_dir", str(place / "cache"), "--compiled", "False"]
        given += ["--device", f"$torch.device('{device}')"]
        given += ["--threads", str(threads)] if threads else []
        runs = [started(place / f"run_{index}", given) for index in range(repeats + 1)]
    cold, warm = runs[0], runs[1:]
    parts = {name: statistics.median(run["parts"].get(name, 0.0) for run in warm) for name in warm[0]["parts"]}
    return {
        "images": sum(sizes[0]),
        "repeats": repeats,
        "seconds_to_first_step": statistics.median(run["first_step"] for run in warm),
        "seconds_of_each": [run["first_step"] for run in warm],
        "processor_seconds_to_first_step": statistics.median(run["cpu"] for run in warm),
        "parts_s": parts,
        "seconds_without_cache": cold["first_step"],
        "help_s": statistics.median(helped() for _ in range(repeats)),
    }


def started(output: Path, given: list[str]) -> dict[str, Any]:
    """What one child reports: seconds from its start to `first_step`, processor seconds `cpu`, those of its `parts`."""
    output.mkdir()
    report = output / "start.json"
    command = [sys.executable, "-m", "benchmarks.start", str(time.time()), str(report), "run", "training"]
    command += ["--config_file", CONFIG, "--output_dir", str(output), *given]
    paths = [str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    if not report.is_file():
        words = "\n".join(ended.stderr.strip().splitlines()[-5:])
        raise ChildProcessError(f"the training ended with exit code {ended.returncode} before its first step:\n{words}")
    return json.loads(report.read_text(encoding="utf-8"))


def helped() -> float:
    """Seconds of `monai-anon --help`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "monai_anon", "--help"], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


class Parts:
    """Seconds of the parts of a run; while one part runs inside another, only the inner one's clock does."""

    def __init__(self, begun: float, part: str) -> None:
        self.seconds: dict[str, float] = {}
        self._last, self._running = begun, [part]

    def turn(self) -> float:
        """Charge the time since the last turn to the part that runs; returns the time of now."""
        now = time.time()
        part = self._running[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
        return now

    def goes_on_as(self, part: str) -> None:
        self.turn()
        self._running[-1] = part

    def timed(self, function: Callable[..., Any], part: Callable[..., str | None]) -> Callable[..., Any]:
        """`function`, whose time is charged to the part that `part` names for the same arguments; None for no other."""

        @wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            self.turn()
            self._running.append(part(*arguments, **named) or self._running[-1])
            try:
                return function(*arguments, **named)
            finally:
                self.turn()
                self._running.pop()

        return run


def part_of(component: Any, **_: Any) -> str | None:
    """The part that a component of the config belongs to."""
    target = str(component.get_config().get("_target_"))
    return next((part for part, modules in MODULES.items() if target.rpartition(".")[0].startswith(modules)), None)


def child(begun: float, report: Path, arguments: list[str]) -> None:
    """Run `python -m monai.bundle ARGUMENTS`, write `report` at the end of its first step, and leave."""
    parts = Parts(begun, "imports")
    from monai.bundle.config_item import ConfigComponent

    from monai_anon.cohort import Cohort
    from monai_anon.engines import StepTrainer

    parts.goes_on_as("config")
    iteration = parts.timed(StepTrainer._iteration, lambda *_: "first_step")

    def first(trainer: StepTrainer, engine: Any, batch: Any) -> Any:
        iteration(trainer, engine, batch)
        if trainer.state.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        seconds = parts.turn() - begun
        reached = {"first_step": seconds, "cpu": sum(os.times()[:2]), "parts": parts.seconds}
        report.write_text(json.dumps(reached), encoding="utf-8")
        os._exit(0)  # the rest of the training is not wanted

    ConfigComponent.instantiate = parts.timed(ConfigComponent.instantiate, part_of)  # type: ignore[method-assign]
    Cohort.fingerprint = parts.timed(Cohort.fingerprint, lambda *_: "cohort")  # type: ignore[method-assign]
    StepTrainer._iteration = first  # type: ignore[method-assign]
    sys.argv = ["monai.bundle", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    child(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
