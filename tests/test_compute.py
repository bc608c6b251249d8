"""Faster arithmetic gives the figures of the plain one, and what is chosen suits the device."""

import copy
import logging
import shutil

import pytest
import torch
from test_steps import make_step
from tiny import LATENT_SIZES, SIZE, pair_batch, tiny_cohort
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from monai_anon import compute
from monai_anon.compute import MODES, Compute, bf16_pays, chosen
from monai_anon.engines import StepEvaluator
from monai_anon.handlers import ComputeNote, ImageGrid, ReplacementScore
from monai_anon.identity_objectives import ContrastiveIdentity
from monai_anon.networks import Decoder, Discriminator, Disentangler, Encoder, LatentClassifier, Recogniser
from monai_anon.optimisation import Optimisation
from monai_anon.pairs import PairLoader
from monai_anon.recipe import Recipe
from monai_anon.recognition import RecogniserStep, finding_objective

PAPER = {"medical": 5.0, "identity": 5.0, "ssim": 1.0, "psnr": 1.0, "adversarial": 1.0, "disentanglement": 5.0}


@pytest.fixture(autouse=True)
def _threads():
    """`chosen` changes the number of threads of this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def networks(norm):
    """A disentangler and critics of one kind of normalisation, the same weights each time."""
    torch.manual_seed(0)
    encoder = Encoder(SIZE, 1, (8, 16), LATENT_SIZES, norm=norm)
    model = Disentangler(
        encoder, Decoder(SIZE, 1, (16, 8), LATENT_SIZES, norm=norm), LatentClassifier(LATENT_SIZES[1], 2, 8, 0.0)
    )
    critics = {name: Discriminator(SIZE, 1, (8, 16), norm=norm) for name in ("discriminator", "swap_discriminator")}
    return {"model": model, "recogniser": Recogniser(1, 2, (8, 8, 8), norm=norm), **critics}


def trained(how, steps=3, norm="batch", **options):
    """Terms of the last step and what the networks then make of images, from the same start and random numbers.

    Not the weights: a bias before a batch normalisation has no gradient but rounding, and Adam makes steps of it.
    """
    step = make_step(compute=how, **networks(norm), **options)
    for iteration in range(steps):
        torch.manual_seed(iteration)
        terms = step(pair_batch(seed=iteration), iteration / steps)
    with torch.no_grad():
        images = step.model.eval()(pair_batch()["i_ori"])
    return {name: float(value) for name, value in terms.items()}, images


def assert_same(fast, plain, tolerance):
    for name, value in plain[0].items():
        assert fast[0][name] == pytest.approx(value, rel=tolerance, abs=tolerance / 10), name
    torch.testing.assert_close(fast[1], plain[1], rtol=0, atol=10 * tolerance)  # of a range of 2


# ---- The same figures ----


def test_channels_last_gives_the_plain_figures_in_float32():
    assert_same(trained(Compute(channels_last=True)), trained(Compute()), 1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_networks_give_the_plain_figures_in_float32():
    recipe = Recipe(PAPER, every_swap=True)  # with critics and an encoder that are frozen in between
    plain, fast = (trained(how, norm="group", recipe=recipe) for how in (Compute(), Compute(compiled="default")))
    assert_same(fast, plain, 1e-3)


def test_bf16_networks_give_float32_losses_near_the_exact_ones():
    exact, _ = trained(Compute(), steps=1)
    step = make_step(compute=Compute(bf16=True), **networks("batch"))
    torch.manual_seed(0)
    terms = step(pair_batch(seed=0), 0.0)
    for term in ("ssim", "psnr", "pixel", "medical"):
        assert terms[term].dtype == torch.float32
        assert float(terms[term]) == pytest.approx(exact[term], rel=0.02)


@pytest.mark.parametrize("bf16", [False, True])
def test_networks_compute_in_the_precision_that_was_chosen(bf16):
    parts, seen = networks("group"), set()
    for network in parts.values():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    make_step(compute=Compute(bf16=bf16), **parts)(pair_batch(), 0.5)
    RecogniserStep(parts["recogniser"].requires_grad_(), finding_objective, Optimisation(), Compute(bf16=bf16))(
        pair_batch(), 0.5
    )
    assert seen == {torch.bfloat16 if bf16 else torch.float32}


def test_bf16_trains_to_the_figures_of_float32():
    weights = {"ssim": 1.0, "pixel": 2.0, "medical": 0.5, "identity": 0.3}

    def learned(how):
        step = make_step(
            Recipe(weights), ContrastiveIdentity(), Optimisation(lr=3e-3, ema=0.0), compute=how, **networks("group")
        )
        terms = []
        for iteration in range(150):
            torch.manual_seed(iteration)
            terms.append(step(pair_batch(), iteration / 150))
        return {name: sum(float(t[name]) for t in terms[-5:]) / 5 for name in weights}, terms[0]

    (exact, start), (rough, _) = learned(Compute()), learned(Compute(bf16=True))
    for name in weights:
        assert exact[name] < 0.7 * float(start[name]), name  # it has learned
        assert rough[name] == pytest.approx(exact[name], rel=0.1, abs=0.02), name


def test_gradients_are_freed_after_each_update():
    step = make_step()
    step(pair_batch(), 0.5)
    assert all(p.grad is None for n in (step.model, *step.critics.values()) for p in n.parameters())


# ---- No iteration waits for the device ----


class Waits(TorchDispatchMode):
    """Remembers the operators whose result must come back from a GPU before the program can go on."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITING or boolean:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every_swap", [False, True])
def test_a_step_waits_for_no_result(every_swap):
    recipe = Recipe(dict.fromkeys(PAPER, 1.0), every_swap=every_swap)
    step = make_step(recipe)
    step(pair_batch(), 0.5)
    with Waits() as waits:
        step(pair_batch(), 0.5)
    assert waits.seen == []
    with Waits() as waits:
        float(torch.ones(1).sum())
    assert waits.seen == ["_local_scalar_dense"]


def test_our_own_terms_wait_for_no_result():
    step = make_step()
    batch = pair_batch()
    with Waits() as waits:
        step(batch, 0.9)
    assert waits.seen == []


# ---- What is chosen ----


def test_the_layout_pays_without_group_normalisation_on_a_cpu():
    assert Compute(bf16=True, channels_last=None).lays_channels_last(networks("batch")["model"])
    assert not Compute(bf16=True, channels_last=None).lays_channels_last(networks("group")["model"])
    assert not Compute(bf16=False, channels_last=None).lays_channels_last(networks("batch")["model"])


def test_a_layout_that_crashes_torch_is_refused():
    with pytest.raises(ValueError, match="group normalisation in float32 crashes"):
        Compute(channels_last=True).prepare(networks("group")["model"])


def test_preparing_keeps_names_and_values_of_the_weights():
    model = networks("batch")["model"]
    before = copy.deepcopy(model.state_dict())
    Compute(channels_last=True, compiled="default").prepare(model)
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert model.encoder.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    copy.deepcopy(model)  # as an exponential average does


def test_every_network_of_a_step_is_on_the_device_of_the_model():
    parts = networks("group")
    parts["model"].to("meta")
    step = make_step(**parts)
    everything = (*step.parts().values(), step.recogniser)
    for part in [part for part in everything if isinstance(part, nn.Module)]:
        assert {tensor.device.type for tensor in part.state_dict().values()} == {"meta"}


def test_every_network_of_a_step_is_prepared(monkeypatch):
    modes = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: modes.append((type(self).__name__, options)))
    make_step(compute=Compute(compiled="reduce-overhead"))
    assert sorted(name for name, _ in modes) == ["Decoder", "Discriminator", "Discriminator", "Encoder", "Sequential"]
    assert all(options == {"mode": "reduce-overhead", "dynamic": False} for _, options in modes)


def test_networks_that_talk_to_other_ranks_are_not_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(self))
    batch, group = networks("batch")["model"], networks("group")["model"]
    Compute(compiled="default").prepare(batch, group)
    monkeypatch.setattr(compute, "distributed", lambda: True)
    Compute(compiled="default").prepare(batch, group)
    assert compiled == [batch, group, group]


def test_validation_and_pictures_run_compiled_networks_as_they_are(tmp_path):
    seen = []

    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph.forward

    model = networks("group")["model"]
    for network in (model.encoder, model.decoder):
        network.compile(backend=backend)
    loader = PairLoader(tiny_cohort(), 6)
    evaluator = StepEvaluator("cpu", loader, ReplacementScore(model))
    evaluator.run()
    ImageGrid(model, loader, tmp_path).draw()
    assert evaluator.state.metrics["score"] > 0 and seen == []
    model(loader.batch(0)["i_ori"])
    assert seen


@pytest.mark.parametrize("mode", MODES)
def test_only_graphs_are_told_of_a_new_step(mode, monkeypatch):
    told = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(mode))
    Compute(compiled=mode).begin_step()
    assert bool(told) == (mode in ("reduce-overhead", "max-autotune"))


def test_a_cpu_compiles_nothing_unless_told():
    assert chosen("cpu") == Compute(bf16_pays("cpu"), None, None)
    assert chosen("cpu", compiled=True).compiled == "default"
    assert chosen("cpu", bf16=False, channels_last=False, compiled="max-autotune") == Compute(
        False, False, "max-autotune"
    )


def test_what_is_chosen_is_said_with_the_settings_that_change_it(caplog):
    with caplog.at_level(logging.INFO, "monai_anon"):
        ComputeNote(chosen("cpu", bf16=True, threads=1), "cpu")(None)
    assert "cpu (1 threads)" in caplog.text and "bfloat16" in caplog.text and "not compiled" in caplog.text
    assert all(f"--{setting}" in caplog.text for setting in ("bf16", "channels_last", "compiled", "threads"))


def test_threads_are_those_given_then_the_environments_then_all_that_may_be_used(monkeypatch):
    chosen("cpu", threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)
    monkeypatch.setattr(compute.joblib, "cpu_count", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    chosen("cpu")
    assert torch.get_num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    chosen("cpu")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"compiled": "fast"}, "compiled is 'fast'.*'default'"), ({"threads": 0}, "threads is 0; it must be at least 1")],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        chosen("cpu", **settings)


def test_bf16_on_a_cpu_is_asked_of_the_cpu():
    assert isinstance(bf16_pays("cpu"), bool)
    assert bf16_pays("meta") is False


# ---- On a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
def test_steps_on_a_gpu_give_the_figures_of_the_cpu(mode):
    def on(device, how):
        parts = networks("group")
        parts["model"].to(device)
        step = make_step(Recipe(PAPER, every_swap=True, augment=False), compute=how, **parts)
        batches = [{name: value.to(device) for name, value in pair_batch(seed=i).items()} for i in range(4)]
        return {name: float(value) for batch in batches for name, value in step(batch, 0.5).items()}

    plain, fast = on("cpu", Compute()), on("cuda", Compute(compiled=mode))
    for name in PAPER:
        assert fast[name] == pytest.approx(plain[name], rel=1e-2, abs=1e-3), name


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits():
    parts = networks("group")
    parts["model"].to("cuda")
    step = make_step(compute=Compute(bf16=True), **parts)
    batch = {name: value.to("cuda") for name, value in pair_batch().items()}
    step(batch, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch, 0.9)
    finally:
        torch.cuda.set_sync_debug_mode("default")
