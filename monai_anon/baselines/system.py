"""A compared system that is more than a formula: what it is given, how it is trained, how it is kept.

All are trained alike: the same images in the same order, as many of them, networks of the same widths, the same guides.
What differs is their own file: terms, weights, and where a new identity comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from ignite.handlers import ProgressBar
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.cohort import Cohort
from monai_anon.engines import Resume, Step, StepTrainer
from monai_anon.model_files import read_tensors, save_weights
from monai_anon.networks import Recogniser
from monai_anon.optimisation import Optimisation, Updater
from monai_anon.pairs import PairLoader
from monai_anon.recognition import Batch, RecogniserStep, finding_objective, jitter


class IdentityGuide(nn.Module):
    """Tells training patients apart: an image `(B, C, S, S)` to its unit vector `(B, D)`, and that to logits `(B, P)`.

    A row of `templates` is a template of a person: it is part of no system's file.
    """

    SCALE = 16.0  # of cosines, as logits

    def __init__(
        self, channels: int = 1, patients: int = 2, widths: Sequence[int] = (32, 64, 96, 128), dimensions: int = 64
    ):
        super().__init__()
        self.body = Recogniser(channels, dimensions, widths)
        self.templates = nn.Parameter(torch.randn(patients, dimensions) * 0.1)

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.body(image), dim=1)

    def patients(self, vectors: Tensor) -> Tensor:
        """Logits `(B, P)` of unit vectors `(B, D)`."""
        return self.SCALE * vectors @ F.normalize(self.templates, dim=1).T


def identity_objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Contrastive loss between patients, and cross-entropy over all of them, on jittered pairs of images."""
    assert isinstance(network, IdentityGuide)
    ori, same = network(jitter(torch.cat([batch["i_ori"], batch["i_same"]]))).chunk(2)
    patient = batch["patient_ori"]
    logits = network.patients(torch.cat([ori, same]))
    return {
        "contrastive": losses.contrastive_loss(ori, same, patient, batch["has_same"]),
        "patient": losses.classification_loss(logits, torch.cat([patient, patient])),
    }


@dataclass(frozen=True)
class Guides:
    """Networks that systems learn from, fitted to the training part first and frozen then: the same ones for all.

    They never judge: judges have another architecture, another seed and are trained elsewhere.
    """

    finding: Recogniser
    identity: IdentityGuide


@dataclass(frozen=True)
class Setting:
    """What every system is trained with.

    Args:
        cohort: the training part; no other is seen.
        guides: frozen networks on `device`.
        optimisation: of all networks that play against none.
        batches: the budget.
        batch_size: anchors of a batch (I_ori); with I_tar and I_same it holds three times as many images.
        game: of all networks that play against one another, such as generator and critic; None: as the others.
    """

    cohort: Cohort
    guides: Guides
    optimisation: Optimisation
    batches: int
    batch_size: int = 16
    seed: int = 0
    device: torch.device | str = "cpu"
    game: Optimisation | None = None

    @property
    def optimisation_of_games(self) -> Optimisation:
        return self.optimisation if self.game is None else self.game


class System(nn.Module):
    """A compared anonymizer with something to learn from the training part.

    `forward` maps images `(B, C, S, S)` in [-1, 1] to images of the same shape and range. It draws its noise from
    torch's global generator, and what it needs to know of the finding or the person it predicts. It is a formula of
    each image alone (and of noise): not of what else is in the batch.

    What `forward` needs is in parameters and buffers of what `__init__` makes, so that the system's file has it;
    buffers may get another shape in `conclude`. A gallery of people's latents is not in it.
    """

    shares: ClassVar[str] = ""
    """Name of a training that several systems share, which then differ in `conclude` only; empty: one of its own."""

    def begin(self, setting: Setting) -> Step | None:
        """The step of the training, over new networks and optimisers of the system; None: nothing is trained."""
        return None

    def conclude(self, setting: Setting) -> None:
        """Fit what is fitted once the training is over, such as a source of identities."""

    def forward(self, image: Tensor) -> Tensor:
        raise NotImplementedError


class Budget:
    """So many batches of a loader as one epoch, whatever the size of its own."""

    def __init__(self, loader: PairLoader, batches: int):
        if batches < 1:
            raise ValueError(f"batches is {batches}; it must be at least 1")
        self.loader, self.batches, self.start = loader, batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for iteration in range(self.start, self.batches):
            self.start = iteration + 1
            yield self.loader.batch(iteration)


def run_step(step: Step, setting: Setting, folder: Path, title: str, every: int = 100) -> None:
    """Train a step for the setting's budget; goes on from the folder's checkpoint where there is one."""
    loader = PairLoader(setting.cohort, setting.batch_size, setting.seed, device=setting.device)
    kept = {"cohort": setting.cohort.fingerprint(), "batches": setting.batches, "batch_size": setting.batch_size}
    resume = Resume(folder, every, kept | {"seed": setting.seed, "step": title})
    handlers = [ProgressBar(desc=title, disable=None)]  # none in a file
    StepTrainer(
        setting.device, 1, Budget(loader, setting.batches), step, setting.seed, resume=resume, train_handlers=handlers
    ).run()


def smoothed(step: Step) -> None:
    """Put the exponential averages of a step's networks in their places."""
    for part in step.parts().values():
        if isinstance(part, Updater) and part.average is not None and part.averaged is not None:
            part.averaged.load_state_dict(part.smoothed.state_dict())


def fit_guides(setting: Setting, folder: Path, widths: Sequence[int] = (32, 64, 96, 128)) -> Guides:
    """Guides trained for the setting's budget (its own guides are not looked at), or read from the folder."""
    cohort = setting.cohort
    torch.manual_seed(setting.seed)
    channels = cohort.images.shape[1]
    finding = Recogniser(channels, cohort.num_classes, widths).to(setting.device)
    identity = IdentityGuide(channels, cohort.num_patients, widths).to(setting.device)
    for name, network, objective in (
        ("finding", finding, finding_objective),
        ("identity", identity, identity_objective),
    ):
        step = RecogniserStep(network, objective, setting.optimisation)
        run_step(step, setting, folder / name, f"guide: {name}")
        smoothed(step)
        network.eval().requires_grad_(False)
    return Guides(finding, identity)


def train_system(system: System, setting: Setting, folder: Path, title: str) -> System:
    """The system trained, concluded and in evaluation mode; goes on where a stopped training was.

    Where the system `shares` a training, that one's checkpoint is kept beside `folder`, in a folder of the training's
    name: the first system trains, the others find it finished. It may hold what no system's file does (a classifier of
    patients), and stays where it is.

    Args:
        folder: gets `checkpoint.pt` while it trains, and `system.pt` at the end; is read where that is there.
    """
    file = folder / "system.pt"
    if file.exists():
        return load_system(system, file).to(setting.device).eval()
    torch.manual_seed(setting.seed)
    system.to(setting.device)
    step = system.begin(setting)
    if step is not None:
        if system.shares:
            run_step(step, setting, folder.parent / system.shares, system.shares)
        else:
            run_step(step, setting, folder, title)
        smoothed(step)
    system.eval().requires_grad_(False)
    torch.manual_seed(setting.seed)
    system.conclude(setting)
    save_weights(system.state_dict(), file)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return system.eval()


def load_system(system: System, file: Path) -> System:
    """A system with the tensors of a file; buffers take the shapes that they have there."""
    state = read_tensors(file)
    for name, buffer in list(system.named_buffers()):
        if name in state and state[name].shape != buffer.shape:
            place, _, last = name.rpartition(".")
            setattr(system.get_submodule(place), last, torch.empty_like(state[name]))
    try:
        system.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit {type(system).__name__} of these sizes: {error}") from error
    return system
