"""The step that is timed and the reference it is timed against do the same work."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_compute import PAPER, networks
from tiny import SIZE, pair_batch

from monai_anon.compute import Compute
from monai_anon.identity_objectives import SiameseIdentity
from monai_anon.networks import Latents
from monai_anon.optimisation import Optimisation
from monai_anon.recipe import Recipe
from monai_anon.steps import DisentanglementStep

SILENT = dict.fromkeys(Latents._fields, 0.0)


pytestmark = pytest.mark.usefixtures("scripts")


def test_the_authors_order_gives_the_terms_of_our_step():
    from benchmarks.authors import AuthorsOrder

    parts = networks("group")
    model, critic = parts["model"], parts["discriminator"]
    recipe = Recipe(PAPER, every_swap=True, identity_from_same=False, free_cycle=True, noisy_swaps=False, augment=False)
    settings = Optimisation(1e-3, 0.0, 1.0, 0.0, 0.0, (0.9, 0.999))
    reference = AuthorsOrder(
        copy.deepcopy(model), copy.deepcopy(critic), PAPER, SILENT, lr=settings.lr, betas=settings.betas, augment=False
    )
    ours = DisentanglementStep(model, recipe, settings, SiameseIdentity(), critic)
    for iteration in range(3):
        batch = pair_batch(seed=iteration)
        fast, slow = ours(batch, 0.5), reference(batch, 0.5)
        for name, value in slow.items():
            assert float(fast[name]) == pytest.approx(float(value), rel=2e-3, abs=1e-4), (iteration, name)
    torch.testing.assert_close(model(batch["i_ori"]), reference.model(batch["i_ori"]), rtol=0, atol=1e-2)


def test_both_candidates_start_from_the_same_weights_of_the_bundle():
    from benchmarks import step as benchmark

    ours, reference = (benchmark.iteration(way, "paper", "cpu", 64) for way in (Compute(bf16=True), None))
    assert ours.compute == Compute(bf16=True)
    for one, other in ((ours.model, reference.model), (ours.critics["adversarial"], reference.discriminator)):
        pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    assert reference.weights == PAPER and reference.noise == dict.fromkeys(Latents._fields, 0.1)
    assert (reference.margin, reference.augment, reference.optimizers[0].param_groups[0]["lr"]) == (0.1, True, 2e-5)


def test_changes_lead_from_the_plain_step_to_the_fast_one():
    from benchmarks import step as benchmark

    ways = list(benchmark.changes(Compute(bf16=True, channels_last=None, compiled="default")).values())
    assert ways[0] == Compute() and ways[1] == Compute(bf16=True) and ways[2] == Compute(bf16=True, channels_last=None)
    assert ways[-1] == Compute(bf16=True, channels_last=None, compiled="default")
    assert list(benchmark.changes(Compute()).values()) == [Compute()]


@pytest.mark.parametrize("recipe", ["paper", "train"])
def test_ratios_are_of_our_step_over_the_reference(monkeypatch, recipe):
    from benchmarks import step as benchmark
    from benchmarks import timing

    ours, clock = Compute(bf16=True), SimpleNamespace(now=0.0)

    class Step:
        def __init__(self, compute, *_):
            self.seconds = 2.0 if compute == ours else 6.0

        def __call__(self, batch, progress):
            clock.now += self.seconds

    monkeypatch.setattr(benchmark, "iteration", Step)
    monkeypatch.setattr(benchmark, "gigaflop", lambda *_: 10.0)
    monkeypatch.setattr(timing, "matrix_peak", lambda *_: 200.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    found = benchmark.measure(ours, recipe=recipe, batch_size=4, rounds=2, steps=3, shares=True, memory=False)
    assert found["ratio"] == 3.0 and found["ratio_range"] == [3.0, 3.0]
    assert (found["samples_per_s"], found["reference_samples_per_s"]) == pytest.approx((2.0, 4 / 6))
    assert found["ms_per_step"] == pytest.approx(2000) and found["timed_steps"] == 6
    assert found["share_of_peak"] == pytest.approx(10 * 2 / 200)
    assert found["shares"]["ours"] == found["shares"]["+ bfloat16"] == "3.00 (3.00-3.00)"
    assert ("our SSIM in the reference" in found["shares"]) == (recipe == "paper")


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_all_runs_every_verb_on_its_device_and_enough_steps_on_a_gpu(device, scripts):
    from benchmarks import everything

    commands = everything.commands(device, Path("figures"))
    verbs = set(re.findall(r"^@app.command\(\)\ndef (\w+)\(", (scripts / "benchmark.py").read_text(), re.M))
    assert {command[0] for command in commands.values()} == verbs - {"quality"}
    for name, command in commands.items():
        assert command[-1] == str(Path("figures") / f"{name}.json")
        assert command[0] in ("scale", "render", "ranks", "nearest") or command[command.index("--device") + 1] == device
        if command[0] == "step" and device != "cpu":
            rounds, steps = (int(command[command.index(option) + 1]) for option in ("--rounds", "--steps"))
            assert rounds * steps >= 200


def test_all_keeps_what_is_there_and_goes_on_after_a_failure(monkeypatch, tmp_path, capsys):
    from benchmarks import everything

    (tmp_path / "render.json").write_text("{}")
    ran = []

    def run(command, **_):
        ran.append(command[2])
        return SimpleNamespace(returncode=int(command[2] == "data"))

    monkeypatch.setattr(everything.subprocess, "run", run)
    outcome = everything.run("cpu", tmp_path)
    assert outcome.pop("render") == "kept" and outcome.pop("data") == "failed" and set(outcome.values()) == {"done"}
    assert "render" not in ran and "gallery" in ran
    everything.run("cpu", tmp_path, overwrite=True)
    assert "render" in ran


def test_an_unknown_recipe_is_refused():
    from benchmarks import step as benchmark

    with pytest.raises(ValueError, match=r"recipe is 'papr'; it must be one of \['paper', 'train'\]"):
        benchmark.measure(Compute(), recipe="papr")


def test_operations_are_counted_not_assumed():
    from benchmarks import step as benchmark

    class Product:
        def __call__(self, batch, progress):
            return batch["i_ori"].flatten(1) @ torch.ones(SIZE * SIZE, 10)

    assert benchmark.gigaflop(Product(), "cpu", SIZE) == pytest.approx(2 * SIZE * SIZE * 10 / 1e9)
