"""What the MONAI Label app takes from a request: names and numbers, never a path.

MONAI Label merges a request's `params` over everything else, so that `image`, `label`, `session` or `label_tag` in them
may name any file of the server to read, or any folder to write to. Here each task has a list of what it takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from monai_anon.readers import SUFFIXES

TAG = "anonymised"
"""Of copies that passed the gate; nothing else is saved under it."""
BATCH = "batch"

_SAVING = {"save_label", "label_tag", "overwrite"}
_TAKEN = {
    "anonymize": _SAVING,
    "counterfactual": {"to", "steps"},
    "retrieve": {"k", "images"},
    BATCH: _SAVING | {"max_batch_size"},
}
# What MONAI Label's clients always send; it has no meaning here.
_LEFT_OUT = {
    "device", "multi_gpu", "gpus", "max_workers", "logging", "client_id", "result_extension", "result_dtype",
    "result_compress", "restore_label_idx",
}  # fmt: skip
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RequestError(ValueError):
    """A request that is refused: the message is for who asked, `status` its HTTP status (422: withheld)."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def outcome(self) -> str:
        """What became of the image, in one word; "kept" is the copy that it has already."""
        return {409: "kept", 422: "withheld"}.get(self.status, "refused")


def taken(task: str, given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters of a request that a task (or BATCH) takes.

    Raises:
        RequestError: no JSON object; a parameter that it does not take.
    """
    try:
        params = json.loads(given or "{}") if isinstance(given, str) or given is None else dict(given)
    except ValueError:
        params = None
    if not isinstance(params, dict):
        raise RequestError('params is no JSON object; for example {"steps": 5}')
    known = _TAKEN[task]
    if unknown := sorted(set(params) - known - _LEFT_OUT):
        paths = " (paths are not taken: upload the file, or name an image of the datastore)"
        hint = paths if set(unknown) & {"image", "label", "session"} else ""
        raise RequestError(f"params has {len(unknown)} that are not taken here; there are {_some(known)}{hint}")
    tag = params.get("label_tag", TAG)
    if tag not in (TAG, "original", ""):  # "original" is what MONAI Label's clients send unasked
        raise RequestError(f"label_tag is given; copies are saved as {TAG!r} and under no other tag")
    return {name: value for name, value in params.items() if name in known - {"label_tag"}}


def whole(params: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    """A whole number.

    Raises:
        RequestError: something else, or out of range.
    """
    value = params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"{name} must be a whole number from {least} to {most}")
    return value


def truth(params: Mapping[str, Any], name: str) -> bool:
    """A switch, off where it is not given.

    Raises:
        RequestError: neither true nor false.
    """
    value = params.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false")
    return value


def known_id(image: str, known: Iterable[str]) -> str:
    """The id of an image in the datastore.

    Raises:
        RequestError: there is none; a path is none.
    """
    if image not in known:
        raise RequestError("no such image in the datastore; a path is not taken: upload the file", 404)
    return image


def new_id(image: str, known: Iterable[str]) -> str:
    """An id for a new image.

    Raises:
        RequestError: one with other signs than letters, digits, `_`, `.` and `-`, or that is there already.
    """
    if not _ID.fullmatch(image):
        raise RequestError("an image's id must be 1 to 128 letters, digits, '_', '-' and, not first, '.'")
    if image in known:
        raise RequestError("there is an image with this id already; nothing is replaced", 409)
    return image


def open_tag(tag: str) -> str:
    """A tag that a client may save under.

    Raises:
        RequestError: `TAG`, or other signs than letters, digits, `_` and `-`.
    """
    if tag == TAG:
        raise RequestError(f"the tag {TAG!r} is for copies that passed the gate, which the server saves itself", 403)
    if not _TAG.fullmatch(tag):
        raise RequestError("a tag must be 1 to 64 letters, digits, '_' and '-'")
    return tag


def suffix_of(name: str | None) -> str:
    """The ending of a file's name that tells its kind; nothing where it tells none, as DICOM files' often do not."""
    lower = (name or "").lower()
    return max((suffix for suffix in SUFFIXES if lower.endswith(suffix)), key=len, default="")


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
