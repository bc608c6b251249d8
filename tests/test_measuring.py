"""What was measured is kept, and measured again only where something that it depends on has changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from toy_scene import subject, toy_scene

from monai_anon.evaluation.measuring import Measuring, as_run, read_measured
from monai_anon.evaluation.protocol import Settings
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.tables import Row

SETTINGS = Settings(0.05)


class Counted:
    """A measurement that counts how often it is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, one: Any, scene: Scene) -> list[Row]:
        self.made += 1
        scene.curves.append({"attack": "counted", "x": [0.0, 1.0]})
        return [scene.plain(one, "count", float(self.made))]


@pytest.fixture
def counted() -> Counted:
    return Counted()


def measured(folder: Path, measure: Any, one: Any = None, scene: Scene | None = None, settings: Settings = SETTINGS):
    measuring = Measuring(folder, scene or toy_scene(steps=1), settings, "r1")
    return measuring.run([(one or subject(lambda images: images), "count", measure)]), measuring


def test_a_second_run_reads_what_the_first_has_measured(tmp_path: Path, counted: Counted) -> None:
    first, _ = measured(tmp_path, counted)
    again, measuring = measured(tmp_path, counted)
    assert counted.made == 1 and first == again
    assert (first[0].revision, first[0].weights) == ("r1", subject(lambda images: images).weights)
    assert measuring.results["toy: count"].curves == [{"attack": "counted", "x": [0.0, 1.0]}]


@pytest.mark.parametrize("what", ["pixels", "name", "budget", "seed", "threshold", "columns", "code"])
def test_what_a_figure_depends_on_has_it_measured_again(
    tmp_path: Path, counted: Counted, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tmp_path, counted)
    changed: dict[str, Any] = {
        "pixels": {"one": subject(lambda images: -images)},  # the same name and no weights: edited code
        "name": {"one": subject(lambda images: images, "another")},
        "budget": {"scene": toy_scene(steps=2)},
        "threshold": {"settings": dataclasses.replace(SETTINGS, hit_threshold=0.1)},
    }
    if what == "seed":
        scene = toy_scene(steps=1)
        scene.seed = 1
        changed["seed"] = {"scene": scene}
    if what == "columns":
        scene = toy_scene(steps=1)
        scene.test.entries[0]["sex"] = "F"
        changed["columns"] = {"scene": scene}
    if what == "code":
        monkeypatch.setattr("monai_anon.evaluation.measuring.code_digest", lambda: "mended")
    measured(tmp_path, counted, **changed.get(what, {}))
    assert counted.made == 2


def test_what_else_is_measured_changes_nothing(tmp_path: Path, counted: Counted) -> None:
    measured(tmp_path, counted)
    measured(tmp_path, counted, settings=dataclasses.replace(SETTINGS, attacks=["static"]))
    assert counted.made == 1


def test_a_comment_is_no_change_of_the_code_and_a_number_is() -> None:
    plain = "def budget():\n    return 400\n"
    commented = '"""Attacks."""\n\ndef budget():  # batches\n    """Of an attacker."""\n    return (400)\n'
    assert as_run(commented).replace("pass", "").split() == as_run(plain).split()
    assert as_run(commented.replace("batches", "pairs").replace("Of an", "Of every")) == as_run(commented)
    assert as_run(plain.replace("400", "40")) != as_run(plain)


def test_a_broken_file_is_measured_again_and_a_failure_loses_nothing_done(tmp_path: Path, counted: Counted) -> None:
    def fails(one: Any, scene: Scene) -> list[Row]:
        raise RuntimeError("stopped")

    one, scene = subject(lambda images: images), toy_scene(steps=1)
    with pytest.raises(RuntimeError, match="stopped"):
        Measuring(tmp_path, scene, SETTINGS).run([(one, "count", counted), (one, "fails", fails)])
    (kept,) = tmp_path.glob("*.json")
    assert read_measured(kept) is not None and not list(tmp_path.glob("*.part"))
    kept.write_text(kept.read_text()[:20])
    assert read_measured(kept) is None
    measured(tmp_path, counted)
    assert counted.made == 2
