"""A RUN: the folder that `monai-anon evaluate` writes, as the report reads it.

`rows.jsonl` is needed; `run.json` (what was trained and measured on what), `pictures/pictures.json` and `curves.json`
may be missing or older than this code: what is not there is "not recorded", never guessed.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_anon.evaluation.reporting.commands import shareable
from monai_anon.evaluation.tables import Row, read_rows

NOT_RECORDED = "not recorded"
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


class ReportError(ValueError):
    """A RUN that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of an attack's figure: x and y of the same length."""

    attack: str
    method: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture as a data URI, and what stands around it; ``columns`` are its panels from left to right."""

    title: str
    columns: Sequence[str]
    caption: str
    command: str
    source: str


@dataclasses.dataclass(frozen=True)
class Run:
    """One folder.

    Args:
        about: the content of `run.json`; empty where there is none.
        named: what its methods are called where several runs had to be kept apart.
    """

    folder: Path
    rows: Sequence[Row]
    about: Mapping[str, Any]
    curves: Sequence[Curve]
    named: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def subjects(self) -> list[str]:
        """What it is about, by the names of its rows; nothing where that is not recorded."""
        name = self.get("subject", "name")
        return [] if name == NOT_RECORDED else list(self.named.get(str(name), [str(name)]))

    def get(self, *keys: str) -> Any:
        """An entry of `run.json` by its path, such as ``("cohort", "name")``; `NOT_RECORDED` where it is not there."""
        found: Any = self.about
        for key in keys:
            if not isinstance(found, Mapping) or found.get(key) in (None, ""):
                return NOT_RECORDED
            found = found[key]
        return found

    @property
    def generated(self) -> bool:
        """Whether it says that its cohort is generated; whatever does not say so may show patients."""
        return self.get("cohort", "generated") is True

    @property
    def command(self) -> str:
        """How it was made; no path of it names a person."""
        return shareable(str(self.get("command")))


def read_run(folder: str | Path) -> Run:
    """Reads a RUN.

    Raises:
        ReportError: no such folder, no rows in it, or a file of it that is damaged; says what makes one.
    """
    folder = Path(folder)
    again = f"make it with: monai-anon evaluate --output {folder}"
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; {again}")
    rows_file = folder / "rows.jsonl"
    if not rows_file.is_file():
        raise ReportError(f"{folder} has no rows.jsonl, so it is no finished evaluation; {again}")
    try:
        rows = read_rows(rows_file)
    except ValueError as error:
        raise ReportError(str(error)) from error
    if not rows:
        raise ReportError(f"{rows_file} is empty; {again}")
    about = _json(folder / "run.json", {})
    if not isinstance(about, Mapping):
        raise ReportError(f"{folder / 'run.json'} is a {type(about).__name__}; it must be an object")
    return Run(folder, rows, about, _curves(folder / "curves.json"))


def read_pictures(run: Run) -> tuple[list[Picture], list[str]]:
    """The pictures of a run, and a sentence for each that could not be shown.

    Raises:
        ReportError: `pictures.json` is damaged, or names a file outside its folder.
    """
    folder = run.folder / "pictures"
    index = folder / "pictures.json"
    pictures, missing = [], []
    for entry in _entries(index, ("file", "title")):
        path = folder / str(entry["file"])
        if path.resolve().parent != folder.resolve():
            raise ReportError(f"{index} names {entry['file']!r}; pictures must lie in its own folder")
        content = path.read_bytes() if path.is_file() else b""
        kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), "")
        if not kind:
            missing.append(f"The picture “{entry['title']}” is {'no PNG or JPEG' if content else 'missing'}.")
            continue
        columns = [str(column) for column in entry.get("columns") or []]
        source = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
        command = shareable(str(entry.get("command") or NOT_RECORDED))
        pictures.append(Picture(str(entry["title"]), columns, str(entry.get("caption") or ""), command, source))
    return pictures, missing


def _curves(path: Path) -> list[Curve]:
    curves = []
    for entry in _entries(path, ("attack", "method", "x", "y")):
        x, y = ([float(value) for value in entry[axis]] for axis in ("x", "y"))
        if len(x) != len(y) or not x or not all(map(math.isfinite, [*x, *y])):
            raise ReportError(
                f"{path}: {entry['attack']} has {len(x)} x and {len(y)} y; both must be equally many numbers"
            )
        x_label, y_label = (str(entry.get(f"{axis}_label") or axis) for axis in ("x", "y"))
        curves.append(Curve(str(entry["attack"]), str(entry["method"]), x_label, y_label, x, y))
    return curves


def _entries(path: Path, needed: Sequence[str]) -> list[Mapping[str, Any]]:
    """The objects of a list in a JSON file; none where there is no file."""
    entries = _json(path, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ReportError(f"{path} must be a list of objects")
    for number, entry in enumerate(entries):
        if absent := [key for key in needed if key not in entry]:
            raise ReportError(f"{path}, entry {number} has no {absent}")
    return entries


def _json(path: Path, without: Any) -> Any:
    if not path.is_file():
        return without
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is no JSON: {error}") from error
