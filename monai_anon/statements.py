"""What each released image may say of its original: one line of JSON an image, beside the copies."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from monai_anon.datasets import file_digest

FILE = "statements.jsonl"
_HEADERS = {
    "none": "",
    "groups": "; DICOM copies tell which of them are of one patient, study and series",
    "view": "; DICOM copies tell which of them are of one patient, study and series, and modality, body part and view",
}


def statement_of(network: nn.Module, model_file: Path, keep_form: bool, header: str = "none") -> dict[str, Any]:
    """Policy, bound and weights of an anonymizer; `bits` is None where nothing bounds what passes.

    `form` is whose size, depth and mode a copy has, "model" or "original": the latter pass beside the bits. `header` is
    what passes of an original's header, one of `monai_anon.dicom.HEADERS`; it counts for DICOM files only.
    """
    channel = getattr(network, "channel", None)
    found = None if channel is None else channel.statement()
    return {
        "policy": None if channel is None else channel.policy,
        "bits": None if found is None else round(found.bits, 3),
        "patients": None if found is None else found.patients,
        "epsilon": None if found is None else found.epsilon,
        "form": "original" if keep_form else "model",
        "header": header,
        "model": file_digest(str(model_file)),
    }


def in_words(statement: dict[str, Any]) -> str:
    """The statement for a person."""
    header = _HEADERS[statement["header"]]
    if statement["bits"] is None:
        return f"policy {statement['policy']}: nothing bounds what a copy says of its original{header}"
    noisy = "" if statement["epsilon"] is None else f"; randomised response, epsilon {statement['epsilon']:g}"
    form = "; beside them it has its original's size, depth and mode" if statement["form"] == "original" else ""
    return (
        f"policy {statement['policy']}: on average over originals a copy's pixels say at most {statement['bits']:.2f} "
        f"bits of the original, which of {round(2 ** statement['bits'])} prototypes it has; {statement['patients']} or "
        f"more training patients share each{noisy}{form}{header}"
    )


def append_statements(folder: Path, names: Sequence[str], statement: dict[str, Any]) -> None:
    """Add a line an image to `statements.jsonl` of the folder; of two lines with one name the later one counts. A DICOM
    copy's line alone has what passes of a header.
    """
    rows = [{"image": name} | statement | ({} if name.endswith(".dcm") else {"header": "none"}) for name in names]
    with (folder / FILE).open("a+b") as file:
        if file.tell() and not _ends_a_line(file):
            file.write(b"\n")
        file.write("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode("ascii"))


def stated(folder: Path, statement: dict[str, Any]) -> set[str]:
    """The names of the copies that `statements.jsonl` of the folder lists; none where there is no such file.

    Raises:
        ValueError: a copy was made otherwise than `statement` says.
    """
    file, names = folder / FILE, set()
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
            name = row.pop("image")
        except (ValueError, KeyError, TypeError, AttributeError):  # written when the run was stopped
            continue
        differ = [key for key, value in statement.items() if row.get(key) != value]
        if not name.endswith(".dcm"):
            differ = [key for key in differ if key != "header"]
        if differ:
            raise ValueError(
                f"{file} lists a copy made with another {' and '.join(differ)}; go on with the same options, or choose "
                "another OUTPUT"
            )
        names.add(name)
    return names


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
