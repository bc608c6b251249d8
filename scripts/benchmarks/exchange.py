"""What ranks would wait for each other on faster machines than can be had: a model, not a measurement.

What a step exchanges is recorded from the step itself, run in one process that is told that it is one of W: bytes and
number of all-reduces and gathers, and the calls of batch normalisation, which SyncBatchNorm makes exchanges on a GPU.
What each exchange takes is computed from a link's bandwidth and latency, and compared with an assumed time of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import nn

from benchmarks import timing
from benchmarks.step import COUNTED, MIDDLE, bundle_step, gigaflop, random_batch
from monai_anon.compute import PLAIN


@dataclass(frozen=True)
class Link:
    """The slowest connection between two neighbours of a ring: bytes a second each way, seconds an exchange takes to
    start.
    """

    name: str
    bandwidth: float
    latency: float


LINKS = (Link("NVLink", 300e9, 5e-6), Link("100 Gb/s", 12.5e9, 20e-6), Link("10 Gb/s", 1.25e9, 50e-6))
BACKWARD = 0.6  # of a step: behind what gradients could travel if they left as soon as they are made


@dataclass(frozen=True)
class Exchange:
    """One exchange of a step: bytes that each rank gives."""

    kind: str  # all_reduce or all_gather
    size: int
    purpose: str  # gradients, terms or normalisation

    def scaled(self, factor: float) -> Exchange:
        """With so many times the images: what terms exchange are latents, labels and maps."""
        return replace(self, size=round(self.size * factor)) if self.purpose == "terms" else self

    def seconds(self, ranks: int, link: Link) -> float:
        """An all-reduce by the faster of a ring, which moves the least, and a tree, which takes the fewest turns; a
        gather by doubling what is known in each turn.
        """
        turns, transfer = math.ceil(math.log2(ranks)), self.size / link.bandwidth
        if self.kind == "all_gather":
            return turns * link.latency + (ranks - 1) * transfer
        ring = 2 * (ranks - 1) * link.latency + 2 * (ranks - 1) / ranks * transfer
        tree = 2 * turns * (link.latency + transfer)
        return min(ring, tree)


def model(
    recipe: str = "paper",
    batch_size: int = 32,
    ranks: Sequence[int] = (8, 16, 64),
    step_ms: float | None = None,
    tflops: float = 275.0,
    size: int = 64,
    links: Sequence[Link] = LINKS,
) -> dict[str, Any]:
    """Share of the time that ranks compute, for each number of ranks and each link.

    Args:
        recipe: `paper` or `train`.
        batch_size: images I_ori of one rank's step.
        ranks: numbers of ranks.
        step_ms: assumed time of a step without any exchange; None: its operations, counted, at `tflops`.
        tflops: assumed speed in 10^12 operations a second.
        size: side of the images in pixels.
        links: between neighbours.

    Returns:
        Parameters and bytes, the assumptions, and one row for each number of ranks and link: milliseconds of the
        gradients, of the terms and of batch normalisation, `efficiency`, and what it would be if gradients travelled
        during the backward pass.
    """
    step = bundle_step(recipe, PLAIN, "cpu", size)
    parameters = {"model": sum(p.numel() for p in step.model.parameters())}
    parameters |= {f"{name} discriminator": sum(p.numel() for p in n.parameters()) for name, n in step.critics.items()}
    operations = gigaflop(step, "cpu", size) * batch_size
    assumed = operations / tflops if step_ms is None else step_ms
    rows = []
    for count in ranks:
        found = [exchange.scaled(batch_size / COUNTED) for exchange in recorded(step, count, size)]
        rows += [row(found, count, link, assumed) for link in links]
    return {
        "recipe": recipe,
        "batch_size": batch_size,
        "parameters": parameters,
        "gradient_mb": 4e-6 * sum(parameters.values()),
        "gflop_per_step": operations,
        "assumed_step_ms": assumed,
        "assumed_tflops": tflops if step_ms is None else None,
        "assumed_share_of_backward": BACKWARD,
        "assumed_links": {link.name: {"bytes_per_s": link.bandwidth, "latency_s": link.latency} for link in links},
        "rows": rows,
    }


def shown(result: Mapping[str, Any]) -> str:
    """A result of `model` as text: what is assumed, then the table."""
    about = timing.flat({name: value for name, value in result.items() if name != "rows"})
    rows = tabulate(result["rows"], headers="keys", floatfmt=".3g")
    return f"{tabulate(about, tablefmt='plain')}\n\n{rows}"


def row(found: Sequence[Exchange], ranks: int, link: Link, step_ms: float) -> dict[str, Any]:
    """One line of the table; milliseconds."""
    spent = {"gradients": 0.0, "terms": 0.0, "normalisation": 0.0}
    for exchange in found:
        spent[exchange.purpose] += 1e3 * exchange.seconds(ranks, link)
    rest = step_ms + spent["terms"] + spent["normalisation"]
    hidden = min(spent["gradients"], BACKWARD * step_ms)
    return {
        "ranks": ranks,
        "link": link.name,
        **{f"{purpose}_ms": milliseconds for purpose, milliseconds in spent.items()},
        "efficiency": step_ms / (rest + spent["gradients"]),
        "efficiency_overlapped": step_ms / (rest + spent["gradients"] - hidden),
    }


def recorded(step: Any, ranks: int, size: int) -> list[Exchange]:
    """What one step on `COUNTED` images exchanges as one of `ranks`, each of which is given what this one gives."""
    found: list[Exchange] = []
    gradients = {4 * sum(p.numel() for p in u.parameters) for u in (step.updater, *step.critic_updaters.values())}

    def all_reduce(tensor: torch.Tensor, *_: Any, **__: Any) -> None:
        size = tensor.numel() * tensor.element_size()
        found.append(Exchange("all_reduce", size, "gradients" if size in gradients else "terms"))

    def all_gather(parts: list[torch.Tensor], tensor: torch.Tensor, *_: Any, **__: Any) -> None:
        found.append(Exchange("all_gather", tensor.numel() * tensor.element_size(), "terms"))
        for part in parts:
            part.copy_(tensor)

    told = {"is_initialized": lambda: True, "get_world_size": lambda: ranks, "get_rank": lambda: 0}
    with ExitStack() as stack:
        for name, function in {**told, "all_reduce": all_reduce, "all_gather": all_gather}.items():
            stack.enter_context(mock.patch.object(dist, name, function))
        stack.enter_context(normalisation_noted(step, found.append))
        step(random_batch(COUNTED, size, "cpu"), MIDDLE)
    return found


@contextmanager
def normalisation_noted(step: Any, note: Callable[[Exchange], None]) -> Iterator[None]:
    """Note what SyncBatchNorm exchanges in place of each batch normalisation: mean, deviation and count forward, two
    sums backward.
    """

    def noted(module: nn.Module, *_: Any) -> None:
        if module.training:
            note(Exchange("all_gather", 4 * (2 * module.num_features + 1), "normalisation"))
            note(Exchange("all_reduce", 4 * 2 * module.num_features, "normalisation"))

    networks = (step.model, *step.critics.values())
    layers = [m for network in networks for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(noted) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
