"""The newcomer's path: its commands name files that exist, and it ends by naming what it wrote."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monai_anon.__main__ import app
from monai_anon.demo import DemoFailed, Stage, demo_stages, printed, run_demo

ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / "bundles" / "chest"


def test_every_config_that_the_demo_names_exists() -> None:
    commands = [printed(stage.command) for stage in demo_stages(BUNDLE, Path("out"), 0)]
    named = set(re.findall(r"[^'\" \[]+\.json", " ".join(commands)))
    assert len(named) == 5
    assert all(Path(name).is_file() for name in named)


@pytest.mark.parametrize("name", ["chest", "face", "iris"])
def test_the_new_people_are_of_the_bundles_kind(name: str) -> None:
    commands = [stage.command for stage in demo_stages(ROOT / "bundles" / name, Path("out"), 0)]
    (made,) = [command for command in commands if "phantom" in command]
    assert made[made.index("phantom") + 1] == name


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.json is missing; --bundle takes a bundle's folder"):
        demo_stages(tmp_path, Path("out"), 0)


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "--dry-run", "--output", str(out), "--bundle", str(BUNDLE)])
    assert result.exit_code == 0
    assert result.output.count("\npython -m ") == 6
    assert not out.exists()


def test_a_failed_command_stops_the_demo_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        Stage("first", ["python", "-c", "raise SystemExit(3)"]),
        Stage("never", ["python", "-c", "open('x','w')"]),
    ]
    monkeypatch.setattr("monai_anon.demo.demo_stages", lambda *_: stages)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DemoFailed, match=r"step 1 \(first\) ended with exit code 3"):
        run_demo(BUNDLE, tmp_path, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_in_part_is_a_failure_only_where_that_was_not_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, partly, fails in ((1, True, False), (1, False, True), (2, True, True)):
        stage = Stage("ends", [sys.executable, "-c", f"raise SystemExit({code})"], partly)
        monkeypatch.setattr("monai_anon.demo.demo_stages", lambda *_, stage=stage: [stage])
        if fails:
            with pytest.raises(DemoFailed):
                run_demo(BUNDLE, tmp_path, say=lambda _: None)
        else:
            run_demo(BUNDLE, tmp_path, say=lambda _: None)


def test_it_says_first_that_the_images_are_generated_and_last_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_anon.demo.demo_stages", lambda *_: [Stage("nothing", [sys.executable, "-c", ""])])
    said: list[str] = []
    run_demo(BUNDLE, tmp_path, say=said.append)
    assert "GENERATED" in said[0]
    assert all(name in said[-1] for name in ("model.pt", "report.md", "anonymised", "tensorboard --logdir"))


@pytest.mark.parametrize("verb", ["judges", "evaluate", "demo", "calibrate", "anonymize"])
def test_every_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert "--bundle" in result.output


def test_an_override_that_evaluate_json_does_not_have_is_refused() -> None:
    from monai_anon.evaluation.evaluation import bundle_evaluation

    with pytest.raises(ValueError, match="has no \\['modle_file'\\]"):
        bundle_evaluation(BUNDLE, {"modle_file": "x"})
    with pytest.raises(ValueError, match=r"evaluate\.json is missing"):
        bundle_evaluation(ROOT, {})
