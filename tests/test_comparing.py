"""The comparison: every system alike, one's failure is its own, the same command goes on, tables say what rows say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from test_systems import Toy
from tiny import tiny_cohort
from typer.testing import CliRunner

from monai_anon.__main__ import app
from monai_anon.baselines import BASELINES, Blur
from monai_anon.comparing import systems, tables
from monai_anon.comparing.job import Comparison, read_comparison
from monai_anon.comparing.run import outcome
from monai_anon.comparing.systems import Budget, Trainings
from monai_anon.evaluation.tables import JUDGES, Row, read_rows

SIZE = 32
NUMBERS = {"guide_widths": [8, 8], "optimisation": {"lr": 0.02}, "optimisation_of_games": {"lr": 0.01}}


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chest's configs with narrow networks and judges of two steps; the overlay of blur is broken."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(ROOT / "bundles" / "chest" / "configs", folder / "configs")
    few = {"verifier_steps": 2, "medical_steps": 2, "image_size": SIZE}
    thin = {"encoder_widths": [8, 8], "decoder_widths": [8, 8], "guide_widths": [8, 8]}
    for name, entries in (("evaluate.json", few), ("compare.json", thin)):
        path = folder / "configs" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    overlay = {"system": {"_target_": "monai_anon.baselines.Blur", "sigma": -1}}
    (folder / "configs" / "systems" / "blur.json").write_text(json.dumps(overlay))
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("people") / "chest"
    made = call("phantom", "chest", out, "--images", "24,12,12", "--patients", "8,4,4", "--size", SIZE)
    assert made.exit_code == 0
    return out


@pytest.fixture(scope="module")
def run(bundle: Path, people: Path, tmp_path_factory: pytest.TempPathFactory):
    """A comparison of three systems, of which one fails."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["--bundle", bundle, "--manifest", people, "--systems", "none,blur,pixelation", "--budget", 2]
    words += ["--batch-size", 4, "--attack-budget", 1, "--bootstrap", 5, "--judges-dir", folder.parent / "judges"]
    words += ["--jobs", 1, "--output", folder]
    return folder, words, call("compare", *words)


def test_one_systems_failure_does_not_lose_the_others(run) -> None:
    folder, _, result = run
    assert result.exit_code == 1, result.output
    assert "failed: blur: ValueError: " in result.output and "sigma is -1" in result.output
    page = (folder / "comparison.md").read_text()
    assert "none" in page and "sigma is -1" in page and "| blur" in page
    rows = read_rows(folder / "rows.jsonl")
    assert {row.method for row in rows} == {JUDGES, "none", "pixelation"}
    metrics = {row.metric for row in rows if row.method == "pixelation"}
    assert {"judge_finding_auc", "kid", "ssim_original"} <= metrics
    for made in ("privacy_utility.png", "releases_1.png", "speeds.json", "table_1.csv"):
        assert (folder / made).is_file() or made == "privacy_utility.png"


def test_the_same_command_goes_on_and_measures_what_is_left(run, bundle: Path) -> None:
    folder, words, _ = run
    before = (folder / "systems" / "none" / "rows.jsonl").stat().st_mtime_ns
    overlay = bundle / "configs" / "systems" / "blur.json"
    overlay.write_text(overlay.read_text().replace("-1", "0.1"))
    again = call("compare", *words)
    assert again.exit_code == 0, again.output
    assert "3 systems, 2 measured before" in again.output
    assert (folder / "systems" / "none" / "rows.jsonl").stat().st_mtime_ns == before
    assert "blur" in {row.method for row in read_rows(folder / "rows.jsonl")}


def test_numbers_that_were_changed_since_are_refused_and_nothing_stale_is_shown(run, bundle: Path) -> None:
    folder, words, _ = run
    overlay = bundle / "configs" / "systems" / "pixelation.json"
    overlay.write_text(json.dumps({"system": {"_target_": "monai_anon.baselines.Pixelation", "cells": 4}}))
    before = (folder / "comparison.md").read_text()
    changed = call("compare", *words)
    overlay.unlink()
    assert changed.exit_code == 2 and "is of `pixelation` with other numbers" in changed.stderr
    assert (folder / "comparison.md").read_text() == before


def test_a_folder_of_another_comparison_or_of_something_else_is_refused(run, tmp_path: Path) -> None:
    _, words, _ = run
    other = call("compare", *words, "--budget", 3)
    assert other.exit_code == 2 and "a comparison with budget = 2, not 3" in other.stderr
    (tmp_path / "thesis.tex").write_text("mine")
    taken = call("compare", *words[:-1], tmp_path)
    assert taken.exit_code == 2 and "is no comparison" in taken.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_unknown_systems_are_refused_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    wrong = call("compare", "--systems", "none,magic", "--output", tmp_path / "run")
    assert wrong.exit_code == 2 and "no magic; there are none, constant" in wrong.stderr
    planned = call("compare", "--dry-run", "--output", tmp_path / "run")
    assert planned.exit_code == 0 and all(name in planned.output for name in BASELINES)
    assert not (tmp_path / "run").exists()


def test_systems_of_one_training_are_one_group_and_the_largest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared(Toy):
        shares = "one"

    class Other(Shared):
        pass

    few = {"toy": Toy, "first": Shared, "none": BASELINES["none"], "second": Other, "blur": Blur}
    monkeypatch.setattr(systems, "BASELINES", few)
    assert systems.groups(list(few)) == [["first", "second"], ["none", "blur"], ["toy"]]
    assert systems.chosen(["blur", "toy"]) == ["toy", "blur"]


def test_an_overlay_makes_the_system_of_its_name(bundle: Path) -> None:
    alone = bundle / "configs" / "systems" / "k-same.json"
    alone.write_text(json.dumps({"system": {"_target_": "monai_anon.baselines.KSame", "k": 1}}))
    with pytest.raises(ValueError, match="k is 1; it must be at least 2"):
        systems.made(bundle, "k-same", {})
    alone.unlink()
    assert isinstance(systems.made(bundle, "pixelation", {}), BASELINES["pixelation"])
    (bundle / "configs" / "systems" / "constant.json").write_text(
        json.dumps({"system": {"_target_": "monai_anon.baselines.Pixelation"}})
    )
    with pytest.raises(ValueError, match=r"constant.json makes a Pixelation; `constant` is a Constant"):
        systems.made(bundle, "constant", {})
    with pytest.raises(ValueError, match=r"compare.json is missing"):
        systems.made(bundle / "configs", "none", {})


def test_every_trained_system_sees_as_many_images(tmp_path: Path) -> None:
    trainings = Trainings(tiny_cohort(), Budget(3, 4), tmp_path, NUMBERS)
    subject = trainings.subject("toy", Toy())
    assert subject.images_seen == 12 and subject.name == "toy"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guides", "toy"]
    again = trainings.subject("toy", toy := Toy())
    assert toy.step is None and again.weights == subject.weights
    assert trainings.subject("none", BASELINES["none"]()).images_seen == 0
    setting = trainings.setting(None)
    assert (setting.optimisation.lr, setting.optimisation_of_games.lr) == (0.02, 0.01)


def test_a_comparison_is_what_its_file_says(tmp_path: Path) -> None:
    asked = Comparison("bundles/chest", budget=7)
    asked.claim(tmp_path / "run")
    asked.claim(tmp_path / "run")
    assert read_comparison(tmp_path / "run") == asked


def test_places_too_near_for_labels_of_their_own_share_one() -> None:
    found = tables._clusters([(0.5, 0.5), (0.51, 0.51), (0.5, 0.6), (0.52, 0.49)])
    assert [numbers for numbers, _, _ in found] == [[0, 1, 3], [2]]
    assert found[0][1:] == (0.5, 0.5)


def test_tables_show_failures_bounds_and_what_the_paper_printed() -> None:
    rows = [Row("vae-privacy", "toy", metric, 0.75, 0.7, 0.8) for metric in ("static_auc", "judge_finding_auc")]
    rows.append(Row("vae-privacy", "toy", "proved", None, note="5 bits"))
    outcomes = [tables.Outcome("vae-privacy", rows), tables.Outcome("k-same", failed="ValueError: k")]
    first = tables.table_1(outcomes, {"vae-privacy": 12.4}).set_index("system")
    assert first.loc["vae-privacy", "P1 static"] == "0.750 (0.700-0.800)"
    assert first.loc["vae-privacy", "P2 adaptive"] == "-" and first.loc["vae-privacy", "proved"] == "5 bits"
    assert first.loc["vae-privacy", "images/s"] == "12" and first.loc["k-same", "P1 static"] == "failed"
    third = tables.table_3(outcomes).set_index("system")
    assert list(third.index) == ["vae-privacy"] and third.loc["vae-privacy", "paper: original"] == "0.106"
    assert "k-same: ValueError: k" in tables.page(outcomes, {}, {"seed": "0"})


def test_the_stronger_attack_counts_on_either_side_of_chance(tmp_path: Path) -> None:
    rows = [Row("x", "toy", "static_auc", 0.55), Row("x", "toy", "adaptive_auc", 0.3)]
    assert tables.strongest(tables.Outcome("x", rows)) == pytest.approx(0.7)
    assert tables.strongest(tables.Outcome("x", [Row("x", "toy", "static_auc", None)])) is None
    seen = [*rows, Row("x", "toy", "judge_finding_auc", 0.9)]
    assert tables.draw_trade_off([tables.Outcome("x", rows)], tmp_path / "a.png") is None
    assert tables.draw_trade_off([tables.Outcome("x", seen)], tmp_path / "a.png") == tmp_path / "a.png"


def test_a_system_without_rows_says_why(tmp_path: Path) -> None:
    (tmp_path / "systems" / "x").mkdir(parents=True)
    assert outcome(tmp_path, "x").failed == "not measured"
    (tmp_path / "systems" / "x" / "failed.txt").write_text("ValueError: no\n")
    assert outcome(tmp_path, "x").failed == "ValueError: no"
