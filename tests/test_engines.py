"""Kill and resume, what is refused on resuming, the collapse guard, the best model and the picture grid."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from PIL import Image
from tiny import pair_batch, tiny_cohort, tiny_discriminator, tiny_disentangler, tiny_recogniser
from torch import nn

from monai_anon.engines import Resume, StepEvaluator, StepTrainer, seed_iteration
from monai_anon.handlers import (
    BestModel,
    CollapseGuard,
    ConfoundingNote,
    ImageGrid,
    ReplacementScore,
    TrainingCollapse,
    VAEScore,
    replacement_grid,
)
from monai_anon.identity_objectives import ContrastiveIdentity
from monai_anon.model_files import carry_record, read_record, save_weights, write_record
from monai_anon.networks import IdentityVAE, Latents
from monai_anon.optimisation import Optimisation
from monai_anon.pairs import PairLoader
from monai_anon.readers import to_uint8
from monai_anon.recipe import Recipe
from monai_anon.steps import DisentanglementStep

# ---- A trainer whose losses are logged to the last digit ----


def log_losses(folder):
    def write(trainer):
        row = {name: float(value) for name, value in trainer.state.output.items()}
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps([trainer.state.iteration, row]) + "\n")

    return write


def read_log(folder):
    return [tuple(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]


def stage_1(folder, max_epochs=3, kill_at=None):
    """Stage 1, 5 iterations an epoch, a checkpoint every 2; `kill_at` ends the process in that iteration."""
    torch.manual_seed(5)
    model = tiny_disentangler()
    weights = {"medical": 1.0, "identity": 1.0, "ssim": 1.0, "adversarial": 0.1, "disentanglement": 0.5}
    weights |= {"patient_correlation": 0.1, "finding_correlation": 0.1}
    step = DisentanglementStep(
        model,
        Recipe(weights, {"residual": 0.2}, swaps_from=0.2, independence_from=0.1),
        Optimisation(),
        ContrastiveIdentity(),
        tiny_discriminator(),
        recogniser=tiny_recogniser(),
    )
    validation = PairLoader(tiny_cohort(12, 6, seed=9), 6)
    evaluator = StepEvaluator("cpu", validation, ReplacementScore(step.updater.smoothed))
    best = BestModel(evaluator, step.updater.smoothed.state_dict, folder / "best.pt")
    trainer = StepTrainer(
        "cpu",
        max_epochs,
        PairLoader(tiny_cohort(), 6),
        step,
        resume=Resume(folder, every=2, settings={"weights": weights}, also={"best": best}),
        train_handlers=[best],
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, log_losses(folder))
    if kill_at is not None:
        trainer.add_event_handler(Events.ITERATION_STARTED(once=kill_at), lambda: os.kill(os.getpid(), signal.SIGKILL))
    return trainer


def test_a_killed_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    stage_1(whole).run()
    command = [sys.executable, __file__, str(killed), "10"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    before = read_log(killed)
    assert [iteration for iteration, _ in before] == list(range(1, 10))

    resumed = stage_1(killed)
    resumed.run()
    after = read_log(killed)[len(before) :]
    assert [iteration for iteration, _ in after] == list(range(9, 16))  # the last checkpoint is that of iteration 8
    expected = read_log(whole)
    assert before == expected[:9]
    assert after == expected[8:]
    assert "disentanglement" in expected[-1][1] and "disentanglement" not in expected[0][1]

    for name in ("checkpoint.pt", "best.pt"):
        assert_equal_contents(torch.load(whole / name), torch.load(killed / name))


def assert_equal_contents(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_contents(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal_contents(x, y)
    else:
        assert a == b


# ---- Resuming a small one ----


class Descent:
    """The smallest step: its loss depends on weights, batch and random numbers."""

    def __init__(self, outputs=1):
        torch.manual_seed(0)
        self.network = nn.Linear(2, outputs)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1)

    def __call__(self, batch, progress):
        loss = (self.network(batch["x"]) - torch.randn(4, 1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "progress": torch.tensor(progress)}

    def parts(self):
        return {"network": self.network, "optimizer": self.optimizer}


class Numbers:
    """Batches that are a function of the iteration; `start` is where to go on."""

    def __init__(self, length=4):
        self.length, self.start = length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        while True:
            self.start += 1
            yield {"x": torch.full((4, 2), float(self.start))}


def descent(folder, max_epochs=2, every=3, settings=None, length=4, outputs=1, handlers=(), **options):
    resume = Resume(folder, every, settings, **options)
    return StepTrainer("cpu", max_epochs, Numbers(length), Descent(outputs), resume=resume, train_handlers=handlers)


def outputs_of(trainer):
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda t: seen.append((t.state.iteration, float(t.state.output["loss"])))
    )
    trainer.run()
    return seen


def test_complete_training_is_left_alone(tmp_path, caplog):
    descent(tmp_path).run()
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns, (tmp_path / "checkpoint.pt").read_bytes()
    caplog.set_level("INFO", "monai_anon")
    assert outputs_of(descent(tmp_path)) == []
    assert ((tmp_path / "checkpoint.pt").stat().st_mtime_ns, (tmp_path / "checkpoint.pt").read_bytes()) == before
    assert "already trained: 2 epochs are done. Raise max_epochs to go on" in caplog.text


def test_raising_max_epochs_goes_on(tmp_path):
    descent(tmp_path / "a", max_epochs=2).run()
    more = outputs_of(descent(tmp_path / "a", max_epochs=3))
    assert more == outputs_of(descent(tmp_path / "b", max_epochs=3))[8:] and len(more) == 4


def test_without_resume_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    StepTrainer("cpu", 1, Numbers(), Descent()).run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"seed": 1, "size": 64}, {"seed": 1, "size": 32}, "made with size = 64, this run has 32"),
        ({"seed": 1}, {"seed": 1, "noise": {"a": 0.1}}, r"made with noise = None, this run has \{'a': 0.1\}"),
        ({"seed": 1, "size": 64}, {"size": 64}, "made with seed = 1, this run has None"),
    ],
)
def test_changed_settings_are_refused_by_name(tmp_path, first, second, message):
    descent(tmp_path, settings=first).run()
    with pytest.raises(ValueError, match=rf"checkpoint.pt was {message}.*another output_dir"):
        descent(tmp_path, settings=second).run()
    outputs_of(descent(tmp_path, settings=first, max_epochs=3))


def test_settings_survive_the_file_whatever_their_types(tmp_path):
    settings = {"sizes": (96, 4, 8), "path": Path("a"), "none": None, "weights": {"b": 1.0, "a": 2}}
    descent(tmp_path, settings=settings).run()
    assert len(outputs_of(descent(tmp_path, settings=settings, max_epochs=3))) == 4


def test_other_networks_and_other_epoch_lengths_are_refused(tmp_path):
    descent(tmp_path).run()
    with pytest.raises(ValueError, match=r"(?s)checkpoint.pt does not fit these networks.*size mismatch"):
        descent(tmp_path, outputs=3).run()
    with pytest.raises(ValueError, match="epochs have 4 batches, this run's 5"):
        descent(tmp_path, length=5).run()


def test_the_checkpoint_is_there_at_every_moment_and_always_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    original, places = torch.save, []

    def watched(state, file):
        places.append(path.exists() and torch.load(path)["progress"]["iteration"])
        original(state, file)
        if places[1:]:
            torch.load(path)

    monkeypatch.setattr(torch, "save", watched)
    descent(tmp_path, max_epochs=3, every=3).run()
    # Within epochs of 4: iterations 3, 6, 9; at their ends: 4, 8, 12, and never twice at one place.
    assert places == [False, 3, 4, 6, 8, 9]
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(path)["progress"]["iteration"] == 12


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    descent(tmp_path, max_epochs=1).run()
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            descent(tmp_path, max_epochs=2).run()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert len(outputs_of(descent(tmp_path, max_epochs=2))) == 4


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_run_killed_in_the_last_validation_still_validates_when_resumed(tmp_path, every):
    def killed(trainer):
        if trainer.state.epoch == 2:
            raise KeyboardInterrupt

    class Validation:
        def attach(self, trainer):
            trainer.add_event_handler(Events.EPOCH_COMPLETED, killed)

    with pytest.raises(KeyboardInterrupt):
        descent(tmp_path, every=every, handlers=[Validation()]).run()
    seen = []
    trainer = descent(tmp_path, every=every)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda t: seen.append(t.state.epoch))
    trainer.run()
    assert seen == [2]


def test_progress_runs_from_0_towards_1_and_goes_on_when_resumed(tmp_path):
    seen = []

    def note(trainer):
        seen.append(float(trainer.state.output["progress"]))
        if len(seen) == 3:
            raise KeyboardInterrupt

    for _ in range(2):
        trainer = descent(tmp_path, every=1)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
        try:
            trainer.run()
        except KeyboardInterrupt:
            continue
    assert seen == pytest.approx([iteration / 8 for iteration in range(8)])


def test_further_objects_are_kept_and_restored(tmp_path):
    def best():
        return BestModel(Scores([]), dict, tmp_path / "best.pt")

    first, second = best(), best()
    first.best = 0.7
    descent(tmp_path, also={"best": first}).run()
    descent(tmp_path, also={"best": second}, max_epochs=3).run()
    assert second.best == 0.7


def test_max_epochs_must_be_positive():
    with pytest.raises(ValueError, match="max_epochs is 0"):
        StepTrainer("cpu", 0, Numbers(), Descent())


def test_iteration_seeds_differ_and_take_any_seed():
    drawn = set()
    for seed in (0, 1, 20260101, 2**31 - 1):
        for rank in (0, 1):
            for iteration in (1, 2):
                seed_iteration(seed, rank, iteration)
                drawn.add(float(torch.rand(())))
    assert len(drawn) == 16
    seed_iteration(3, 1, 4)
    first = torch.rand(3)
    seed_iteration(3, 1, 4)
    assert torch.equal(torch.rand(3), first)


# ---- Evaluation ----


def test_evaluator_means_over_batches_and_leaves_random_numbers_as_they_were():
    evaluator = StepEvaluator("cpu", Numbers(3), lambda batch: {"score": batch["x"].mean(), "draw": torch.rand(())})
    state = torch.get_rng_state()
    evaluator.run()
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluator.state.metrics["score"] == pytest.approx(2.0)
    first = evaluator.state.metrics["draw"]
    torch.rand(7)
    evaluator.data_loader.start = 0
    evaluator.run()
    assert evaluator.state.metrics == {"score": pytest.approx(2.0), "draw": first}


def test_a_failing_measure_leaves_random_numbers_as_they_were_too():
    def fail(batch):
        torch.rand(3)
        raise ZeroDivisionError

    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        StepEvaluator("cpu", Numbers(3), fail).run()
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_has_no_gradients_and_does_not_train(tmp_path):
    model = tiny_disentangler()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluator = StepEvaluator("cpu", PairLoader(tiny_cohort(12, 6), 6), ReplacementScore(model))
    evaluator.run()
    metrics = evaluator.state.metrics
    assert set(metrics) == {"ssim", "identity_replaced", "finding_kept", "finding_replaced", "score"}
    assert metrics["score"] == pytest.approx(sum(v for k, v in metrics.items() if k != "score") / 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Corners(nn.Module):
    """A perfect disentangler of pictures of three thirds: identity (an angle), finding, rest."""

    def encode(self, image):
        angle, medical, residual = image[:, 0, 0, :1], image[:, 0, 2, :1], image[:, 0, 5, :1]
        return Latents(torch.cat([angle.cos(), angle.sin()], 1), medical, residual)

    def decode(self, z):
        image = torch.empty(len(z.medical), 1, 12, 12)
        image[:, :, :2] = torch.atan2(z.identity[:, 1], z.identity[:, 0])[:, None, None, None]
        image[:, :, 2:5] = z.medical[:, :, None, None]
        image[:, :, 5:] = z.residual[:, :, None, None]
        return image

    def classify(self, medical):
        return torch.cat([-medical, medical], 1)


def corner_batch():
    """Two pairs of such pictures, all values different but the finding's sign."""
    values = {"i_ori": [[-0.9, -0.5, 0.1], [0.7, 0.6, 0.3]], "i_tar": [[0.4, 0.8, -0.2], [-0.6, -0.7, 0.9]]}
    batch = {"finding_ori": torch.tensor([0, 1]), "finding_tar": torch.tensor([1, 0])}
    for name, rows in values.items():
        z = torch.tensor(rows)
        identity = torch.stack([z[:, 0].cos(), z[:, 0].sin()], 1)
        batch[name] = Corners().decode(Latents(identity, z[:, 1:2], z[:, 2:]))
    return batch


def test_replacement_score_is_one_for_a_perfect_model_and_low_for_one_that_ignores_latents():
    perfect = ReplacementScore(Corners())(corner_batch())
    assert {name: float(value) for name, value in perfect.items()} == pytest.approx(dict.fromkeys(perfect, 1.0))

    class Copying(Corners):
        """Draws the original whatever it is told."""

        def decode(self, z):
            return corner_batch()["i_ori"].repeat(len(z.medical) // 2, 1, 1, 1)

    copied = ReplacementScore(Copying())(corner_batch())
    assert copied["identity_replaced"] == 0 and copied["finding_replaced"] == 0
    assert copied["finding_kept"] == 1 and copied["ssim"] == pytest.approx(1)


def test_vae_score_is_minus_its_reconstruction_error():
    vae = IdentityVAE(8, 4, 16)
    identity = torch.randn(5, 8)
    found = VAEScore(vae)({"identity": identity})
    expected = (vae.decode(vae.encode(identity)[0]) - identity).square().mean()
    torch.testing.assert_close(found["reconstruction"], expected)
    assert found["score"] == -found["reconstruction"]


class Scores:
    """In place of an evaluator: the scores of the epochs to come."""

    def __init__(self, scores):
        self.scores, self.data_loader = list(scores), Numbers()
        self.state = type("State", (), {"metrics": {}})()

    def run(self):
        self.state.metrics = {"score": self.scores.pop(0)}


def best_of(folder, scores, **options):
    """Trains an epoch a score; which epoch's weights are in the file."""
    step = Descent()
    epoch = {"value": torch.tensor(0)}
    best = BestModel(Scores(scores), lambda: dict(epoch), folder / "best.pt", **options)
    trainer = StepTrainer("cpu", options.pop("epochs", len(scores)), Numbers(), step)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda t: epoch.update(value=torch.tensor(t.state.epoch)))
    best.attach(trainer)
    trainer.run()
    return int(torch.load(folder / "best.pt", weights_only=True)["value"]), best


def test_best_model_keeps_the_first_best_epoch(tmp_path):
    epoch, best = best_of(tmp_path, [0.2, 0.8, 0.5, 0.8])
    assert epoch == 2 and best.best == 0.8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.json", "best.pt"]


def test_best_model_may_keep_the_last_epoch_and_still_knows_the_best(tmp_path):
    epoch, best = best_of(tmp_path, [0.2, 0.8, 0.5], keep_last=True)
    assert epoch == 3 and best.best == 0.8


def test_best_model_restored_from_a_checkpoint_does_not_fall_back(tmp_path):
    _, best = best_of(tmp_path, [0.8])
    again = BestModel(Scores([0.5, 0.9]), lambda: {"value": torch.tensor(7)}, tmp_path / "best.pt")
    again.load_state_dict(best.state_dict())
    trainer = StepTrainer("cpu", 2, Numbers(), Descent())
    again.attach(trainer)
    values = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: values.append(int(torch.load(again.path)["value"])))
    trainer.run()
    assert values == [1, 7]


def test_best_model_validates_every_so_many_epochs_and_after_the_last(tmp_path):
    scores = Scores([0.1, 0.2, 0.3])
    best = BestModel(scores, Descent().network.state_dict, tmp_path / "best.pt", every=2)
    trainer = StepTrainer("cpu", 5, Numbers(), Descent())
    validated = []
    best.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda t: validated.append((t.state.epoch, len(scores.scores))))
    trainer.run()
    assert validated == [(1, 3), (2, 2), (3, 2), (4, 1), (5, 0)]


def test_save_weights_makes_folders_and_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a" / "b.pt"
    parameter = nn.Parameter(torch.arange(3.0))
    save_weights({"w": parameter}, path)
    loaded = torch.load(path, weights_only=True)["w"]
    assert torch.equal(loaded, parameter) and not loaded.requires_grad and type(loaded) is torch.Tensor

    def fail(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="full"):
        save_weights({"w": parameter + 1}, path)
    assert torch.equal(torch.load(path)["w"], torch.arange(3.0))


# ---- The training's record ----


def recorded(folder, epochs, scores=None, **options):
    """A training of 4 batches of 4 images an epoch that resumes in `folder`; its record."""
    best = BestModel(Scores(scores or [0.1] * epochs), Descent().network.state_dict, folder / "best.pt", **options)
    descent(folder, max_epochs=epochs, also={"best": best}, handlers=[best]).run()
    return read_record(folder / "best.pt")


def test_the_record_counts_every_image_of_every_epoch_and_names_the_epoch_that_was_kept(tmp_path):
    record = recorded(tmp_path, 3, [0.2, 0.8, 0.5])
    assert record.pop("seconds") > 0
    assert record == {"images_seen": 3 * 4 * 4, "iterations": 12, "epoch_kept": 2, "seed": 0}


def test_a_resumed_training_goes_on_with_its_record(tmp_path):
    first = recorded(tmp_path, 2, [0.9, 0.1])
    write_record(first | {"seconds": 1000.0}, tmp_path / "best.pt")
    second = recorded(tmp_path, 3, [0.5])
    assert (second["iterations"], second["images_seen"], second["epoch_kept"]) == (12, 48, 1)
    assert 1000 < second["seconds"] < 1100


def test_a_fine_tuned_model_carries_what_its_first_training_cost(tmp_path):
    before = {"images_seen": 100, "iterations": 25, "seconds": 500.0, "seed": 7}
    write_record(before, tmp_path / "first.pt")
    record = recorded(tmp_path / "fine", 1, started_from=tmp_path / "first.pt")
    assert (record["images_seen"], record["iterations"], record["seed"]) == (116, 29, 0)
    assert 500 < record["seconds"] < 600
    assert recorded(tmp_path / "unknown", 1, started_from=tmp_path / "absent.pt")["images_seen"] == 16


def test_the_record_of_both_stages_is_the_first_ones_with_the_seconds_beside_it(tmp_path):
    write_record({"images_seen": 180, "seed": 3}, tmp_path / "disentangler.pt")
    write_record({"images_seen": 20}, tmp_path / "identity_vae.pt")
    files = [str(tmp_path / name) for name in ("disentangler.pt", "identity_vae.pt", "joined/model.pt")]
    assert carry_record(*files) == tmp_path / "joined" / "model.json"
    assert read_record(files[2]) == {"images_seen": 180, "seed": 3, "identity_vae": {"images_seen": 20}}
    assert read_record(tmp_path / "absent.pt") == {}
    (tmp_path / "configs").mkdir()
    carry_record(*files, str(tmp_path))  # a folder without metadata has no name
    assert "bundle" not in read_record(files[2])
    (tmp_path / "configs" / "metadata.json").write_text('{"name": "Knees"}')
    carry_record(*files, str(tmp_path))
    assert read_record(files[2])["bundle"] == "Knees"


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_record_is_named(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json is no training record"):
        read_record(tmp_path / "model.pt")


# ---- The collapse guard ----


def guarded(rows, **options):
    """A trainer whose step returns these scalars one after the other, then the last for ever."""

    class Script(Descent):
        def __call__(self, batch, progress):
            row = rows.pop(0) if len(rows) > 1 else rows[0]
            return {name: torch.tensor(value) for name, value in row.items()}

    guard = CollapseGuard(**{"every": 1, "grace": 0, "patience": 3} | options)
    return StepTrainer("cpu", 4, Numbers(), Script(), train_handlers=[guard])


HEALTHY = {"loss": 1.0, "latent/identity_std": 0.4, "latent/same_hit": 0.95, "latent/other_hit": 0.1}


def test_a_healthy_run_is_not_stopped():
    guarded([HEALTHY]).run()
    guarded([HEALTHY | {"latent/other_hit": 0.89}]).run()
    guarded([{"loss": 1.0}]).run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"latent/identity_std": 1e-4},
            r"iteration 3: .*collapsed \(standard deviation 0.0001, at least 0.01 expected",
        ),
        ({"latent/same_hit": 1.0, "latent/other_hit": 0.97}, r"the same patient \(100%\) and another one \(97%\)"),
    ],
)
def test_a_collapse_stops_the_run_and_says_what_to_change(change, message):
    trainer = guarded([HEALTHY | change])
    with pytest.raises(TrainingCollapse, match=message) as caught:
        trainer.run()
    assert "weight" in str(caught.value) and trainer.state.iteration == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_at_once(value):
    trainer = guarded([HEALTHY, HEALTHY | {"ssim": value}], grace=100)
    with pytest.raises(TrainingCollapse, match=r"iteration 2: \['ssim'\] not finite"):
        trainer.run()


def test_the_guard_is_patient():
    collapsed = HEALTHY | {"latent/identity_std": 0.0}
    guarded([collapsed, collapsed, HEALTHY, collapsed, collapsed, HEALTHY]).run()
    guarded([collapsed, collapsed, collapsed, HEALTHY], every=2).run()
    trainer = guarded([collapsed], grace=6)
    with pytest.raises(TrainingCollapse, match="iteration 8"):
        trainer.run()


def test_a_step_of_stage_1_gives_the_guard_what_it_reads():
    step = DisentanglementStep(tiny_disentangler(), Recipe({"ssim": 1.0}), Optimisation(), ContrastiveIdentity())
    assert set(HEALTHY) - {"loss"} <= set(step(pair_batch(), 0.0))


# ---- Pictures ----


def test_grid_rows_are_in_the_stated_order():
    batch = corner_batch()
    picture = replacement_grid(Corners(), batch["i_ori"], batch["i_tar"])
    assert picture.shape == (1, 6 * 12, 2 * 12)
    for column in (0, 1):
        ori, tar, other = (
            image[:, 0, (0, 2, 5), 0] for image in (batch["i_ori"], batch["i_tar"], batch["i_ori"].flip(0))
        )
        o, t, new = ori[column], tar[column], other[column]
        expected = {
            "original": o,
            "target": t,
            "reconstruction": o,
            "medical swap": torch.stack([o[0], t[1], o[2]]),
            "identity swap": torch.stack([t[0], o[1], o[2]]),
            "anonymised": torch.stack([new[0], o[1], o[2]]),
        }
        assert tuple(expected) == ImageGrid.ROWS
        for row, values in enumerate(expected.values()):
            tile = picture[0, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
            torch.testing.assert_close(tile[(0, 2, 5), 3], values)


def test_grid_takes_the_anonymised_identity_from_the_vae_always_the_same():
    vae, batch = IdentityVAE(2, 3, 8), corner_batch()
    first = replacement_grid(Corners(), batch["i_ori"], batch["i_tar"], vae)
    torch.rand(3)
    assert torch.equal(replacement_grid(Corners(), batch["i_ori"], batch["i_tar"], vae), first)
    without = replacement_grid(Corners(), batch["i_ori"], batch["i_tar"])
    assert torch.equal(first[:, :60], without[:, :60]) and not torch.equal(first[:, 60:62], without[:, 60:62])
    assert torch.equal(first[:, 62:], without[:, 62:])


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_is_written_as_png_and_to_tensorboard(tmp_path, channels):
    class Loader:
        def batch(self, iteration):
            return {
                name: image.expand(-1, channels, -1, -1) for name, image in corner_batch().items() if image.ndim > 1
            }

    class Colour(Corners):
        def decode(self, z):
            return super().decode(z).expand(-1, channels, -1, -1)

    class Writer:
        def add_image(self, tag, picture, step, dataformats):
            self.tag, self.picture, self.step = tag, picture, step

    writer = Writer()
    grid = ImageGrid(Colour(), Loader(), tmp_path, every=2, writer=writer, columns=1)
    StepTrainer("cpu", 3, Numbers(), Descent(), train_handlers=[grid]).run()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["grid_0002.png", "grid_0003.png"]
    with Image.open(tmp_path / "grid_0003.png") as file:
        pixels = torch.from_numpy(np.array(file.convert("L")))
        assert file.mode == ("L" if channels == 1 else "RGB")
    assert torch.equal(pixels, writer.picture[0]) and writer.step == 12
    assert torch.equal(pixels[:12], to_uint8(corner_batch()["i_ori"])[0, 0])
    assert writer.tag == "original | target | reconstruction | medical swap | identity swap | anonymised"


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # as in conftest.py
    stage_1(Path(sys.argv[1]), kill_at=int(sys.argv[2])).run()


# ---- A finding that marks the patient ----


@pytest.mark.parametrize(
    ("changing", "handled", "first", "warned"),
    [
        (0, False, True, True),
        (4, False, True, True),
        (5, False, True, False),
        (0, True, True, False),
        (0, False, False, False),
    ],
)
def test_a_finding_that_hardly_ever_changes_within_a_patient_is_warned_of_by_one_rank(
    changing, handled, first, warned, caplog, monkeypatch
):
    monkeypatch.setattr("monai_anon.handlers.first_rank", lambda: first)
    cohort = tiny_cohort(200, 100)  # two images each, the same finding
    cohort.finding[:100] = 0
    cohort.finding[100:] = (torch.arange(100) < changing).long()
    with caplog.at_level(logging.INFO, "monai_anon"):
        ConfoundingNote(cohort, handled)(None)
    assert ("confounded.json" in caplog.text) == warned
    assert not warned or f"changes in {changing} of 100 patients" in caplog.text
