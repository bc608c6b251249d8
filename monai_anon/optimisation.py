"""Adam or Muon with a schedule, clipping, an exponential average and gradients averaged over ranks, for every step."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from monai_anon.compute import bf16_pays
from monai_anon.ranks import average_gradients


@dataclass(frozen=True)
class Optimisation:
    """The optimiser's settings.

    `lr` rises over `warmup` (share of the training) and falls by a half cosine to `final` times itself.

    `warmup=0, final=1` keeps it constant (the paper). `clip` is the largest gradient norm (0: none), `ema` the
    averaging factor a step (0: no average). `muon` moves matrices and kernels by Muon (Jordan et al. 2024), scaled so
    that a step is as long as Adam's (Liu et al. 2025), and the rest by Adam: a step takes longer and does more.
    """

    lr: float = 2e-3
    warmup: float = 0.02
    final: float = 0.02
    clip: float = 5.0
    ema: float = 0.995
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    muon: bool = False

    def factor(self, progress: float) -> float:
        """Learning rate over `lr` at `progress` in [0, 1]."""
        if progress < self.warmup:
            return (progress + 1e-3) / (self.warmup + 1e-3)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


SMALLEST_MATRIX = 16  # rows and columns: there is little to orthogonalise in a thinner one
MOMENTUM = 0.95
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: steepest at 0 of what stays near 1


class Matrices:
    """Muon over matrices and kernels, which it sees as matrices `(outputs, all inputs)`.

    Not torch's own: that multiplies in bfloat16 only, and where a CPU has no instructions for it the optimiser takes
    longer than the networks (docs/performance.md).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: Optimisation):
        self.parameters, self.decay = list(parameters), settings.weight_decay
        self.moments: list[Tensor | None] = [None] * len(self.parameters)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at a learning rate; the parameters' gradients are used up."""
        for place, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            weight, gradient = (as_matrix(tensor, parameter) for tensor in (parameter.data, parameter.grad))
            moment = self.moments[place]
            moment = self.moments[place] = torch.zeros_like(gradient) if moment is None else moment
            moment.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalised(gradient.lerp(moment, MOMENTUM))  # Nesterov's
            weight.mul_(1 - rate * self.decay).add_(update, alpha=-0.2 * rate * math.sqrt(max(weight.shape)))
            parameter.grad = None

    def state_dict(self) -> list[Tensor | None]:
        """Each parameter's momentum in the parameter's own shape; None before its first step."""
        pairs = zip(self.moments, self.parameters, strict=True)
        return [None if moment is None else as_kernels(moment, like).contiguous() for moment, like in pairs]

    def load_state_dict(self, moments: Sequence[Tensor | None]) -> None:
        for place, (like, moment) in enumerate(zip(self.parameters, moments, strict=True)):
            if moment is not None:
                laid_out = torch.empty_like(like).copy_(moment)
                self.moments[place] = as_matrix(laid_out, like).clone()


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix `(O, I)` with its singular values brought to about 1, between 0.7 and 1.2 (Jordan et al. 2024).

    Five steps of a Newton-Schulz iteration of fifth order on the side that is shorter, in bfloat16 where that is fast.
    """
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    found = wide.bfloat16() if bf16_pays(matrix.device) else wide.float()
    found = found / found.norm().clamp_min(1e-7)  # no singular value above 1
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return (found.T if len(matrix) > matrix.shape[1] else found).to(matrix.dtype)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix or kernels of at least `SMALLEST_MATRIX` rows and columns."""
    return parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= SMALLEST_MATRIX


def channels_last(tensor: Tensor) -> bool:
    """Whether kernels lie in memory with their channels together, and not in the usual order as well."""
    together = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return together and not tensor.is_contiguous()


def as_matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """`(O, ...)` as `(O, inputs)` in the memory order of `like`: a view where `tensor` has its layout."""
    return (tensor.permute(0, 2, 3, 1) if channels_last(like) else tensor).flatten(1)


def as_kernels(matrix: Tensor, like: Tensor) -> Tensor:
    """`as_matrix` back: `(O, inputs)` in the shape of `like`."""
    if not channels_last(like):
        return matrix.reshape(like.shape)
    return matrix.reshape(like.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


class Updater:
    """One optimiser over some networks: learning-rate schedule, clipping, gradients over ranks, exponential average."""

    def __init__(self, modules: Iterable[nn.Module], optimisation: Optimisation, averaged: nn.Module | None = None):
        self.parameters = [p for module in modules for p in module.parameters()]
        self.settings = optimisation
        matrices = [p for p in self.parameters if optimisation.muon and is_matrix(p)]
        self.matrices = Matrices(matrices, optimisation) if matrices else None
        chosen = {id(p) for p in matrices}
        self.optimizer = torch.optim.AdamW(
            [p for p in self.parameters if id(p) not in chosen],
            lr=optimisation.lr,
            betas=optimisation.betas,
            weight_decay=optimisation.weight_decay,
            fused=True,
        )
        self.average: AveragedModel | None = None
        if averaged is not None and optimisation.ema > 0:
            self.average = AveragedModel(averaged, use_buffers=True).requires_grad_(False).eval()
        self.averaged, self.begun = averaged, False

    @property
    def smoothed(self) -> nn.Module:
        """The exponential average of the averaged network, or the network itself."""
        if self.average is not None:
            return self.average.module
        if self.averaged is None:
            raise ValueError("this updater averages no network")
        return self.averaged

    def update(self, loss: Tensor, progress: float) -> None:
        """Backward and one step at the schedule's learning rate."""
        rate = self.settings.lr * self.settings.factor(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        average_gradients(self.parameters)
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip, foreach=True)
        self.optimizer.step()
        if self.matrices is not None:
            self.matrices.step(rate)
        self.optimizer.zero_grad(set_to_none=True)  # here and not before the backward pass: less memory at its peak
        self.update_average()

    @torch.no_grad()
    def update_average(self) -> None:
        """One step of the exponential average, over all floating tensors at once; the first one copies.

        Not torch's own update, which copies its counter to the device each time and so waits for a GPU.
        """
        if self.average is None or self.averaged is None:
            return
        pairs = list(zip(tensors_of(self.average.module), tensors_of(self.averaged), strict=True))
        smooth = [pair for pair in pairs if pair[0].is_floating_point()]
        share = 1 - self.settings.ema if self.begun else 1.0
        torch._foreach_lerp_([old for old, _ in smooth], [new for _, new in smooth], share)
        for old, new in pairs:
            if not old.is_floating_point():
                old.copy_(new)
        self.average.n_averaged += 1  # on the host
        self.begun = True

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.matrices is not None:
            state["matrices"] = self.matrices.state_dict()
        return state | ({"average": self.average.state_dict()} if self.average is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state["optimizer"]
        kernels = {name: self.optimizer.param_groups[0][name] for name in ("fused", "foreach")}
        groups = [{**group, **kernels} for group in saved["param_groups"]]  # this run's, not the checkpoint's
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        # A fused kernel walks through a parameter and its moments side by side: they need one memory layout.
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)
        if self.matrices is not None:
            self.matrices.load_state_dict(state["matrices"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.begun = bool(self.average.n_averaged)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


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
