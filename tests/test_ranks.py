"""Several processes train as one: gathering, losses and gradients over all ranks, shared batches.

Two gloo processes are started once for all laws (`both`). The bundle under torchrun: `test_torchrun.py`.
"""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from tiny import pair_batch, tiny_cohort, tiny_discriminator, tiny_disentangler, tiny_recogniser
from torch import nn

from monai_anon import ranks
from monai_anon.cohort import PairLoader, PairSampler
from monai_anon.engines import Resume, StepTrainer
from monai_anon.identities import Gallery, IdentityPairs
from monai_anon.identity_objectives import ClassifiedIdentity, ContrastiveIdentity, SiameseIdentity, SummedIdentity
from monai_anon.identity_vae_step import IdentityVAEStep
from monai_anon.networks import Discriminator, IdentityVAE
from monai_anon.optimisation import Optimisation
from monai_anon.recipe import Recipe
from monai_anon.steps import DisentanglementStep

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
STEPS, SIZE = 4, 12  # iterations; images a batch, of all ranks together
OPTIMISATION = Optimisation(lr=1e-3, warmup=0.0, clip=1.0, ema=0.9)


# ---- What each process does; a single one does the same with all rows ----


def rows(tensor):
    """This rank's rows of a batch: every second one, so that a patient's two images are on two ranks."""
    return tensor[dist.get_rank() :: 2] if ranks.distributed() else tensor


def trained(step, batches):
    """Terms of each iteration, the gradients that the optimisers saw, and what is left, by name."""
    updaters = {name: part for name, part in step.parts().items() if hasattr(part, "update")}
    result = {}
    for name, updater in updaters.items():
        # With Adam's 1e-8 the rounding errors of a gradient of 0 would be whole updates.
        updater.optimizer.param_groups[0]["eps"] = 1e-4
        seen = result[f"gradients of {name}"] = {}

        def note(*_, seen=seen, updater=updater):
            at = len(seen)
            seen |= {at + i: p.grad.clone() for i, p in enumerate(updater.parameters) if p.grad is not None}

        updater.optimizer.register_step_pre_hook(note)
    for i, batch in enumerate(batches):
        terms = step({name: rows(tensor) for name, tensor in batch.items()}, i / len(batches))
        result[f"terms {i}"] = {name: value for name, value in terms.items() if not name.startswith("latent/")}
    for name, part in step.parts().items():
        result[name] = part.average.module.state_dict() if name == "updater" else {}
        result[name] |= part.state_dict() if isinstance(part, nn.Module) else {}
    return result


def ours():
    """Everything of train.json that is no plain mean, and its discriminator."""
    torch.manual_seed(3)
    weights = {"identity": 0.3, "ssim": 1.0, "medical": 0.5, "residual_rate": 0.01, "disentanglement": 0.5}
    weights |= {"patient_correlation": 3.0, "finding_correlation": 3.0, "evidence_matching": 1.0, "swap_finding": 0.1}
    recipe = Recipe(weights | {"swap_adversarial": 0.1}, every_swap=True)
    parts = {"swap_discriminator": tiny_discriminator(), "recogniser": tiny_recogniser()}
    step = DisentanglementStep(tiny_disentangler(dropout=0.0), recipe, OPTIMISATION, ContrastiveIdentity(), **parts)
    return trained(step, [uneven(seed) for seed in range(STEPS)])


def papers():
    """Eq. 1 to 4 and 6."""
    torch.manual_seed(4)
    weights = {"medical": 1.0, "identity": 5.0, "ssim": 1.0, "psnr": 1.0, "adversarial": 0.5, "disentanglement": 1.0}
    recipe = Recipe(weights, every_swap=True, identity_from_same=False, free_cycle=True, augment=False)
    step = DisentanglementStep(
        tiny_disentangler(dropout=0.0), recipe, OPTIMISATION, SiameseIdentity(2.0), tiny_discriminator()
    )
    return trained(step, [uneven(seed) for seed in range(STEPS)])


def classified():
    """Eq. 2 with a class for each patient, and our contrastive loss."""
    torch.manual_seed(9)
    model = tiny_disentangler(SIZE, dropout=0.0)
    objective = SummedIdentity([ClassifiedIdentity(model.identity_classifier), ContrastiveIdentity()])
    step = DisentanglementStep(model, Recipe({"medical": 0.5, "identity": 1.0, "ssim": 1.0}), OPTIMISATION, objective)
    return trained(step, [uneven(seed) for seed in range(STEPS)])


def uneven(seed):
    """A batch of which the first rank has 2 patients with a second image, the second one 5."""
    batch = pair_batch(SIZE, seed)
    batch["has_same"] = torch.tensor([0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0], dtype=torch.bool)
    return batch


def identity_vae():
    """Eq. 7, with zeros for its random numbers: ranks draw their own."""
    torch.manual_seed(5)
    weights = {"reconstruction": 1.0, "kl": 0.1, "repulsion_original": 0.3, "repulsion_other": 0.3}
    step = IdentityVAEStep(IdentityVAE(8, 4, 16, dropout=0.0), weights, OPTIMISATION, margin=3.0)
    batches = [{name: torch.randn(SIZE, 8) for name in ("identity", "other")} for _ in range(STEPS)]
    with mock.patch("torch.randn_like", torch.zeros_like):
        return trained(step, batches)


def gathering():
    """What is gathered from tensors of several types, and the gradients of losses that differ from rank to rank."""
    everything = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(6))
    own = rows(everything).clone().requires_grad_()
    z, code, flag = ranks.gathered(own, rows(torch.arange(6) * 2**40), rows(torch.arange(6) > 2))
    factor = dist.get_rank() + 1.0 if ranks.distributed() else 1.0
    (factor * (z[:, None] - z).square().prod(2).sum() + 0 * code.sum()).backward()
    return {"z": z.detach(), "code": code, "flag": flag, "gradient": own.grad}


def averaging():
    """The mean gradients of a layer in a memory layout of its own and of one that was not used."""
    torch.manual_seed(7)
    layer, idle = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Linear(2, 2)
    images = torch.randn(SIZE, 3, 5, 5)
    layer(rows(images)).square().mean().backward()
    ranks.average_gradients([*layer.parameters(), *idle.parameters()])
    return {"weight": layer.weight.grad, "bias": layer.bias.grad}


def normalising(device="cpu", share=rows, average=ranks.average_statistics):
    """Running statistics of batch normalisation after three batches, kept as the trainer keeps them."""
    torch.manual_seed(8)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).to(device)
    ranks.synchronise_statistics([network])
    for seed in range(3):
        network(share(pair_batch(SIZE, seed)["i_ori"]).to(device))
        average([network])
    return {name: network.state_dict()[f"1.running_{name}"].cpu() for name in ("mean", "var")}


def agreeing():
    return {"same": ranks.agreed(5, "cpu"), "different": ranks.agreed(dist.get_rank(), "cpu")}


EXPERIMENTS = (ours, papers, classified, identity_vae, gathering, averaging, normalising, agreeing)


def start_two(folder, *more):
    """Run this file on two ranks; what each of them returned."""
    command = [sys.executable, __file__, str(folder)]
    started = [
        subprocess.Popen([*command, str(rank), *more], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    return [torch.load(folder / f"rank_{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Every experiment's result on each of two ranks."""
    return start_two(tmp_path_factory.mktemp("ranks"))


# ---- One step ----


def flat(result):
    """Tensors by their path."""
    if isinstance(result, dict):
        return {f"{name}/{rest}": tensor for name, part in result.items() for rest, tensor in flat(part).items()}
    return {"": result}


@pytest.mark.parametrize("experiment", [ours, papers, classified, identity_vae], ids=lambda e: e.__name__)
def test_two_ranks_train_what_one_process_with_both_batches_trains(both, experiment):
    """Terms, gradients, every network, average and memory, over four iterations, in float32 within 1e-5."""
    whole, parts = flat(experiment()), [flat(result[experiment.__name__]) for result in both]
    assert whole.keys() == parts[0].keys()
    for name, expected in whole.items():
        first, second = (part[name] for part in parts)
        if name.startswith("terms"):
            first = (first + second) / 2  # a rank's own term is its share of a mean
        else:
            assert torch.equal(first, second), name
        # Absolute, too: an input near a kink of its activation may fall on either side by rounding, on some processors.
        torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")


def test_gathered_rows_come_in_the_order_of_the_ranks_whatever_their_type(both):
    whole, order = gathering(), torch.tensor([0, 2, 4, 1, 3, 5])
    for result in both:
        for name in ("z", "code", "flag"):
            assert torch.equal(result["gathering"][name], whole[name][order]), name
            assert result["gathering"][name].dtype == whole[name].dtype


def test_a_gathered_tensor_s_gradient_is_summed_over_the_ranks(both):
    """The losses of the ranks are the single one's, times 1 and times 2."""
    for rank, result in enumerate(both):
        torch.testing.assert_close(result["gathering"]["gradient"], 3 * gathering()["gradient"][rank::2])


def test_alone_nothing_is_copied():
    z, parameter = torch.zeros(2), nn.Parameter(torch.zeros(2))
    parameter.grad = z
    ranks.average_gradients([parameter])
    assert ranks.gathered(z)[0] is z and ranks.average_over_ranks(z) is z and parameter.grad is z


def test_averaged_gradients_keep_their_memory_layout(both):
    """A fused Adam walks through a parameter and its gradient side by side."""
    whole = averaging()
    for result in both:
        for name, gradient in result["averaging"].items():
            torch.testing.assert_close(gradient, whole[name])
            assert gradient.stride() == whole[name].stride()
    assert not whole["weight"].is_contiguous()


def test_ranks_agree_or_not(both):
    assert [result["agreeing"] for result in both] == [{"same": True, "different": False}] * 2


# ---- Batch normalisation ----


def test_on_a_cpu_running_statistics_are_the_means_over_the_ranks(both):
    alone = [normalising(share=lambda t, r=r: t[r::2], average=lambda _: None) for r in (0, 1)]
    for name, kept in both[0]["normalising"].items():
        assert torch.equal(kept, both[1]["normalising"][name])
        torch.testing.assert_close(kept, (alone[0][name] + alone[1][name]) / 2)
    assert not torch.equal(alone[0]["mean"], alone[1]["mean"])


def test_on_cuda_every_batch_normalisation_is_synchronised_under_its_name(monkeypatch):
    """As far as it can be told without a GPU: parameters say that they are on one."""
    model, critic = tiny_disentangler(norm="batch"), Discriminator(32, 1, (8, 16), norm="batch")
    step = DisentanglementStep(
        model, Recipe({"ssim": 1.0, "adversarial": 1.0}), OPTIMISATION, ContrastiveIdentity(), critic
    )
    names, parameters = list(model.state_dict()), list(model.parameters())
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    monkeypatch.setattr(ranks, "distributed", lambda: True)
    StepTrainer("cpu", 1, PairLoader(tiny_cohort(), 6), step)
    found = [
        m for part in (model, critic, step.updater.smoothed) for m in part.modules() if "BatchNorm" in str(type(m))
    ]
    assert len(found) > 3 and {type(m) for m in found} == {nn.SyncBatchNorm}
    assert list(model.state_dict()) == names and all(a is b for a, b in zip(parameters, model.parameters()))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus_batch_normalisation_is_that_of_one_process_with_both_batches(tmp_path):
    results, whole = start_two(tmp_path, "cuda"), normalising()
    for name, expected in whole.items():
        torch.testing.assert_close(results[0]["normalising"][name], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(results[0]["normalising"][name], results[1]["normalising"][name])


# ---- Batches ----


@pytest.mark.parametrize(("images", "size"), [(30, 4), (30, 8), (17, 3), (10, 40)])
def test_ranks_draw_disjoint_anchors_which_are_together_those_of_one_process(images, size):
    cohort = tiny_cohort(images)
    whole = PairSampler(cohort, 2 * size)
    parts = [PairSampler(cohort, size, rank=rank, world_size=2) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1])
    for iteration in range(2 * len(whole)):
        first, second = (set(part.indices(iteration)["ori"].tolist()) for part in parts)
        assert not first & second
        assert len(first) == len(second) and first | second <= set(whole.indices(iteration)["ori"].tolist())


def test_ranks_of_stage_2_draw_disjoint_shares_of_one_process_s_batch():
    gallery = Gallery(torch.arange(12.0)[:, None], torch.arange(12) // 2)
    whole = IdentityPairs(gallery, 8, None)
    parts = [IdentityPairs(gallery, 4, None, rank=rank, world_size=2) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == 1
    for expected, *found in zip(whole, *parts):
        for name in expected:
            assert torch.equal(torch.stack([batch[name] for batch in found], dim=1).flatten(0, 1), expected[name])
        if whole.start == 5:
            break


# ---- Starting again ----


@pytest.mark.parametrize(
    ("kept", "advice"), [(24, r"has 48 over its 4 ranks, --batch_size 6 gives 24:"), (6, "which do not divide 6:")]
)
def test_ranks_with_other_batches_are_told_which_batch_goes_on(tmp_path, monkeypatch, kept, advice):
    def trainer(size):
        step = IdentityVAEStep(IdentityVAE(4, 2, 4), {"kl": 1.0}, OPTIMISATION)
        pairs = IdentityPairs(Gallery(torch.zeros(4, 4), torch.arange(4)), 2, 3)
        return StepTrainer("cpu", 1, pairs, step, resume=Resume(tmp_path, settings={"batch_size": size}))

    trainer(kept).run()
    monkeypatch.setattr(ranks, "world_size", lambda: 4)
    with pytest.raises(ValueError, match=f"made with batch_size = {kept}, this run .*{advice}"):
        trainer(48).run()


def test_ranks_that_found_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    pairs = IdentityPairs(Gallery(torch.zeros(4, 4), torch.arange(4)), 2, 3)
    step = IdentityVAEStep(IdentityVAE(4, 2, 4), {"kl": 1.0}, OPTIMISATION)
    monkeypatch.setattr(ranks, "agreed", lambda iteration, device: iteration != 0)
    with pytest.raises(ValueError, match=r"stands at iteration 0.*storage that all machines share"):
        StepTrainer("cpu", 1, pairs, step, resume=Resume(tmp_path)).run()


@pytest.mark.parametrize(("machines", "restarts", "refused"), [(1, 3, False), (2, 0, False), (2, 3, True)])
def test_a_restart_on_several_machines_needs_a_store_of_its_own(monkeypatch, machines, restarts, refused):
    count = {"MAX_RESTARTS": restarts, "RESTART_COUNT": 1, "USE_AGENT_STORE": True}
    for name, value in count.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", str(value))
    monkeypatch.setenv("GROUP_WORLD_SIZE", str(machines))
    kept = dist.HashStore()
    if refused:
        with pytest.raises(RuntimeError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
            ranks.without_earlier_starts(kept)
        return
    kept.set("address", "of a process that is gone")
    store = ranks.without_earlier_starts(kept)
    assert not store.check(["address"])
    store.set("address", "of this one")
    assert store.get("address") == b"of this one"


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    rank, device = int(sys.argv[2]), (sys.argv[3:] or ["cpu"])[0]
    backend = "nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=rank, world_size=2)
    done = {"normalising": normalising(device)} if device == "cuda" else {e.__name__: e() for e in EXPERIMENTS}
    torch.save(done, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()
