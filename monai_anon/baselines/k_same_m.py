"""K-Same-M: K-Same in the space of a model, whose means are images and not blurs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monai_anon import losses
from monai_anon.baselines.k_same import check_group_size, distances, greedy_groups, patient_means
from monai_anon.baselines.system import Setting, System
from monai_anon.networks import Decoder, Encoder, Latents
from monai_anon.optimisation import Updater
from monai_anon.recognition import Batch

TERMS = ("pixel", "ssim")


class ReconstructionStep:
    """One step of an autoencoder on I_ori and I_tar: weighted `pixel` and `ssim` terms."""

    def __init__(self, system: KSameM, setting: Setting):
        self.system = system
        self.updater = Updater([system.encoder, system.decoder], setting.optimisation, averaged=system)

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms."""
        self.system.train()
        images = torch.cat([batch["i_ori"], batch["i_tar"]])
        found = self.system.decode(self.system.encode(images))
        terms = {"pixel": losses.pixel_loss(images, found), "ssim": losses.ssim_loss(images, found)}
        self.updater.update(losses.weighted_sum(terms, self.system.weights), progress)
        return {name: value.detach() for name, value in terms.items()}

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {"encoder": self.system.encoder, "decoder": self.system.decoder, "updater": self.updater}


class KSameM(System):
    """k-Same-M (Gross, Sweeney, de la Torre, Baker, "Model-based face de-identification", CVPR Workshops 2006).

    K-Same on the parameters of a model of the images, in place of pixels: people are put into groups of at least k by
    their parameters, these are averaged, and the release is the model's image of the average of the nearest group.
    Means of pixels blur; an image of mean parameters need not. There is no identity term: the model is optimised to
    reconstruct, and what hides a person is that k people or more are averaged.

    What 1/k says is what it says of `KSame`: it rests on the closed gallery and does not hold for other people's
    images. A release says at most `bits` of its original.

    Where it is not the paper's, besides what is said of `KSame`:

    - The model is an autoencoder with the widths of all compared systems, trained for their budget to reconstruct: mean
      absolute error and SSIM, with weights of ours. The paper's is an active appearance model: landmarks and textures,
      fitted by hand-marked points, that medical images do not have.
    - Neighbours are found by Euclidean distance of whole latents, without a PCA: there are few dimensions.
    - The latent is not split, and no label is used: findings are averaged away as far as the latent shows them.

    Args:
        latent_sizes: their sum is the length D of the latent: as long as all systems' latents together.
        k: the fewest patients of a group, at least 2.
        weights: of the reconstruction's terms, `pixel` and `ssim`.
    """

    means: Tensor
    """The groups' mean latents (G, D); none before `conclude`."""

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        latent_sizes: Sequence[int] = (96, 4, 8),
        k: int = 10,
        weights: Mapping[str, float] | None = None,
    ):
        super().__init__()
        check_group_size(k)
        self.weights = dict.fromkeys(TERMS, 1.0) if weights is None else dict(weights)
        if sorted(self.weights) != sorted(TERMS):
            raise ValueError(f"weights are of {sorted(self.weights)}; they must be of {list(TERMS)}")
        self.k, self.latent_sizes = k, tuple(latent_sizes)
        self.encoder = Encoder(size, channels, encoder_widths, latent_sizes, unit_identity=False)
        self.decoder = Decoder(size, channels, decoder_widths, latent_sizes)
        self.register_buffer("means", torch.empty(0))

    def begin(self, setting: Setting) -> ReconstructionStep:
        return ReconstructionStep(self, setting)

    def encode(self, image: Tensor) -> Tensor:
        """Latents `(B, D)` of images `(B, C, S, S)`."""
        return torch.cat(self.encoder(image), dim=1)

    def decode(self, latent: Tensor) -> Tensor:
        """Images `(B, C, S, S)` of latents `(B, D)`."""
        return self.decoder(Latents(*latent.split(self.latent_sizes, dim=1)))

    @torch.no_grad()
    def conclude(self, setting: Setting) -> None:
        """Groups of the training patients, one mean latent each.

        Raises:
            ValueError: fewer than k patients.
        """
        cohort = setting.cohort
        rows = torch.arange(len(cohort)).split(256)
        latents = torch.cat([self.encode(cohort.batch(some)["image"].to(setting.device)).cpu() for some in rows])
        people = patient_means(latents[:, :, None, None], cohort.patient).flatten(1)
        if len(people) < self.k:
            raise ValueError(f"{cohort.name}: {len(people)} patients and k is {self.k}; a group needs k different ones")
        groups = greedy_groups(people, self.k)
        self.means = torch.stack([people[group].mean(0) for group in groups]).to(setting.device)

    @property
    def bits(self) -> float:
        """The most that the release of an image says of it: log2 of the number of groups."""
        return math.log2(len(self._fitted()))

    @property
    def proved(self) -> str:
        """What is proved of a release of somebody outside the gallery."""
        return f"{self.bits:.1f} bits an image"

    def forward(self, image: Tensor) -> Tensor:
        """For each of the images `(B, C, S, S)` the image of the nearest group's mean latent.

        Raises:
            RuntimeError: before `conclude`.
        """
        means = self._fitted()
        return self.decode(means[distances(self.encode(image), means).argmin(1)])

    def _fitted(self) -> Tensor:
        if not len(self.means):
            raise RuntimeError("KSameM has no groups yet: conclude(setting) comes before a release")
        return self.means
