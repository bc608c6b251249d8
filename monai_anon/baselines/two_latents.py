"""A variational autoencoder of two latents, the identity and all the rest: what CLEANIR and R2VAE have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_anon import losses
from monai_anon.baselines.system import System
from monai_anon.networks import Decoder, Encoder, Latents


class TwoLatentVAE(System):
    """Identity `(B, D)` on the sphere of radius sqrt(D), and the rest as a Gaussian `(B, R)`; the decoder takes both.

    Args:
        size: side S of the images in pixels.
        channels: 1 (gray) or 3 (colour).
        encoder_widths: channels of the encoder's maps, from the largest map to the smallest.
        decoder_widths: of the decoder's, the other way.
        identity_size, rest_size: D and R.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        identity_size: int = 64,
        rest_size: int = 64,
    ):
        super().__init__()
        self.identity_size, self.rest_size = identity_size, rest_size
        self.encoder = Encoder(size, channels, encoder_widths, (identity_size, 0, 2 * rest_size))
        self.decoder = Decoder(size, channels, decoder_widths, (identity_size, 0, rest_size))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Identities `(B, D)` of images `(B, C, S, S)`, and mean and log-variance `(B, R)` of the rest."""
        z = self.encoder(image)
        mean, log_variance = z.residual.chunk(2, dim=1)
        return z.identity, mean, log_variance.clamp(-10, 10)

    def decode(self, identity: Tensor, rest: Tensor) -> Tensor:
        """Images `(B, C, S, S)` of identities `(B, D)` and the rest `(B, R)`."""
        image: Tensor = self.decoder(Latents(identity, identity[:, :0], rest))
        return image

    def another(self, identity: Tensor) -> Tensor:
        """What takes the place of identities `(B, D)`."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        identity, rest, _ = self.encode(image)
        return self.decode(self.another(identity), rest)


def drawn(mean: Tensor, log_variance: Tensor) -> Tensor:
    """A draw `(B, R)` of each Gaussian."""
    return mean + torch.randn_like(mean) * (0.5 * log_variance).exp()


def reconstruction_loss(image: Tensor, decoded: Tensor) -> Tensor:
    """Squared error, summed over an image's pixels in [-1, 1]: a Gaussian's, to which `kl_loss` in nats belongs."""
    return losses.latent_distance(image.flatten(1), decoded.flatten(1)).mean() * math.prod(image.shape[1:])
