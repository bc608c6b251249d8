"""Commands as they may be shown: a path can name a person or a clinic."""

from __future__ import annotations

import ntpath
import posixpath
import re
import shlex
from pathlib import Path

# What stands around a path inside one word, as in --config_file "['a.json','/b.json']".
BETWEEN = r"""([=,'"\[\](){}]+)"""


def shareable(command: str, here: str | Path | None = None) -> str:
    """A command in which no path tells where things lie: relative to `here`, or its last component where not below it.

    Args:
        here: the working directory, unless given that of this process.
    """
    folder = str(Path.cwd() if here is None else here)
    try:
        words = shlex.split(command)
    except ValueError:  # an open quotation mark
        words = command.split()
    return shlex.join("".join(_shareable(part, folder) for part in re.split(BETWEEN, word)) for word in words)


def _shareable(part: str, folder: str) -> str:
    if re.match(r"[A-Za-z]:[\\/]|\\\\", part):
        return ntpath.basename(part.rstrip("\\/")) or "\\"
    start = re.match(r"[@:#+]*", part)
    prefix = start[0] if start else ""
    path = part[len(prefix) :]
    if "/" not in path and not path.startswith("~") and path != "..":
        return part
    outside = prefix + (posixpath.basename(path.rstrip("/")) or "/")
    if path.startswith("~"):
        return outside if "/" in path.rstrip("/") else f"{prefix}~"
    relative = posixpath.relpath(posixpath.join(folder, path), folder)
    if relative == ".." or relative.startswith("../"):
        return outside
    return prefix + relative if path.startswith("/") else part
