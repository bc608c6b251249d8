"""A misspelt or mistyped override stops a bundle before anything is built; correct ones pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fire
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, run

from monai_anon.overrides import OverrideError, find_problems

pytestmark = pytest.mark.filterwarnings("ignore")
CHECK = {"_target_": "monai_anon.overrides.refuse_misspelt", "base": "train.json"}
BUILT: list[tuple[Any, ...]] = []


class Engine:
    """Stands for the trainer: takes down what it was built with, and that it ran."""

    def __init__(self, max_epochs: int, amp: bool = False, weights: dict[str, float] | None = None) -> None:
        self.settings = (max_epochs, amp, weights)

    def run(self) -> None:
        BUILT.append(self.settings)


class WideEngine(Engine):
    """Passes unnamed arguments on to its base class."""

    def __init__(self, note: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)


BASE = {
    "_desc_": "a tiny training",
    "imports": ["$import torch"],
    "bundle_root": ".",
    "device": "$torch.device('cpu')",
    "manifest": None,
    "output_dir": "$@bundle_root + '/out'",
    "max_epochs": 3,
    "learning_rate": 2e-4,
    "amp": False,
    "weights": {"disentanglement": 1.0, "ssim": 0.5},
    "channels": [16, 32],
    "train": {
        "trainer": {
            "_target_": f"{__name__}.Engine",
            "max_epochs": "@max_epochs",
            "weights": "@weights",
        },
        "batch_size": 8,
    },
    "initialize": [CHECK],
    "run": ["$@train::trainer.run()"],
    "training": "%run",
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A bundle's configs folder with the base config; what ran is forgotten."""
    BUILT.clear()
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(BASE))
    (folder / "metadata.json").write_text("{}")
    return folder


def overlay(configs: Path, content: dict[str, Any]) -> str:
    path = configs / "overlay.json"
    path.write_text(json.dumps(content))
    return str(path)


def command_line(configs: Path, *arguments: str) -> None:
    """`python -m monai.bundle run training ...` in this process: the same parsing by fire, the same function."""
    fire.Fire({"run": run}, ["run", "training", "--config_file", str(configs / "train.json"), *arguments])


def reason(error: pytest.ExceptionInfo[BaseException]) -> str:
    """MONAI wraps errors; the cause must be ours."""
    cause: BaseException | None = error.value
    while cause is not None and not isinstance(cause, OverrideError):
        cause = cause.__cause__
    assert cause is not None, error.value
    return str(cause)


def test_without_overrides_the_config_runs(configs: Path) -> None:
    command_line(configs)
    assert BUILT == [(3, False, {"disentanglement": 1.0, "ssim": 0.5})]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max_epochs", "1"], (1, False, {"disentanglement": 1.0, "ssim": 0.5})),
        (["--train#trainer#max_epochs", "5"], (5, False, {"disentanglement": 1.0, "ssim": 0.5})),
        (["--train::trainer::max_epochs", "5"], (5, False, {"disentanglement": 1.0, "ssim": 0.5})),
        (["--train#trainer#amp", "True"], (3, True, {"disentanglement": 1.0, "ssim": 0.5})),  # left at its default
        (["--weights#ssim", "0"], (3, False, {"disentanglement": 1.0, "ssim": 0})),
        (["--weights", "{'other': 2.0}"], (3, False, {"other": 2.0})),  # replaced whole
        (["--learning_rate", "1", "--channels", "[8,8,8]", "--manifest", "x.json", "--amp", "True"], None),
        (["--output_dir", "somewhere", "--device", "cpu", "--bundle_root", "/elsewhere"], None),
        (["--max_epochs", "$1 + 1"], (2, False, {"disentanglement": 1.0, "ssim": 0.5})),
        (
            ["--tracking_note", "x", "--max_epochs", "@tracking_note"],
            ("x", False, {"disentanglement": 1.0, "ssim": 0.5}),
        ),
    ],
)
def test_correct_overrides_pass(configs: Path, arguments: list[str], expected: tuple[Any, ...] | None) -> None:
    command_line(configs, *arguments)
    assert len(BUILT) == 1
    if expected is not None:
        assert BUILT[0] == expected


@pytest.mark.parametrize(
    ("arguments", "named", "nearest"),
    [
        (["--max_epoch", "1"], "max_epoch", "max_epochs"),
        (["--Max-Epochs", "1"], "Max_Epochs", "max_epochs"),
        (["--train#trainer#max_epoch", "1"], "train::trainer::max_epoch", "train::trainer::max_epochs"),
        (["--train::trainer::max_epoch", "1"], "train::trainer::max_epoch", "train::trainer::max_epochs"),
        (["--train#trainer#ampp", "True"], "train::trainer::ampp", "train::trainer::amp"),
        (["--weights#disentanglment", "1"], "weights::disentanglment", "weights::disentanglement"),
        (["--batch_size", "4"], "batch_size", "train::batch_size"),  # right name, wrong place
        (["--train#max_epochs", "4"], "train::max_epochs", "max_epochs"),
        (["--logging_fil", "x.conf"], "logging_fil", "logging_file"),
    ],
)
def test_a_misspelt_override_is_refused_with_the_nearest_key(
    configs: Path, arguments: list[str], named: str, nearest: str
) -> None:
    with pytest.raises(RuntimeError) as error:
        command_line(configs, *arguments)
    assert f"'{named}' (given:" in reason(error)
    assert f"did you mean '{nearest}'?" in reason(error)
    assert not BUILT


def test_without_a_near_key_the_valid_ones_are_listed(configs: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        command_line(configs, "--weights#zzz", "1")
    assert "valid entries: weights::disentanglement, weights::ssim." in reason(error)


@pytest.mark.parametrize("parent", ["train#traner#max_epochs", "wieghts#ssim", "train#trainer#max_epochs#x"])
def test_a_misspelt_parent_is_refused_by_monai_itself(configs: Path, parent: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        command_line(configs, f"--{parent}", "1")
    assert not BUILT


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--amp", "true"], "'amp' is False by default, got \"true\": write True."),
        (["--amp", "false"], "write False."),
        (["--amp", "1"], "write True or False."),
        (["--device", "true"], "write True."),
        (["--max_epochs"], "'max_epochs' is 3 by default, got True: write a whole number."),  # the value forgotten
        (["--max_epochs", "1e3"], "write a whole number."),
        (["--max_epochs", "ten"], "write a whole number."),
        (["--learning_rate", "0,1"], "write a number."),
        (["--bundle_root", "2024"], "write a text"),
        (["--channels", "16"], "write a list"),
        (["--weights", "1"], "set one of its entries: disentanglement, ssim."),
        (["--train#batch_size", "8.5"], "'train::batch_size' is 8 by default"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_what_to_write(
    configs: Path, arguments: list[str], advice: str
) -> None:
    with pytest.raises(RuntimeError) as error:
        command_line(configs, *arguments)
    assert advice in reason(error)
    assert not BUILT


def test_all_problems_are_named_at_once(configs: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        command_line(configs, "--max_epoch", "1", "--amp", "true", "--weights#sim", "1")
    assert len(reason(error).splitlines()) == 4
    assert str(configs / "train.json") in reason(error)


def test_python_overrides_are_checked_like_the_command_lines(configs: Path) -> None:
    config_file = str(configs / "train.json")
    ConfigWorkflow(config_file=config_file, max_epochs=1, **{"train#batch_size": 2}).initialize()
    workflow = ConfigWorkflow(config_file=config_file, **{"max_epoch": 1, "train::trainer::wieghts": {}})
    with pytest.raises(RuntimeError) as error:
        workflow.initialize()
    assert "did you mean 'max_epochs'?" in reason(error)
    assert "did you mean 'train::trainer::weights'?" in reason(error)


def test_an_overlay_may_change_and_add_what_is_read(configs: Path) -> None:
    content = {
        "max_epochs": 7,
        "sampler": {"_target_": "torch.utils.data.SequentialSampler", "data_source": [1]},
        "train#trainer#weights": {"ssim": "$len(@sampler)"},
        "+initialize": ["$None"],
        "alternative": ["$@train::trainer.run()"],
        "_desc_note": "an overlay",
    }
    config_file = [str(configs / "train.json"), overlay(configs, content)]
    run(run_id="alternative", config_file=config_file)
    run(run_id="alternative", config_file=config_file, max_epochs=8)
    assert BUILT == [(7, False, {"ssim": 1}), (8, False, {"ssim": 1})]


def test_a_misspelt_override_is_refused_over_an_overlay_and_in_it(configs: Path) -> None:
    config_file = [str(configs / "train.json"), overlay(configs, {"max_epochs": 7})]
    with pytest.raises(RuntimeError) as error:
        run(run_id="training", config_file=config_file, max_epoch=1)
    assert "did you mean 'max_epochs'?" in reason(error)
    overlay(configs, {"max_epoch": 7})
    with pytest.raises(RuntimeError) as error:
        run(run_id="training", config_file=config_file)
    assert "did you mean 'max_epochs'?" in reason(error)
    assert not BUILT


def test_overlays_as_the_command_line_lists_them(configs: Path) -> None:
    files = [str(configs / "train.json"), overlay(configs, {"max_epochs": 7})]
    fire.Fire({"run": run}, ["run", "training", "--config_file", str(files), "--amp", "True"])
    assert BUILT[0][0] == 7
    with pytest.raises(RuntimeError):
        fire.Fire({"run": run}, ["run", "training", "--config_file", str(files), "--ampp", "True"])


def test_a_replaced_component_is_judged_by_its_own_arguments(configs: Path) -> None:
    wide = {"_target_": f"{__name__}.WideEngine", "max_epochs": 2, "note": "mine", "amp": True}
    run(run_id="training", config_file=[str(configs / "train.json"), overlay(configs, {"train#trainer": wide})])
    assert BUILT == [(2, True, None)]
    overlay(configs, {"train#trainer": {**wide, "nte": "x"}})
    with pytest.raises(RuntimeError) as error:
        run(run_id="training", config_file=[str(configs / "train.json"), str(configs / "overlay.json")])
    assert "did you mean 'train::trainer::note'?" in reason(error)


def test_a_copy_that_names_another_base_says_so(configs: Path) -> None:
    copy = configs / "mine.json"
    copy.write_text((configs / "train.json").read_text())
    (configs / "train.json").unlink()
    with pytest.raises(RuntimeError) as error:
        run(run_id="training", config_file=str(copy))
    assert "let `base` of refuse_misspelt in `initialize` name the copy" in reason(error)


def test_a_bare_parser_is_checked_against_a_path(configs: Path) -> None:
    path = configs / "train.json"
    parser = ConfigParser()
    parser.read_config(path)
    parser["initialize"] = [{**CHECK, "base": str(path)}]
    parser.get_parsed_content("initialize::0")
    parser["max_epoch"] = 1
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("initialize::0")
    assert "did you mean 'max_epochs'?" in reason(error)


def test_no_config_differs_from_itself() -> None:
    assert find_problems(json.loads(json.dumps(BASE)), BASE) == []


def test_the_command_ends_with_the_message_alone(configs: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(configs / "train.json")]
    ended = subprocess.run([*command, "--max_epoch", "1"], check=False, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "'max_epoch' (given: 1) is read by nothing; did you mean 'max_epochs'?" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
