"""Runs a comparison: judges and guides first, then the systems in processes of their own, then tables and pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from monai_anon.comparing import tables
from monai_anon.comparing.group import FAILED, SAMPLE, Bench
from monai_anon.comparing.job import Comparison
from monai_anon.comparing.systems import ROWS, groups, is_trained, require_same
from monai_anon.evaluation.figures import Column, draw_columns
from monai_anon.evaluation.record import machine, revision, typed_command
from monai_anon.evaluation.subjects import release
from monai_anon.evaluation.tables import read_rows, write_rows
from monai_anon.readers import to_model_range
from monai_anon.whole_files import write_text

Say = Callable[[str], None]
TIMED, ROUNDS = 128, 3
PAGE, PICTURE, SHEET, SPEEDS = "comparison.md", "privacy_utility.png", "releases.png", "speeds.json"
COLUMNS = 12


def compare(comparison: Comparison, names: Sequence[str], run: Path, jobs: int = 2, say: Say = print) -> int:
    """Train and measure systems that are not yet, and write rows, tables and pictures of all.

    Returns:
        0, or 1 where a system failed; the others are reported all the same.

    Raises:
        FileExistsError: the folder holds another comparison, or a system made with other numbers.
        ValueError: the bundle has no `compare.json`.
    """
    comparison.claim(run)
    entries = comparison.entries()
    for name in names:
        require_same(run, Path(comparison.bundle), name, entries)
    left = [name for name in names if not (run / "systems" / name / ROWS).is_file()]
    say(f"{len(names)} systems, {len(names) - len(left)} measured before")
    bench = Bench(run)
    if any(is_trained(name) for name in left):
        say("networks that systems learn from: trained first, the same for all")
        _ = bench.trainings.guides
    if left:
        _measure(run, groups(left), jobs, say)
    outcomes = [outcome(run, name) for name in names]
    speeds = timed(bench, [one.name for one in outcomes if one.rows], run / SPEEDS, say)
    about = {
        "command": f"`{typed_command()}`",
        "revision": revision(),
        "machine": machine(),
        "data": f"{bench.scene.test.name}, {len(bench.scene.test)} images of {bench.scene.people} people",
        "budget": f"{comparison.budget} batches of {comparison.batch_size} for each training, "
        f"{comparison.attack_budget} for each attacker, seed {comparison.seed}",
    }
    write(outcomes, speeds, about, run)
    say(f"wrote {run / PAGE}")
    for one in outcomes:
        if one.failed:
            say(f"failed: {one.name}: {one.failed}")
    return int(any(one.failed for one in outcomes))


def _measure(run: Path, parts: Sequence[Sequence[str]], jobs: int, say: Say) -> None:
    """Groups of systems in processes of their own, so many at once; each process has its share of the threads."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore:parsing config_file"}
    began, total = time.monotonic(), len(parts)

    def one(place: tuple[int, Sequence[str]]) -> None:
        number, names = place
        say(f"[{number}/{total}] {', '.join(names)}: started")
        for name in names:  # why it failed before is not why it fails now
            (run / "systems" / name / FAILED).unlink(missing_ok=True)
        log = run / "logs" / f"{names[0]}.txt"
        log.parent.mkdir(exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            command = [sys.executable, "-m", "monai_anon.comparing.group", str(run), *names]
            code = subprocess.run(command, check=False, env=environment, stdout=stream, stderr=stream).returncode
        for name in names:
            folder = run / "systems" / name
            if not (folder / ROWS).is_file() and not (folder / FAILED).is_file():
                write_text(folder / FAILED, f"its process ended with exit code {code}; {log} has more\n")
        say(f"[{number}/{total}] {', '.join(names)}: done after {(time.monotonic() - began) / 60:.1f} minutes in all")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, enumerate(parts, start=1)))


def outcome(run: Path, name: str) -> tables.Outcome:
    """What a folder says of a system."""
    folder = run / "systems" / name
    if (folder / ROWS).is_file():
        return tables.Outcome(name, read_rows(folder / ROWS))
    why = (folder / FAILED).read_text(encoding="utf-8").strip() if (folder / FAILED).is_file() else "not measured"
    return tables.Outcome(name, failed=why)


def timed(bench: Bench, names: Sequence[str], path: Path, say: Say) -> dict[str, float]:
    """Images a second of each system, the median of rounds in which all take turns; read where it was timed before."""
    if path.is_file():
        kept: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        if set(kept) == set(names):
            return kept
    say(f"timing {len(names)} systems, {ROUNDS} rounds")
    subjects = {name: bench.subject(name) for name in names}
    images = bench.scene.test.images[:TIMED]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS + 1):
        for name, subject in subjects.items():
            before = time.perf_counter()
            release(subject.anonymise, images, number)
            if number:  # the first one warms up
                seconds[name].append(time.perf_counter() - before)
    found = {name: len(images) / float(torch.tensor(each).median()) for name, each in seconds.items()}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def write(outcomes: Sequence[tables.Outcome], speeds: Mapping[str, float], about: Mapping[str, str], run: Path) -> None:
    """Everything that is made of rows."""
    rows = {(row.method, row.metric): row for one in outcomes for row in one.rows}
    write_rows(rows.values(), run / "rows.jsonl")
    write_text(run / "table_1.csv", tables.table_1(outcomes, speeds).to_csv(index=False))
    write_text(run / "table_3.csv", tables.table_3(outcomes).to_csv(index=False))
    write_text(run / PAGE, tables.page(outcomes, speeds, about))
    tables.draw_trade_off(outcomes, run / PICTURE)
    columns = []
    for one in outcomes:
        if (sample := run / "systems" / one.name / SAMPLE).is_file():
            images = torch.load(sample, weights_only=True)["images"]
            columns.append(Column(one.name, to_model_range(images)))
    for number, start in enumerate(range(0, len(columns), COLUMNS), start=1):
        draw_columns(columns[start : start + COLUMNS], run / SHEET.replace(".png", f"_{number}.png"))
