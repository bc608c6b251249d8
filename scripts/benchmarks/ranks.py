"""Several processes as one training: weak scaling on this machine's CPU, measured.

One step of one process is timed alone; then all ranks do a step each at the same time, first without a word to each
other, which shows what sharing the machine costs, then as one training. Each rank has its own thread and the same batch
in all three, so that the ideal is the same time.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks import timing
from benchmarks.step import MIDDLE, bundle_step, random_batch
from monai_anon import ranks
from monai_anon.compute import PLAIN

WAYS = ("alone", "side_by_side", "together", "all_reduce")


def measure(
    recipe: str = "train", batch_size: int = 24, world_size: int = 2, rounds: int = 5, steps: int = 2, size: int = 64
) -> dict[str, Any]:
    """Weak scaling of `world_size` gloo processes with one thread each, in float32.

    Args:
        recipe: `train` or `paper`.
        batch_size: images I_ori of one rank's step.
        rounds, steps: turns of each way, and steps a turn.
        size: side of the images in pixels.

    Returns:
        Milliseconds a step (medians over the rounds), `efficiency` (alone over together, with its least and largest
        round), `share_of_exchange` (of the time together, what is more than side by side) and the gradients' bytes with
        the time of one all-reduce of as many.

    Raises:
        RuntimeError: a process died.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = context.Pipe(duplex=False)
        settings = recipe, batch_size, rounds, steps, size
        started = [
            context.Process(target=_rank, args=(rank, world_size, f"file://{folder}/group", sender, settings))
            for rank in range(world_size)
        ]
        for process in started:
            process.start()
        sender.close()
        try:
            seconds, gradient_bytes = receiver.recv()
        except EOFError:
            raise RuntimeError("a rank died; its message is above") from None
        finally:
            for process in started:
                process.join()
    timings = timing.Timings(seconds)
    efficiency = timings.speed_up("together", "alone")
    milliseconds = {name: 1e3 * timings.median(name) for name in WAYS}
    together, side_by_side = seconds["together"], seconds["side_by_side"]
    return {
        "recipe": recipe,
        "ranks": world_size,
        "threads_per_rank": 1,
        "batch_size": batch_size,
        "timed_steps": rounds * steps,
        "samples_per_s": world_size * batch_size / timings.median("together"),
        "samples_per_s_alone": batch_size / timings.median("alone"),
        "ms_per_step": {name: milliseconds[name] for name in WAYS[:3]},
        "efficiency": efficiency.median,
        "efficiency_range": [efficiency.least, efficiency.largest],
        "efficiency_side_by_side": timings.speed_up("side_by_side", "alone").median,
        "share_of_exchange": statistics.median(1 - b / t for b, t in zip(side_by_side, together, strict=True)),
        "gradient_mb": gradient_bytes / 1e6,
        "all_reduce_ms": milliseconds["all_reduce"],
        "all_reduce_share": milliseconds["all_reduce"] / milliseconds["together"],
    }


def _rank(rank: int, world_size: int, meeting: str, sender: Any, settings: tuple) -> None:
    """One rank's turns; rank 0 sends the seconds of a step in each way, and the bytes of the gradients."""
    recipe, batch_size, rounds, steps, size = settings
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    step, batch = bundle_step(recipe, PLAIN, "cpu", size), random_batch(batch_size, size, "cpu")
    flat = torch.zeros(sum(p.numel() for u in (step.updater, *step.critic_updaters.values()) for p in u.parameters))

    def turn(way: str) -> None:
        for _ in range(steps):
            if way == "all_reduce":
                dist.all_reduce(flat)
            elif way == "together":
                step(batch, MIDDLE)
            elif way == "side_by_side" or rank == 0:
                with mock.patch.object(ranks, "distributed", return_value=False):
                    step(batch, MIDDLE)

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in range(rounds + 1):  # the first is for warming up
        for way in WAYS[:: -1 if index % 2 else 1]:
            dist.barrier()
            start = time.perf_counter()
            turn(way)
            if index:
                seconds[way].append((time.perf_counter() - start) / steps)
    if rank == 0:
        sender.send((seconds, flat.numel() * flat.element_size()))
    dist.barrier()
    dist.destroy_process_group()
