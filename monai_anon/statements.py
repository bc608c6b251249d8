"""What each released image may say of its original: one line of JSON an image, beside the copies."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from monai_anon.channel import round_up
from monai_anon.datasets import file_digest
from monai_anon.gate import Gate
from monai_anon.gated_release import OriginalCheck, bits, default_check
from monai_anon.whole_files import write_text

FILE, _RANKS = "statements.jsonl", "statements.rank*.jsonl"
_HEADERS = {
    "none": "",
    "groups": "; DICOM copies tell which of them are of one patient, study and series",
    "view": "; DICOM copies tell which of them are of one patient, study and series, and modality, body part and view",
}


def statement_of(
    network: nn.Module, model_file: Path, keep_form: bool, header: str = "none", gate: Gate | None = None
) -> dict[str, Any]:
    """Policy, bound and weights of an anonymizer; `bits` is None where nothing bounds what passes.

    The bits are those of one image through the gate: which of `prototypes` codes its original has or, where the gate
    compares with the original, that it is withheld. `gate` is its digest, None where there was no gate. `form` is whose
    size, depth and mode a copy has, "model" or "original": the latter pass beside the bits. `header` is what passes of
    an original's header, one of `monai_anon.dicom.HEADERS`; it counts for DICOM files only.
    """
    channel = getattr(network, "channel", None)
    found = None if channel is None else channel.statement()
    prototypes = None if found is None else round(2**found.bits)
    check = OriginalCheck.OFF if gate is None or channel is None else default_check(channel)
    return {
        "policy": None if channel is None else channel.policy,
        "bits": None if prototypes is None else round_up(bits(prototypes, check)),
        "prototypes": prototypes,
        "patients": None if found is None else found.patients,
        "epsilon": None if found is None else found.epsilon,
        "form": "original" if keep_form else "model",
        "header": header,
        "gate": None if gate is None else gate.digest(),
        "model": file_digest(str(model_file)),
    }


def in_words(statement: dict[str, Any]) -> str:
    """The statement for a person."""
    header = _HEADERS[statement["header"]]
    gate = "; NOT checked by the privacy gate" if statement["gate"] is None else "; checked by the privacy gate"
    if statement["bits"] is None:
        return f"policy {statement['policy']}: nothing bounds what a copy says of its original{header}{gate}"
    at_most = f"{round_up(statement['bits'], 2):.2f} bits"
    noisy = "" if statement["epsilon"] is None else f"; randomised response, epsilon {statement['epsilon']:g}"
    form = "; beside them it has its original's size, depth and mode" if statement["form"] == "original" else ""
    veto = ", or that it is withheld" if 2 ** statement["bits"] > statement["prototypes"] + 0.5 else ""
    return (
        f"policy {statement['policy']}: on average over originals a copy's pixels say at most {at_most} of "
        f"the original, which of {statement['prototypes']} prototypes it has{veto}; {statement['patients']} or "
        f"more training patients share each{noisy}{form}{header}{gate}"
    )


def append_statements(
    folder: Path, copies: Mapping[str, Mapping[str, float]], statement: dict[str, Any], file: str = FILE
) -> None:
    """Add a line an image to a file of the folder; of two lines with one name the later one counts. A DICOM copy's line
    alone has what passes of a header.

    Args:
        copies: by name, with the likeness to the nearest training patient by each comparator.
    """
    rows = [
        {"image": name}
        | statement
        | ({} if name.endswith(".dcm") else {"header": "none"})
        | ({"training": dict(training)} if training else {})
        for name, training in copies.items()
    ]
    with (folder / file).open("a+b") as opened:
        if opened.tell() and not _ends_a_line(opened):
            opened.write(b"\n")
        opened.write("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode("ascii"))


def rank_file(rank: int) -> str:
    """The file of one of several processes, until the first one has put all into `FILE`."""
    return FILE if rank == 0 else f"statements.rank{rank}.jsonl"


def join_ranks(folder: Path) -> None:
    """Put the lines of all processes' files into `FILE`, and take those away."""
    parts = sorted(folder.glob(_RANKS))
    if parts:
        lines = [line for file in [folder / FILE, *parts] for line in _lines(file)]
        write_text(folder / FILE, "".join(f"{line}\n" for line in lines))
        for part in parts:
            part.unlink()


def stated(folder: Path, statement: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The copies that `statements.jsonl` of the folder (and what several processes have left there) lists, by name,
    with their likeness to training patients; none where there is no such file.

    Raises:
        ValueError: a copy was made otherwise than `statement` says.
    """
    found: dict[str, dict[str, float]] = {}
    for file in [folder / FILE, *sorted(folder.glob(_RANKS))]:
        for line in _lines(file):
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
                    f"{file} lists a copy made with another {' and '.join(differ)}; go on with the same options, or "
                    "choose another OUTPUT"
                )
            found[name] = row.get("training", {})
    return found


def named(folder: Path) -> set[str]:
    """The copies that all files of the folder list."""
    files = [folder / FILE, *sorted(folder.glob(_RANKS))]
    return {name for file in files for line in _lines(file) if (name := _name(line)) is not None}


def forget(folder: Path, names: Collection[str]) -> None:
    """Take the lines of some copies, and broken ones, out of all files of the folder."""
    for file in [folder / FILE, *sorted(folder.glob(_RANKS))]:
        if file.is_file():
            kept = [line for line in _lines(file) if (name := _name(line)) is not None and name not in names]
            write_text(file, "".join(f"{line}\n" for line in kept))


def _name(line: str) -> str | None:
    """Whose line it is; None of one that was being written when a run was stopped."""
    try:
        return str(json.loads(line)["image"])
    except (ValueError, KeyError, TypeError):
        return None


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
