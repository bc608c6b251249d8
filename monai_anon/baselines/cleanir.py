"""CLEANIR: a VAE whose first half is what a recognition network sees, and is turned by an angle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anon import losses
from monai_anon.baselines.system import Setting
from monai_anon.baselines.two_latents import TwoLatentVAE, drawn, reconstruction_loss
from monai_anon.engines import Step
from monai_anon.optimisation import Updater
from monai_anon.recognition import Batch

WEIGHTS = {"reconstruction": 1.0, "kl": 1.0, "identity": 1000.0}


class CLEANIR(TwoLatentVAE):
    """CLEANIR (Cho, Lee, Suh, "CLEANIR: controllable attribute-preserving natural identity remover", Applied Sciences
    10(3):1120, 2020).

    A VAE with a latent in two halves. The first is regressed to a frozen recognition network's embedding of the image;
    the second holds the rest. A release is decoded from an identity that is turned away from the original's by a chosen
    angle: cos(theta) of it, and sin(theta) of a random direction made orthogonal to it (Gram-Schmidt).

    Optimises squared error of the reconstruction, KL of the second half, squared error of the first half with weight
    1000 (here a mean over its dimensions).

    Where it is not the paper's, as far as its text was known to us:

    - The recognition network is the identity guide, fitted to the training part, not one of faces of the world. It is
      not in the system's file: the encoder has learnt what it says.
    - The first half has no distribution and no KL: it is a point of the sphere on which the embeddings are.
    - Each half has the length of the guide's vectors. Light networks, images of 64 pixels, all systems' budget.
    - Weights of the reconstruction (a sum over pixels) and of the KL, and the angle where none is given, are ours.
    - The random direction is drawn anew for each release.

    No label of a finding is used: it survives where it is seen as part of the rest.

    Args:
        size, channels, encoder_widths, decoder_widths: as of `two_latents.TwoLatentVAE`.
        identity_size: length of each half, the identity guide's.
        theta: angle between the original's identity and the new one, degrees, from 0 (the original's) to 180.
        weights: of `reconstruction`, `kl`, `identity`.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        identity_size: int = 64,
        theta: float = 90.0,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__(size, channels, encoder_widths, decoder_widths, identity_size, identity_size)
        if not 0 <= theta <= 180:
            raise ValueError(f"theta is {theta}; it must be an angle from 0 to 180 degrees")
        self.theta, self.weights = theta, dict(weights)

    def begin(self, setting: Setting) -> Step:
        length = setting.guides.identity.templates.shape[1]
        if length != self.identity_size:
            raise ValueError(
                f"identity_size is {self.identity_size}; the identity guide's vectors have {length} numbers"
            )
        return CLEANIRStep(self, setting)

    def another(self, identity: Tensor) -> Tensor:
        return turned(identity, torch.randn_like(identity), self.theta)


def turned(identity: Tensor, direction: Tensor, theta: float) -> Tensor:
    """Identities `(B, D)` turned towards directions `(B, D)` by `theta` degrees, as long as they were."""
    length = identity.norm(dim=1, keepdim=True)
    unit = identity / length
    across = F.normalize(direction - (direction * unit).sum(1, keepdim=True) * unit, dim=1)
    angle = math.radians(theta)
    return length * (math.cos(angle) * unit + math.sin(angle) * across)


class CLEANIRStep:
    """One step of encoder and decoder on I_ori and I_tar."""

    def __init__(self, system: CLEANIR, setting: Setting):
        self.system, self.guide = system, setting.guides.identity
        self.updater = Updater([system], setting.optimisation, averaged=system)

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms."""
        self.system.train()
        image = torch.cat([batch["i_ori"], batch["i_tar"]])
        with torch.no_grad():
            seen = self.guide(image)
        identity, mean, log_variance = self.system.encode(image)
        decoded = self.system.decode(identity, drawn(mean, log_variance))
        terms = {
            "reconstruction": reconstruction_loss(image, decoded),
            "kl": losses.kl_loss(mean, log_variance),
            "identity": losses.latent_distance(F.normalize(identity, dim=1), seen).mean(),
        }
        self.updater.update(losses.weighted_sum(terms, self.system.weights), progress)
        return {name: value.detach() for name, value in terms.items()}

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {"system": self.system, "updater": self.updater}
