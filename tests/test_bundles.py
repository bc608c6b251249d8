"""A bundle's anonymizer is loaded whole, or refused with the reason and what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_commands import BUNDLES, CHEST, FACE, Bundle
from PIL import Image
from tiny_bundle import SIZE, tiny_anonymizer, write_bundle
from typer.testing import CliRunner

from monai_anon.__main__ import app
from monai_anon.bundles import BundleError, chosen_device, load_anonymizer
from monai_anon.model_files import bundle_name


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def test_the_anonymizer_has_the_files_weights_and_is_still(bundle: Path) -> None:
    network, settings = load_anonymizer(bundle)
    assert (settings.image_size, settings.channels) == (SIZE, 1)
    assert settings.model_file == bundle / "models" / "model.pt"
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image, noise = torch.rand(2, 1, SIZE, SIZE) * 2 - 1, torch.randn(2, 6)
    with torch.no_grad():
        assert torch.equal(network(image, noise), tiny_anonymizer()(image, noise))


def test_model_names_other_weights(bundle: Path, tmp_path: Path) -> None:
    state = {name: torch.ones_like(tensor) for name, tensor in tiny_anonymizer().state_dict().items()}
    torch.save(state, tmp_path / "ones.pt")
    network, settings = load_anonymizer(bundle, tmp_path / "ones.pt")
    assert settings.model_file == tmp_path / "ones.pt"
    assert all(bool((parameter == 1).all()) for parameter in network.parameters())


@pytest.fixture(params=BUNDLES, ids=lambda found: found.name)
def untrained(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bundle, Path]:
    """A bundle of this repository, and a model file of its networks before any training."""
    network = request.param.parser("inference.json").get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return request.param, tmp_path / "model.pt"


def test_every_bundle_can_be_loaded(untrained: tuple[Bundle, Path]) -> None:
    found, model = untrained
    with pytest.raises(BundleError, match=r"model\.pt: this model has no prototypes"):
        load_anonymizer(found.folder, model)
    as_in_the_paper = {"policy": "latents", "prototypes": None}
    network, settings = load_anonymizer(found.folder, model, settings=as_in_the_paper)
    assert settings.channels == (3 if found == FACE else 1)
    image = torch.zeros(1, settings.channels, settings.image_size, settings.image_size)
    assert network(image, torch.zeros(1, int(network.noise_size))).shape == image.shape


def test_overlays_describe_models_of_other_networks(tmp_path: Path) -> None:
    """A model of 128 px does not fit the bundle's own networks; with the overlay that it was trained with it does."""
    overlay = CHEST.configs / "size_128.json"
    network = CHEST.parser("inference.json", "size_128.json").get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    latents = {"policy": "latents", "prototypes": None}
    with pytest.raises(BundleError, match="does not fit the network"):
        load_anonymizer(CHEST.folder, tmp_path / "model.pt", settings=latents)
    loaded, settings = load_anonymizer(CHEST.folder, tmp_path / "model.pt", settings=latents, overlays=[overlay])
    assert settings.image_size == 128
    assert loaded(torch.zeros(1, 1, 128, 128), torch.zeros(1, int(loaded.noise_size))).shape == (1, 1, 128, 128)


def test_anonymize_takes_overlays(tmp_path: Path) -> None:
    network = CHEST.parser("inference.json", "size_128.json").get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "in").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)).save(tmp_path / "in" / "a.png")
    words = ["anonymize", str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(CHEST.folder), "--no-gate"]
    words += ["--model", str(tmp_path / "model.pt"), "--policy", "latents", "--model-form"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2 and "does not fit the network" in refused.output
    ended = CliRunner().invoke(app, [*words, "--overlay", str(CHEST.configs / "size_128.json")])
    assert ended.exit_code == 0, ended.output
    assert Image.open(tmp_path / "out" / "a.png").size == (128, 128)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"other\.json is missing"),
        ("{", r"other\.json is no valid JSON"),
        ("[1]", r"other\.json is a list"),
        ('{"image_sise": 128}', r"(?s)other\.json and .*inference\.json do not fit.*did you mean 'image_size'"),
        ('{"images#size": 128}', r"other\.json sets images#size, of which .* has not even the parent"),
    ],
)
def test_overlays_that_do_not_fit_are_refused(tmp_path: Path, content: str | None, match: str) -> None:
    if content is not None:
        (tmp_path / "other.json").write_text(content)
    with pytest.raises(BundleError, match=match):
        load_anonymizer(CHEST.folder, overlays=[tmp_path / "other.json"])


def test_anonymize_takes_every_bundles_files(untrained: tuple[Bundle, Path], tmp_path: Path) -> None:
    """Gray ones by any, colour ones by a bundle of three channels; copies are as the model's images are."""
    found, model = untrained
    (tmp_path / "in").mkdir()
    for name, mode in (("gray.png", "L"), ("colour.png", "RGB"), ("photo.jpg", "RGB")):
        noise = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(tmp_path / "in" / name)
    words = ["anonymize", "--no-gate", str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(found.folder)]
    ended = CliRunner().invoke(app, [*words, "--model", str(model), "--policy", "latents", "--model-form"])
    copies = {f.name: Image.open(f) for f in (tmp_path / "out").glob("*.png")}
    assert {copy.size for copy in copies.values()} == {(64, 64)}
    if found == FACE:
        assert ended.exit_code == 0, ended.output
        assert len(copies) == 3 and {copy.mode for copy in copies.values()} == {"RGB"}
    else:
        assert ended.exit_code == 1 and ended.output.count("a colour image where gray is expected") == 2
        assert len(copies) == 1 and {copy.mode for copy in copies.values()} == {"L"}


def test_what_is_no_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="absent is no folder"):
        load_anonymizer(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"has no configs/inference\.json"):
        load_anonymizer(tmp_path)
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text())
    config.write_text("{")
    with pytest.raises(BundleError, match="no valid JSON"):
        load_anonymizer(bundle)
    config.write_text(json.dumps({"image_size": 32, "channels": 1}))
    with pytest.raises(BundleError, match="has no model_file, network_def"):
        load_anonymizer(bundle)
    config.write_text(json.dumps(content | {"image_size": 33}))
    with pytest.raises(BundleError, match=r"cannot be built: ValueError: encoder: image_size is 33"):
        load_anonymizer(bundle)
    config.write_text(json.dumps(content | {"network_def": {"_target_": "torch.nn.Identity"}}))
    with pytest.raises(BundleError, match="network_def is a Identity"):
        load_anonymizer(bundle)


def test_a_missing_model_names_what_makes_one_or_where_one_is(bundle: Path) -> None:
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(BundleError, match=r"(?s)train\.json.*train_identity_vae\.json.*--model .*output/model\.pt"):
        load_anonymizer(bundle)
    (bundle / "output").mkdir()
    (bundle / "output" / "model.pt").touch()
    with pytest.raises(BundleError, match=r"from a training: use --model .*output/model\.pt"):
        load_anonymizer(bundle)


def test_weights_that_do_not_fit_are_refused(bundle: Path) -> None:
    file, state = bundle / "models" / "model.pt", tiny_anonymizer().state_dict()
    wrong = dict(state)
    removed = wrong.pop("disentangler.encoder.head.bias")
    wrong["disentangler.encoder.tail.bias"] = removed
    wrong["identity_vae.decoder.0.weight"] = torch.zeros(3, 3)
    torch.save(wrong, file)
    with pytest.raises(
        BundleError, match=r"has no .*head\.bias; .*unexpectedly, .*tail\.bias; .*another shape .*\(3, 3\) for \(8, 6\)"
    ):
        load_anonymizer(bundle)
    torch.save(state | {"identity_vae.decoder.0.bias": torch.full((8,), torch.nan)}, file)
    with pytest.raises(BundleError, match=r"NaN or infinite: identity_vae\.decoder\.0\.bias"):
        load_anonymizer(bundle)


class _Planted:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_model_file_is_read_as_tensors_only(bundle: Path, tmp_path: Path) -> None:
    file = bundle / "models" / "model.pt"
    for save in (
        lambda planted: torch.save(planted, file),
        lambda planted: file.write_bytes(pickle.dumps(planted, protocol=2)),
    ):
        save(_Planted(tmp_path / "executed"))
        with pytest.raises(BundleError, match="no file of tensors"):
            load_anonymizer(bundle)
    assert not (tmp_path / "executed").exists()
    for content in (
        b"",
        b"weights",
        b"text, not tensors",
        b"Jane Doe",
        b"\x89PNG\r\n\x1a\n",
        b"h\0\0\0\0\0\0\0{}",
        b"R.",
    ):
        file.write_bytes(content)  # what is read as instructions fails in as many ways
        with pytest.raises(BundleError, match="no file of tensors"):
            load_anonymizer(bundle)
    torch.save([torch.zeros(1)], file)
    with pytest.raises(BundleError, match="no state dict"):
        load_anonymizer(bundle)


def test_a_model_whose_record_names_another_bundle_is_refused(tmp_path: Path) -> None:
    model, own = tmp_path / "model.pt", CHEST.folder / "models" / "model.pt"
    shutil.copy(own, model)
    load_anonymizer(CHEST.folder, model)  # without a record nobody can tell
    record = model.with_suffix(".json")
    record.write_text(json.dumps({"bundle": bundle_name(CHEST.folder)}))
    load_anonymizer(CHEST.folder, model)
    record.write_text(json.dumps({"bundle": bundle_name(CHEST.folder.parent / "iris")}))
    with pytest.raises(BundleError, match=r"model\.pt is a model of the bundle 'Iris .* is 'Chest .*--bundle"):
        load_anonymizer(CHEST.folder, model)
    record.write_text("[")
    with pytest.raises(BundleError, match=r"model\.json is no training record"):
        load_anonymizer(CHEST.folder, model)


def test_an_unknown_device_is_refused() -> None:
    assert chosen_device("cpu") == torch.device("cpu")
    assert chosen_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here"):
        chosen_device("gpu")
