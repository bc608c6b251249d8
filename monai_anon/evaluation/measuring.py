"""Measurements one after the other, each kept on disk when it is done: what was measured is not measured again."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from monai_anon import __version__
from monai_anon.evaluation.protocol import Settings
from monai_anon.evaluation.scene import Measure, Scene
from monai_anon.evaluation.subjects import Subject, digest
from monai_anon.evaluation.tables import Row
from monai_anon.whole_files import write_text

logger = logging.getLogger("monai_anon")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a measurement gave: rows, curves to draw, and how long it took when it was made."""

    rows: list[Row]
    curves: list[dict[str, Any]]
    seconds: float


class Measuring:
    """Runs measurements in a scene and keeps every result in a folder.

    A result is taken from the folder where everything it depends on is the same: subject (and what it makes of the test
    part), images and their columns, judges, budget, seed, draws of the bootstrap, and the code. So the same command
    goes on where a stopped one was.

    Args:
        folder: gets one JSON file a measurement.
        settings: of the measurements; what is measured is no part of a result's key, how is.
        revision: of the code, stamped on the rows that are measured now.
    """

    def __init__(self, folder: Path, scene: Scene, settings: Settings, revision: str = "") -> None:
        self.folder, self.scene, self.revision = folder, scene, revision
        how = dataclasses.replace(settings, attacks=(), content=())
        self._scene_key = _digest([scene_key(scene), dataclasses.asdict(how)])
        self.results: dict[str, Measured] = {}

    def run(self, plan: Iterable[tuple[Subject, str, Measure]]) -> list[Row]:
        """The rows of all planned measurements, in their order."""
        steps, rows = list(plan), []
        for number, (subject, name, measure) in enumerate(steps, start=1):
            path = self.folder / f"{_slug(subject.name)}_{_slug(name)}_{self._key(subject, name)}.json"
            label = f"{subject.name}: {name}"
            found = read_measured(path)
            if found is None:
                logger.info("[%d/%d] %s", number, len(steps), label)
                found = self._measure(subject, measure)
                write_measured(path, found)
                logger.info("[%d/%d] %s took %.0f s", number, len(steps), label, found.seconds)
            else:
                logger.info("[%d/%d] %s: read from %s", number, len(steps), label, path)
            self.results[label] = found
            rows += found.rows
            if all(later.name != subject.name for later, _, _ in steps[number:]):
                self.scene.forget(subject)
        return rows

    def _measure(self, subject: Subject, measure: Measure) -> Measured:
        before, self.scene.curves = time.monotonic(), []
        rows = [
            dataclasses.replace(row, weights=subject.weights, revision=self.revision, images_seen=subject.images_seen)
            for row in measure(subject, self.scene)
        ]
        return Measured(rows, self.scene.curves, round(time.monotonic() - before, 1))

    def _key(self, subject: Subject, name: str) -> str:
        # The pixels too: code that was edited has the name and the weights that it had.
        pixels = hashlib.sha256(self.scene.released(subject, "test").images.numpy().tobytes()).hexdigest()
        return _digest([self._scene_key, subject.name, subject.weights, pixels, name])


def scene_key(scene: Scene) -> str:
    """16 hex digits of everything in the scene that a figure depends on."""
    networks = [digest(network) for network in (scene.judges.verifier, scene.judges.medical)]
    means = dataclasses.asdict(scene.schedule), scene.steps, scene.seed, scene.n_bootstrap
    factors = {name: table.to_csv() for name, table in (scene.factors or {}).items()}
    known = [cohort_digest(scene), scene.closed_set, scene.turns]
    return _digest([__version__, code_digest(), *known, networks, means, scene.test.name, factors])


def cohort_digest(scene: Scene) -> str:
    """16 hex digits of all parts' pixels (where they are in memory), labels and columns."""
    parts = [part for name in ("training", "validation", "test") if (part := scene.part(name))]
    return _digest([[part.fingerprint(), part.entries] for part in parts])


@functools.cache
def code_digest() -> str:
    """16 hex digits of the code that measures: a mended attack is not answered with its old figures."""
    home = Path(__file__).parent
    apart = {
        "reporting",
        "ablations",
        "aggregation.py",
        "figures.py",
        "policy_sheet.py",
        "record.py",
        "verbs.py",
    }  # what is made of rows
    files = [path for path in sorted(home.rglob("*.py")) if not apart & set(path.relative_to(home).parts)]
    return _digest([as_run(path.read_text(encoding="utf-8")) for path in files])


def as_run(source: str) -> str:
    """A module's source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def read_measured(path: Path) -> Measured | None:
    """What `write_measured` wrote; None where there is no such file, or a broken one."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return Measured([Row(**row) for row in content["rows"]], content["curves"], content["seconds"])
    return None


def write_measured(path: Path, measured: Measured) -> None:
    """One JSON file, written whole or not at all."""
    write_text(path, json.dumps(dataclasses.asdict(measured)))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]
