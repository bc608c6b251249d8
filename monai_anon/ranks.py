"""What the processes of one training share, one rank to a GPU: gradients, batches, statistics of batch normalisation.

W ranks with batches of B images train as one process with a batch of W B (docs/many_gpus.md says what stays local). A
term that is a plain mean over images needs nothing for that, since gradients are averaged over the ranks; a ratio needs
its denominator averaged, and a term that compares images with each other needs them gathered. In a single process each
function here returns what it was given.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# ---- The group ----


def join(device: torch.device | str, seconds: float = 3600.0) -> None:
    """Join the ranks that torchrun has started, by NCCL on CUDA and by gloo elsewhere; nothing to do the second time.

    Args:
        device: where this rank computes.
        seconds: the longest wait for another rank: rank 0 validates alone. A rank that died is not waited for, since
            torchrun ends the others.

    Raises:
        RuntimeError: torchrun could not restart these ranks; says which variable to set.
    """
    if dist.is_initialized():
        return
    device, wait = torch.device(device), timedelta(seconds=seconds)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://", timeout=wait))
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=without_earlier_starts(store),
        rank=rank,
        world_size=size,
        timeout=wait,
        device_id=device if on_cuda else None,
    )


def without_earlier_starts(store: dist.Store) -> dist.Store:
    """The store by which ranks find each other, without what an earlier start of theirs has left there.

    torchrun keeps one store over its restarts (torch 2.13; pytorch issue 135712): a rank that starts again would
    connect to the addresses of processes that are gone, and fail or wait. On one machine the count of restarts tells
    the starts apart. Several machines may count differently; there torchrun has to make a store for each start.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    if int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) and int(os.environ["GROUP_WORLD_SIZE"]) > 1:
        raise RuntimeError(
            "torchrun --max-restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment "
            "on each of them, or ranks would look for each other at addresses from before a restart"
        )
    return dist.PrefixStore(f"start_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def distributed() -> bool:
    """Whether more than one process trains."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """How many processes train."""
    return dist.get_world_size() if distributed() else 1


def first_rank() -> bool:
    """Whether this process is the one that speaks and writes."""
    return not distributed() or dist.get_rank() == 0


def agreed(number: int, device: torch.device | str) -> bool:
    """Whether all ranks hold the same number; waits for all of them."""
    if not distributed():
        return True
    extremes = torch.tensor([number, -number], device=device)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    highest, lowest = extremes.tolist()
    return highest == -lowest


# ---- Gradients and sums ----


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over all ranks by one flat all-reduce; nothing to do in a single process.

    In place of DistributedDataParallel, which forbids what these steps do: several networks, several passes, parts
    frozen in between.
    """
    if not distributed():
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    for p, mean in zip(parameters, averaged(grads), strict=True):
        p.grad = mean


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, which leaves the given one as it is; the tensor itself in a single process."""
    if not distributed():
        return tensor
    mean = tensor / dist.get_world_size()
    dist.all_reduce(mean)
    return mean


def averaged(tensors: list[Tensor]) -> list[Tensor]:
    """Means over all ranks of tensors of one type, by one all-reduce of a flat copy."""
    flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors))
    parts = flat.split([tensor.numel() for tensor in tensors])
    # Each in its own memory layout: a fused optimiser walks through a parameter and its gradient side by side.
    means = [part.as_strided(t.shape, t.stride()) for part, t in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(means, tensors)
    flat.div_(world_size())
    dist.all_reduce(flat)
    return means


# ---- Batches ----


def gathered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors `(B, ...)` as `(W B, ...)`, the rows of all ranks in the order of the ranks, by one exchange; as they are
    in a single process.

    Types may differ, B and shapes must be the same on all ranks. A tensor's gradient is summed over all ranks, so that
    the mean of the parameters' gradients over the ranks is that of the mean of the ranks' losses. For small things:
    latents and labels, never images.
    """
    return _Gather.apply(*tensors) if distributed() else tensors


class _Gather(torch.autograd.Function):
    """Rows of all ranks forward, sum of the gradients of this rank's rows backward.

    torch.distributed.nn.functional.all_gather makes one exchange per tensor, and W more backward under gloo.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        # As bytes, whatever their types: one exchange for latents, codes and flags.
        own = [tensor.contiguous().view(torch.uint8).reshape(len(tensor), -1) for tensor in tensors]
        packed = torch.cat(own, dim=1)
        rows = packed.new_empty(dist.get_world_size() * len(packed), packed.shape[1])
        dist.all_gather(list(rows.chunk(dist.get_world_size())), packed)
        columns = rows.split([part.shape[1] for part in own], dim=1)
        return tuple(
            part.contiguous().view(tensor.dtype).reshape(-1, *tensor.shape[1:])
            for part, tensor in zip(columns, tensors, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        moving = [grad for grad, needed in zip(grads, ctx.needs_input_grad, strict=True) if needed]
        packed = torch.cat([grad.reshape(len(grad), -1) for grad in moving], dim=1)
        dist.all_reduce(packed)
        own = packed.chunk(dist.get_world_size())[dist.get_rank()]
        parts = iter(own.split([grad[0].numel() for grad in moving], dim=1))
        return tuple(
            next(parts).to(grad.dtype).reshape(-1, *grad.shape[1:]) if needed else None
            for grad, needed in zip(grads, ctx.needs_input_grad, strict=True)
        )


# ---- Batch normalisation ----


def synchronise_statistics(networks: Iterable[nn.Module]) -> None:
    """Let batch normalisation on CUDA see the batches of all ranks, in place; parameters and names stay as they are.

    By torch's SyncBatchNorm, which refuses the CPU: there each rank keeps to its own batch (see `average_statistics`).
    """
    if not distributed():
        return
    for network in networks:
        if any(p.is_cuda for p in network.parameters()):
            nn.SyncBatchNorm.convert_sync_batchnorm(network)


def average_statistics(networks: Iterable[nn.Module]) -> None:
    """Make the running statistics of batch normalisation that sees its own rank only the means over all ranks: whatever
    rank saves them, they are the same.
    """
    if not distributed():
        return
    local = [m for network in networks for m in network.modules() if type(m) is nn.BatchNorm2d]
    statistics = [s for m in local for s in (m.running_mean, m.running_var) if s is not None]
    if statistics:
        with torch.no_grad():
            for kept, mean in zip(statistics, averaged(statistics), strict=True):
                kept.copy_(mean)
