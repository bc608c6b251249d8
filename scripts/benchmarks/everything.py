"""Every verb on one device, one after the other, each in a process of its own: what docs/performance.md is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import timing

STEPS = {  # at least 200 timed steps on a GPU
    "cpu": ["--rounds", "7", "--shares", "--hot-spots"],
    "cuda": ["--rounds", "5", "--steps", "50", "--shares", "--hot-spots"],
}
MODES = {"cpu": ["none"], "cuda": ["none", "default", "reduce-overhead", "max-autotune"]}


def commands(device: str, folder: Path) -> dict[str, list[str]]:
    """Arguments of `scripts/benchmark.py` for each result, by the name of its JSON file."""
    kind = device.split(":")[0]
    runs = {f"step_{mode}": ["step", *STEPS[kind], "--compiled", mode, "--device", device] for mode in MODES[kind]}
    runs["step_train"] = ["step", "--recipe", "train", "--batch-size", "24", *STEPS[kind], "--device", device]
    runs["data"] = ["data", "--device", device]
    runs |= {name: [name, "--device", device] for name in ("anonymize", "gallery", "start")}
    runs |= {name: [name] for name in ("scale", "render", "ranks", "nearest")}  # on the CPU in any case
    return {name: [*command, "--json", "--output", str(folder / f"{name}.json")] for name, command in runs.items()}


def run(device: str, folder: Path, overwrite: bool = False) -> dict[str, str]:
    """Run all of them; what is in the folder already is left, unless it is to be made anew.

    Returns:
        For each result `done`, `kept` or `failed`; a failure stops nothing, its message is shown.
    """
    outcome = {}
    for name, command in commands(device, folder).items():
        if (folder / f"{name}.json").exists() and not overwrite:
            outcome[name] = "kept"
            continue
        print(f"# python scripts/benchmark.py {' '.join(command)}", file=sys.stderr)
        script = timing.ROOT / "scripts" / "benchmark.py"
        done = subprocess.run([sys.executable, str(script), *command], stdout=subprocess.DEVNULL, check=False)
        outcome[name] = "failed" if done.returncode else "done"
    return outcome
