"""Timing in alternation, and what a figure must be read with: machine, versions, revision.

A machine's speed drifts (other programs, clocks, heat), so two ways of doing one thing are run in turns in one process
and compared turn by turn; the ratio is the figure, the seconds are its evidence.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import torch
from tabulate import tabulate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ratio:
    """How many times faster one candidate is than another: the median over the rounds, its least and its largest."""

    median: float
    least: float
    largest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}-{self.largest:.2f})"


@dataclass(frozen=True)
class Timings:
    """Seconds of each candidate in each round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speed_up(self, name: str, over: str) -> Ratio:
        """How many times faster `name` is than `over`, round by round."""
        ratios = [slow / fast for slow, fast in zip(self.seconds[over], self.seconds[name], strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def alternate(
    candidates: Mapping[str, Callable[[], object]], rounds: int, device: str | torch.device = "cpu", warm_up: int = 1
) -> Timings:
    """Run the candidates in turns, `rounds` times each after `warm_up` untimed turns; every other round backwards, so
    that none always follows the same one.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    for _ in range(warm_up):
        for run in candidates.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(rounds):
        for name in list(candidates)[:: -1 if index % 2 else 1]:
            synchronise(device)
            start = time.perf_counter()
            candidates[name]()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


def synchronise(device: str | torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def rate(run: Callable[[], int], seconds: float) -> float:
    """Units a second of `run`, which returns how many it has done, over at least `seconds` after one untimed call."""
    run()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        done += run()
    return done / passed


def peak_memory(function: Callable[..., None], *arguments: Any) -> float:
    """Largest memory in MB (10^6 bytes) of a process of its own that calls `function(*arguments)`: what it allocates on
    a GPU where it uses one, else what is resident.

    A process has only one high-water mark, hence one process a candidate.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measured, args=(sender, function, arguments))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the process whose memory was to be measured died; is there enough memory?") from None
    finally:
        child.join()


def _measured(sender: Any, function: Callable[..., None], arguments: tuple) -> None:
    function(*arguments)
    on_gpus = [torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())]
    sender.send(max(on_gpus) / 1e6 if any(on_gpus) else _high_water_mark())


def _high_water_mark() -> float:
    """Largest resident memory of this process so far, in MB; on Linux without what its parent held, which `ru_maxrss`
    would count.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def matrix_peak(device: str | torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 5) -> float:
    """The device's matrix-product peak in GFLOP/s, measured: the best of some products of two square matrices."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    timings = alternate({"product": lambda: a @ b}, repeats, device, warm_up=2)
    return 2 * size**3 / min(timings.seconds["product"]) / 1e9


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What a figure must be read with."""
    device = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # of the last minute: what else ran
        "torch": torch.__version__,
        "monai": monai.__version__,
        "python": platform.python_version(),
        "revision": revision(),
        **({"tf32_convolutions": torch.backends.cudnn.allow_tf32} if device.type == "cuda" else {}),
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def revision() -> str:
    """The commit that is measured, with `+` where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def show(result: Mapping[str, Any], as_json: bool, output: Path | None = None) -> None:
    """Print a result as one JSON object or as a table, and write the JSON to a file where one is named."""
    text = json.dumps(result, indent=2, default=str)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    print(text if as_json else tabulate(list(flat(result)), tablefmt="plain"))


def flat(result: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested figures as lines of name and value."""
    lines = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            lines += flat(value, f"{prefix}{name}.")
        else:
            lines.append((prefix + name, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return lines
