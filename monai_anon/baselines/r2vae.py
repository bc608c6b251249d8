"""R2VAE: two people's identities are exchanged, and exchanged back, which must give their images again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anon import losses
from monai_anon.baselines.latent_swap import averages_of, one_of
from monai_anon.baselines.system import Setting
from monai_anon.baselines.two_latents import TwoLatentVAE, drawn, reconstruction_loss
from monai_anon.cohort import Cohort
from monai_anon.engines import Step
from monai_anon.identities import Gallery
from monai_anon.optimisation import Updater
from monai_anon.recognition import Batch

WEIGHTS = {"reconstruction": 1.0, "kl": 1.0, "restoration": 1.0, "replacement": 100.0, "identity": 100.0}


class R2VAE(TwoLatentVAE):
    """R2VAE, "replacing and restoring" (Gong, Liu, Li, Xie, Tang, "Disentangled representation learning for multiple
    attributes preserving face deidentification", IEEE TNNLS 33(1):244-256, 2020).

    A VAE with an identity-related latent and an independent one. Two people's identities are exchanged (replacing); the
    images that come of it are encoded, and their identities exchanged back (restoring), which must give the two images
    again: a cycle in the space of images. A release is decoded from an average of training patients' identities.

    Optimises squared errors of the reconstruction and of the restored images, KL of the independent latent, and how
    well the identity tells patients apart and is found again in the replaced images.

    Where it is not the paper's, as far as its text was known to us:

    - Identities are exchanged back between the replaced images, and the encoder must find in each the identity that was
      put into it. The cycle alone is had more cheaply by a decoder that does not look at the identity (measured).
    - The identity latent learns patients by the contrastive loss of all our systems, on pairs of a patient's images.
    - No networks that judge realism or attributes; no label of a finding is used.
    - The identity is a point on a sphere, without a KL of its own.
    - A fixed number of averages is drawn once and kept (see `paper.AveragesOf6`); k and all weights are ours.
    - Light networks, images of 64 pixels, all systems' budget.

    Args:
        size, channels, encoder_widths, decoder_widths, identity_size, rest_size: as of `two_latents.TwoLatentVAE`.
        k: training patients of an average.
        kept: averages in the system's file.
        weights: of `reconstruction`, `kl`, `restoration`, `replacement`, `identity`.
    """

    averages: Tensor
    """Identities `(A, D)`; none before `conclude`."""

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        identity_size: int = 64,
        rest_size: int = 64,
        k: int = 6,
        kept: int = 256,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__(size, channels, encoder_widths, decoder_widths, identity_size, rest_size)
        if k < 2 or kept < 1:
            raise ValueError(f"k is {k}, kept {kept}; an average needs 2 patients or more, and at least 1 is kept")
        self.k, self.kept, self.weights = k, kept, dict(weights)
        self.register_buffer("averages", torch.empty(0, identity_size))

    def begin(self, setting: Setting) -> Step:
        return R2VAEStep(self, setting)

    def conclude(self, setting: Setting) -> None:
        gallery = self.gallery(setting.cohort)
        self.averages = averages_of(gallery, self.k, self.kept, setting.seed).to(setting.device)

    @torch.no_grad()
    def gallery(self, cohort: Cohort, batch_size: int = 256) -> Gallery:
        """Identities of every image of a cohort, in memory only."""
        device = next(self.parameters()).device
        rows = torch.arange(len(cohort)).split(batch_size)
        found = [self.encode(cohort.batch(some)["image"].to(device))[0].float().cpu() for some in rows]
        return Gallery(torch.cat(found), cohort.patient)

    def another(self, identity: Tensor) -> Tensor:
        return one_of(self.averages, len(identity))


class R2VAEStep:
    """One step of encoder and decoder: reconstruct I_ori and I_tar, replace, restore."""

    def __init__(self, system: R2VAE, setting: Setting):
        self.system = system
        self.updater = Updater([system], setting.optimisation, averaged=system)

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms."""
        system = self.system.train()
        pair = torch.cat([batch["i_ori"], batch["i_tar"]])
        identity, mean, log_variance = system.encode(torch.cat([pair, batch["i_same"]]))
        ori, tar, same = identity.chunk(3)
        own, mean, log_variance = torch.cat([ori, tar]), mean[: len(pair)], log_variance[: len(pair)]
        rest = drawn(mean, log_variance)

        # Replacing, beside the reconstruction; then restoring.
        decoded = system.decode(torch.cat([own, exchanged(own)]), torch.cat([rest, rest]))
        reconstructed, replaced = decoded.chunk(2)
        found, left, _ = system.encode(replaced)
        restored = system.decode(exchanged(found), left)
        terms = {
            "reconstruction": reconstruction_loss(pair, reconstructed),
            "kl": losses.kl_loss(mean, log_variance),
            "restoration": reconstruction_loss(pair, restored),
            "replacement": 1 - F.cosine_similarity(found, exchanged(own).detach()).mean(),
            "identity": losses.contrastive_loss(ori, same, batch["patient_ori"], batch["has_same"]),
        }
        self.updater.update(losses.weighted_sum(terms, system.weights), progress)
        return {name: value.detach() for name, value in terms.items()}

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {"system": self.system, "updater": self.updater}


def exchanged(pairs: Tensor) -> Tensor:
    """The second half of the rows `(2 B, ...)`, I_tar's, before the first, I_ori's."""
    return pairs.roll(len(pairs) // 2, 0)
