"""What adversarial image-to-image systems share: two generators, means of identity, one step.

A system's own file has its terms: what pushes the person away, and what holds the finding and the looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.baselines.system import IdentityGuide, Setting, System
from monai_anon.cohort import Cohort
from monai_anon.networks import Decoder, Encoder, Latents, Recogniser, check_size
from monai_anon.optimisation import Optimisation, Updater, frozen
from monai_anon.recognition import Batch

# ---- generators ----


class Drawn(NamedTuple):
    """Generated images `(B, C, S, S)` in [-1, 1]; mean and log-variance `(B, Z)` of their codes, and which training
    patient `(B,)` each was to look like, where there is such a thing.
    """

    image: Tensor
    mean: Tensor | None = None
    log_variance: Tensor | None = None
    target: Tensor | None = None

    def fixed(self) -> Drawn:
        """The same without gradients to the generator."""
        return self._replace(**{name: part.detach() for name, part in self._asdict().items() if part is not None})

    def kl(self) -> Tensor:
        """KL of the codes from N(0, 1), in nats."""
        assert self.mean is not None and self.log_variance is not None
        return losses.kl_loss(self.mean, self.log_variance)


class BottleneckGenerator(nn.Module):
    """An image to one code and back to an image, by the encoder and the decoder of the paper's networks.

    Args:
        code: length Z of the code.
        condition: length of a vector that the decoder is given beside the code; 0 for none.
        variational: draw the code from q(z | image) (Kingma and Welling 2013), or take its mean.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        encoder_widths: Sequence[int],
        decoder_widths: Sequence[int],
        code: int,
        condition: int = 0,
        variational: bool = True,
    ):
        super().__init__()
        self.variational = variational
        heads = (0, 0, 2 * code if variational else code)
        self.encoder = Encoder(size, channels, encoder_widths, heads, unit_identity=False)
        self.decoder = Decoder(size, channels, decoder_widths, (condition, 0, code))

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Drawn:
        """Images `(B, C, S, S)`, and vectors `(B, condition)`, to images of the same shape in [-1, 1]."""
        z = self.encoder(image).residual
        mean = log_variance = None
        if self.variational:
            mean, log_variance = z.chunk(2, dim=1)
            log_variance = log_variance.clamp(-10, 10)
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        nothing = z[:, :0]
        drawn = self.decoder(Latents(nothing if condition is None else condition, nothing, z))
        return Drawn(drawn, mean, log_variance)


def u_net(size: int, channels: int, outputs: int, widths: Sequence[int]) -> nn.Module:
    """MONAI's residual U-Net, images `(B, channels, S, S)` to maps `(B, outputs, S, S)`: what passes has no bottleneck.

    Its normalisation is each image's own.
    """
    check_size(size, 2 ** (len(widths) - 1), "u_net")
    return UNet(2, channels, outputs, tuple(widths), (2,) * (len(widths) - 1), num_res_units=1)


# ---- identity ----


class PairVerifier(nn.Module):
    """Two images `(B, C, S, S)` each to a logit `(B,)`, positive for one person: a Siamese network (Bromley 1993)."""

    def __init__(self, channels: int, widths: Sequence[int], dimensions: int = 64):
        super().__init__()
        self.body = Recogniser(channels, dimensions, widths)
        self.head = nn.Linear(dimensions, 1)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        a, b = self.body(torch.cat([images, others])).chunk(2)
        return self.head((a - b).abs()).squeeze(1)


def repulsion(distance: Tensor, margin: float) -> Tensor:
    """max(0, margin - distance)^2, the contrastive loss of what must differ (Hadsell et al. 2006), mean of all."""
    return F.relu(margin - distance).square().mean()


def distances(vectors: Tensor, others: Tensor) -> Tensor:
    """Euclidean distances `(B, P)` of unit vectors `(B, D)` and `(P, D)`, with a gradient that is finite at 0."""
    return (2 - 2 * vectors @ others.T).clamp_min(1e-6).sqrt()


@torch.no_grad()
def gallery(guide: IdentityGuide, cohort: Cohort, device: torch.device | str) -> Tensor:
    """The guide's vectors `(P, D)` of each patient's first image: biometric data, for the training only."""
    _, first = np.unique(cohort.patient.numpy(), return_index=True)
    rows = torch.from_numpy(first)
    return torch.cat([guide(cohort.batch(part)["image"].to(device)) for part in rows.split(256)])


def another_patient(patient: Tensor, patients: int) -> Tensor:
    """For each patient `(B,)` one of the others of so many, all equally likely."""
    return (patient + torch.randint(1, max(patients, 2), patient.shape, device=patient.device)) % patients


# ---- the step ----


def checked(weights: Mapping[str, float], terms: Iterable[str], system: str) -> dict[str, float]:
    """The weights, if there is one for each of a system's terms and for nothing else.

    Raises:
        ValueError: unknown, missing or negative ones.
    """
    unknown, missing = sorted(set(weights) - set(terms)), sorted(set(terms) - set(weights))
    negative = sorted(name for name, weight in weights.items() if weight < 0)
    if unknown or missing or negative:
        raise ValueError(
            f"weights of {system}: unknown {unknown}, missing {missing}, negative {negative}; it needs "
            f"one of 0 or more for each of {list(terms)}"
        )
    return dict(weights)


class Opponent:
    """A network that is trained along against the generator, or on what it draws.

    Args:
        loss: of a batch and what was drawn of it, without gradients to the generator.
    """

    def __init__(self, network: nn.Module, loss: Callable[[Batch, Drawn], Tensor], setting: Setting):
        self.network, self.loss = network.to(setting.device), loss
        self.updater = Updater([network], by_adam(setting.optimisation_of_games))


def by_adam(optimisation: Optimisation) -> Optimisation:
    """The same settings with Adam alone, as critics have in stage 1."""
    return dataclasses.replace(optimisation, muon=False, ema=0.0)


class TranslationStep:
    """Draw once; move the opponents on what was drawn; move the generator on its weighted terms.

    A system's step says in `draw` what is drawn of a batch, in `terms` what it is to be like, and in `opponents` who
    is trained along. A term of weight 0 is not computed.

    Args:
        trained: all that the generator's optimiser moves.
        weights: of the terms, by name.
    """

    def __init__(self, trained: nn.Module, weights: Mapping[str, float], setting: Setting):
        self.trained, self.weights, self.guides = trained.to(setting.device), weights, setting.guides
        self.updater = Updater([trained], setting.optimisation_of_games, averaged=trained)
        self.opponents = self.make_opponents(setting)

    def make_opponents(self, setting: Setting) -> dict[str, Opponent]:
        """New networks that are trained along, by name."""
        return {}

    def draw(self, batch: Batch) -> Drawn:
        raise NotImplementedError

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        """How to make each unweighted term; opponents are fixed functions meanwhile."""
        raise NotImplementedError

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms, and the opponents' losses."""
        self.trained.train()
        drawn = self.draw(batch)
        # Opponents move first: their update in place would spoil a graph that already runs through them.
        fixed = drawn.fixed()
        moved = {}
        for name, opponent in self.opponents.items():
            loss = opponent.loss(batch, fixed)
            opponent.updater.update(loss, progress)
            moved[f"opponent/{name}"] = loss
        with ExitStack() as stack:
            for opponent in self.opponents.values():
                stack.enter_context(frozen(opponent.network))
            makers = self.terms(batch, drawn)
            terms = {name: makers[name]() for name, weight in self.weights.items() if weight > 0}
        self.updater.update(losses.weighted_sum(terms, self.weights), progress)
        return {name: value.detach() for name, value in (terms | moved).items()}

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        parts: dict[str, Any] = {"trained": self.trained, "updater": self.updater}
        for name, opponent in self.opponents.items():
            parts |= {f"{name}_network": opponent.network, f"{name}_updater": opponent.updater}
        return parts


# ---- systems that are told whom to draw ----


class TargetedSystem(System):
    """A generator whose decoder is given the learned code of a training patient, by the patient's number.

    That is a linear layer on the one-hot numbers. Its rows are part of the generator and so of its file, which is made
    for drawing the training patients. A release takes any of them, each as likely: the paper's original is one of the
    patients and is not drawn as itself, but whose image comes for release is not known and need not be one of them.
    """

    codes: Tensor
    """The training patients' codes (P, D); none before `conclude`."""

    def __init__(self, condition: int):
        super().__init__()
        self.condition = condition
        self.register_buffer("codes", torch.empty(0, condition))
        self.table: list[nn.Embedding] = []  # in a list: it is in the step's file while it is trained, not in ours

    def begin_table(self, setting: Setting) -> nn.Embedding:
        """A new table of codes to train."""
        self.table = [nn.Embedding(setting.cohort.num_patients, self.condition).to(setting.device)]
        return self.table[0]

    def conclude(self, setting: Setting) -> None:
        """Keep the codes.

        Raises:
            RuntimeError: before `begin`.
        """
        if not self.table:
            raise RuntimeError(f"{type(self).__name__} has no codes of patients: call begin(setting) before conclude")
        self.codes = self.table.pop().weight.detach().clone()

    def someone(self, image: Tensor) -> Tensor:
        """A random patient's code for each of the images, `(B, D)`.

        Raises:
            RuntimeError: before `conclude`.
        """
        if not len(self.codes):
            raise RuntimeError(f"{type(self).__name__} knows nobody to draw yet: train it, or load its file")
        return self.codes[torch.randint(len(self.codes), image.shape[:1], device=image.device)]
