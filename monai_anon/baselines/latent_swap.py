"""What autoencoders with an identity latent share: encode, put another identity in its place, decode."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from ignite.handlers import ProgressBar
from torch import Tensor

from monai_anon.baselines.system import Setting, System, smoothed
from monai_anon.engines import StepTrainer
from monai_anon.identities import AveragedIdentities, Gallery, IdentityPairs
from monai_anon.identity_vae_step import IdentityVAEStep
from monai_anon.networks import Decoder, Disentangler, Encoder, IdentityVAE, LatentClassifier


class LatentSwap(System):
    """Encoder, decoder and a classifier of the finding; a subclass says which identity takes the original's place.

    Args:
        size: side S of the images in pixels.
        channels: 1 (gray) or 3 (colour).
        classes: findings.
        encoder_widths: channels of the encoder's maps, from the largest map to the smallest.
        decoder_widths: of the decoder's, the other way.
        latent_sizes: of identity, medical and residual latent. The identity lies on the sphere of radius sqrt(D).
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        classes: int = 2,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        latent_sizes: Sequence[int] = (96, 4, 8),
    ):
        super().__init__()
        self.latent_sizes = tuple(latent_sizes)
        self.disentangler = Disentangler(
            Encoder(size, channels, encoder_widths, latent_sizes),
            Decoder(size, channels, decoder_widths, latent_sizes),
            LatentClassifier(latent_sizes[1], classes),
        )

    def another(self, identity: Tensor) -> Tensor:
        """What takes the place of identities `(B, D)`."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        z = self.disentangler.encode(image)
        return self.disentangler.decode(z._replace(identity=self.another(z.identity)))


def fit_identity_vae(
    vae: IdentityVAE,
    gallery: Gallery,
    weights: Mapping[str, float],
    margin: float,
    setting: Setting,
    classifier: LatentClassifier | None = None,
    learning_rate: float = 1e-3,
) -> None:
    """Stage 2 for the setting's budget of batches, of 256 latents each: Eq. 5 or Eq. 7 on a gallery's latents.

    Args:
        weights: of the terms (`identity_vae_step.VAE_TERMS`).
        margin: of the hinges of Eq. 7, a mean squared difference.
        classifier: of patients, where `entropy` has a weight.
        learning_rate: of Adam; the setting's is that of the large networks.
    """
    vae.requires_grad_(True)
    optimisation = dataclasses.replace(setting.optimisation, lr=learning_rate, muon=False)
    step = IdentityVAEStep(vae, weights, optimisation, margin, classifier)
    pairs = IdentityPairs(gallery, batches=setting.batches, seed=setting.seed)
    handlers = [ProgressBar(desc="identities", disable=None)]
    StepTrainer(setting.device, 1, pairs, step, setting.seed, train_handlers=handlers).run()
    smoothed(step)
    vae.eval().requires_grad_(False)


def averages_of(gallery: Gallery, k: int | None, count: int, seed: int) -> Tensor:
    """`(count, D)` averages of the identities of k patients each, drawn at random; of all of them `(1, D)` for None.

    On the sphere of radius sqrt(D).

    Raises:
        ValueError: there are not more than k patients.
    """
    count = count if k else 1
    of_nobody = torch.zeros(count, gallery.identity.shape[1]), torch.full((count,), -1)
    return AveragedIdentities(gallery, k)(*of_nobody, torch.Generator().manual_seed(seed))


def one_of(averages: Tensor, images: int) -> Tensor:
    """For each of so many images one of the averages `(A, D)`, at random.

    Raises:
        RuntimeError: there are none yet.
    """
    if not len(averages):
        raise RuntimeError("there are no averages of identities yet: train and conclude the system first")
    return averages[torch.randint(len(averages), (images,), device=averages.device)]
