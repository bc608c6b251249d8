"""How compared systems are trained, stopped, gone on with and kept."""

import copy
import dataclasses

import pytest
import torch
from tiny import SIZE, tiny_cohort, tiny_recogniser
from torch import nn

from monai_anon.baselines.system import (
    Budget,
    Guides,
    IdentityGuide,
    Setting,
    System,
    fit_guides,
    load_system,
    run_step,
    train_system,
)
from monai_anon.comparing.systems import made
from monai_anon.networks import Recogniser
from monai_anon.optimisation import Optimisation, Updater
from monai_anon.pairs import PairLoader


class ToyStep:
    """Learns the mean image."""

    def __init__(self, system, optimisation):
        self.system, self.updater, self.seen = system, Updater([system], optimisation, averaged=system), 0

    def __call__(self, batch, progress):
        self.seen += 1
        loss = (self.system.picture - batch["i_ori"]).square().mean() + 0 * torch.randn(())
        self.updater.update(loss, progress)
        return {"distance": loss.detach()}

    def parts(self):
        return {"system": self.system, "updater": self.updater}


class Toy(System):
    means: torch.Tensor

    def __init__(self):
        super().__init__()
        self.picture = nn.Parameter(torch.zeros(1, SIZE, SIZE))
        self.register_buffer("means", torch.empty(0))
        self.step = None

    def begin(self, setting):
        self.step = ToyStep(self, setting.optimisation)
        return self.step

    def conclude(self, setting):
        self.means = torch.rand(setting.cohort.num_patients, 2)

    def forward(self, image):
        return self.picture.expand_as(image).clone()


def setting(batches=6, **changed):
    guides = Guides(tiny_recogniser(), IdentityGuide(1, 10, (8, 8), 6))
    return Setting(tiny_cohort(), guides, Optimisation(lr=0.05, ema=0.5), batches, 4, **changed)


def test_every_system_gets_the_same_images_whatever_the_length_of_an_epoch():
    loader = PairLoader(tiny_cohort(), 4, 0)
    budget = Budget(loader, len(loader) + 3)
    batches = list(budget)
    assert len(batches) == len(budget) == len(loader) + 3
    assert torch.equal(batches[-1]["i_ori"], loader.batch(len(loader) + 2)["i_ori"])
    assert list(budget) == []
    with pytest.raises(ValueError, match="batches is 0"):
        Budget(loader, 0)


def test_a_system_is_trained_for_its_budget_concluded_and_kept(tmp_path):
    made = train_system(Toy(), setting(), tmp_path, "toy")
    assert made.step.seen == 6 and not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["system.pt"]
    again = train_system(Toy(), setting(), tmp_path, "toy")
    assert again.step is None, "it was trained anew"
    assert torch.equal(again.picture, made.picture) and torch.equal(again.means, made.means)


def test_the_smoothed_weights_are_kept(tmp_path):
    made = train_system(Toy(), setting(), tmp_path, "toy")
    assert torch.equal(made.picture, made.step.updater.smoothed.picture)


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path):
    class Killed(RuntimeError):
        pass

    class Stops(ToyStep):
        def __call__(self, batch, progress):
            if self.seen == 4:
                raise Killed
            return super().__call__(batch, progress)

    whole = train_system(Toy(), setting(), tmp_path / "whole", "toy")
    toy = Toy()
    with pytest.raises(Killed):
        run_step(Stops(toy, setting().optimisation), setting(), tmp_path / "stopped", "toy", every=3)
    gone_on = train_system(Toy(), setting(), tmp_path / "stopped", "toy")
    assert gone_on.step.seen == 3, "the checkpoint of batch 3 was not used"
    assert torch.equal(gone_on.picture, whole.picture)


def test_a_checkpoint_of_another_budget_is_refused(tmp_path):
    toy = Toy()
    run_step(ToyStep(toy, setting().optimisation), setting(), tmp_path, "toy", every=1)
    with pytest.raises(ValueError, match="batches"):
        train_system(Toy(), setting(batches=7), tmp_path, "toy")


class Sharer(Toy):
    shares = "together"


def test_a_shared_training_is_done_once_and_concluded_by_each(tmp_path):
    class Shifted(Sharer):
        def conclude(self, setting):
            self.means = torch.full((1,), -1.0)

    alone = train_system(Toy(), setting(), tmp_path / "alone", "toy")
    first = train_system(Sharer(), setting(), tmp_path / "first", "first")
    second = train_system(Shifted(), setting(), tmp_path / "second", "second")
    assert (first.step.seen, second.step.seen) == (6, 0)
    for one in (first, second):
        assert torch.equal(one.picture, alone.picture), "who trains it and who reads it have the same weights"
    assert torch.equal(first.means, alone.means) and second.means.tolist() == [-1.0]
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.pt")}
    assert kept == {"alone/system.pt", "first/system.pt", "second/system.pt", "together/checkpoint.pt"}


def test_a_shared_training_of_another_setting_is_refused(tmp_path):
    train_system(Sharer(), setting(), tmp_path / "first", "first")
    with pytest.raises(ValueError, match="seed"):
        train_system(Sharer(), setting(seed=1), tmp_path / "second", "second")


def test_a_file_of_other_networks_is_refused(tmp_path):
    torch.save({"picture": torch.zeros(2, 2), "means": torch.zeros(3)}, tmp_path / "system.pt")
    with pytest.raises(ValueError, match=r"system.pt does not fit Toy"):
        load_system(Toy(), tmp_path / "system.pt")


def test_guides_are_fitted_frozen_and_read_again(tmp_path):
    first = fit_guides(setting(batches=3), tmp_path, (8, 8))
    assert not any(p.requires_grad for guide in (first.finding, first.identity) for p in guide.parameters())
    again = fit_guides(setting(batches=3), tmp_path, (8, 8))
    images = torch.rand(2, 1, SIZE, SIZE)
    assert torch.equal(first.identity(images), again.identity(images))
    assert torch.equal(first.finding(images), again.finding(images))
    assert first.identity.patients(first.identity(images)).shape == (2, 10)
    assert torch.allclose(first.identity(images).norm(dim=1), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "game"),
    [("pp-gan", True), ("deep-privacy", True), ("vae", True), ("k-same-m", False), ("cleanir", False)],
)
def test_what_plays_against_a_critic_learns_by_the_numbers_for_games(name, game, root):
    thin = {"image_size": SIZE, "latent_sizes": [4, 2, 2], "encoder_widths": [8, 8], "decoder_widths": [8, 8]}
    torch.manual_seed(0)
    system = made(root / "bundles" / "chest", name, thin | {"guide_widths": [8, 8]})
    guides = Guides(Recogniser(1, 2, (8, 8)), IdentityGuide(1, 10, (8, 8)))
    given = dataclasses.replace(setting(), guides=guides, game=Optimisation(lr=0.0))
    step = system.begin(given)
    before = copy.deepcopy(system.state_dict())
    step(PairLoader(given.cohort, 4, 0).batch(0), 0.5)
    still = all(torch.equal(before[key], tensor) for key, tensor in system.state_dict().items())
    assert still == game
