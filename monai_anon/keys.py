"""A secret of the site on which new UIDs, pseudonyms and file names hang.

The same key makes the same ones of the same originals, in every run; whoever has not got it can neither make them nor
tell what they were made of (HMAC-SHA256, RFC 2104). It is never shown, logged or written into a copy.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import uuid
from pathlib import Path

_BYTES = 32
_PRIVATE = 0o600
_OTHERS = 0o077
_EXISTS = "{} exists already; a key is never replaced: leave --make-key out to use it"


class KeyFileError(ValueError):
    """A file that cannot be used as a key, or made one; says what to do, never what is in it."""


class Key:
    """Secret bytes that nothing prints."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "Key(hidden)"

    @classmethod
    def random(cls) -> Key:
        """A key for one run, that nobody knows."""
        return cls(secrets.token_bytes(_BYTES))

    def digest(self, kind: str, *parts: str) -> bytes:
        """32 bytes for these parts, another 32 for every other kind or division into parts."""
        mac = hmac.new(self._secret, digestmod=hashlib.sha256)
        for part in (kind, *parts):
            content = part.encode("utf-8", "surrogateescape")
            mac.update(len(content).to_bytes(8, "big") + content)
        return mac.digest()

    def name(self, *parts: str) -> str:
        """20 hexadecimal digits, for a file's name or a pseudonym."""
        return self.digest("name", *parts).hex()[:20]

    def uid(self, *parts: str) -> str:
        """A DICOM UID of at most 44 characters, made of a UUID as in PS3.5 B.2."""
        return f"2.25.{uuid.UUID(bytes=self.digest('uid', *parts)[:16], version=4).int}"

    def seed(self) -> int:
        """128 bits for the draws of copies."""
        return int.from_bytes(self.digest("seed")[:16], "big")


def read_key(path: str | Path) -> Key:
    """The key of a file that only its owner may read.

    Raises:
        KeyFileError: missing, no plain file, open to others, another user's, or no key.
    """
    try:
        with Path(path).open("rb") as file:
            found = os.fstat(file.fileno())
            content = file.read(1024) if stat.S_ISREG(found.st_mode) else b""
    except OSError as error:
        raise KeyFileError(f"the key {path} cannot be read ({error.strerror}); --make-key makes one") from error
    if found.st_mode & _OTHERS:
        raise KeyFileError(
            f"the key {path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}), who may have copied it; "
            "make a new one, or if nobody has, chmod 600 it"
        )
    if os.geteuid() not in (0, found.st_uid):
        raise KeyFileError(f"the key {path} belongs to another user, who can read it; make one of your own")
    try:
        secret = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != _BYTES:
        raise KeyFileError(f"{path} holds no key: {2 * _BYTES} hexadecimal digits are expected, as --make-key writes")
    return Key(secret)


def write_key(key: Key, path: str | Path) -> None:
    """Write a key into a new file that only its owner may read.

    Raises:
        KeyFileError: something stands there, or it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    except FileExistsError as error:
        raise KeyFileError(_EXISTS.format(path)) from error
    except OSError as error:
        raise KeyFileError(f"the key {path} cannot be made ({error.strerror})") from error
    try:
        with os.fdopen(opened, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), _PRIVATE)
            file.write(key._secret.hex() + "\n")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise KeyFileError(f"the key {path} cannot be written ({error.strerror})") from error


def chosen_key(path: str | Path | None, new: bool, output: str | Path) -> Key:
    """The key of the file `path`; a random one without a path, or where it is still to be written (`new`).

    Raises:
        KeyFileError: as `read_key`; a new key without a path or over an old one; a key in the folder `output`.
    """
    if path is None:
        if new:
            raise KeyFileError("--make-key needs --key FILE, which it makes")
        return Key.random()
    if Path(path).resolve().is_relative_to(Path(output).resolve()):
        raise KeyFileError(f"the key {path} lies in OUTPUT, which is handed over; keep it elsewhere")
    if not new:
        return read_key(path)
    if os.path.lexists(path):
        raise KeyFileError(_EXISTS.format(path))
    return Key.random()
