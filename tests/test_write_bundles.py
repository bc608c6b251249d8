"""The other bundles' configs are chest's with what differs; what was changed by hand, or not written, is named."""

import importlib
import json
import shutil

import pytest
from bundle_commands import CHEST
from conftest import ROOT
from typer.testing import CliRunner


@pytest.fixture
def module(scripts):
    return importlib.import_module("write_bundles")


@pytest.fixture
def repository(tmp_path):
    """Chest's configs and a bundle that differs from them by a little, not yet written."""
    shutil.copytree(CHEST.configs, tmp_path / "bundles" / "chest" / "configs")
    shutil.copy(CHEST.folder / "LICENSE", tmp_path / "bundles" / "chest")
    (tmp_path / "scripts" / "bundles").mkdir(parents=True)

    def differ(**difference):
        (tmp_path / "scripts" / "bundles" / "knee.json").write_text(json.dumps(difference))
        return tmp_path

    return differ


@pytest.fixture
def run(script):
    def write(*options, root):
        result = CliRunner().invoke(script("write_bundles"), [*options, "--root", str(root)])
        return result.exit_code, result.output

    return write


def test_the_bundles_of_this_repository_are_up_to_date(run):
    assert run("--check", root=ROOT) == (0, "")


def test_chest_itself_is_in_the_form_that_is_written(module):
    for file in CHEST.configs.glob("*.json"):
        assert module.as_text(json.loads(file.read_text()), "chest") == file.read_text(), file.name


def test_what_is_written_is_chests_but_for_what_differs(run, repository):
    root = repository(
        configs={
            "train.json": {"channels": 3, "train#loader#batch_size": 7, "network_def#identity_classifier": {}},
            "paper.json": {"network_def#encoder#widths": [1], "train#step#discriminator#stem": 4, "train#new": 5},
            "inference.json": {"preprocessing#transforms#1#channel_dim": -1},
        },
        left_out=["realism.json"],
        added={"own.json": {"image_size": 32}},
    )
    assert run(root=root) == (0, "wrote bundles/knee\n")
    made = {f.name: f for f in (root / "bundles" / "knee" / "configs").iterdir()}
    assert set(made) == {f.name for f in CHEST.configs.iterdir() if f.is_file()} - {"realism.json"} | {"own.json"}
    train, chest = json.loads(made["train.json"].read_text()), CHEST.config("train.json")
    assert list(train) == list(chest) and train["bundle_root"].endswith("'bundles/knee'")
    assert (train["channels"], train["train"]["loader"]["batch_size"]) == (3, 7)
    assert list(train["network_def"]) == [*chest["network_def"], "identity_classifier"]
    paper = json.loads(made["paper.json"].read_text())
    assert (paper["network_def#encoder#widths"], paper["train#new"]) == ([1], 5)
    assert paper["train#step#discriminator"] == CHEST.config("paper.json")["train#step#discriminator"] | {"stem": 4}
    assert json.loads(made["inference.json"].read_text())["preprocessing"]["transforms"][1]["channel_dim"] == -1
    assert made["quick.json"].read_text() == (CHEST.configs / "quick.json").read_text()
    assert (root / "bundles" / "knee" / "LICENSE").read_text() == (CHEST.folder / "LICENSE").read_text()
    assert run("--check", root=root) == (0, "")


def test_check_names_what_is_out_of_date_and_writes_nothing(run, repository):
    root = repository()
    run(root=root)
    configs = root / "bundles" / "knee" / "configs"
    changed = (configs / "train.json").read_text().replace("48", "49")
    (configs / "train.json").write_text(changed)
    (configs / "quick.json").unlink()
    (configs / "more.json").write_text("{}")
    code, said = run("--check", root=root)
    assert code == 1
    for line in ("train.json is out of date", "quick.json is missing", "more.json is made from nothing"):
        assert f"bundles/knee/configs/{line}\n" in said
    assert "python scripts/write_bundles.py" in said and len(said.splitlines()) == 4
    assert (configs / "train.json").read_text() == changed and not (configs / "quick.json").exists()


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ({"config": {}}, "unknown ['config']; known are ['configs', 'left_out', 'added']"),
        ({"configs": {"trian.json": {}}}, "['trian.json']"),
        ({"added": {"train.json": {}}}, "['train.json']"),
        ({"configs": {"train.json": {"manifest_pth#kind": "knee"}}}, "train.json has no place for 'manifest_pth#kind'"),
        ({"configs": {"inference.json": {"preprocessing#transforms#9#keys": 0}}}, "has no place for 'preprocessing#"),
        ({"configs": {"train.json": {"max_epochs#more": 0}}}, "has no place for 'max_epochs#more'"),
    ],
)
def test_differences_that_do_not_fit_are_refused_by_name(run, repository, difference, said):
    root = repository(**difference)
    code, message = run(root=root)
    assert code == 1 and "knee.json: " in message and said in message
    assert not (root / "bundles" / "knee").exists()
