"""One training step: ours against the authors' order of calls, with the same networks, weights and batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.losses import SSIMLoss
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import timing
from benchmarks.authors import AuthorsOrder
from monai_anon import losses
from monai_anon.compute import PLAIN, Compute, described
from monai_anon.optimisation import Matrices, Optimisation
from monai_anon.steps import DisentanglementStep

CONFIGS = timing.ROOT / "bundles/chest/configs"
RECIPES = {"paper": ("train.json", "paper.json"), "train": ("train.json",)}
PAPER_SAMPLES = 6000 * 1551  # images times epochs of section 4
MIDDLE = 0.5  # of the training: every term of a recipe has joined
COUNTED = 4  # images of the batch whose operations are counted


def measure(
    compute: Compute,
    device: str = "cpu",
    recipe: str = "paper",
    batch_size: int = 32,
    rounds: int = 5,
    steps: int = 1,
    size: int = 64,
    shares: bool = False,
    memory: bool = True,
) -> dict[str, Any]:
    """Samples a second of our step and of the reference, in alternation; memory, operations, share of the peak.

    Args:
        compute: of our step.
        recipe: `paper`, whose reference is the authors' order of calls; or `train`, whose reference is our own step
            done plainly (float32, nothing compiled): the authors have no such terms.
        batch_size: images I_ori a step.
        rounds, steps: turns of each candidate, and steps a turn.
        size: side of the images in pixels.
        shares: also every change on its own, each on top of those before it.
        memory: measure the peak memory of both, each in a process of its own.
    """
    batch = random_batch(batch_size, size, device)
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; it must be one of {list(RECIPES)}")
    ways = {"reference": None if recipe == "paper" else PLAIN, **(changes(compute) if shares else {}), "ours": compute}
    candidates = {name: iteration(way, recipe, device, size) for name, way in ways.items()}
    if shares and recipe == "paper":
        candidates["our SSIM in the reference"] = iteration(None, recipe, device, size)
        candidates["our SSIM in the reference"].ssim = losses.ssim_loss
    operations = {
        name: gigaflop(iteration(way, recipe, device, size), device, size)
        for name, way in (("ours", PLAIN), ("reference", ways["reference"]))
    }

    def turns(step: Any) -> Any:
        return lambda: [step(batch, MIDDLE) for _ in range(steps)]

    warm_up = 3 if compute.compiled else 1  # compilation, and the recording of CUDA graphs
    timings = timing.alternate({name: turns(step) for name, step in candidates.items()}, rounds, device, warm_up)
    samples = {name: steps * batch_size / timings.median(name) for name in candidates}
    peak = timing.matrix_peak(device, torch.bfloat16 if compute.bf16 else torch.float32)
    speed_up = timings.speed_up("ours", "reference")
    result = {
        "recipe": recipe,
        "compute": described(compute, torch.device(device)).split(" (change")[0],
        "batch_size": batch_size,
        "timed_steps": rounds * steps,
        "ratio": speed_up.median,
        "ratio_range": [speed_up.least, speed_up.largest],
        "samples_per_s": samples["ours"],
        "reference_samples_per_s": samples["reference"],
        "ms_per_step": 1e3 * batch_size / samples["ours"],
        "gflop_per_sample": operations["ours"],
        "reference_gflop_per_sample": operations["reference"],
        "gflop_per_s": operations["ours"] * samples["ours"],
        "matrix_peak_gflop_per_s": peak,
        "share_of_peak": operations["ours"] * samples["ours"] / peak,
    }
    if recipe == "paper":
        result["hours_of_the_papers_run"] = PAPER_SAMPLES / samples["ours"] / 3600
    if memory:
        result |= peak_memories(ways, recipe, batch_size, device, size)
    if shares:
        result["shares"] = {
            name: str(timings.speed_up(name, "reference")) for name in timings.seconds if name != "reference"
        }
    return result


def changes(compute: Compute) -> dict[str, Compute]:
    """Our step from the plain one to `compute`, a change more each time."""
    ways = {"merged calls, one augmentation, fused Adam, our SSIM": PLAIN}
    if compute.bf16:
        ways["+ bfloat16"] = Compute(bf16=True)
    if compute.channels_last is not False:
        ways["+ channels last where it pays"] = Compute(compute.bf16, compute.channels_last)
    if compute.compiled:
        ways[f"+ compiled: {compute.compiled}"] = compute
    return ways


def iteration(compute: Compute | None, recipe: str, device: str, size: int) -> DisentanglementStep | AuthorsOrder:
    """Our step of a recipe, or without `compute` the authors' order on copies of the same networks."""
    step = bundle_step(recipe, compute or PLAIN, device, size)
    if compute is not None:
        return step
    objective, settings = step.identity_objective, step.updater.settings
    return AuthorsOrder(
        copy.deepcopy(step.model),
        copy.deepcopy(step.critics["adversarial"]),
        {name: weight for name, weight in step.recipe.weights.items() if weight > 0},
        step.recipe.noise,
        objective.margin,
        settings.lr,
        tuple(settings.betas),
        step.recipe.augment,
    )


def bundle_step(recipe: str, compute: Compute, device: str, size: int) -> DisentanglementStep:
    """The bundle's own step of a recipe, with its first weights of seed 0."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / name for name in RECIPES[recipe]])
    given = {"bf16": compute.bf16, "channels_last": compute.channels_last, "compiled": compute.compiled or False}
    for name, value in {"device": f"$torch.device('{device}')", "image_size": size, **given}.items():
        parser[name] = value
    torch.manual_seed(0)
    return parser.get_parsed_content("train#step")


def random_batch(count: int, size: int, device: str) -> dict[str, Tensor]:
    """A batch as `PairLoader` gives it, of noise: the arithmetic is the same."""
    generator = torch.Generator().manual_seed(1)
    batch = {f"i_{which}": torch.rand(count, 1, size, size, generator=generator) * 2 - 1 for which in KINDS}
    batch |= {f"finding_{which}": torch.randint(2, (count,), generator=generator) for which in KINDS}
    rows = torch.arange(count)
    batch |= {"patient_ori": rows, "patient_tar": rows + count, "has_same": rows >= 0}
    return {name: value.to(device) for name, value in batch.items()}


KINDS = ("ori", "tar", "same")


def gigaflop(step: DisentanglementStep | AuthorsOrder, device: str, size: int) -> float:
    """Operations a sample in units of 10^9 by torch's counter: products and convolutions, forward and backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        step(random_batch(COUNTED, size, device), MIDDLE)
    return counter.get_total_flops() / COUNTED / 1e9


def peak_memories(
    ways: Mapping[str, Compute | None], recipe: str, batch_size: int, device: str, size: int
) -> dict[str, float]:
    """Largest memory in MB of two steps of ours and of the reference, and how many times the reference's ours is."""
    settings = recipe, batch_size, device, size, torch.get_num_threads()
    ours, reference = (timing.peak_memory(two_steps, ways[name], *settings) for name in ("ours", "reference"))
    return {"peak_mb": ours, "reference_peak_mb": reference, "memory_ratio": ours / reference}


def two_steps(way: Compute | None, recipe: str, batch_size: int, device: str, size: int, threads: int) -> None:
    torch.set_num_threads(threads)
    step, batch = iteration(way, recipe, device, size), random_batch(batch_size, size, device)
    for _ in range(2):
        step(batch, MIDDLE)


def hot_spots(compute: Compute, device: str, recipe: str, batch_size: int, size: int, rows: int = 12) -> dict[str, str]:
    """Share of the time of the operators that take most of it, by torch's profiler over three steps."""
    step, batch = iteration(compute, recipe, device, size), random_batch(batch_size, size, device)
    step(batch, MIDDLE)
    cuda = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as profiled:
        for _ in range(3):
            step(batch, MIDDLE)
        timing.synchronise(device)
    spent = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in profiled.key_averages()}
    total = sum(spent.values())
    longest = sorted(spent, key=spent.__getitem__, reverse=True)[:rows]
    return {name: f"{spent[name] / total:.1%}" for name in longest}


def parts(device: str, batch_size: int, size: int, rounds: int = 20) -> dict[str, str]:
    """How many times faster than the library's our own parts are: SSIM, forward and backward, and a step of Muon."""
    a, b = (random_batch(batch_size, size, device)[name] for name in ("i_ori", "i_tar"))
    library = SSIMLoss(spatial_dims=2, data_range=losses.IMAGE_RANGE)

    def run(loss: Any) -> Any:
        return lambda: loss(a, b.clone().requires_grad_()).backward()

    ssims = timing.alternate({"ours": run(losses.ssim_loss), "monai": run(library)}, rounds, device, warm_up=2)
    muons = timing.alternate({"ours": muon_step(device, True), "torch": muon_step(device, False)}, rounds, device)
    return {
        "ssim_over_monai": str(ssims.speed_up("ours", "monai")),
        "muon_over_torch": str(muons.speed_up("ours", "torch")),
    }


def muon_step(device: str, ours: bool) -> Callable[[], None]:
    """A step of Muon on a matrix as large as the kernels of 128 to 128 channels."""
    weight = torch.nn.Parameter(torch.zeros(128, 128 * 9, device=device))
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(device)
    mine = Matrices([weight], Optimisation()) if ours else torch.optim.Muon([weight], lr=1e-3)

    def step() -> None:
        weight.grad = gradient
        if isinstance(mine, Matrices):
            mine.step(1e-3)
        else:
            mine.step()

    return step
