"""Files of weights, and the record of their training beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from monai_anon.whole_files import write_text


def read_tensors(file: str | Path) -> Any:
    """What `torch.save` wrote into a file, tensors and containers of them only; nothing in it is run.

    Raises:
        ValueError: another file, whatever it is; names it.
        OSError: there is none, or it cannot be read.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # The bytes of a text or a picture are read as instructions, which fail in whichever way they please.
    except (
        UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(f"{file} is no file of tensors (a state dict written by torch.save)") from error


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """A state dict (tensors only), written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(path.suffix + ".part")
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in weights.items()}, draft)
    draft.replace(path)


def read_record(model_file: str | Path) -> dict[str, Any]:
    """What a training wrote beside its weights, for comparisons at equal compute; empty where it wrote nothing.

    Returns:
        `images_seen` (batches times images I_ori a batch, repetitions counted), `iterations`, `epoch_kept` (whose
        weights are in the file), `seconds` (wall time over all resumed runs, up to the last validation) and `seed`.
        Of a `model.pt` they are stage 1's, and stage 2's own stand under `identity_vae`, where an image is a latent;
        `bundle` is what the metadata of the bundle that made it call it.

    Raises:
        ValueError: the record is no JSON object; names it.
    """
    path = Path(model_file).with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no training record: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is no training record: it holds a {type(record).__name__}, not an object")
    return record


def write_record(record: Mapping[str, Any], model_file: str | Path) -> Path:
    """The record of a weights file beside it, written whole or not at all; returns its path."""
    return write_text(Path(model_file).with_suffix(".json"), json.dumps(dict(record), indent=4) + "\n")


def carry_record(disentangler: str, identity_vae: str, path: str, bundle: str = "") -> Path:
    """Stage 1's record beside the file that joins both stages, stage 2's under `identity_vae`, and the name of the
    bundle whose folder is given.
    """
    record = read_record(disentangler) | {"identity_vae": read_record(identity_vae)}
    return write_record(record | ({"bundle": name} if (name := bundle_name(bundle)) else {}), path)


def bundle_name(bundle: str | Path) -> str:
    """What the metadata in a bundle's folder call it; empty where there are none, or they do not say."""
    path = Path(bundle) / "configs" / "metadata.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(content.get("name", "")) if isinstance(content, dict) else ""
