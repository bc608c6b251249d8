"""Which files a run reads and which it writes: decided, and checked, before the first one is opened.

A file's place under OUTPUT is its path relative to the input folder that it was found in; a file that is named itself
goes straight into OUTPUT. Originals are never replaced, and nothing is written outside of OUTPUT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".png"  # of every copy
SOURCES = (SUFFIX, ".jpg", ".jpeg")
_PATTERNS = ", ".join(f"*{suffix}" for suffix in SOURCES)
_LISTED = 1000  # as in a manifest's errors: more lines than this hide the first ones


class PlanError(ValueError):
    """A run that must not start; `problems` lists every reason found."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        lines = [f"  - {problem}" for problem in self.problems[:_LISTED]]
        if len(self.problems) > _LISTED:
            lines.append(f"  ... and {len(self.problems) - _LISTED} more")
        text = self.problems[0] if len(self.problems) == 1 else "\n".join([f"{len(self.problems)} problems:", *lines])
        super().__init__(f"nothing was written: {text}")


class Job(NamedTuple):
    """One image: read `source`, write `target`. `name` is its relative path, which the synthetic identity hangs on."""

    source: Path
    target: Path
    name: str


class Refusal(NamedTuple):
    """A file that is not anonymised, and why."""

    path: Path
    reason: str


@dataclass
class Plan:
    """What a run does: `jobs` in order, what was found but cannot be used, and the number of other files."""

    jobs: list[Job] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    left_out: int = 0


def plan_files(inputs: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> Plan:
    """Pair every PNG and JPEG file among `inputs` with its place under `output`; copies are PNG files.

    Folders are searched recursively; hidden files and folders are left out. Links are followed where they are given as
    an input and, for files, where they stay inside the input folder; others are refusals of the plan.

    Args:
        inputs: PNG and JPEG files, and folders of them.
        output: a folder; or, for a single input file, a file name that ends with .png.
        overwrite: allow targets that exist.

    Raises:
        PlanError: lists all of: inputs that are missing, of another format or without images; an output inside an
            input folder; two inputs with one target; targets that exist, are originals or lie outside of `output`.
    """
    output, plan, problems = Path(output), Plan(), []
    given = [Path(path) for path in inputs]
    single = len(given) == 1 and not given[0].is_dir() and output.suffix.lower() == SUFFIX and not output.is_dir()
    if not single and os.path.lexists(output) and not output.is_dir():
        problems.append(f"{shown(output)} is a file; OUTPUT must be a folder")
    for path in given:
        if path.is_dir():
            problems += _add_folder(plan, path, output)
        elif not path.exists():
            problems.append(f"{shown(path)}: no such file or folder")
        elif path.suffix.lower() not in SOURCES:
            hint = "; give the folder that holds it" if path.name == "manifest.json" else ""
            problems.append(f"{shown(path)}: the supported formats are PNG and JPEG ({_PATTERNS}){hint}")
        else:
            plan.jobs.append(Job(path, output if single else _copy_name(output / path.name), path.name))
    plan.jobs = list(dict.fromkeys(plan.jobs))
    problems += _target_problems(plan.jobs, output.parent if single else output, overwrite)
    if problems:
        raise PlanError(problems)
    return plan


def _copy_name(target: Path) -> Path:
    """A PNG keeps its name; a JPEG's copy is a PNG, since compressing it again would change what was checked."""
    return target if target.suffix.lower() == SUFFIX else target.with_suffix(SUFFIX)


def shown(path: str | Path) -> str:
    """A path as a message shows it: whatever its name holds, on one line and printable."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path))


def _add_folder(plan: Plan, folder: Path, output: Path) -> list[str]:
    """Adds the images of a folder to the plan; returns what is wrong with the folder."""
    if _is_inside(output, folder):
        return [
            f"{shown(output)} lies inside the input folder {shown(folder)}, where its images would be taken for "
            "originals; choose a place outside"
        ]
    before = len(plan.jobs) + len(plan.refusals)
    for found in _walk(folder):
        if isinstance(found, Refusal):
            plan.refusals.append(found)
        elif found.suffix.lower() not in SOURCES:
            plan.left_out += 1
        elif found.is_symlink() and not _is_inside(found, folder):
            plan.refusals.append(
                Refusal(found, "a link that leads out of the input folder; give the folder it leads to")
            )
        else:
            name = found.relative_to(folder)
            plan.jobs.append(Job(found, _copy_name(output / name), name.as_posix()))
    return (
        []
        if len(plan.jobs) + len(plan.refusals) > before
        else [f"{shown(folder)} holds no PNG or JPEG file ({_PATTERNS})"]
    )


def _walk(folder: Path) -> Iterator[Path | Refusal]:
    """Files below a folder in order of their names; a Refusal for each folder that is not entered."""
    unlisted: list[Refusal] = []

    def remember(error: OSError) -> None:
        unlisted.append(Refusal(Path(error.filename), f"cannot be listed ({error.strerror})"))

    for place, folders, files in os.walk(folder, onerror=remember):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [name for name in folders if (Path(place) / name).is_symlink()]:
            yield Refusal(Path(place) / name, "a link to a folder, which is not followed; give that folder as an input")
        for name in sorted(name for name in files if not name.startswith(".")):
            yield Path(place) / name
    yield from unlisted


def _target_problems(jobs: Sequence[Job], output: Path, overwrite: bool) -> list[str]:
    """Every reason not to write these targets."""
    problems: list[str] = []
    originals = {job.source.resolve() for job in jobs}
    first: dict[Path, Path] = {}
    for job in jobs:
        if job.target in first:
            problems.append(
                f"{shown(first[job.target])} and {shown(job.source)} would both become {shown(job.target)}; anonymise "
                "them into two folders"
            )
            continue
        first[job.target] = job.source
        if job.target.is_dir() and not job.target.is_symlink():
            problems.append(f"{shown(job.target)} is a folder; an image is to be written there")
        elif job.target.parent.resolve() / job.target.name in originals or job.target.resolve() in originals:
            problems.append(f"{shown(job.target)} is an original, which is never replaced; choose another OUTPUT")
        elif not _is_inside(job.target.parent, output):
            problems.append(f"{shown(job.target.parent)} is a link that leads out of {shown(output)}")
        elif any(place.exists() and not place.is_dir() for place in _between(job.target.parent, output)):
            problems.append(f"{shown(job.target)} cannot be written: a folder in its path is a file")
        elif os.path.lexists(job.target) and not overwrite:
            problems.append(f"{shown(job.target)} exists already; --overwrite replaces it")
    return problems


def _between(folder: Path, output: Path) -> Iterator[Path]:
    """`folder` and what is above it, down from but without `output`."""
    while folder != output and output in folder.parents:
        yield folder
        folder = folder.parent


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is a folder or lies in it."""
    return path.resolve().is_relative_to(folder.resolve())
