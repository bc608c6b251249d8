"""Where the page's figures come from: what was trained and measured on what, how long it took, and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai_anon.evaluation.reporting.commands import shareable
from monai_anon.evaluation.reporting.runs import NOT_RECORDED, Run
from monai_anon.evaluation.reporting.tables import Cell, Line, Table
from monai_anon.evaluation.tables import Row


def made_on(runs: Sequence[Run]) -> Table:
    """What was trained on what: one column a run."""
    settings = [name for name in _names(runs, "settings") if name != "bundle"]
    entries = [
        ("cohort", [str(run.get("cohort", "name")) for run in runs]),
        ("images", [_generated(run) for run in runs]),
        ("its fingerprint", [str(run.get("cohort", "fingerprint")) for run in runs]),
        ("size", [_size(run) for run in runs]),
        ("findings", [_plain(run.get("cohort", "classes")) for run in runs]),
        ("parts", [_parts(run) for run in runs]),
        ("anonymizer", [", ".join(run.subjects) or NOT_RECORDED for run in runs]),
        *passing_line(runs),
        ("digest of its weights", [str(run.get("subject", "weights")) for run in runs]),
        ("images seen in its training", [_plain(run.get("subject", "images_seen")) for run in runs]),
        ("bundle", [_path(run, "bundle") for run in runs]),
        *((name, [_path(run, "settings", name) for run in runs]) for name in settings),
        *((name, [_plain(run.get(name)) for run in runs]) for name in ("versions", "revision", "created")),
        ("machine", [_plain(run.get("machine")) for run in runs]),
        ("command", [run.command for run in runs]),
    ]
    lines = [Line([Cell(name), *map(Cell, values)]) for name, values in entries]
    return Table("What was trained and measured on what", ["", *_columns(runs)], lines)


def passing_line(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The channel's settings; no line where no run has a channel."""
    found = [run.get("subject", "channel") for run in runs]
    known = any(one != NOT_RECORDED for one in found)
    return [("what passes of an original", [_plain(one) for one in found])] if known else []


def seconds(runs: Sequence[Run]) -> Table:
    """How long each measurement took; no lines where no run says."""
    lines = [
        Line([Cell(name), *(Cell(_plain(run.get("seconds", name))) for run in runs)])
        for name in _names(runs, "seconds")
    ]
    return Table("Seconds of each measurement", ["measurement", *_columns(runs)], lines)


def commands(runs: Sequence[Run], titles: Iterable[str], pictures: Mapping[str, str]) -> Table:
    """For every table and figure the command that makes it again; pictures bring their own."""
    every = "\n".join(dict.fromkeys(run.command for run in runs))
    folders = " ".join(f"RUN{n}" if len(runs) > 1 else "RUN" for n in range(1, len(runs) + 1))
    lines = [Line([Cell(title), Cell(every)]) for title in titles]
    lines += [Line([Cell(f"Picture: {title}"), Cell(command)]) for title, command in pictures.items()]
    lines.append(Line([Cell("This page"), Cell(f"monai-anon report {folders}")]))
    return Table("Commands", ["table or figure", "made again by"], lines)


def doubts(rows: Sequence[Row]) -> list[str]:
    """Why the same command may not give the same figures again, from rows before `aggregate`."""
    revisions = list(dict.fromkeys(row.revision or "unknown" for row in rows if row.value is not None))
    found = []
    if len(revisions) > 1:
        found.append(f"These figures come from {len(revisions)} revisions of the code ({', '.join(revisions)}).")
    if changed := [name for name in revisions if name.endswith("+")]:
        found.append(
            f"{', '.join(changed)}: made with changes that no revision holds, so it is not certain that the same "
            "figures come again."
        )
    if "unknown" in revisions:
        found.append("The revision of some figures is unknown, so it is not certain that the same come again.")
    return found


def _columns(runs: Sequence[Run]) -> list[str]:
    return ["run"] if len(runs) == 1 else [f"run {number}" for number in range(1, len(runs) + 1)]


def _names(runs: Sequence[Run], entry: str) -> list[str]:
    found = [run.get(entry) for run in runs]
    return list(dict.fromkeys(name for names in found if isinstance(names, Mapping) for name in names))


def _path(run: Run, *keys: str) -> str:
    """An entry that may be a path, as it may be shown."""
    found = run.get(*keys)
    return shlex.split(shareable(shlex.quote(found)))[0] if isinstance(found, str) else _plain(found)


def _generated(run: Run) -> str:
    found = run.get("cohort", "generated")
    return NOT_RECORDED if found == NOT_RECORDED else "generated phantoms" if found is True else "real images"


def _size(run: Run) -> str:
    size, channels = run.get("cohort", "image_size"), run.get("cohort", "channels")
    return NOT_RECORDED if NOT_RECORDED in (size, channels) else f"{size} x {size} pixels, {channels} channel(s)"


def _parts(run: Run) -> str:
    parts = run.get("cohort", "parts")
    if not isinstance(parts, Mapping):
        return NOT_RECORDED
    counts = {name: part if isinstance(part, Mapping) else {} for name, part in parts.items()}
    return "; ".join(
        f"{name}: {part.get('images', '?')} images of {part.get('patients', '?')} patients"
        for name, part in counts.items()
    )


def _plain(found: Any, between: str = ", ") -> str:
    """An entry of `run.json` as text."""
    if isinstance(found, Mapping):
        return between.join(f"{name} {_plain(value)}" for name, value in found.items()) or "none"
    if isinstance(found, Sequence) and not isinstance(found, str):
        return between.join(map(_plain, found)) or "none"
    if isinstance(found, bool) or not isinstance(found, int | float):
        return str(found)
    return f"{found:,}" if isinstance(found, int) else f"{found:.4g}"
