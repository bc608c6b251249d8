"""A bundle's anonymizer, ready to use: the network of its inference.json with the weights of its model file.

A bundle's config holds expressions that are run as Python: load bundles that you trust. Its model file holds tensors
only and is read as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_anon.channel import ChannelError
from monai_anon.model_files import bundle_name, read_record, read_tensors

_CONFIG = Path("configs") / "inference.json"
_LISTED = 3  # entries that an error about weights names


class BundleError(ValueError):
    """A bundle without what is needed to anonymise; says what to do."""


class InferenceSettings(NamedTuple):
    """What a bundle's anonymizer expects, images `(B, channels, image_size, image_size)`, and where its weights are."""

    image_size: int
    channels: int
    model_file: Path


def load_anonymizer(
    bundle: str | Path,
    model: str | Path | None = None,
    device: str | torch.device = "cpu",
    settings: Mapping[str, Any] | None = None,
    overlays: Sequence[str | Path] = (),
) -> tuple[nn.Module, InferenceSettings]:
    """The anonymizer of a bundle's `configs/inference.json`, in evaluation mode on `device`.

    Args:
        bundle: the bundle's folder.
        model: file with the weights of both stages; None for the config's own `model_file`.
        settings: entries of the config in place of its own, such as `policy`; those that are None stay as they are.
        overlays: configs with what differs for this model, such as `size_128.json`; the last one holds.

    Raises:
        BundleError: no such bundle, config or overlay, a config that cannot be built, no model file (names the commands
            that make one), a model of another bundle, weights that do not fit, are not finite, or hold no prototypes
            where the policy needs them.
    """
    bundle = Path(bundle)
    config = bundle / _CONFIG
    if not config.is_file():
        what = "has no configs/inference.json" if bundle.is_dir() else "is no folder"
        raise BundleError(f"{bundle} {what}; --bundle takes a bundle's folder, such as bundles/chest")
    chosen = {key: value for key, value in (settings or {}).items() if value is not None}
    values = _evaluated(bundle, [config, *map(Path, overlays)], chosen)
    file = Path(model) if model is not None else Path(values["model_file"])
    if not file.is_file():
        raise BundleError(_missing_model(bundle, file))
    network = values["network_def"]
    if not isinstance(network, nn.Module) or not hasattr(network, "noise_size"):
        raise BundleError(
            f"{config}: network_def is a {type(network).__name__}; it must be an anonymizer that takes the noise of "
            "each image, as monai_anon.anonymizers.LatentSwapAnonymizer does"
        )
    _require_own(file, bundle)
    _load_weights(network, file, config)
    network.to(device).eval().requires_grad_(False)
    return network, InferenceSettings(int(values["image_size"]), int(values["channels"]), file)


def chosen_device(name: str | None) -> torch.device:
    """The device called `name`; without one CUDA where there is any, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a build without CUDA
        raise ValueError(f"device {name!r} cannot be used here; take cpu, or cuda where there is one") from error
    return torch.device(name)


def _evaluated(bundle: Path, configs: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of the config that are needed here, built by MONAI's parser, with `bundle_root` set to the folder."""
    from monai.bundle import ConfigParser

    from monai_anon.overrides import find_problems

    config = configs[0]
    wanted = ("image_size", "channels", "model_file", "network_def")
    content = _content(config)
    missing = [name for name in wanted if name not in content]
    if missing:
        raise BundleError(f"{config} has no {', '.join(missing)}; see bundles/chest/configs/inference.json")
    if unknown := [name for name in settings if name not in content]:
        raise BundleError(f"{config} has no {', '.join(unknown)}: its anonymizer takes no such setting")
    parser = ConfigParser(content)
    for overlay in configs[1:]:
        for name, value in _content(overlay).items():
            try:
                parser[name] = value
            except (KeyError, TypeError, IndexError) as error:
                raise BundleError(f"{overlay} sets {name}, of which {config} has not even the parent") from error
    if problems := find_problems(parser.get(), _content(config)):
        raise BundleError("\n  ".join([f"{', '.join(map(str, configs[1:]))} and {config} do not fit:", *problems]))
    parser.update({"bundle_root": str(bundle)} | dict(settings))
    try:
        return {name: parser.get_parsed_content(name) for name in wanted}
    except (RuntimeError, ValueError, TypeError, ImportError, AttributeError, KeyError) as error:
        raise BundleError(f"{config} cannot be built: {_first_cause(error)}") from error


def _content(config: Path) -> dict[str, Any]:
    """What a config file holds."""
    from monai.bundle import ConfigParser

    if not config.is_file():
        raise BundleError(f"{config} is missing; a config is a file such as bundles/chest/configs/size_128.json")
    try:
        content = ConfigParser.load_config_file(config)
    except ValueError as error:
        raise BundleError(f"{config} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{config} is a {type(content).__name__}; a config is an object")
    return content


def _first_cause(error: BaseException) -> str:
    """The message at the bottom of MONAI's chain of exceptions, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _missing_model(bundle: Path, file: Path) -> str:
    """How to come by the model that is not there."""
    trained = bundle / "output" / "model.pt"
    if trained.is_file() and file != trained:
        return f"{file} is missing; {trained} is there from a training: use --model {trained}"
    run = f"python -m monai.bundle run training --config_file {bundle / 'configs'}"
    return (
        f"{file} is missing; train one with\n  {run}/train.json\n  {run}/train_identity_vae.json\n"
        f"and then use --model {trained}"
    )


def _require_own(file: Path, bundle: Path) -> None:
    """Refuse a model whose record names another bundle: networks of equal shapes would take it without a word."""
    try:
        made_by, own = read_record(file).get("bundle"), bundle_name(bundle)
    except ValueError as error:
        raise BundleError(str(error)) from error
    if made_by and own and made_by != own:
        raise BundleError(f"{file} is a model of the bundle {made_by!r}; {bundle} is {own!r}: name its own by --bundle")


def _load_weights(network: nn.Module, file: Path, config: Path) -> None:
    """The file's tensors into the network, all of them or an error."""
    try:
        state = read_tensors(file)
    except ValueError as error:
        raise BundleError(str(error)) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BundleError(f"{file} holds no state dict: names with one tensor each are expected")
    expected = network.state_dict()
    reasons = {
        "has no": [name for name in expected if name not in state],
        "has, unexpectedly,": [name for name in state if name not in expected],
        "has of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    wrong = [f"it {verb} {_some(map(str, names))}" for verb, names in reasons.items() if names]
    if wrong:
        older = "; run stage 2 again, which adds prototypes and a prior" if _without_channel(state, expected) else ""
        raise BundleError(f"{file} does not fit the network of {config}: {'; '.join(wrong)}{older}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BundleError(f"{file} holds values that are NaN or infinite: {_some(broken)}")
    try:
        network.load_state_dict(state)
    except ChannelError as error:
        raise BundleError(f"{file}: {error}") from error


def _without_channel(state: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether all that is missing from a file is the channel, which models had none of before it was there."""
    missing = [name for name in expected if name not in state]
    return bool(missing) and all(name.startswith("channel.") for name in missing)


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
