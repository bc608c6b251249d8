"""Exports are the network, run without this package, and hold nothing of a person or of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_commands import CHEST, FACE, IRIS, Bundle
from narrow_bundle import LATENTS, SIZE, narrow
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from monai_anon import export
from monai_anon.__main__ import app
from monai_anon.bundles import InferenceSettings, load_anonymizer
from monai_anon.export import ExportError, checked, export_bundle, export_targets, torchscript_bytes

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return narrow(CHEST, tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def network(bundle: Path) -> nn.Module:
    return load_anonymizer(bundle)[0]


@pytest.fixture(scope="module")
def script_file(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    targets = export_targets(bundle, tmp_path_factory.mktemp("exported"), "torchscript", False)
    (exported,) = export_bundle(bundle, targets)
    assert exported.difference <= 1e-6
    return exported.path


@pytest.fixture(scope="module")
def onnx_file(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    targets = export_targets(bundle, tmp_path_factory.mktemp("exported"), "onnx", False)
    (exported,) = export_bundle(bundle, targets)
    assert exported.difference <= export.TOLERANCE
    return exported.path


def batch(network: nn.Module, count: int = 7) -> tuple[Tensor, Tensor]:
    return torch.rand(count, 1, SIZE, SIZE) * 2 - 1, torch.randn(count, int(network.noise_size))


def test_torchscript_is_the_network_with_noise_given_and_with_its_own(network: nn.Module, script_file: Path) -> None:
    image, noise = batch(network)
    scripted = torch.jit.load(str(script_file)).eval()
    assert torch.allclose(scripted(image, noise), network(image, noise), atol=1e-6)
    made = []
    for one in (scripted, network):
        torch.manual_seed(3)
        made.append(one(image))
    assert torch.allclose(*made, atol=1e-6)
    assert not torch.allclose(scripted(image), scripted(image), atol=1e-3)  # nobody twice


def test_onnx_is_the_network_for_batches_of_any_size(network: nn.Module, onnx_file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape[1:]) for value in session.get_inputs()] == [
        ("image", [1, SIZE, SIZE]),
        ("noise", [int(network.noise_size)]),
    ]
    for count in (1, 2, 33):
        image, noise = batch(network, count)
        (made,) = session.run(["pred"], {"image": image.numpy(), "noise": noise.numpy()})
        assert float((torch.from_numpy(made) - network(image, noise)).abs().max()) < 1e-4
    about = json.loads(session.get_modelmeta().custom_metadata_map["anonymizer"])
    assert about["policy"] == "code" and about["bits"] > 0 and about["noise_size"] == int(network.noise_size)


def test_an_onnx_graph_draws_nothing_by_itself(onnx_file: Path) -> None:
    """Runtimes seed its random operators with the clock."""
    import onnx

    model = onnx.load(str(onnx_file))
    kinds = {node.op_type for part in (model.graph, *model.functions) for node in part.node}
    assert len(kinds) > 5 and not [kind for kind in kinds if kind.startswith("Random") or kind == "Bernoulli"]


@pytest.mark.parametrize("other", [IRIS, FACE], ids=lambda found: found.name)
def test_the_other_bundles_are_exported_likewise(other: Bundle, tmp_path: Path) -> None:
    folder = narrow(other, tmp_path / "bundle")
    (exported,) = export_bundle(folder, export_targets(folder, None, "torchscript", False))
    assert exported.path == folder / "models" / "model.ts" and exported.difference <= 1e-6
    image = torch.rand(2, 3 if other == FACE else 1, SIZE, SIZE) * 2 - 1
    assert torch.jit.load(str(exported.path))(image).shape == image.shape


# ---- What is in the files ----


def tensors(file: Path) -> list[Tensor]:
    """All tensors of a file, constants of its code among them."""
    if file.suffix == ".onnx":
        import onnx

        graph = onnx.load(str(file)).graph
        constants = [a.t for node in graph.node for a in node.attribute if a.name == "value"]
        return [torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in (*graph.initializer, *constants)]
    with zipfile.ZipFile(file) as archive:
        raw = [archive.read(name) for name in archive.namelist() if "/constants/" in name]
    constants = [torch.frombuffer(bytearray(part), dtype=torch.float32) for part in raw if part and len(part) % 4 == 0]
    return [*torch.jit.load(str(file)).state_dict().values(), *constants]


def likest(found: list[Tensor], people: Tensor) -> float:
    """How like (cosine) the likest row of any tensor is to one of some people's latents `(N, D)`."""
    people, best = nn.functional.normalize(people), 0.0
    for tensor in found:
        if tensor.is_floating_point() and tensor.numel() and tensor.numel() % people.shape[1] == 0:
            for rows in (tensor.reshape(-1, people.shape[1]), tensor.reshape(people.shape[1], -1).T):
                best = max(best, float((nn.functional.normalize(rows.float()) @ people.T).max()))
    return best


@pytest.mark.parametrize("kind", ["script_file", "onnx_file"])
def test_no_tensor_is_a_persons_identity(
    kind: str, network: nn.Module, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The search finds a gallery that is planted."""
    file = request.getfixturevalue(kind)
    people = torch.randn(30, LATENTS[0])
    people = torch.cat([people, network.disentangler.encode(batch(network, 30)[0]).identity])
    assert likest(tensors(file), people) < 0.999
    network.register_buffer("gallery", people)
    planted = tmp_path / "planted.ts"
    planted.write_bytes(torchscript_bytes(network, {}, {}, {}))
    del network.gallery
    assert likest(tensors(planted), people) > 0.999


def test_a_script_has_the_models_tensors_and_no_others(bundle: Path, script_file: Path) -> None:
    own = torch.load(bundle / "models" / "model.pt", weights_only=True)
    found = torch.jit.load(str(script_file)).state_dict()
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


@pytest.mark.parametrize("kind", ["script_file", "onnx_file"])
def test_no_path_of_this_machine_is_in_a_file(kind: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(kind).read_bytes()
    for place in (str(Path(export.__file__).parent), sys.prefix, str(Path(torch.__file__).parent), "site-packages"):
        assert place.encode() not in content, place


def test_a_script_says_what_it_is(bundle: Path, script_file: Path) -> None:
    """And MONAI Deploy finds it, in a folder of the file's name."""
    with zipfile.ZipFile(script_file) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {script_file.stem}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    texts = {"metadata.json": "", "inference.json": "", "anonymizer.json": ""}
    torch.jit.load(str(script_file), _extra_files=texts)
    metadata, config, about = (json.loads(text) for text in texts.values())
    assert metadata == CHEST.config("metadata.json")
    assert config == json.loads((bundle / "configs" / "inference.json").read_text())
    assert about["policy"] == "code" and len(about["model"]) == 16


# ---- Without this package ----

ALONE = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"monai_anon", "sklearn", "skimage", "scipy", "pandas", "nibabel", "pydicom", "itk"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
import torch
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata

file, picture, output = sys.argv[1:]
network, metadata, extra = load_net_with_metadata(file, more_extra_files=["inference.json"])
config = json.loads(extra["inference.json"])
parser = ConfigParser(config | {"bundle_root": ".", "dataset_dir": sys.argv[2].rsplit("/", 1)[0], "output_dir": output})
item = parser.get_parsed_content("preprocessing")({"image": picture})
inferer = parser.get_parsed_content("inferer")
with torch.no_grad():
    item["pred"] = inferer(item["image"][None], network)[0]
parser.get_parsed_content("postprocessing")(item)
print(sorted(name for name in sys.modules if name.startswith("monai_anon")))
"""


def test_a_script_runs_with_torch_and_monai_alone(script_file: Path, tmp_path: Path) -> None:
    """Pre- and postprocessing of its own inference.json included."""
    (tmp_path / "in").mkdir()
    picture = tmp_path / "in" / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 36), dtype=np.uint8)).save(picture)
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(script_file), str(picture), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
    copy = Image.open(tmp_path / "out" / "a_anonymised.png")
    assert copy.size == (SIZE, SIZE) and copy.mode == "L" and len(set(copy.getdata())) > 1


# ---- What is refused ----


def test_nothing_is_written_where_an_export_differs(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export.torchscript_runner
    for error in (2e-4, float("nan")):
        monkeypatch.setattr(
            export,
            "torchscript_runner",
            lambda content: lambda i, n: right(content)(i, n) + error,  # noqa: B023
        )
        with pytest.raises(ExportError, match=r"torchscript differs by .* more than 0\.0001; not written"):
            export_bundle(bundle, export_targets(bundle, tmp_path, "torchscript", False))
    monkeypatch.setattr(export, "torchscript_runner", lambda content: lambda i, n: right(content)(i, n) + 5e-5)
    export_bundle(bundle, export_targets(bundle, tmp_path, "torchscript", False))
    assert [f.name for f in tmp_path.iterdir()] == ["model.ts"]


def test_nothing_is_written_where_one_of_the_formats_fails(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> bytes:
        raise RuntimeError("an operation that ONNX has not")

    monkeypatch.setattr(export, "onnx_bytes", fails)
    with pytest.raises(RuntimeError):
        export_bundle(bundle, {"torchscript": tmp_path / "model.ts", "onnx": tmp_path / "model.onnx"})
    assert not list(tmp_path.iterdir())


def test_a_randomised_response_is_not_exported(bundle: Path, tmp_path: Path) -> None:
    targets = export_targets(bundle, tmp_path, "torchscript", False)
    with pytest.raises(ExportError, match="epsilon 2"):
        export_bundle(bundle, targets, settings={"epsilon": 2.0})
    assert not list(tmp_path.iterdir())


def test_rows_of_training_patients_are_not_exported(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.disentangler, "identity_classifier", nn.Linear(LATENTS[0], 12))
    with pytest.raises(ExportError, match=r"identity_classifier\.weight has a row for each training patient"):
        export._refuse_unfit(network)


def test_the_command_tells_refuses_and_replaces_when_asked(bundle: Path, tmp_path: Path) -> None:
    words = ["export", "--bundle", str(bundle), "--output", str(tmp_path), "--format"]

    def run(*more: str) -> tuple[int, str]:
        ended = CliRunner().invoke(app, [*words, *more])
        return ended.exit_code, ended.output

    assert run("torchscript", "--dry-run")[1].strip().endswith(f"write {tmp_path}/model.ts")
    assert not list(tmp_path.iterdir())
    (tmp_path / "model.ts").write_text("mine")
    code, said = run("torchscript")
    assert code == 2 and f"{tmp_path}/model.ts exists already; --overwrite replaces it" in said
    assert (tmp_path / "model.ts").read_text() == "mine"
    code, said = run("torchscript", "--overwrite")
    assert code == 0 and "differs from the network by" in said and "0.0001 is allowed" in said
    torch.jit.load(str(tmp_path / "model.ts"))
    code, said = run("tensorrt")
    assert code == 2 and "format 'tensorrt' is unknown; it must be one or several of torchscript,onnx" in said
    assert [f.name for f in tmp_path.iterdir()] == ["model.ts"]


def test_onnx_without_its_packages_names_them(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ExportError, match=r"ONNX needs onnxscript: pip install 'monai-anon\[export\]'"):
        export_targets(bundle, tmp_path, "torchscript,onnx", False)


def test_another_shape_is_refused(network: nn.Module) -> None:
    found = InferenceSettings(SIZE, 1, Path("model.pt"))
    with pytest.raises(ExportError, match="onnx gives the shape"):
        checked(network, lambda image, noise: image[:, :, 1:], found, "onnx")
