"""Time to quality: recipes train in turns until all bars are met or the budget ends, and a stopped run goes on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PIL import Image
from test_benchmark_quality import BAD, GOOD, run_of

from monai_anon.compute import PLAIN

pytestmark = [pytest.mark.usefixtures("scripts"), pytest.mark.filterwarnings("ignore")]


# ---- The comparison ----


class Trained:
    """A candidate whose figures are written down beforehand."""

    log: list
    over: set

    def __init__(self, parser, folder, device="cpu", tick=None):
        self.name, self.model, self.tick = folder.name, folder.name, tick
        self.clock = SimpleNamespace(seconds=0.0, cpu_seconds=0.0, images=0, collapse="")
        self.ended = "over" if self.name in self.over else ""
        self.log.append(("made", self.name))

    def train(self, until):
        self.clock.seconds, self.clock.images = until, int(until)
        self.tick(until)
        self.log.append((self.name, until))

    def close(self):
        self.log.append(("closed", self.name))


@pytest.fixture
def staged(monkeypatch):
    """Candidates and judges on a stage: `figures[name]` gives the figures of its checks, the last one for ever."""
    from benchmarks import quality

    stage = SimpleNamespace(figures={}, log=[], judged={}, over=set())
    Trained.log, Trained.over = stage.log, stage.over

    class Judge:
        cohort, quality = range(3), {}

        def __call__(self, model):
            turn = stage.judged[model] = stage.judged.get(model, -1) + 1
            return stage.figures[model][min(turn, len(stage.figures[model]) - 1)], {}

        def draw(self, model, path):
            pass

    monkeypatch.setattr(quality, "Candidate", Trained)
    monkeypatch.setattr(quality, "judging_of", lambda run: Judge())
    return stage


def measure(run):
    from benchmarks import quality

    return quality.measure(run, PLAIN, progress=False)


def turns(log):
    return [entry for entry in log if entry[0] not in ("made", "closed")]


def test_recipes_train_in_turns_and_every_other_round_backwards_until_the_budget_ends(staged, tmp_path):
    staged.figures = {"recommended": [BAD, GOOD], "paper": [BAD]}
    result = measure(run_of(tmp_path / "q", budget=30, checks=3))
    assert turns(staged.log) == [
        ("recommended", 10), ("paper", 10), ("paper", 20), ("recommended", 20), ("recommended", 30), ("paper", 30),
    ]  # fmt: skip
    assert staged.log[-2:] == [("closed", "recommended"), ("closed", "paper")]
    assert result["time_to_bars"]["recommended"]["seconds"] == 20 and result["time_to_bars"]["paper"] is None
    assert [found["check"] for found in result["curves"] if found["recipe"] == "paper"] == [1, 2, 3]
    assert Image.open(tmp_path / "q/quality.png").size == (1650, 960)


def test_it_ends_when_every_recipe_has_met_all_bars_once(staged, tmp_path):
    staged.figures = {"recommended": [GOOD, BAD], "paper": [BAD, GOOD]}
    measure(run_of(tmp_path / "q", budget=50, checks=5))
    assert max(until for _, until in turns(staged.log)) == 20


def test_a_recipe_that_ended_is_left_alone_and_the_others_go_on(staged, tmp_path):
    staged.figures = {"recommended": [BAD], "paper": [BAD]}
    staged.over.add("paper")
    result = measure(run_of(tmp_path / "q", budget=30, checks=3))
    assert [entry for entry in turns(staged.log) if entry[0] == "paper"] == [("paper", 10)]
    assert [found["ended"] for found in result["curves"]] == ["", "over", "", ""]


def test_a_stopped_run_goes_on_and_a_finished_one_trains_nothing(staged, tmp_path):
    staged.figures = {"recommended": [BAD], "paper": [BAD]}
    first = measure(run_of(tmp_path / "q", budget=20, checks=2))
    staged.log.clear()
    assert measure(run_of(tmp_path / "q", budget=20, checks=2)) == first and staged.log == []
    lines = (tmp_path / "q/quality.jsonl").read_text().splitlines()
    (tmp_path / "q/quality.jsonl").write_text("\n".join(lines[:3]) + "\n")  # as if stopped in the fourth turn
    measure(run_of(tmp_path / "q", budget=30, checks=3))
    assert turns(staged.log) == [("recommended", 20), ("recommended", 30), ("paper", 30)]
    assert (tmp_path / "q/quality.jsonl").read_text().splitlines()[:3] == lines[:3]


def test_curves_made_otherwise_are_refused_by_name_and_nothing_is_overwritten(staged, tmp_path):
    staged.figures = {"recommended": [BAD], "paper": [BAD]}
    run = {"budget": 20, "checks": 2}
    measure(run_of(tmp_path / "q", **run))
    for change, name in (
        ({"seed": 1}, "seed"),
        ({"checks": 4}, "turn_seconds"),
        ({"epochs": 9}, "recipes"),
        ({"recipes": ("paper",)}, "recipes"),
        ({"part": "validation"}, "part"),
    ):
        with pytest.raises(FileExistsError, match=f"says {name} ="):
            measure(run_of(tmp_path / "q", **(run | change)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds no run"):
        measure(run_of(tmp_path / "other", **run))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": ("best",)}, r"unknown \['best'\]; known are"),
        ({"recipes": ("paper", "paper")}, "give each once"),
        ({"budget": 0}, "must be positive"),
        ({"checks": 0}, "must be positive"),
        ({"part": "training"}, "'validation' or 'test'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, **change)
