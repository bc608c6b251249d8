"""The step that is timed and the reference it is timed against do the same work."""

import copy

import pytest
import torch
from test_compute import PAPER, networks
from tiny import SIZE, pair_batch

from monai_anon.compute import Compute
from monai_anon.identity_objectives import SiameseIdentity
from monai_anon.networks import Latents
from monai_anon.optimisation import Optimisation
from monai_anon.steps import DisentanglementStep, Recipe

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
