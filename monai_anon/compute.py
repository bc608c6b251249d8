"""How the arithmetic is done: threads, precision, layout, compilation. It changes the time that a training takes, and
its figures only within the precision.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import joblib
import torch
from torch import nn

from monai_anon.ranks import distributed

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Compute:
    """How a step's networks are run. The plain way is the default: float32, rows of pixels, nothing compiled.

    Args:
        bf16: networks in bfloat16 under autocast; weights, losses and the optimiser stay in float32.
        channels_last: images and maps with the channels together, the layout of tensor cores. None: where it pays.
        compiled: a mode of `torch.compile` (`MODES`), or None. The modes without "-no-cudagraphs" in their name, other
            than `default`, replay CUDA graphs.
    """

    bf16: bool = False
    channels_last: bool | None = False
    compiled: str | None = None

    def __post_init__(self) -> None:
        if self.compiled is not None and self.compiled not in MODES:
            raise ValueError(f"compiled is {self.compiled!r}; it must be one of {list(MODES)}, or null for none")

    @property
    def replays_graphs(self) -> bool:
        return self.compiled in ("reduce-overhead", "max-autotune")

    def prepare(self, *networks: nn.Module) -> None:
        """Layout and compilation of networks, in place: parameters, names and state dicts stay as they are. What is
        synchronised over ranks is not compiled.

        Raises:
            ValueError: channels last is asked for where torch crashes.
        """
        for network in networks:
            if self.lays_channels_last(network):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compiled is not None and not synchronised(network):
                network.compile(mode=self.compiled, dynamic=False)

    def lays_channels_last(self, network: nn.Module) -> bool:
        """Whether this network's maps have the channels together. Where it pays: on CUDA in bfloat16; on a CPU in
        bfloat16 without group normalisation, whose kernel is slower that way (docs/performance.md).
        """
        device = next((p.device.type for p in network.parameters()), "cpu")
        grouped = any(isinstance(module, nn.GroupNorm) for module in network.modules())
        if self.channels_last is None:
            return self.bf16 and (device == "cuda" or (device == "cpu" and not grouped))
        if self.channels_last and device == "cpu" and grouped and not self.bf16:
            raise ValueError(
                "channels_last with group normalisation in float32 crashes torch on a CPU (2.13, backward pass); leave "
                "channels_last out, or take bf16"
            )
        return self.channels_last

    def run(self, network: Callable[..., Any], *inputs: Any) -> Any:
        """A network under autocast, on tensors or on tuples of tensors."""
        with self.autocast(inputs[0][0].device):
            return network(*inputs)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of networks on `device`, as a context."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def begin_step(self) -> None:
        """To be called before each iteration: tells CUDA graphs that the last one's results are no longer needed."""
        if self.replays_graphs:
            torch.compiler.cudagraph_mark_step_begin()


PLAIN = Compute()


def uncompiled() -> AbstractContextManager[None]:
    """Compiled networks run as they are: for validation and pictures, of other sizes than the training."""
    return torch.compiler.set_stance("force_eager")


def synchronised(network: nn.Module) -> bool:
    """Whether a network's batch normalisation talks to other ranks, which would break compiled graphs at each layer."""
    return distributed() and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def chosen(
    device: torch.device | str,
    bf16: bool | None = None,
    channels_last: bool | None = None,
    compiled: str | bool | None = None,
    threads: int | None = None,
) -> Compute:
    """What suits a device (`described` tells it); anything given is taken as it is.

    Args:
        bf16: None: where it is faster than float32 (`bf16_pays`).
        channels_last: None: where it pays (`Compute.lays_channels_last`).
        compiled: None: on CUDA, where a training is long and a kernel's launch as dear as its work; False: never; True:
            `default`; or a mode of `MODES`.
        threads: of a CPU's operators; None: OMP_NUM_THREADS where it is set, else the cores that this process may use,
            also inside a container with a quota.

    Raises:
        ValueError: no such mode, or fewer than one thread.
    """
    device = torch.device(device)
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), joblib.cpu_count())
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}; it must be at least 1, or null for all cores")
        torch.set_num_threads(threads)
    if bf16 is None:
        bf16 = bf16_pays(device)
    if compiled is None:
        compiled = device.type == "cuda" and compiler_works()
    mode = "default" if compiled is True else (compiled or None)
    return Compute(bf16, channels_last, mode)


def described(compute: Compute, device: torch.device) -> str:
    """Device, threads, precision and compilation in one line, with the settings that change them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    layout = {None: "where it pays", True: "everywhere", False: "nowhere"}[compute.channels_last]
    return (
        f"computing on {device} ({name}), networks in {'bfloat16' if compute.bf16 else 'float32'}, channels last "
        f"{layout}, {'compiled: ' + compute.compiled if compute.compiled else 'not compiled'} (change it by --bf16, "
        "--channels_last, --compiled, --threads)"
    )


def bf16_pays(device: torch.device | str) -> bool:
    """Whether bfloat16 networks are faster than float32 on `device`: GPUs since Ampere, CPUs with AVX512-BF16."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def compiler_works() -> bool:
    """Whether `torch.compile` has what it needs for CUDA: Triton."""
    from torch.utils._triton import has_triton

    return has_triton()
