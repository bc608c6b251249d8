"""What each released image may say of its original: one line of JSON an image, beside the copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from monai_anon.datasets import file_digest

FILE = "statements.jsonl"


def statement_of(network: nn.Module, model_file: Path, keep_form: bool) -> dict[str, Any]:
    """Policy, bound and weights of an anonymizer; `bits` is None where nothing bounds what passes.

    `form` is whose size, depth and mode a copy has, "model" or "original": the latter pass beside the bits.
    """
    channel = getattr(network, "channel", None)
    found = None if channel is None else channel.statement()
    return {
        "policy": None if channel is None else channel.policy,
        "bits": None if found is None else round(found.bits, 3),
        "patients": None if found is None else found.patients,
        "epsilon": None if found is None else found.epsilon,
        "form": "original" if keep_form else "model",
        "model": file_digest(str(model_file)),
    }


def in_words(statement: dict[str, Any]) -> str:
    """The statement for a person."""
    if statement["bits"] is None:
        return f"policy {statement['policy']}: nothing bounds what a copy says of its original"
    noisy = "" if statement["epsilon"] is None else f"; randomised response, epsilon {statement['epsilon']:g}"
    form = "; beside them it has its original's size, depth and mode" if statement["form"] == "original" else ""
    return (
        f"policy {statement['policy']}: on average over originals a copy's pixels say at most {statement['bits']:.2f} "
        f"bits of the original, which of {round(2 ** statement['bits'])} prototypes it has; {statement['patients']} or "
        f"more training patients share each{noisy}{form}"
    )


def append_statements(folder: Path, names: Sequence[str], statement: dict[str, Any]) -> None:
    """Add a line an image to `statements.jsonl` of the folder; of two lines with one name the later one counts."""
    lines = "".join(json.dumps({"image": name} | statement, ensure_ascii=True) + "\n" for name in names)
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(lines)
