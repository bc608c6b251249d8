"""What happens around the iterations: collapse guard, image grids, the best model. Scalars, bars and checkpoints are
MONAI's and Ignite's.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Events
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from monai_anon import losses
from monai_anon.cohort import Cohort
from monai_anon.compute import Compute, described, uncompiled
from monai_anon.engines import StepTrainer
from monai_anon.model_files import read_record, save_weights, write_record
from monai_anon.networks import Disentangler, IdentityVAE, Latents
from monai_anon.pairs import PairLoader
from monai_anon.ranks import first_rank, world_size
from monai_anon.readers import to_uint8

logger = logging.getLogger("monai_anon")


class TrainingCollapse(RuntimeError):
    """The latents, or the losses, have become useless; going on would waste hours."""


class ComputeNote:
    """Says in the log, when a training starts, what it computes on and how, with the settings that change it."""

    def __init__(self, compute: Compute, device: torch.device | str):
        self.compute, self.device = compute, torch.device(device)

    def attach(self, trainer: StepTrainer) -> None:
        trainer.add_event_handler(Events.STARTED, self)

    def __call__(self, trainer: StepTrainer) -> None:
        logger.info(described(self.compute, self.device))


class ConfoundingNote:
    """Warns, when a training starts, of a finding that hardly ever changes within a patient.

    It is as good a mark of the patient as any, stays in the identity latent, and goes with it.

    Args:
        cohort: the training part.
        handled: whether the recipe does something about it; then nothing is said.
        least: share of the patients with several images in whom the finding must change.
    """

    def __init__(self, cohort: Cohort, handled: bool, least: float = 0.05):
        self.cohort, self.handled, self.least = cohort, handled, least

    def attach(self, trainer: StepTrainer) -> None:
        trainer.add_event_handler(Events.STARTED, self)

    def __call__(self, trainer: StepTrainer) -> None:
        changing, several = self.cohort.changing_findings()
        if self.handled or changing >= self.least * max(several, 1) or not first_rank():
            return
        logger.warning(
            "the finding changes in %d of %d patients with several images: identity and finding cannot be told apart, "
            "and a counterfactual will hardly change anything. Add confounded.json, behind train.json",
            *(changing, several),
        )


class CollapseGuard:
    """Stops a run whose latents say nothing any more, or whose losses are not finite.

    Latents collapse when an identity latent's standard deviation falls under `least_std`, or when the paper's threshold
    accepts both the same and another patient (`both_hits` or more): the paper's own criterion, the first hit rate
    alone, calls that a success. Checked every `every` iterations after `grace` iterations; `patience` checks in a row
    must fail.

    Raises:
        TrainingCollapse: says which figure, its value and what to change.
    """

    def __init__(
        self, every: int = 50, grace: int = 100, patience: int = 3, least_std: float = 1e-2, both_hits: float = 0.9
    ):
        self.every, self.grace, self.patience = every, grace, patience
        self.least_std, self.both_hits, self.failed = least_std, both_hits, 0

    def attach(self, trainer: StepTrainer) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)

    def __call__(self, trainer: StepTrainer) -> None:
        scalars = {name: float(value) for name, value in trainer.state.output.items()}
        wrong = sorted(name for name, value in scalars.items() if not math.isfinite(value))
        if wrong:
            raise TrainingCollapse(f"iteration {trainer.state.iteration}: {wrong} not finite; lower the learning rate")
        reason = self.reason(scalars)
        self.failed = self.failed + 1 if reason and trainer.state.iteration >= self.grace else 0
        if self.failed >= self.patience:
            raise TrainingCollapse(
                f"iteration {trainer.state.iteration}: the identity latents have collapsed ({reason}). Usual causes: "
                "the disentanglement weight pulls all latents to zero under a small budget; lower it or the learning "
                "rate, raise the identity weight, or train with the recommended recipe (train.json)"
            )

    def reason(self, scalars: Mapping[str, float]) -> str:
        """Why these scalars are a collapse, or an empty string."""
        std = scalars.get("latent/identity_std", math.inf)
        if std < self.least_std:
            return f"standard deviation {std:.2g}, at least {self.least_std:.2g} expected"
        same, other = scalars.get("latent/same_hit", 0.0), scalars.get("latent/other_hit", 0.0)
        if min(same, other) >= self.both_hits:
            return f"threshold 0.05 accepts the same patient ({same:.0%}) and another one ({other:.0%})"
        return ""


class ReplacementScore:
    """Stage 1's validation: how well the three replacements work by the model's *own* encoder and classifier, to choose
    a checkpoint.

    `ssim` of the reconstruction; `identity_replaced`, share of identity swaps whose identity latent is nearer to the
    target's than to the original's; `finding_replaced`, accuracy of C_med for the target's finding after a medical
    swap, re-encoded; `finding_kept` after an identity swap. `score`, the key metric, is the mean of the four. Nothing
    here is a claim: claims come from independent judges.
    """

    def __init__(self, model: Disentangler):
        self.model = model

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        model = self.model.eval()
        size = len(batch["i_ori"])
        z = model.encode(torch.cat([batch["i_ori"], batch["i_tar"]]))
        z_ori, z_tar = (Latents(*rows) for rows in zip(*(latent.split(size) for latent in z), strict=True))
        mixed = [z_ori, z_ori._replace(identity=z_tar.identity), z_ori._replace(medical=z_tar.medical)]
        images = model.decode(Latents(*(torch.cat(latent) for latent in zip(*mixed, strict=True))))
        again = model.encode(images[size:])
        finding = model.classify(again.medical).argmax(1)
        moved = losses.latent_distance(again.identity[:size], z_tar.identity)
        stayed = losses.latent_distance(again.identity[:size], z_ori.identity)
        measured = {
            "ssim": losses.ssim(images[:size], batch["i_ori"]).mean(),
            "identity_replaced": (moved < stayed).float().mean(),
            "finding_kept": (finding[:size] == batch["finding_ori"]).float().mean(),
            "finding_replaced": (finding[size:] == batch["finding_tar"]).float().mean(),
        }
        return measured | {"score": torch.stack(list(measured.values())).mean()}


class VAEScore:
    """Stage 2's validation on identity latents of the validation part: `score` is minus the reconstruction error."""

    def __init__(self, vae: IdentityVAE):
        self.vae = vae

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        vae = self.vae.eval()
        mean, _ = vae.encode(batch["identity"])
        error = losses.identity_reconstruction_loss(batch["identity"], vae.decode(mean))
        return {"reconstruction": error, "score": -error}


class BestModel:
    """Runs an evaluator every `every` epochs and after the last, logs its means, and keeps the weights of the best
    `score` in a file. Beside it stands the training's record (`read_record`), which counts all epochs, kept or not.

    Args:
        evaluator: a `StepEvaluator`.
        weights: what to keep, a function that returns a state dict.
        path: tensors only, written whole or not at all.
        writer: TensorBoard writer shared with the other handlers.
        keep_last: keep the last weights rather than the best.
        started_from: weights that the training began with, whose record it carries on.
    """

    def __init__(
        self,
        evaluator: Any,
        weights: Callable[[], Mapping[str, Tensor]],
        path: str | Path,
        every: int = 1,
        writer: SummaryWriter | None = None,
        keep_last: bool = False,
        started_from: str | Path | None = None,
    ):
        self.evaluator, self.weights, self.path, self.every, self.writer = evaluator, weights, Path(path), every, writer
        self.best, self.keep_last, self.epoch_kept = -math.inf, keep_last, 0
        self.before = read_record(started_from) if started_from else {}
        self.started, self.seconds_before = time.monotonic(), 0.0

    def attach(self, trainer: StepTrainer) -> None:
        trainer.add_event_handler(Events.STARTED, self.start_clock)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start_clock(self, trainer: StepTrainer) -> None:
        """A resumed training goes on from the seconds of the last record; they stay out of the checkpoint, which is the
        same whether a run was stopped or not.
        """
        earlier = read_record(self.path) if trainer.state.iteration else self.before
        self.started, self.seconds_before = time.monotonic(), float(earlier.get("seconds", 0.0))

    def __call__(self, trainer: StepTrainer) -> None:
        state = trainer.state
        last = state.epoch == state.max_epochs
        if state.rank != 0 or (state.epoch % self.every and not last):
            return
        self.evaluator.data_loader.start = 0
        self.evaluator.run()
        metrics = self.evaluator.state.metrics
        for name, value in metrics.items():
            if self.writer is not None:
                self.writer.add_scalar(f"validation/{name}", value, state.iteration)
        logger.info("epoch %d validation: %s", state.epoch, ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        if metrics["score"] > self.best or (self.keep_last and last):
            self.best = max(self.best, metrics["score"])
            self.epoch_kept = state.epoch
            save_weights(self.weights(), self.path)
        # A run killed between the two files repeats this epoch's validation: its checkpoint comes after.
        write_record(self.record(trainer), self.path)

    def record(self, trainer: StepTrainer) -> dict[str, Any]:
        """What the training has cost so far; every batch of a training has the same size."""
        iterations, images = int(trainer.state.iteration), len(next(iter(trainer.state.batch.values())))
        return {
            "images_seen": int(self.before.get("images_seen", 0)) + iterations * images * world_size(),
            "iterations": int(self.before.get("iterations", 0)) + iterations,
            "epoch_kept": self.epoch_kept,
            "seconds": round(self.seconds_before + time.monotonic() - self.started, 3),
            "seed": trainer.seed,
        }

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "epoch_kept": self.epoch_kept}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.epoch_kept = state["best"], int(state.get("epoch_kept", 0))


class ImageGrid:
    """Rows of pictures on one fixed validation batch, to TensorBoard and as PNG: original, target, reconstruction,
    medical swap, identity swap, anonymised.

    `anonymised` takes its identity from the VAE where one is given, else from the mean of the batch's other images.
    """

    ROWS = ("original", "target", "reconstruction", "medical swap", "identity swap", "anonymised")

    def __init__(
        self,
        model: Disentangler,
        loader: PairLoader,
        folder: str | Path,
        every: int = 1,
        writer: SummaryWriter | None = None,
        columns: int = 10,
        vae: IdentityVAE | None = None,
    ):
        self.model, self.loader, self.folder, self.every = model, loader, Path(folder), every
        self.writer, self.columns, self.vae = writer, columns, vae

    def attach(self, trainer: StepTrainer) -> None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, trainer: StepTrainer) -> None:
        state = trainer.state
        if state.rank != 0 or (state.epoch % self.every and state.epoch != state.max_epochs):
            return
        picture = self.draw()
        if self.writer is not None:
            self.writer.add_image(" | ".join(self.ROWS), picture, state.iteration, dataformats="CHW")
        save_picture(picture, self.folder / f"grid_{state.epoch:04d}.png")

    @torch.no_grad()
    def draw(self) -> Tensor:
        """The grid `(C, 6 S, columns S)`, uint8."""
        batch = {k: v[: self.columns] for k, v in self.loader.batch(0).items()}
        with uncompiled():
            return to_uint8(replacement_grid(self.model, batch["i_ori"], batch["i_tar"], self.vae))


def replacement_grid(model: Disentangler, i_ori: Tensor, i_tar: Tensor, vae: IdentityVAE | None = None) -> Tensor:
    """Rows of `ImageGrid.ROWS` as one picture `(C, 6 S, B S)` in [-1, 1]; the anonymised row is seeded."""
    model.eval()
    z_ori, z_tar = model.encode(i_ori), model.encode(i_tar)
    if vae is None:
        others = z_ori.identity.sum(0, keepdim=True) - z_ori.identity
        new = F.normalize(others, dim=1) * z_ori.identity.norm(dim=1, keepdim=True)
    else:
        generator = torch.Generator().manual_seed(0)
        new = vae.eval().decode(torch.randn(len(i_ori), vae.latent_size, generator=generator).to(i_ori.device))
    rows = [
        i_ori,
        i_tar,
        model.decode(z_ori),
        model.decode(z_ori._replace(medical=z_tar.medical)),
        model.decode(z_ori._replace(identity=z_tar.identity)),
        model.decode(z_ori._replace(identity=new)),
    ]
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).cpu()


def save_picture(picture: Tensor, path: Path) -> None:
    """A uint8 picture `(C, H, W)` as PNG, one or three channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = picture.permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)
