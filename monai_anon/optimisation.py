"""Adam with a schedule, clipping, an exponential average and gradients averaged over ranks: the same for every step."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass(frozen=True)
class Optimisation:
    """Adam's settings. `lr` rises over `warmup` (share of the training) and falls by a half cosine to `final` times
    itself.

    `warmup=0, final=1` keeps it constant (the paper). `clip` is the largest gradient norm (0: none), `ema` the
    averaging factor a step (0: no average), `bf16` runs the networks in bfloat16 under autocast.
    """

    lr: float = 2e-3
    warmup: float = 0.02
    final: float = 0.02
    clip: float = 5.0
    ema: float = 0.995
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    bf16: bool = False

    def factor(self, progress: float) -> float:
        """Learning rate over `lr` at `progress` in [0, 1]."""
        if progress < self.warmup:
            return (progress + 1e-3) / (self.warmup + 1e-3)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def bf16_pays(device: torch.device | str) -> bool:
    """Whether bfloat16 networks are faster than float32 on `device`: GPUs since Ampere, CPUs with AVX512-BF16."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


class Updater:
    """One Adam over some networks: learning-rate schedule, clipping, gradients over ranks, exponential average."""

    def __init__(self, modules: Iterable[nn.Module], optimisation: Optimisation, averaged: nn.Module | None = None):
        self.parameters = [p for module in modules for p in module.parameters()]
        self.settings = optimisation
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optimisation.lr,
            betas=optimisation.betas,
            weight_decay=optimisation.weight_decay,
            foreach=True,
        )
        self.average: AveragedModel | None = None
        if averaged is not None and optimisation.ema > 0:
            decay = get_ema_multi_avg_fn(optimisation.ema)
            self.average = AveragedModel(averaged, multi_avg_fn=decay, use_buffers=True).requires_grad_(False).eval()
        self.averaged = averaged

    @property
    def smoothed(self) -> nn.Module:
        """The exponential average of the averaged network, or the network itself."""
        if self.average is not None:
            return self.average.module
        if self.averaged is None:
            raise ValueError("this updater averages no network")
        return self.averaged

    def update(self, loss: Tensor, progress: float) -> None:
        """Backward and one Adam step at the schedule's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.settings.factor(progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.parameters)
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip, foreach=True)
        self.optimizer.step()
        if self.average is not None and self.averaged is not None:
            self.average.update_parameters(self.averaged)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        return state | ({"average": self.average.state_dict()} if self.average is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over all ranks by one flat all-reduce; nothing to do in a single process.

    In place of DistributedDataParallel, which forbids what these steps do: several networks, several passes, parts
    frozen in between.
    """
    if not distributed():
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = average_over_ranks(torch.cat([g.flatten() for g in grads]))
    for p, g in zip(parameters, flat.split([g.numel() for g in grads]), strict=True):
        p.grad = g.view_as(p)


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, which leaves the given one as it is; the tensor itself in a single process."""
    if not distributed():
        return tensor
    mean = tensor / dist.get_world_size()
    dist.all_reduce(mean)
    return mean


def distributed() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """The network as a fixed function: gradients pass through to its input, none reach its weights."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield network
    finally:
        for p in trainable:
            p.requires_grad_(True)
