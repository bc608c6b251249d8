"""Files that are there whole or not at all: what stops in the middle leaves the old file, or none."""

import os
from pathlib import Path


def write_text(path: str | Path, text: str) -> Path:
    """Text as a file in UTF-8, its folder made where absent; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
