"""Runs a step as a MONAI trainer: seeds every iteration, resumes where a killed run stopped, says what it does."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint
from monai.engines import Evaluator, Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from monai_anon import ranks
from monai_anon.compute import uncompiled
from monai_anon.optimisation import Updater

logger = logging.getLogger("monai_anon")


class Step(Protocol):
    """One iteration: batch and progress in [0, 1] to named scalars; `parts()` is what a checkpoint must hold."""

    def __call__(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]: ...

    def parts(self) -> dict[str, Any]: ...


def seed_iteration(seed: int, rank: int, iteration: int) -> None:
    """Seed torch as a pure function of these three, so that an iteration is the same in a resumed run."""
    torch.manual_seed(((seed * 1_000_003 + rank) * 10_000_019 + iteration) % 2**63)  # a date as seed would not fit


class StepTrainer(Trainer):
    """A MONAI trainer around a `Step`.

    Args:
        device: where batches are moved.
        max_epochs: length of the training; the step's schedules are shares of it.
        train_data_loader: yields dicts of tensors; with a `start` attribute it is told from which iteration to go on.
        step: the algorithm. Batch normalisation in its networks sees the batches of all ranks where that can be done.
        seed: with the data loader's seed, all the randomness there is.
        resume: keeps and restores checkpoints; None trains without.
        train_handlers: Ignite or MONAI handlers.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        step: Step,
        seed: int = 0,
        resume: "Resume | None" = None,
        train_handlers: Sequence | None = None,
    ):
        self.step, self.seed, self.resume = step, seed, resume
        self.networks = list(networks(step))
        ranks.synchronise_statistics(self.networks)
        epoch_length = len(train_data_loader) if isinstance(train_data_loader, Sized) else None
        if max_epochs < 1:
            raise ValueError(f"max_epochs is {max_epochs}; it must be at least 1")
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            decollate=False,
            handlers=train_handlers,
        )
        if resume is not None:
            resume.attach(self)

    @property
    def total_iterations(self) -> int:
        return int(self.state.max_epochs) * int(self.state.epoch_length)

    def run(self) -> None:  # type: ignore[override]
        """Train, or go on from the checkpoint; a training that is complete is left as it is."""
        if self.resume is not None:
            self.resume.restore(self)
            self.resume.refuse_different_places(self)
        if self.state.iteration >= self.total_iterations:
            logger.info(
                "already trained: %d epochs are done. Raise max_epochs to go on, or choose another output_dir.",
                self.state.epoch,
            )
            return
        if hasattr(self.data_loader, "start"):
            self.data_loader.start = self.state.iteration
        super().run()

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> dict[str, Tensor]:
        seed_iteration(self.seed, self.state.rank, self.state.iteration)
        batch = {
            k: v.to(self.state.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batchdata.items()
        }
        progress = (self.state.iteration - 1) / self.total_iterations
        engine.state.output = self.step(batch, progress)
        ranks.average_statistics(self.networks)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def networks(step: Step) -> Iterator[nn.Module]:
    """The networks of a step, and the averages of networks."""
    for part in step.parts().values():
        if isinstance(part, Updater):
            part = part.average
        if isinstance(part, nn.Module):
            yield part


class Resume:
    """Keeps `checkpoint.pt` in a folder, written whole or not at all, and restores it when the same command is run
    again.

    Rank 0 writes it and all ranks read it. Their number may be another one as long as they have as many images a batch
    together, which is what the setting `batch_size` counts: an epoch's batches then hold the same images.

    Args:
        folder: where the checkpoint is kept; made when absent.
        every: iterations between two checkpoints; one more is written at the end of each epoch.
        settings: what must not change between the two runs (data, sizes, recipe); compared on restoring.
        also: further stateful objects to keep (the best score so far).

    Raises:
        ValueError: on restoring, when the settings differ or the networks do not fit; names the setting.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 200,
        settings: Mapping[str, Any] | None = None,
        also: Mapping[str, Any] | None = None,
    ):
        self.folder, self.every, self.also = Path(folder), every, dict(also or {})
        self.settings = json.loads(json.dumps(dict(settings or {}), sort_keys=True, default=str))

    @property
    def path(self) -> Path:
        return self.folder / "checkpoint.pt"

    def objects(self, trainer: StepTrainer) -> dict[str, Any]:
        return {**trainer.step.parts(), "progress": Progress(trainer), "settings": Settings(self.settings), **self.also}

    def attach(self, trainer: StepTrainer) -> None:
        if trainer.state.rank != 0:
            return
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self.save_within_epoch)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save_within_epoch(self, trainer: StepTrainer) -> None:
        """Not at an epoch's end: that checkpoint follows the validation, or a run killed in between would skip it."""
        if trainer.state.iteration % trainer.state.epoch_length:
            self.save(trainer)

    def save(self, trainer: StepTrainer) -> None:
        """Replace the checkpoint by one rename; Ignite's `Checkpoint` removes the old file before writing the new."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".pt.part")
        torch.save({name: part.state_dict() for name, part in self.objects(trainer).items()}, draft)
        draft.replace(self.path)

    def restore(self, trainer: StepTrainer) -> bool:
        """Load the checkpoint if there is one; returns whether."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location=trainer.state.device, weights_only=True)
        kept = state.get("settings", {})
        for name in sorted(set(kept) | set(self.settings)):
            if kept.get(name) != self.settings.get(name):
                raise ValueError(
                    f"{self.path} was made with {name} = {kept.get(name)!r}, this run has {self.settings.get(name)!r}"
                    f"{counted_over_ranks(name, kept.get(name))}: give the same setting, another output_dir, or remove "
                    "the checkpoint to start anew"
                )
        try:
            Checkpoint.load_objects(self.objects(trainer), state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path} does not fit these networks; give another output_dir: {error}") from error
        logger.info(
            "resuming %s at iteration %d (epoch %d)", self.path, trainer.state.iteration, trainer.state.epoch + 1
        )
        return True

    def refuse_different_places(self, trainer: StepTrainer) -> None:
        """Ranks that start at different iterations would train different networks."""
        if not ranks.agreed(trainer.state.iteration, trainer.state.device):
            raise ValueError(
                f"{self.path} is not the same file for all ranks (here the training stands at iteration "
                f"{trainer.state.iteration}): output_dir must be on storage that all machines share"
            )


def counted_over_ranks(name: str, kept: Any) -> str:
    """What to give so that ranks have as many images a batch together as a checkpoint's; empty where that is no
    matter.
    """
    size = ranks.world_size()
    if name != "batch_size" or size == 1 or not isinstance(kept, int):
        return ""
    advice = f", --batch_size {kept // size} gives {kept}" if kept % size == 0 else f", which do not divide {kept}"
    return f" over its {size} ranks{advice}"


class Progress:
    """The trainer's place in the training as a checkpoint entry (Ignite's own would also fix max_epochs)."""

    def __init__(self, trainer: StepTrainer):
        self.trainer = trainer

    def state_dict(self) -> dict[str, int]:
        return {"iteration": self.trainer.state.iteration, "epoch_length": int(self.trainer.state.epoch_length)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        length = int(self.trainer.state.epoch_length)
        if state["epoch_length"] != length:
            raise ValueError(f"the checkpoint's epochs have {state['epoch_length']} batches, this run's {length}")
        self.trainer.state.iteration = state["iteration"]
        self.trainer.state.epoch = state["iteration"] // length


class Settings:
    """A read-only checkpoint entry."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = dict(values)

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Compared before loading; nothing to restore."""


class StepEvaluator(Evaluator):
    """A MONAI evaluator around a function `batch -> named scalars`; `state.metrics` holds their means over the batches,
    and `score`.

    Args:
        measure: called under `no_grad`; must return the same names for every batch, among them `score`.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable,
        measure: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        seed: int = 0,
        val_handlers: Sequence | None = None,
    ):
        self.measure, self.seed = measure, seed
        self.sums: dict[str, float] = {}
        epoch_length = len(val_data_loader) if isinstance(val_data_loader, Sized) else None
        super().__init__(
            device=device,
            val_data_loader=val_data_loader,
            epoch_length=epoch_length,
            decollate=False,
            val_handlers=val_handlers,
        )
        self.add_event_handler(Events.STARTED, self._reset)
        self.add_event_handler(Events.COMPLETED, self._mean)

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = {k: v.to(self.state.device) if isinstance(v, Tensor) else v for k, v in batchdata.items()}
        devices = [self.state.device] if self.state.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), uncompiled():
            seed_iteration(self.seed, 0, self.state.iteration)
            engine.state.output = self.measure(batch)
        for name, value in engine.state.output.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _reset(self) -> None:
        self.sums.clear()

    def _mean(self) -> None:
        self.state.metrics = {name: total / int(self.state.epoch_length) for name, total in self.sums.items()}
