"""Single images with a TorchScript file: settings fail closed, and what is written is what the CLI writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_commands import CHEST, FACE
from dicom_files import found_in, planted_header, write_dicom
from narrow_bundle import narrow
from torch import Tensor
from typer.testing import CliRunner

from monai_anon.__main__ import app
from monai_anon.export import export_bundle, export_targets
from monai_anon.gallery_search import SearchableGallery
from monai_anon.gate import Comparator
from monai_anon.gate_calibration import calibrate
from monai_anon.identities import Gallery
from monai_anon.integrations.script_release import DeployError, Item, Releaser, SiteSettings, open_script, script_file
from monai_anon.keys import Key, write_key
from monai_anon.readers import to_model_range, to_uint8

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = narrow(CHEST, tmp_path_factory.mktemp("bundle"))
    export_bundle(folder, export_targets(folder, None, "torchscript", False))
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two radiographs of a person whose name is everywhere in their headers."""
    folder = tmp_path / "in"
    (folder / "Plant^Quirin").mkdir(parents=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (36, 40), dtype=np.uint8)
        place = folder / "Plant^Quirin" / f"{number}.dcm"
        write_dicom(place, pixels, header=planted_header(), SOPInstanceUID=f"1.2.3.4444.5555.{number}", Modality="DX")
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_key(Key(bytes(32)), tmp_path / "site.key")
    return tmp_path / "site.key"


def released(releaser: Releaser, draw: Tensor | None = None) -> list[Path | None]:
    """Every image of the folder, as the application does it; `draw` in place of what the network gives."""
    copies = []
    for number, path in enumerate(sorted(releaser.source.rglob("*.dcm")), 1):
        item = releaser.read(path, number)
        if item is not None:
            copies.append(releaser.release(item, drawn(releaser, item) if draw is None else draw.numpy(), number))
    return copies


def drawn(releaser: Releaser, item: Item) -> np.ndarray:
    images = to_model_range(item.original.pixels)[None]
    return to_uint8(releaser.script.network(images, releaser.noise(item)[None]))[0, 0].numpy()


def open_gate(releaser: Releaser, rate: float = 0.02) -> None:
    """A gate in place of the missing one, of random images."""
    network, digest = releaser.script.network, str(releaser.script.about["model"])
    embed = lambda images: network.disentangler.encode(images).identity  # noqa: E731
    images = torch.rand(300, 1, 32, 32) * 2 - 1
    gallery = SearchableGallery.of(Gallery(embed(images[:100]), torch.arange(100)), digest)
    calibration = calibrate(embed(images[100:]), torch.arange(200), gallery, rate)
    assert releaser.gate is not None
    releaser.gate.comparators = [Comparator("model", digest, embed, gallery, calibration)]
    releaser.gate.faults = ()
    releaser.gate.tolerance = 1.0


def test_without_a_word_on_the_gate_nothing_starts(tmp_path: Path) -> None:
    for environment in ({}, {"MONAI_ANON_GATE": "on"}, {"MONAI_ANON_SITE": ""}):
        with pytest.raises(DeployError, match=r"MONAI_ANON_SITE is not set.*MONAI_ANON_GATE=off releases"):
            SiteSettings.of(environment)
    for wrong in ("no", "OFF"):
        with pytest.raises(DeployError, match=f"MONAI_ANON_GATE is '{wrong}'; it must be on or off"):
            SiteSettings.of({"MONAI_ANON_GATE": wrong})
    with pytest.raises(DeployError, match="MONAI_ANON_SITE is set, which only the gate reads"):
        SiteSettings.of({"MONAI_ANON_GATE": "off", "MONAI_ANON_SITE": str(tmp_path)})
    with pytest.raises(DeployError, match="MONAI_ANON_HEADER is 'all'; it must be one of none, groups, view"):
        SiteSettings.of({"MONAI_ANON_GATE": "off", "MONAI_ANON_HEADER": "all"})
    assert SiteSettings.of({"MONAI_ANON_SITE": str(tmp_path)}) == SiteSettings(tmp_path)
    assert SiteSettings.of({"MONAI_ANON_GATE": "off"}) == SiteSettings(None)


def test_a_file_that_no_export_wrote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.ts").write_text("no script")
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(tmp_path / "other.ts"))
    for name in ("text.ts", "other.ts"):
        with pytest.raises(DeployError, match=f"{name} is no TorchScript file of monai-anon export"):
            open_script(tmp_path / name)


def test_one_file_is_taken_by_name_or_as_the_only_one_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match=r"absent\.ts has no model"):
        script_file(tmp_path / "absent.ts")
    with pytest.raises(DeployError, match="has 0 model"):
        script_file(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.ts").touch()
    assert script_file(tmp_path) == script_file(tmp_path / "models" / "model.ts") == tmp_path / "models" / "model.ts"
    (tmp_path / "other.ts").touch()
    with pytest.raises(DeployError, match="has 2 model"):
        script_file(tmp_path)


def test_the_network_is_the_files(bundle: Path) -> None:
    script = open_script(bundle / "models" / "model.ts")
    image, noise = torch.rand(2, 1, 32, 32) * 2 - 1, torch.randn(2, int(script.network.noise_size))
    scripted = torch.jit.load(str(bundle / "models" / "model.ts"))
    assert torch.allclose(script.network(image, noise), scripted(image, noise), atol=1e-6)


def test_without_a_gate_the_copies_are_those_of_the_command(
    bundle: Path, archive: Path, key: Path, tmp_path: Path
) -> None:
    """The same names, headers and pixels, under one key."""
    releaser = Releaser(open_script(bundle / "models/model.ts"), SiteSettings(None, key=key), archive, tmp_path / "app")
    assert all(released(releaser)) and releaser.written == 2 and not releaser.problems
    words = ["anonymize", str(archive), str(tmp_path / "cli"), "--bundle", str(bundle), "--no-gate", "--key", str(key)]
    assert CliRunner().invoke(app, words).exit_code == 0
    ours, theirs = ({f.name: f.read_bytes() for f in (tmp_path / run).glob("*.dcm")} for run in ("app", "cli"))
    assert len(ours) == 2 and ours == theirs
    assert [found_in(content) for content in ours.values()] == [[], []]
    statements = [(tmp_path / run / "statements.jsonl").read_text() for run in ("app", "cli")]
    assert sorted(statements[0].splitlines()) == sorted(statements[1].splitlines())


@pytest.mark.parametrize("site", ["absent", "empty"])
def test_a_gate_without_its_files_withholds_everything(site: str, bundle: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    script = open_script(bundle / "models/model.ts")
    releaser = Releaser(script, SiteSettings(tmp_path / site), archive, tmp_path / "out")
    assert released(releaser) == [None, None]
    assert releaser.problems == [f"image {n}: withheld: no judges, no gallery to compare with" for n in (1, 2)]
    assert not (tmp_path / "out").exists()


def test_through_the_gate_a_copy_says_one_outcome_more(bundle: Path, archive: Path, tmp_path: Path) -> None:
    script = open_script(bundle / "models/model.ts")
    releaser = Releaser(script, SiteSettings(tmp_path), archive, tmp_path / "out")
    open_gate(releaser)
    assert releaser.statement["bits"] == pytest.approx(np.log2(2 ** script.about["bits"] + 1), abs=1e-3)
    copies = released(releaser)
    assert releaser.written + len(releaser.problems) == 2 and releaser.written == sum(c is not None for c in copies)
    lines = [json.loads(line) for line in (tmp_path / "out" / "statements.jsonl").read_text().splitlines()]
    assert releaser.written > 0 and {line["bits"] for line in lines} == {releaser.statement["bits"]}


def test_another_image_than_the_models_is_not_written(bundle: Path, archive: Path, tmp_path: Path) -> None:
    """Of the original, for instance, by an application that mixes them up."""
    script = open_script(bundle / "models/model.ts")
    releaser = Releaser(script, SiteSettings(None), archive, tmp_path / "out")
    assert released(releaser, torch.full((32, 32), 7, dtype=torch.uint8)) == [None, None]
    assert "drew another image" in releaser.problems[0]
    assert released(releaser, torch.full((16, 16), 7, dtype=torch.uint8)) == [None, None]
    assert not (tmp_path / "out").exists()


def test_bad_images_are_noted_by_number_and_nothing_is_replaced(
    bundle: Path, archive: Path, key: Path, tmp_path: Path
) -> None:
    (archive / "Plant^Quirin" / "2.dcm").write_bytes(b"\0" * 128 + b"DICM broken")
    script = open_script(bundle / "models/model.ts")
    first = Releaser(script, SiteSettings(None, key=key), archive, tmp_path / "out")
    released(first)
    before = {f: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    again = Releaser(script, SiteSettings(None, key=key), archive, tmp_path / "out")
    released(again)
    assert before == {f: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    assert again.problems[:2] == [f"image {n}: its copy is there already, and is not replaced" for n in (1, 2)]
    assert len(first.problems) == 1 and first.problems[0].startswith("image 3: ")
    assert "Quirin" not in str(first.problems + again.problems)


def test_places_and_models_that_do_not_suit_are_refused(bundle: Path, archive: Path, tmp_path: Path) -> None:
    script = open_script(bundle / "models/model.ts")
    with pytest.raises(DeployError, match="lies inside the input folder"):
        Releaser(script, SiteSettings(None), archive, archive / "out")
    with pytest.raises(DeployError, match="3 channels; radiographs have 1"):
        Releaser(script._replace(channels=3), SiteSettings(None), archive, tmp_path / "out")
    assert FACE.config("inference.json")["channels"] == 3
