"""Time to quality: candidates are the bundle's trainings, figures are the judges', curves say when bars are met."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from test_judges import toy_cohort
from test_protocol import SETTINGS, Halves, SeeingJudges
from typer.testing import CliRunner

from monai_anon.compute import PLAIN
from monai_anon.evaluation.protocol import evaluate_disentanglement
from monai_anon.networks import Latents
from monai_anon.phantoms.chest import write_cohort

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "bundles/chest/configs"
GOOD = {"ssim": 0.7, "auc_original": 0.6, "auc_target": 0.95, "finding_kept": 0.93, "finding_swapped": 0.93}
GOOD |= {"side_swapped": 0.8}
BAD = dict.fromkeys(GOOD, 0.5)

pytestmark = [pytest.mark.usefixtures("scripts"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """A generated cohort of 32 pixels: six batches an epoch for ours."""
    sizes = {"images": (96, 24, 40), "patients": (28, 8, 12)}
    return write_cohort(tmp_path_factory.mktemp("cohort") / "chest_32", seed=0, size=32, progress=False, **sizes)


def run_of(folder, **changes):
    from benchmarks.quality_recipes import Run

    return Run(folder, **({"size": 32, "epochs": 1} | changes))


# ---- Recipes ----


def config(name, folder, **changes):
    from benchmarks.quality_recipes import configuration

    return configuration(name, run_of(folder, **changes), PLAIN)


def merged(*overlays):
    return ConfigParser.load_config_files([CONFIGS / name for name in ("train.json", *overlays)])


def test_recommended_and_paper_are_the_bundles_configs_but_for_places_and_handlers(tmp_path):
    ours = {"bundle_root", "output_dir", "cache_dir", "manifest", "image_size", "seed", "bf16", "channels_last"}
    ours |= {"compiled", "device", "_meta_"}
    for name, overlay in (("recommended", "quick.json"), ("paper", "paper.json")):
        found, wanted = config(name, tmp_path, epochs=None).get(), merged(overlay)
        for one in (found, wanted):
            for stage in ("train", "recogniser"):
                del one[stage]["trainer"]["train_handlers"], one[stage]["trainer"]["resume"]
        assert {k: v for k, v in found.items() if k not in ours} == {k: v for k, v in wanted.items() if k not in ours}


def test_the_papers_losses_alone_leave_our_networks_optimiser_and_length(tmp_path):
    ours, paper, mixed = (config(name, tmp_path).get() for name in ("recommended", "paper", "paper_losses"))
    for name in ("network_def", "latent_sizes", "batch_size", "max_epochs", "learning_rate"):
        assert mixed[name] == ours[name] != paper[name], name
    assert mixed["train"]["optimisation"] == ours["train"]["optimisation"]
    assert mixed["train"]["step"]["discriminator"] == ours["train"]["step"]["swap_discriminator"]
    for name in ("weights", "noise", "swaps_from"):
        assert mixed[name] == paper[name] != ours[name], name
    for name in ("recipe", "identity_objective"):
        assert mixed["train"][name] == paper["train"][name] != ours["train"][name], name
    assert mixed["train"]["step"]["recogniser"] is None


def test_the_fast_paper_differs_in_its_learning_rate_only(tmp_path):
    paper, fast = (config(name, tmp_path).get() for name in ("paper", "paper_fast"))
    assert fast.pop("learning_rate") > paper.pop("learning_rate") == 2e-5
    assert {**fast, "output_dir": ""} == {**paper, "output_dir": ""}


# ---- Candidates ----


def candidate(name, folder, manifest, **changes):
    from benchmarks.quality_recipes import Candidate

    return Candidate(config(name, folder, manifest=str(manifest), **changes), folder / name)


@pytest.mark.parametrize("name", ["recommended", "paper_losses"])
def test_turns_stops_and_restarts_give_the_bundles_own_training(name, tmp_path, manifest, monkeypatch):
    from benchmarks.quality_recipes import RECIPES

    if name == "recommended":  # with a term that asks for a recogniser, trained before
        asks = {"weights#finding_correlation": 0.02, "recogniser_epochs": 1}
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], changes=asks))
    parser = config(name, tmp_path / "whole", manifest=str(manifest), epochs=2)
    parser.get_parsed_content("initialize#2"), parser.get_parsed_content("train#step")
    parser.get_parsed_content("run")
    whole = parser.get_parsed_content("train#step")

    pieces, turns = candidate(name, tmp_path, manifest, epochs=2), 0
    while not pieces.ended:
        pieces.train(pieces.clock.seconds + 1e-9)  # one iteration
        turns += 1
        if turns in (1, 3):  # in either training of `recommended`
            pieces.close()
            pieces = candidate(name, tmp_path, manifest, epochs=2)
    stages = 2 if name == "recommended" else 1
    assert pieces.ended == "schedule complete" and turns == {1: 12, 2: 6 + 12}[stages]
    assert pieces.clock.images == 16 * turns
    for one, other in (
        (pieces.model, whole.updater.smoothed),
        *([(pieces.step.recogniser, whole.recogniser)] if stages == 2 else []),
    ):
        assert one is not other
        for (key, a), b in zip(one.state_dict().items(), other.state_dict().values()):
            assert torch.equal(a, b), key


def test_only_training_moves_the_clock(tmp_path, manifest, monkeypatch):
    from benchmarks import quality_recipes

    now = SimpleNamespace(time=100.0)
    clock = SimpleNamespace(perf_counter=lambda: now.time, process_time=lambda: now.time / 2)
    monkeypatch.setattr(quality_recipes, "time", clock)
    ticks = []
    one = quality_recipes.Candidate(
        config("paper_losses", tmp_path, manifest=str(manifest), epochs=4), tmp_path / "run", tick=ticks.append
    )
    (trainer,) = one.trainers

    def step(batch, progress):
        now.time += 10
        return {"loss": torch.zeros(())}

    step.parts = one.step.parts
    trainer.step = step
    one.train(25)
    assert (one.clock.seconds, one.clock.cpu_seconds, trainer.state.iteration) == (30, 15, 3)
    now.time += 1000  # judging
    one.train(30)  # had already
    assert (one.clock.seconds, trainer.state.iteration) == (30, 3)
    one.train(45)
    assert (one.clock.seconds, one.clock.cpu_seconds, trainer.state.iteration) == (50, 25, 5)
    assert ticks == [10, 20, 30, 40, 50]
    one.close()
    assert trainer.state.iteration == 5


def test_weights_that_are_not_finite_end_a_candidate_with_that_reason(tmp_path, manifest):
    from benchmarks import quality, quality_recipes

    one = candidate("paper_losses", tmp_path, manifest)
    assert one.ended == ""
    next(one.model.parameters()).view(-1)[0] = torch.nan
    assert one.ended == quality_recipes.NOT_FINITE

    def judging(model):
        raise AssertionError("a broken model cannot be judged")

    line = quality.checked("paper_losses", 1, one, judging, tmp_path)
    assert line["ended"] == quality_recipes.NOT_FINITE and set(line["figures"].values()) == {None} and not line["met"]


def test_what_the_bundles_guard_calls_a_collapse_is_written_down(tmp_path):
    from benchmarks.quality_recipes import collapse

    def trainer(iteration, **scalars):
        output = {name.replace("__", "/"): torch.tensor(value) for name, value in scalars.items()}
        return SimpleNamespace(state=SimpleNamespace(iteration=iteration, output=output))

    assert "standard deviation" in collapse(trainer(150, latent__identity_std=1e-4))
    assert collapse(trainer(50, latent__identity_std=1e-4)) == ""  # all latents say the same at first
    assert collapse(trainer(150, latent__identity_std=1.0)) == ""
    assert "not finite" in collapse(trainer(1, ssim=float("nan")))


# ---- Judging ----


class Mean(Halves):
    """One image whatever is put in."""

    def decode(self, z):
        return torch.full((len(z.identity), 1, 32, 32), -0.5)


class Copy(Halves):
    """Hides nothing: everything is residual."""

    def encode(self, image):
        return super().encode(image)._replace(residual=image.flatten(1))

    def decode(self, z):
        return z.residual.view(-1, 1, 32, 32)


class LeftOnly(Halves):
    """Puts every bar to the left, whatever the medical latent says."""

    def decode(self, z):
        image = super().decode(z)
        image[:, :, 16:, :10] = image[:, :, 16:, :10].maximum(image[:, :, 16:, 20:30])
        image[:, :, 16:, 20:30] = -0.5
        return image


@pytest.fixture(scope="module")
def people():
    return toy_cohort(50, seed=11)


def judging(cohort):
    from benchmarks.quality import Judging

    return Judging(SeeingJudges(), cohort, SETTINGS)


def test_an_oracle_meets_every_bar_and_each_failure_misses_its_own(people):
    from benchmarks.quality_curves import BARS, all_met, met

    judge = judging(people)
    missed = {model: set(BARS) - set(met(judge(model())[0])) for model in (Halves, Mean, Copy, LeftOnly)}
    assert missed == {
        Halves: set(),
        Mean: set(BARS) - {"auc_original"},
        Copy: {"auc_original", "auc_target", "finding_swapped", "side_swapped"},
        LeftOnly: {"side_swapped"},
    }
    assert all_met(judge(Halves())[0]) and not all_met(judge(LeftOnly())[0])


def test_judged_figures_are_those_of_table_2(people):
    from benchmarks.quality_curves import BARS

    figures, spreads = judging(people)(LeftOnly())
    rows = {(r.method, r.metric): r for r in evaluate_disentanglement(LeftOnly(), people, SeeingJudges(), SETTINGS)}
    for name, bar in BARS.items():
        row = rows[bar.method, bar.metric]
        assert figures[name] == row.value and row.ci_low <= row.value <= row.ci_high, name
    assert len(set(figures.values())) > 3  # a wrong row would show
    assert set(spreads) == set(Latents._fields) and spreads["residual"] == 0 < spreads["identity"]


def test_a_figure_that_the_cohort_cannot_show_is_none_and_no_bar():
    from benchmarks.quality_curves import all_met

    figures, _ = judging(toy_cohort(50, seed=11, columns=False))(Halves())
    assert figures["side_swapped"] is None and all_met(figures)
    assert not all_met(dict.fromkeys(figures))


def test_a_verifier_that_knows_nothing_gives_no_verdict(people):
    from benchmarks.quality import Judging

    with pytest.raises(ValueError, match="no verdict"):
        Judging(SeeingJudges(blind=True), people, SETTINGS)


# ---- Curves ----


def line(recipe, check, figures, seconds=None, ended=""):
    seconds = 10.0 * check if seconds is None else seconds
    return {
        "recipe": recipe, "check": check, "seconds": seconds, "cpu_seconds": seconds / 2, "images": 24 * check,
        "figures": figures, "collapse": "", "ended": ended,
    }  # fmt: skip


def test_a_bar_is_met_on_its_edge_and_missed_beyond():
    from benchmarks.quality_curves import BARS, met

    assert met(GOOD) == list(BARS) == met({**GOOD, "auc_original": 0.4})
    for name, value in GOOD.items():
        beyond = value + 0.001 if name == "auc_original" else value - 0.001
        assert set(BARS) - set(met({**GOOD, name: beyond})) == {name}
    assert "auc_original" not in met({**GOOD, "auc_original": 0.399})


def test_time_to_bars_is_that_of_the_first_check_that_meets_them_all_at_once():
    from benchmarks.quality_curves import time_to_bars, time_to_each_bar

    half, other = {**BAD, "ssim": 0.9}, {**GOOD, "ssim": 0.6}
    lines = [line("a", 1, half), line("b", 1, GOOD), line("a", 2, other), line("a", 3, GOOD), line("a", 4, BAD)]
    assert time_to_bars(lines, "a") == {"seconds": 30.0, "cpu_seconds": 15.0, "images": 72, "check": 3}
    assert time_to_bars(lines[:3], "a") is None
    each = time_to_each_bar(lines, "a")
    assert (each["ssim"], each["auc_original"], each["side_swapped"]) == (10.0, 10.0, 20.0)


def test_the_table_marks_what_misses_its_bar_and_the_sentences_say_why():
    from benchmarks.quality_curves import sentences, table

    lines = [line("b", 1, {**GOOD, "side_swapped": None}), line("a", 1, {**GOOD, "ssim": 0.65}, ended="because")]
    _, a, b = table(lines, ["a", "b"]).splitlines()
    assert a.split()[0] == "a" and "(0.650)" in a and "5 of 6" in a and a.endswith("because")
    assert b.split()[0] == "b" and "(" not in b and "5 of 5" in b and " - " in b
    first, second = sentences(lines, ["a", "b"])
    assert "not all bars met" in first and "0.650 (at least 0.70)" in first and "because" in first
    assert second == "b: all bars met after 10 s and 24 images"


# ---- The command ----


def command(*arguments):
    import benchmark

    return CliRunner().invoke(benchmark.app, ["quality", "--device", "cpu", *map(str, arguments)])


def test_a_dry_run_writes_nothing_and_says_what_would_be_done(tmp_path):
    found = command("--output", tmp_path / "q", "--dry-run", "--recipes", "recommended,paper_losses", "--epochs", 7)
    assert found.exit_code == 0 and not (tmp_path / "q").exists()
    for words in ("turns of 60 s", "recommended: ", "paper_losses: ", "max_epochs 7", "at least 0.95"):
        assert words in found.stdout, words


def test_what_is_refused_ends_the_command_with_one_line(tmp_path):
    found = command("--output", tmp_path / "q", "--recipes", "recommended,papers")
    assert found.exit_code == 1 and found.output.startswith("error: recipes: unknown ['papers']")
    found = command("--output", tmp_path / "q", "--manifest", tmp_path / "nowhere")
    assert found.exit_code == 1 and "nowhere" in found.output


def test_the_command_trains_judges_and_shows_both_curves(tmp_path, manifest, monkeypatch):
    from monai_anon.evaluation import judges

    monkeypatch.setattr(judges, "LEAST_VERIFIER_AUC", 0.0)  # eight steps teach nobody
    arguments = ["--manifest", manifest, "--size", 32, "--output", tmp_path / "q", "--judge-steps", 8]
    arguments += ["--budget", 1, "--checks", 2, "--epochs", 1, "--recipes", "recommended,paper_losses"]
    found = command(*arguments, "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["benchmark"] == "quality" and result["judged_images"] == 40
    assert set(result["recipes"]) == {found["recipe"] for found in result["curves"]}
    for curve in result["curves"]:
        assert set(curve["figures"]) == set(GOOD) and None not in curve["figures"].values()
        assert curve["seconds"] > 0 and curve["images"] % 16 == 0
    assert result == json.loads((tmp_path / "q/quality.json").read_text())
    for name in ("recommended", "paper_losses"):
        assert (tmp_path / "q" / name / "checkpoint.pt").is_file()
        assert Image.open(tmp_path / "q" / name / "pictures.png").size == (320, 192)
    again = command(*arguments)
    assert again.exit_code == 0 and "bars met" in again.stdout and "recommended: not all bars met" in again.stdout
