"""A bundle's anonymizer as one file for programs that have not got this package: TorchScript and ONNX.

**Where the synthetic identity comes from.** The whole channel is in the graph: which prototype an image has, and how an
identity and a residual of nobody are made of standard normal noise. The noise itself is

- in TorchScript an optional second input: `model(image)` stays one tensor in, one tensor out, as MONAI wants it, and
  draws from torch's global generator; `model(image, noise)` is a function. torch seeds that generator with 32 bits,
  whatever it is given, and who has the file can try them all. Programs that release images give noise of their own, as
  `monai-anon anonymize` and the MONAI Deploy app do, of a secret of 128 bits and the file's name.
- in ONNX a required second input. ONNX has RandomNormal, which ONNX Runtime seeds with the clock: who knows when an
  image was made could draw its identity again.

A bundle with a randomised response is not exported, for who can draw its noise again knows what it hides.

**What is in the file.** The tensors of `model.pt`, which hold means and prototypes of many people, never a gallery or
a row for a person. Of the machine nothing: the paths of source files, which both formats keep beside each operation,
are taken out. Each file is compared with the network that it was made of, and not written where they differ.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_anon.bundles import BundleError, InferenceSettings, load_anonymizer
from monai_anon.initial_weights import TEMPLATES
from monai_anon.statements import statement_of
from monai_anon.whole_files import require_writable, write_bytes

FILES = {"torchscript": "model.ts", "onnx": "model.onnx"}
ABOUT = "anonymizer.json"
"""Beside metadata.json and inference.json in a TorchScript file: policy, bound, noise_size, digest of model.pt."""
TOLERANCE = 1e-4
"""By how much a value of an image in [-1, 1] may differ from the eager network's."""
_NEEDS = ("onnx", "onnxscript", "onnxruntime")
_ROOT = Path(FILES["torchscript"]).stem
_DEBUG = ".debug_pkl"  # records of a TorchScript file with the paths of the sources


class ExportError(ValueError):
    """An anonymizer that is not exported, and why; nothing was written."""


class Exported(NamedTuple):
    """A file that was written, and by how much its images differed from the eager network's at most."""

    path: Path
    difference: float


def export_targets(bundle: str | Path, output: str | Path | None, formats: str, overwrite: bool) -> dict[str, Path]:
    """Format to file, for formats as in "torchscript,onnx".

    Raises:
        ExportError: an unknown format, packages that are missing for it, a file that is there and not to be replaced.
    """
    names = [name.strip() for name in formats.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in FILES]):
        wrong = unknown[0] if names else formats
        raise ExportError(f"format {wrong!r} is unknown; it must be one or several of {','.join(FILES)}")
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None] if "onnx" in names else []
    if missing:
        raise ExportError(
            f"ONNX needs {', '.join(missing)}: pip install 'monai-anon[export]', or take --format torchscript"
        )
    folder = Path(bundle) / "models" if output is None else Path(output)
    targets = {name: folder / FILES[name] for name in names}
    if there := [str(path) for path in targets.values() if os.path.lexists(path) and not overwrite]:
        raise ExportError(f"{', '.join(there)} exists already; --overwrite replaces it")
    require_writable(folder, "--output")
    return targets


def export_bundle(
    bundle: str | Path,
    targets: Mapping[str, Path],
    model: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[Exported]:
    """Write a bundle's anonymizer in each format of `targets`: all of them or, where one fails, none.

    Args:
        targets: as `export_targets` gives it.
        model, settings: as `load_anonymizer` takes them.

    Raises:
        BundleError: as `load_anonymizer`.
        ExportError: a randomised response, rows of training patients among the tensors, or an exported network that
            differs from the eager one by more than `TOLERANCE`.
        FileExistsError: a file has come in the meantime and is not to be replaced.
    """
    network, found = load_anonymizer(bundle, model, settings=settings)
    _refuse_unfit(network)
    about = statement_of(network, found.model_file, False) | {"noise_size": int(network.noise_size)}  # type: ignore[arg-type]
    config = _config(Path(bundle), settings or {})
    contents, differences = {}, {}
    for name in targets:
        if name == "torchscript":
            contents[name] = torchscript_bytes(network, _read(Path(bundle), "metadata"), config, about)
            run = torchscript_runner(contents[name])
        else:
            contents[name] = onnx_bytes(network, found, about)
            run = onnx_runner(contents[name])
        differences[name] = checked(network, run, found, name)
    return [Exported(write_bytes(path, contents[name], overwrite), differences[name]) for name, path in targets.items()]


def checked(network: nn.Module, run: Callable[[Tensor, Tensor], Tensor], found: InferenceSettings, name: str) -> float:
    """By how much an exported network's images differ at most, over batches of one and of five.

    Raises:
        ExportError: more than `TOLERANCE`, another shape, or no number.
    """
    worst = 0.0
    for count in (1, 5):
        image, noise = _examples(network, found, count)
        with torch.inference_mode():
            expected, made = network(image, noise), run(image, noise)
        if made.shape != expected.shape:
            raise ExportError(f"{name} gives the shape {tuple(made.shape)}, not {tuple(expected.shape)}; not written")
        difference = float((made - expected).abs().max())
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{name} differs by {difference:.2g} from the network, more than {TOLERANCE:g}; not written"
            )
        worst = max(worst, difference)
    return worst


# ---- TorchScript ----


def torchscript_bytes(
    network: nn.Module, metadata: Mapping[str, Any], config: Mapping[str, Any], about: Mapping[str, Any]
) -> bytes:
    """A TorchScript file as `monai.bundle ckpt_export` makes it, without the paths of source files."""
    stream = io.BytesIO()
    texts = {"metadata.json": metadata, "inference.json": config, ABOUT: about}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # MONAI Deploy takes nothing else
        torch.jit.save(
            torch.jit.script(network), stream, {name: json.dumps(value).encode() for name, value in texts.items()}
        )
    stripped = io.BytesIO()
    with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as copy:
        for record in archive.infolist():
            if not record.filename.endswith(_DEBUG):
                # MONAI Deploy looks for configs in a folder of the file's name
                _, _, name = record.filename.partition("/")
                copy.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}"), archive.read(record))
    return stripped.getvalue()


def torchscript_runner(content: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    """The network of a TorchScript file, as a function of images and noise; `checked` calls it without noise, too."""
    scripted = torch.jit.load(io.BytesIO(content)).eval()

    def run(image: Tensor, noise: Tensor) -> Tensor:
        given = scripted(image, noise)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            own = scripted(image)
            torch.manual_seed(0)
            drawn = scripted(image, torch.randn(len(image), noise.shape[1]))
        if not torch.equal(own, drawn):
            raise ExportError("the exported network's own noise is not that of its generator; not written")
        return given

    return run


# ---- ONNX ----


def onnx_bytes(network: nn.Module, found: InferenceSettings, about: Mapping[str, Any]) -> bytes:
    """An ONNX file: `image` (B, C, S, S) and `noise` (B, noise_size) to `pred`, any B."""
    import onnx

    image, noise = _examples(network, found, 3)
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx._internal.exporter").setLevel(logging.ERROR)  # that torchvision is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, on its own code
        program = torch.onnx.export(
            network,
            (image, noise),
            input_names=["image", "noise"],
            output_names=["pred"],
            dynamic_shapes=({0: batch}, {0: batch}),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # of the dynamo exporter
    proto = program.model_proto
    _forget_sources(proto)
    onnx.helper.set_model_props(proto, {"anonymizer": json.dumps(about)})
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def onnx_runner(content: bytes) -> Callable[[Tensor, Tensor], Tensor]:
    """The network of an ONNX file on the CPU, as a function of images and noise."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda image, noise: torch.from_numpy(
        session.run(["pred"], {"image": image.numpy(), "noise": noise.numpy()})[0]
    )


def _forget_sources(proto: Any) -> None:
    """Take out where in the sources each operation stood, and what it was called there."""
    functions = list(proto.functions)
    for part in (proto.graph, *functions):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
        for node in part.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")


# ---- Both ----


def _refuse_unfit(network: nn.Module) -> None:
    """Before anything is made."""
    epsilon = getattr(getattr(network, "channel", None), "epsilon", 0.0)
    if epsilon:
        raise ExportError(
            f"the bundle has a randomised response (epsilon {epsilon:g}), which who can draw its noise again undoes; "
            "use monai-anon anonymize --epsilon, whose noise nobody can draw again"
        )
    if rows := [name for name in network.state_dict() if TEMPLATES in name]:
        raise ExportError(f"{rows[0]} has a row for each training patient, which is a template of that person")


def _examples(network: nn.Module, found: InferenceSettings, count: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] from smooth to rough, and noise; the same ones every time."""
    generator, size = torch.Generator().manual_seed(count), found.image_size
    rough = torch.rand(count, found.channels, size, size, generator=generator)
    smooth = nn.functional.interpolate(rough[:, :, :5, :5], (size, size), mode="bilinear")
    share = torch.linspace(0, 1, count)[:, None, None, None]
    noise = torch.randn(count, int(network.noise_size), generator=generator)  # type: ignore[arg-type]
    return (share * rough + (1 - share) * smooth) * 2 - 1, noise


def _config(bundle: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """inference.json, with the settings that the network was built with."""
    return _read(bundle, "inference") | {key: value for key, value in settings.items() if value is not None}


def _read(bundle: Path, name: str) -> dict[str, Any]:
    file = bundle / "configs" / f"{name}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror}); MONAI's programs ask for it") from error
    except ValueError as error:
        raise BundleError(f"{file} is no valid JSON: {error}") from error
    return dict(content)


def file_words(exported: Sequence[Exported]) -> list[str]:
    """A line for a person on each file."""
    return [
        f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); differs from the network by {difference:.1e} at most "
        f"(values in [-1, 1], {TOLERANCE:g} is allowed)"
        for path, difference in exported
    ]
