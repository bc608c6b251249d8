"""What both verbs need before they start: an anonymizer, its gate, and the query's image.

Heavy modules are imported where they are used, so that `--help` is there at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_anon.anonymizers import LatentSwapAnonymizer
    from monai_anon.bundles import InferenceSettings
    from monai_anon.gate import Gate
    from monai_anon.originals import Original


def require_gate(site: Path | None, judges: Path | None, no_gate: bool) -> None:
    """Raises:
    ValueError: neither a gate nor that none is wanted, or both.
    """
    if site is None and not no_gate:
        raise ValueError(
            "no gate: give --site SITE, the folder that `monai-anon calibrate SITE` makes, or --no-gate, "
            "and then no image is compared with any real person, so what is written must not be handed over"
        )
    if no_gate and (site is not None or judges is not None):
        raise ValueError("--no-gate goes without --site and --judges, which are the gate's")


def prepared(
    bundle: Path,
    model: Path | None,
    overlays: Sequence[Path],
    device: str | None,
    settings: Mapping[str, Any],
    site: Path | None,
    judges: Path | None,
) -> tuple[LatentSwapAnonymizer, Gate, InferenceSettings]:
    """The anonymizer and its gate.

    Raises:
        ValueError: a model that cannot do this, or a gate that would withhold everything.
    """
    from monai_anon.anonymizers import LatentSwapAnonymizer
    from monai_anon.bundles import chosen_device, load_anonymizer
    from monai_anon.explaining.counterfactuals import UncheckedGate
    from monai_anon.site import site_gate

    network, said = load_anonymizer(bundle, model, chosen_device(device), settings, overlays)
    if not isinstance(network, LatentSwapAnonymizer):
        raise ValueError(
            f"the bundle's anonymizer is a {type(network).__name__}; explanations need one with latents, a "
            "LatentSwapAnonymizer"
        )
    gate = UncheckedGate(network) if site is None else site_gate(network, said.model_file, site, judges)
    return network, gate, said


def read_query(path: Path, said: InferenceSettings, to_gray: bool, refuse_text: bool) -> Original:
    """The query as the model takes it. Messages do not name the file, whose name may say who it is.

    Raises:
        ValueError: it cannot be used, and why.
    """
    from monai_anon.originals import kind_of, read_original
    from monai_anon.readers import ReadError

    if not path.exists():
        raise ValueError("the query cannot be used: there is no such file")
    if path.is_dir() or kind_of(path) is None:
        raise ValueError("the query cannot be used: it must be one PNG, JPEG, TIFF, NIfTI or DICOM file")
    try:
        found = read_original(path, said.image_size, said.channels, to_gray=to_gray)
    except ReadError as error:
        raise ValueError(f"the query cannot be used: {error.reason}") from error
    except OSError as error:
        raise ValueError(f"the query cannot be read ({error.strerror})") from error
    if refuse_text and found.header is not None and found.header.text_risk is not None:
        raise ValueError(
            f"the query cannot be used: {found.header.text_risk}; look, and if there is none say --no-burned-in-text"
        )
    return found
