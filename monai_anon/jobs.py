"""Which files a run reads and which it writes: decided, and checked, before the first one is opened.

A file's place under OUTPUT is its path relative to the input folder that it was found in; a file that is named itself
goes straight into OUTPUT. Where names may tell who it is (DICOM and NIfTI, or all if asked for) a copy goes straight
into OUTPUT under a keyed name, and messages give files their numbers. Originals are never replaced, and nothing is
written outside of OUTPUT.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from monai_anon.keys import Key
from monai_anon.originals import kind_by_name, kind_of

COPY_SUFFIXES = {"picture": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}
NAMES = ("kept", "keyed")
FORMATS = "PNG, JPEG, TIFF, NIfTI and DICOM"
_LEADS_OUT = "a link that leads out of the input folder; give the folder it leads to"
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
    """One image: read `source`, write `target`. `name` is its relative path, which what is drawn hangs on.

    Args:
        patient: a keyed digest of whose image it is, for counting; empty where that is not known.
        identity: the same where the synthetic identity is to be one for all of the patient's images; else empty.
    """

    source: Path
    target: Path
    name: str
    patient: str = ""
    identity: str = ""


class Refusal(NamedTuple):
    """A file for which nothing is written, and why; if it is `withheld`, in fixed words, too, which hold no names."""

    path: Path
    reason: str
    withheld: tuple[str, ...] = ()


@dataclass
class Plan:
    """What a run does: `jobs` in order, what was found but cannot be used, and the number of other files.

    Args:
        numbers: of every file of `jobs` and `refusals`, from 1, in the order they were found.
        folder: that copies go into; None where the only copy was given a name.
        by_number: whether messages give files their numbers, since their paths may hold names.
        keyed: how many copies have names that say nothing.
        beyond: jobs that are refused by whose they are: too many of their patient, or of nobody who could be found.
    """

    jobs: list[Job] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    left_out: int = 0
    numbers: dict[Path, int] = field(default_factory=dict)
    folder: Path | None = None
    by_number: bool = False
    keyed: int = 0
    beyond: list[Job] = field(default_factory=list)

    def told(self, path: Path) -> str:
        """A file as a message names it."""
        if not self.by_number or path not in self.numbers:
            return shown(path)
        return f"file {self.numbers[path]} of {len(self.numbers)}"

    def kinds(self) -> str:
        """How many files there are of each kind, in words."""
        suffixes = [
            suffix for job in self.jobs for suffix in COPY_SUFFIXES.values() if job.target.name.endswith(suffix)
        ]
        return ", ".join(f"{suffixes.count(suffix)} {kind}" for kind, suffix in COPY_SUFFIXES.items())

    def leave(self, done: set[str]) -> int:
        """Take out the jobs whose copies stand in `folder` under a name of `done`; returns how many."""
        before = len(self.jobs)
        stand = {self.folder / name for name in done} if self.folder is not None else set()
        self.jobs = [job for job in self.jobs if job.target not in stand or not job.target.is_file()]
        return before - len(self.jobs)

    def number(self, path: Path) -> None:
        """Count a file that was found."""
        self.numbers.setdefault(path, len(self.numbers) + 1)


@dataclass(frozen=True)
class Naming:
    """What copies are called.

    Args:
        key: makes keyed names.
        names: one of NAMES for all copies; None for kept names of pictures and keyed ones of DICOM and NIfTI files.
        paths: let messages show the paths of files whose copies have keyed names.
    """

    key: Key = field(default_factory=Key.random)
    names: str | None = None
    paths: bool = False

    def __post_init__(self) -> None:
        if self.names not in (None, *NAMES):
            raise ValueError(f"names is {self.names!r}; it must be one of {', '.join(NAMES)}")

    def keyed(self, kind: str) -> bool:
        """Whether copies of a kind get a keyed name."""
        return kind != "picture" if self.names is None else self.names == "keyed"

    def target(self, output: Path, name: Path, kind: str) -> Path:
        """Where the copy of the file with the relative path `name` goes."""
        suffix = COPY_SUFFIXES[kind]
        if self.keyed(kind):
            return output / f"{self.key.name('file', name.as_posix())}{suffix}"
        if name.name.lower().endswith(suffix):
            return output / name
        # A JPEG's copy is a PNG, since compressing it again would change what was checked.
        return output / name.with_name(name.name.removesuffix(_suffix(name)) + suffix)


def plan_files(
    inputs: Sequence[str | Path], output: str | Path, overwrite: bool = False, naming: Naming | None = None
) -> Plan:
    """Pair every image file among `inputs` with its place under `output`; copies of pictures are PNG files, others of
    their original's format.

    Folders are searched recursively; hidden files and folders are left out. DICOM files are found under any name. Links
    are followed where they are given as an input and, for files, where they stay inside the input folder; others are
    refusals of the plan.

    Args:
        inputs: image files, and folders of them.
        output: a folder; or, for a single input file, a file name with the copy's suffix.
        overwrite: allow targets that exist.
        naming: what copies are called; left out, `Naming()`.

    Raises:
        PlanError: lists all of: inputs that are missing, of another format or without images; an output inside an
            input folder; two inputs with one target; targets that exist, are originals or lie outside of `output`.
    """
    output, naming, plan, problems = Path(output), naming or Naming(), Plan(), []
    given = [Path(path) for path in inputs]
    kind = kind_of(given[0]) if len(given) == 1 and not given[0].is_dir() else None
    single = kind is not None and output.name.lower().endswith(COPY_SUFFIXES[kind]) and not output.is_dir()
    plan.folder = None if single else output
    if not single and os.path.lexists(output) and not output.is_dir():
        problems.append(f"{shown(output)} is a file; OUTPUT must be a folder")
    for path in given:
        if path.is_dir():
            problems += _add_folder(plan, path, output, naming)
        elif not path.exists():
            problems.append(f"{shown(path)}: no such file or folder")
        elif (kind := kind_of(path)) is None:
            hint = "; give the folder that holds it" if path.name == "manifest.json" else ""
            problems.append(f"{shown(path)}: the supported formats are {FORMATS}{hint}")
        else:
            name = Path(path.name)
            _add_job(plan, Job(path, output if single else naming.target(output, name, kind), path.name), kind, naming)
    problems += _target_problems(plan, output.parent if single else output, overwrite)
    if problems:
        raise PlanError(problems)
    return plan


def _suffix(name: Path) -> str:
    """The ending that tells a file's kind, if there is one."""
    return name.suffix if kind_by_name(name.name) is not None else ""


def _add_job(plan: Plan, job: Job, kind: str, naming: Naming) -> None:
    """Adds a job once, however often its file is found."""
    if job.source in plan.numbers and job in plan.jobs:
        return
    plan.jobs.append(job)
    plan.number(job.source)
    plan.keyed += naming.keyed(kind)
    plan.by_number |= naming.keyed(kind) and not naming.paths


def shown(path: str | Path) -> str:
    """A path as a message shows it: whatever its name holds, on one line and printable."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path))


def _add_folder(plan: Plan, folder: Path, output: Path, naming: Naming) -> list[str]:
    """Adds the images of a folder to the plan; returns what is wrong with the folder."""
    if _is_inside(output, folder):
        return [
            f"{shown(output)} lies inside the input folder {shown(folder)}, where its images would be taken for "
            "originals; choose a place outside"
        ]
    before = len(plan.numbers)
    for found in _walk(folder):
        if isinstance(found, Refusal):
            _add_refusal(plan, found)
        elif found.is_symlink() and not _is_inside(found, folder):
            if kind_of(found.name) is not None:
                _add_refusal(plan, Refusal(found, _LEADS_OUT))
            else:  # what is behind it is not looked at
                plan.left_out += 1
        elif (kind := kind_of(found)) is None:
            if (reason := _unreadable(found)) is None:
                plan.left_out += 1
            else:
                _add_refusal(plan, Refusal(found, reason))
        else:
            name = found.relative_to(folder)
            _add_job(plan, Job(found, naming.target(output, name, kind), name.as_posix()), kind, naming)
    return [] if len(plan.numbers) > before else [f"{shown(folder)} holds no image; supported are {FORMATS}"]


def _unreadable(path: Path) -> str | None:
    """Why a file cannot even be looked at, so that it may be an image or not; None where it can, or is no file."""
    try:
        with path.open("rb") if path.is_file() else nullcontext():
            return None
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _add_refusal(plan: Plan, refusal: Refusal) -> None:
    plan.refusals.append(refusal)
    plan.number(refusal.path)


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


def _target_problems(plan: Plan, output: Path, overwrite: bool) -> list[str]:
    """Every reason not to write these targets."""
    problems: list[str] = []
    originals = {job.source.resolve() for job in plan.jobs}
    first: dict[Path, Path] = {}
    for job in plan.jobs:
        if job.target in first:
            problems.append(
                f"{plan.told(first[job.target])} and {plan.told(job.source)} would both become {shown(job.target)}; "
                "anonymise them into two folders"
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
