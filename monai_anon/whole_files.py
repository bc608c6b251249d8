"""Files that are there whole or not at all: what stops in the middle leaves the old file, or none."""

import os
import secrets
from pathlib import Path

_DIGITS = 16
DRAFTS = f".{'[0-9a-f]' * _DIGITS}.part"
"""What files are called while they are written; only a killed process leaves one."""


def require_writable(folder: str | Path, what: str) -> None:
    """Refuse a folder that cannot be written to, or made, before the work that is to be written there.

    Args:
        what: asks for it, such as an option.

    Raises:
        ValueError: it, or what it would be made in, is no folder or is not to be written to.
    """
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = "cannot be written to" if place.is_dir() else "is no folder"
        raise ValueError(f"{what} cannot be made: {place} {reason}; choose another place")


def write_text(path: str | Path, text: str) -> Path:
    """Text as a file in UTF-8, its folder made where absent; returns its path."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, content: bytes, overwrite: bool = True, mode: int = 0o666) -> Path:
    """A file, its folder made where absent; returns its path.

    Args:
        overwrite: replace what stands there.
        mode: its permissions, less the process's umask.

    Raises:
        FileExistsError: `path` is there and not to be overwritten, even if it has come only now.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{secrets.token_hex(_DIGITS // 2)}.part")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        if not overwrite:
            try:
                os.link(draft, path)  # unlike a rename it fails where something stands
                return path
            except FileExistsError:
                raise
            except OSError as error:  # a file system without hard links
                if os.path.lexists(path):
                    raise FileExistsError(error.errno, "exists already", str(path)) from error
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
