"""The candidates of `quality`: recipes of stage 1 as the bundle trains them, stopped and gone on with by seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from torch import nn

from benchmarks import timing
from monai_anon.compute import Compute
from monai_anon.engines import Progress, Resume, StepTrainer
from monai_anon.handlers import CollapseGuard, TrainingCollapse
from monai_anon.preconditions import unwrapped

BUNDLE = timing.ROOT / "bundles/chest"
NOT_FINITE = "weights are not finite"


@dataclass(frozen=True)
class Recipe:
    """A config: overlays of train.json in their order, without some entries of the last, and entries laid over them.

    `without` holds beginnings of names.
    """

    about: str
    overlays: tuple[str, ...]
    without: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


NOT_LOSSES = (
    *("network_def#", "latent_sizes", "train#step#discriminator"),
    *("train#optimisation", "learning_rate", "batch_size", "max_epochs", "bf16"),
)
OUR_DISCRIMINATOR = {"_target_": "monai_anon.networks.Discriminator", "size": "@image_size", "channels": "@channels"}
RECIPES = {
    "recommended": Recipe("the recommended recipe, as the quick run trains it", ("quick.json",)),
    "paper": Recipe("the paper's losses, networks, batch and learning rate", ("paper.json",)),
    "paper_fast": Recipe("the same at 15 times its learning rate (ours)", ("paper.json",), (), {"learning_rate": 3e-4}),
    "paper_losses": Recipe(
        "the paper's losses alone: networks, optimiser, batch and schedule are those of `recommended`",
        ("quick.json", "paper.json"),
        NOT_LOSSES,
        {"train#step#discriminator": OUR_DISCRIMINATOR},
    ),
}


@dataclass(frozen=True)
class Run:
    """What is compared, how, and where it is kept.

    Args:
        output: folder of the curves, checkpoints and judges.
        recipes: of `RECIPES`.
        budget: seconds of training a recipe.
        checks: turns that they are divided into, each with a judgement at its end.
        seed: of the trainings; the judges have their own.
        manifest: None for the generated cohort.
        part: whose images are judged; the bars are those of the test part.
        size: side of the images in pixels.
        epochs: length of the trainings with a schedule, in place of quick.json's.
        judges: folder of judges that are trained already; None for `output`.
        judge_steps: batches for each judge; None for the bundle's.
        device: of trainings and judges.

    Raises:
        ValueError: names the setting.
    """

    output: Path
    recipes: tuple[str, ...] = ("recommended", "paper")
    budget: float = 600.0
    checks: int = 10
    seed: int = 0
    manifest: str | None = None
    part: str = "test"
    size: int = 64
    epochs: int | None = None
    judges: Path | None = None
    judge_steps: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.recipes if name not in RECIPES]:
            raise ValueError(f"recipes: unknown {unknown}; known are {list(RECIPES)}")
        if not self.recipes or len(set(self.recipes)) < len(self.recipes):
            raise ValueError(f"recipes are {list(self.recipes)}; give each once, and at least one")
        if self.budget <= 0 or self.checks < 1:
            raise ValueError(f"budget is {self.budget:g} s, checks are {self.checks}; both must be positive")
        if self.part not in ("validation", "test"):
            raise ValueError(f"part is {self.part!r}; judged are 'validation' or 'test', of people nobody trained on")

    @property
    def turn(self) -> float:
        """Seconds of training between two judgements."""
        return self.budget / self.checks


# ---- Configs ----


def configuration(name: str, run: Run, compute: Compute) -> ConfigParser:
    """The bundle's config of a recipe: no handlers but ours, and nothing written but by us."""
    recipe, configs = RECIPES[name], BUNDLE / "configs"
    parser = ConfigParser()
    parser.read_config([configs / name for name in ("train.json", *recipe.overlays[:-1])])
    for entry, value in ConfigParser.load_config_file(configs / recipe.overlays[-1]).items():
        if not entry.startswith(recipe.without):
            merge_kv(parser, entry, value)
    places = {"bundle_root": str(BUNDLE), "output_dir": str(run.output / name), "cache_dir": str(run.output / "cache")}
    data = {"manifest": run.manifest, "image_size": run.size, "seed": run.seed}
    means = {"bf16": compute.bf16, "channels_last": compute.channels_last, "compiled": compute.compiled or False}
    ours = {f"{stage}#trainer#train_handlers": [] for stage in ("recogniser", "train")}
    ours |= {f"{stage}#trainer#resume": None for stage in ("recogniser", "train")}
    if run.epochs is not None and "quick.json" in recipe.overlays:
        ours["max_epochs"] = run.epochs
    for entry, value in (
        dict(recipe.changes) | places | data | means | ours | {"device": f"$torch.device('{run.device}')"}
    ).items():
        parser[entry] = value
    return parser


def summary(parser: ConfigParser) -> dict[str, Any]:
    """What tells a recipe from another, as plain values."""
    found = {entry: parser[entry] for entry in ("max_epochs", "batch_size", "learning_rate", "latent_sizes")}
    return found | {"weights": {term: weight for term, weight in parser["weights"].items() if weight > 0}}


# ---- One recipe under training ----


@dataclass
class Clock:
    """What a training has cost, as a checkpoint entry: seconds, seconds of the process's CPU time, images I_ori."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    images: int = 0
    collapse: str = ""

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Candidate:
    """One recipe's trainings: the recogniser's where it has one, then stage 1.

    They are exactly the bundle's: an iteration's randomness does not depend on where turns end.

    Args:
        parser: of `configuration`.
        folder: gets `checkpoint.pt`, or has it from a run that was stopped.
        device: whose work is waited for before a clock is read.
        tick: called after each iteration with the seconds done so far.
    """

    def __init__(
        self,
        parser: ConfigParser,
        folder: Path,
        device: str = "cpu",
        tick: Callable[[float], object] = lambda seconds: None,
    ):
        torch.manual_seed(parser["seed"])
        try:
            self.step = parser.get_parsed_content("train#step")
            stages = ["recogniser", "train"] if self.step.recogniser is not None else ["train"]
            self.trainers: list[StepTrainer] = [parser.get_parsed_content(f"{stage}#trainer") for stage in stages]
            same = parser.get_parsed_content("train#resume#settings")
        except RuntimeError as error:
            raise unwrapped(error) from error
        self.device, self.tick, self.clock = device, tick, Clock()
        self.started, self.until, self.interrupted = 0.0, 0.0, set[StepTrainer]()
        also: dict[str, Any] = {"clock": self.clock}
        for trainer in self.trainers[:-1]:
            also |= {f"recogniser_{name}": part for name, part in trainer.step.parts().items()}
            also["recogniser_progress"] = Progress(trainer)
        self.checkpoint = Resume(folder, settings=same, also=also)
        self.checkpoint.restore(self.trainers[-1])
        for trainer in self.trainers:
            trainer.add_event_handler(Events.ITERATION_COMPLETED, self.count)

    @property
    def model(self) -> nn.Module:
        """The average of the networks under training, or the networks themselves where none is kept."""
        return self.step.updater.smoothed

    @property
    def ended(self) -> str:
        """Why there is nothing more to train; empty where there is."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.model.state_dict().values()):
            return NOT_FINITE
        return "" if any(unfinished(trainer) for trainer in self.trainers) else "schedule complete"

    def train(self, until: float) -> None:
        """Train until the clock stands at `until` seconds (after the iteration under way) or the schedule is complete,
        and keep a checkpoint.
        """
        waiting = [trainer for trainer in self.trainers if unfinished(trainer)]
        if self.clock.seconds >= until or not waiting:
            return
        self.until = until
        cpu, self.started = time.process_time(), time.perf_counter()
        for trainer in waiting:
            self.interrupted.discard(trainer)
            trainer.run()
            if self.now() >= until:
                break
        timing.synchronise(self.device)
        self.clock.seconds = self.now()
        self.clock.cpu_seconds += time.process_time() - cpu
        self.clock.collapse = collapse(trainer)
        self.checkpoint.save(self.trainers[-1])

    def now(self) -> float:
        return self.clock.seconds + time.perf_counter() - self.started

    def count(self, trainer: StepTrainer) -> None:
        """After each iteration: an interrupted engine goes on from there when it is run again."""
        self.clock.images += len(trainer.state.batch["i_ori"])
        seconds = self.now()
        self.tick(seconds)
        if seconds >= self.until and unfinished(trainer):
            trainer.interrupt()
            self.interrupted.add(trainer)

    def close(self) -> None:
        """Let interrupted engines end where they stand, for good: Ignite reports an error for one that is left so."""
        for trainer in self.interrupted:
            trainer.terminate()
            trainer.run()
        self.interrupted.clear()


def unfinished(trainer: StepTrainer) -> bool:
    return trainer.state.iteration < trainer.total_iterations


def collapse(trainer: StepTrainer) -> str:
    """What the bundle's guard has against the last iteration; empty where it has nothing, or it is early."""
    try:
        CollapseGuard(patience=1)(trainer)
    except TrainingCollapse as error:
        return str(error)
    return ""
