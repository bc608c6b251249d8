"""The interface of an anonymizer, and the latent-swap anonymizer of the paper (section 3.2).

An anonymizer is an `nn.Module` that maps images `(B, C, H, W)` in [-1, 1] to images of the same shape and range. There
is no ground truth at that time: what a method wants to know it predicts.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_anon.handlers import save_weights
from monai_anon.networks import Disentangler, IdentityVAE, Latents

logger = logging.getLogger("monai_anon")


class LatentSwapAnonymizer(nn.Module):
    """E, then the VAE's decoder on noise in place of the identity, then D (Figure 3).

    `forward` draws its own noise from torch's global generator, so `torch.manual_seed` makes it repeatable; give
    `noise` to fix each image's new identity on its own, whatever the batch. The model holds no real identity: the
    gallery is not part of it.
    """

    def __init__(self, disentangler: Disentangler, identity_vae: IdentityVAE):
        super().__init__()
        self.disentangler, self.identity_vae = disentangler, identity_vae
        self.noise_size: int = identity_vae.latent_size

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Anonymised images `(B, C, S, S)` in [-1, 1]; `noise` `(B, noise_size)` is standard normal."""
        if noise is None:
            noise = torch.randn(image.shape[0], self.noise_size, device=image.device)
        z = self.disentangler.encoder(image)
        identity = self.identity_vae.decoder(noise)
        if self.identity_vae.unit_identity:
            identity = nn.functional.normalize(identity, dim=1) * float(self.identity_vae.identity_size) ** 0.5
        return self.disentangler.decoder(Latents(identity, z.medical, z.residual))


class ModelFile:
    """Joins the weights of both stages into the one file of a `LatentSwapAnonymizer`. Tensors only; no gallery."""

    def __init__(self, disentangler: str, identity_vae: str, path: str):
        self.sources = {"disentangler": disentangler, "identity_vae": identity_vae}
        self.path = Path(path)

    def write(self) -> Path:
        """The file's path; written whole or not at all."""
        weights: dict[str, Tensor] = {}
        for name, source in self.sources.items():
            state = torch.load(source, map_location="cpu", weights_only=True)
            weights |= {f"{name}.{key}": tensor for key, tensor in state.items()}
        save_weights(weights, self.path)
        logger.info("wrote %s", self.path)
        return self.path
