"""Decoded images in one file that goes on after a kill and knows when it is damaged.

The file is a .npy array, uint8 (N, C, S, S), with a digest of 16 bytes for each image behind it; zeros stand for an
image that is not there yet. While it is filled it is a draft: a hidden file beside the place where it will be, locked
by the process that fills it. What a killed process left is used again where pixels and digest agree, so it does not
matter what reached the disk, nor in which order.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import re
import secrets
import shutil
import struct
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

logger = logging.getLogger(__name__)

DIGEST_BYTES = 16
_HEADER_BYTES = 4096  # so that images of 64 px and more begin where a page begins
_PIECE_BYTES = 2**22  # what a thread reads and verifies at a time
_ABANDONED_AFTER_S = 24 * 3600  # a draft that nobody fills or takes up again
_DRAFT = re.compile(r"\.[13]x\d+_\w+(\.[0-9a-f]{8})?\.npy")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# A private writable map counts as memory in full unless told otherwise: a file larger than memory could not be mapped.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # named since Python 3.13

Taken = TypeVar("Taken")


class DamagedCache(ValueError):
    """A cache whose images do not agree with their digests; says how many."""


class NoSpaceError(OSError):
    """The disk is too small for a cache; says what is needed, what is available, and where."""


class ImageFile:
    """An open file of images and digests.

    Args:
        path: the file.
        shape: (N, C, S, S).
        writable: open it for writing, and make it where it is absent.

    Raises:
        FileNotFoundError: it is absent and not to be made.
    """

    def __init__(self, path: str | Path, shape: Sequence[int], writable: bool = False) -> None:
        self.path, self.shape = Path(path), tuple(shape)
        self._image_bytes = int(np.prod(self.shape[1:], dtype=np.int64))
        self._digests_at = self._place(self.shape[0])
        self.size = self._digests_at + self.shape[0] * DIGEST_BYTES
        self._open(self.path, writable)

    def _open(self, path: Path, writable: bool) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY, 0o666)
        self.close: Callable[[], object] = weakref.finalize(self, os.close, self.descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageFile, (self.path, self.shape)

    def _place(self, index: int) -> int:
        """Where an image begins."""
        return _HEADER_BYTES + index * self._image_bytes

    # ---- Reading ----

    def digests(self, start: int, stop: int) -> np.ndarray:
        """Digests of the images `start` to `stop`, uint8 (n, 16); zeros where the file ends before them."""
        found = np.zeros((stop - start, DIGEST_BYTES), dtype=np.uint8)
        os.preadv(self.descriptor, [found.data], self._digests_at + start * DIGEST_BYTES)
        return found

    def read(self, start: int, stop: int) -> np.ndarray:
        """The images `start` to `stop`, uint8 (n, C, S, S), in memory.

        Raises:
            DamagedCache: an image does not agree with its digest.
        """
        images = np.empty((stop - start, *self.shape[1:]), dtype=np.uint8)
        self._refuse_damage(range(start, stop), self._agreeing(start, stop, images))
        return images

    def check(self, indices: Sequence[int] | None = None) -> None:
        """Compare some of the images with their digests, or all of them, and look whether any is missing.

        Raises:
            DamagedCache: as `read`; or an image is missing.
        """
        if indices is None:
            self._refuse_damage(range(self.shape[0]), self._agreeing(0, self.shape[0]))
            return
        self._refuse_damage(range(self.shape[0]), self.digests(0, self.shape[0]).any(axis=1))
        pairs = zip(self.gather(0, self.shape[0], np.asarray(indices)), indices, strict=True)
        self._refuse_damage(indices, [digest_of(image) == self.digests(i, i + 1).tobytes() for image, i in pairs])

    def sound_digests(self) -> np.ndarray:
        """The digests (N, 16) of the images that agree with them; zeros for all others."""
        found = self.digests(0, self.shape[0])
        if found.any():
            found[~self._agreeing(0, self.shape[0])] = 0
        return found

    def gather(self, start: int, stop: int, indices: np.ndarray) -> np.ndarray:
        """Those of the images `start` to `stop` at `indices` (B,), uint8 (B, C, S, S), read from the disk side by side.

        Through a memory map each one would be waited for before the next is asked for, and the system reads on behind
        each of them, megabytes that nobody wants.
        """
        if len(indices) and not 0 <= np.min(indices) <= np.max(indices) < stop - start:
            raise IndexError(f"{self.path}: images {np.min(indices)} to {np.max(indices)} of {stop - start}")
        images = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        places = (np.asarray(indices, dtype=np.int64) + start).tolist()
        if hasattr(os, "posix_fadvise"):  # not on macOS
            for index in places:
                os.posix_fadvise(self.descriptor, self._place(index), self._image_bytes, os.POSIX_FADV_WILLNEED)
        for image, index in zip(images, places, strict=True):
            if os.preadv(self.descriptor, [image.data], self._place(index)) != self._image_bytes:
                raise DamagedCache(f"{self.path} ends before image {index}: it was cut off")
        return images

    def memory_map(self, start: int, stop: int) -> np.ndarray:
        """The images `start` to `stop`, uint8 (n, C, S, S), on disk. What is written into them stays in memory, since
        torch wants arrays that may be written to.
        """
        mapping = mmap.mmap(
            self.descriptor, self.size, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        )
        count = (stop - start) * self._image_bytes
        return np.frombuffer(mapping, np.uint8, count, self._place(start)).reshape(stop - start, *self.shape[1:])

    def is_laid_out(self) -> bool:
        """Whether the file has the header and the size of this shape."""
        status = os.fstat(self.descriptor)
        return status.st_size == self.size and os.pread(self.descriptor, _HEADER_BYTES, 0) == _header(self.shape)

    def _agreeing(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """For each image whether it agrees with its digest, bool (n,); the images go into `out`."""
        step = max(1, _PIECE_BYTES // self._image_bytes)
        expected = self.digests(start, stop)

        def agree(first: int) -> list[bool]:
            last = min(first + step, stop)
            into = np.empty((last - first, *self.shape[1:]), np.uint8) if out is None else out[first - start :]
            piece: np.ndarray = into[: last - first]
            there = os.preadv(self.descriptor, [piece.data], self._place(first)) // self._image_bytes
            digests = [digest_of(image) for image in piece[:there]]
            wanted = expected[first - start : last - start]
            return [d == w.tobytes() for d, w in zip(digests, wanted, strict=False)] + [False] * (len(wanted) - there)

        with ThreadPoolExecutor(threads()) as pool:
            return np.array([one for piece in pool.map(agree, range(start, stop, step)) for one in piece], dtype=bool)

    def _refuse_damage(self, indices: Sequence[int], agree: ArrayLike) -> None:
        wrong = np.asarray(indices)[~np.asarray(agree, dtype=bool)]
        if len(wrong):
            count = f"{len(wrong)} of {len(indices)} images do not agree with their digests"
            raise DamagedCache(f"{count}, the first is number {int(wrong[0])}")
        if not self.is_laid_out():
            raise DamagedCache("its size or its header is wrong")

    # ---- Writing ----

    def lay_out(self) -> None:
        """Give the file its size and header; images in it stay.

        Raises:
            NoSpaceError: the disk cannot take what is missing.
        """
        missing = self.size - os.fstat(self.descriptor).st_blocks * 512
        free = shutil.disk_usage(self.path.parent).free
        if missing > free:
            raise NoSpaceError(
                f"{self.path.parent}: {_shown(missing)} are needed for the decoded images, {_shown(free)} are "
                "available; make room, or choose another cache_dir"
            )
        os.ftruncate(self.descriptor, self.size)
        self._write(_header(self.shape), 0)

    def write(self, start: int, images: np.ndarray, digests: np.ndarray) -> None:
        """Put images (n, C, S, S) and their digests (n, 16) at index `start`; threads may do so at the same time.

        Raises:
            NoSpaceError: the disk is full.
        """
        self._write(np.ascontiguousarray(images).data, self._place(start))
        self._write(np.ascontiguousarray(digests).data, self._digests_at + start * DIGEST_BYTES)

    def _write(self, content: bytes | memoryview, place: int) -> None:
        length = memoryview(content).nbytes
        try:
            written = os.pwrite(self.descriptor, content, place)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            written = 0
        if written != length:
            raise NoSpaceError(
                f"{self.path.parent}: the disk is full; {_shown(self.size)} are needed in all for the decoded images. "
                "Make room and start again: what is there is used"
            )

    def publish(self, path: Path) -> None:
        """Give the draft its final name, when the disk has all of it."""
        os.fsync(self.descriptor)
        os.replace(self.path, path)
        self.path = path

    def adopt(self, path: Path) -> None:
        """Make a finished file the draft: what agrees in it needs not be made again."""
        draft, close = self.path, self.close
        self._open(path, writable=True)
        _lock(self, path)  # before others can find it under the draft's name
        os.replace(path, draft)
        close()

    def stands_at_its_path(self) -> bool:
        """Whether the file has not been renamed or removed since it was opened."""
        try:
            there, mine = os.stat(self.path), os.fstat(self.descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def use_or_fill(
    path: Path, shape: Sequence[int], take: Callable[[ImageFile], Taken], fill: Callable[[ImageFile], None]
) -> Taken:
    """What `take` makes of a cache, which is filled first where it is absent or damaged.

    Of several processes one fills it and the others wait for it.

    Args:
        path: the cache's final place; its name must change with all that the images depend on.
        shape: (N, C, S, S).
        take: reads the finished file; raises DamagedCache.
        fill: completes a draft whose sound images are already in it. When it raises a ValueError (the images are
            refused) the draft is removed; after any other end it stays to be gone on with.

    Raises:
        NoSpaceError: the disk is too small.
    """
    try:
        return take(ImageFile(path, shape))
    except (FileNotFoundError, DamagedCache):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _sole_draft(path, shape) as draft:
        try:
            return take(ImageFile(path, shape))  # another process may have made it meanwhile
        except FileNotFoundError:
            pass
        except DamagedCache as damage:
            logger.warning("%s is damaged (%s); what is wrong in it is read again", path, damage)
            draft.adopt(path)
        _remove_abandoned(path.parent, draft.path)
        draft.lay_out()
        try:
            fill(draft)
        except ValueError:
            draft.path.unlink()
            raise
        draft.publish(path)
    return take(ImageFile(path, shape))


@contextmanager
def _sole_draft(path: Path, shape: Sequence[int]) -> Iterator[ImageFile]:
    """The draft of a cache, which no other process has at the same time."""
    place = path.with_name(f".{path.name}")
    while True:
        draft = ImageFile(place, shape, writable=True)
        if not _lock(draft, path):  # one of its own, which nobody will go on with
            draft.close()
            draft = ImageFile(path.with_name(f".{path.stem}.{secrets.token_hex(4)}.npy"), shape, writable=True)
        if draft.stands_at_its_path():  # or else the process that had it has finished it
            break
        draft.close()
    try:
        yield draft
    finally:
        if os.fstat(draft.descriptor).st_size == 0:
            draft.path.unlink(missing_ok=True)
        draft.close()


def _lock(file: ImageFile, wanted: Path) -> bool:
    """Lock a file, which its process holds until it closes it or ends, however it ends; false where the file system
    knows no locks.
    """
    try:
        fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("waiting for the process that makes %s", wanted)
        fcntl.flock(file.descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _remove_abandoned(folder: Path, but: Path) -> None:
    """Remove the drafts that no process has written to for a day, nor has open."""
    for path in [path for path in folder.glob(".*.npy") if _DRAFT.fullmatch(path.name) and path != but]:
        with suppress(FileNotFoundError):  # another process cleans up, too
            if time.time() - path.stat().st_mtime < _ABANDONED_AFTER_S:
                continue
            with path.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                except OSError:
                    pass  # no locks here; a day is long enough
                path.unlink()
                logger.info("removed %s, an abandoned draft", path)


def _header(shape: Sequence[int]) -> bytes:
    """The head of a .npy file of version 1, uint8 and C order, filled up to _HEADER_BYTES."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER_BYTES - 10) + text.ljust(_HEADER_BYTES - 11) + b"\n"


def _shown(size: int) -> str:
    """Bytes as an error shows them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def digest_of(image: np.ndarray) -> bytes:
    """16 bytes that tell an image's pixels from any others."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=DIGEST_BYTES).digest()


def threads() -> int:
    """Threads that read or hash at once: Pillow, numpy and hashlib leave Python's lock alone while they work."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
