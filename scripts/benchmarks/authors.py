"""Stage 1 in the authors' order of calls: the reference that our step is measured against.

Reimplemented from the paper (Eq. 1-4 and 6) and from what is known of the authors' program: two updates an iteration,
each network called on one kind of image at a time, everything in float32 and eager.

1. Discriminator: encode and decode I_ori, look at the augmented real and the augmented reconstructed images by two
   calls, one update.
2. Encoder, decoder and classifiers: encode I_ori, I_same and I_tar by three calls, classify by three, decode I_ori's
   latents again, look at the reconstruction again; then for each of the three latents decode the swap and encode what
   came out. One update.

The terms are those of `monai_anon.losses` except SSIM, which is MONAI's. A test holds that an iteration gives the terms
of our step where no batch statistics and no noise tell the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.losses import SSIMLoss
from torch import Tensor

from monai_anon import losses
from monai_anon.networks import Discriminator, Disentangler, Latents


class AuthorsOrder:
    """One iteration, called as `DisentanglementStep` is.

    Args:
        model, discriminator: the networks under training.
        weights: of Eq. 1-4 and 6, by the names of `monai_anon.steps.TERMS`.
        noise: standard deviation of the noise on the latents of a reconstruction.
        margin: of Eq. 6.
        lr, betas: of both Adams.
        augment: as the authors do, before the discriminator.
    """

    def __init__(
        self,
        model: Disentangler,
        discriminator: Discriminator,
        weights: Mapping[str, float],
        noise: Mapping[str, float],
        margin: float = 0.1,
        lr: float = 2e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        augment: bool = True,
    ):
        self.model, self.discriminator, self.weights, self.noise = model, discriminator, weights, noise
        self.margin, self.augment = margin, augment
        self.ssim = SSIMLoss(spatial_dims=2, data_range=losses.IMAGE_RANGE)
        self.optimizers = [torch.optim.Adam(n.parameters(), lr=lr, betas=betas) for n in (model, discriminator)]

    def __call__(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        """Named unweighted terms of the batch; `progress` changes nothing."""
        self.model.train(), self.discriminator.train()
        terms = {"discriminator": self.discriminator_update(batch["i_ori"])}
        learned = self.terms(batch)
        self.optimizers[0].zero_grad()
        losses.weighted_sum(learned, self.weights).backward()
        self.optimizers[0].step()
        return {name: value.detach() for name, value in (terms | learned).items()}

    def discriminator_update(self, i_ori: Tensor) -> Tensor:
        with torch.no_grad():
            i_rec = self.reconstruct(self.model.encoder(i_ori))
        loss = losses.discriminator_loss(self.judged(i_ori), self.judged(i_rec))
        self.optimizers[1].zero_grad()
        loss.backward()
        self.optimizers[1].step()
        return loss

    def judged(self, images: Tensor) -> Tensor:
        return self.discriminator(losses.augment(images) if self.augment else images)

    def reconstruct(self, z: Latents) -> Tensor:
        noisy = {name: latent + self.noise[name] * torch.randn_like(latent) for name, latent in z._asdict().items()}
        return self.model.decoder(Latents(**noisy))

    def terms(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 1-3 and 6."""
        encoder, classifier = self.model.encoder, self.model.medical_classifier
        z_ori, z_same, z_tar = encoder(batch["i_ori"]), encoder(batch["i_same"]), encoder(batch["i_tar"])
        medical = [
            losses.classification_loss(classifier(z.medical), batch[f"finding_{which}"])
            for z, which in ((z_ori, "ori"), (z_same, "same"), (z_tar, "tar"))
        ]
        i_rec = self.reconstruct(z_ori)
        cycle = []
        for name in Latents._fields:
            swapped = z_ori._replace(**{name: getattr(z_tar, name)})
            cycle.append(losses.disentanglement_loss(z_ori, z_tar, encoder(self.model.decoder(swapped)), name))
        for p in self.discriminator.parameters():  # a gradient tape asks for none of them
            p.requires_grad_(False)
        adversarial = losses.adversarial_loss(self.judged(i_rec))
        for p in self.discriminator.parameters():
            p.requires_grad_(True)
        return {
            "medical": torch.stack(medical).mean(),
            "identity": losses.siamese_loss(
                z_ori.identity, z_same.identity, z_tar.identity, batch["has_same"], self.margin
            ),
            "ssim": self.ssim(i_rec, batch["i_ori"]),
            "psnr": losses.psnr_loss(batch["i_ori"], i_rec),
            "adversarial": adversarial,
            "disentanglement": torch.stack(cycle).sum(),
        }
