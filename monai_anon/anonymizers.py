"""The interface of an anonymizer, and the latent-swap anonymizer of the paper (section 3.2).

An anonymizer is an `nn.Module` that maps images `(B, C, H, W)` in [-1, 1] to images of the same shape and range. There
is no ground truth at that time: what a method wants to know it predicts.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_anon.channel import Channel
from monai_anon.initial_weights import TEMPLATES
from monai_anon.model_files import save_weights
from monai_anon.networks import Disentangler, IdentityVAE, Latents

logger = logging.getLogger("monai_anon")


class LatentSwapAnonymizer(nn.Module):
    """E, then the latents that the channel lets pass and draws, then D.

    Under the channel's policy `latents` this is Figure 3 of the paper: the identity is the VAE's decoder on noise, the
    rest is the original's.

    `forward` draws its own noise from torch's global generator, so `torch.manual_seed` makes it repeatable; give
    `noise` to fix each image's draws on its own, whatever the batch. The model holds no real identity: the gallery is
    not part of it.
    """

    def __init__(self, disentangler: Disentangler, identity_vae: IdentityVAE, channel: Channel):
        super().__init__()
        self.disentangler, self.identity_vae, self.channel = disentangler, identity_vae, channel
        self.identity_noise: int = identity_vae.latent_size
        self.noise_size: int = identity_vae.latent_size + channel.noise_size

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Anonymised images `(B, C, S, S)` in [-1, 1]; `noise` `(B, noise_size)` is standard normal."""
        if noise is None:
            noise = torch.randn(image.shape[0], self.noise_size, device=image.device)
        return self.disentangler.decoder(self.drawn(self.disentangler.encoder(image), noise))

    def drawn(self, z: Latents, noise: Tensor) -> Latents:
        """What the release of an original with the latents `z` is decoded from, under the channel's policy."""
        if self.channel.policy == "latents":
            drawn = Latents(self.identity_vae.decoder(noise[:, : self.identity_noise]), z.medical, z.residual)
        else:
            finding = self.disentangler.medical_classifier(z.medical).argmax(1)
            drawn = self.channel(z, finding, noise[:, self.identity_noise :])
        identity = drawn.identity
        if self.identity_vae.unit_identity:
            identity = nn.functional.normalize(identity, dim=1) * float(self.identity_vae.identity_size) ** 0.5
        return Latents(identity, drawn.medical, drawn.residual)

    @torch.jit.ignore
    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """As in torch.

        Raises:
            ChannelError: the weights hold no prototypes, and the policy needs them.
        """
        found = super().load_state_dict(*args, **options)
        self.channel.require_fitted()
        return found


class ModelFile:
    """Joins the weights of both stages into the one file of a `LatentSwapAnonymizer`. Tensors only; no gallery, and no
    identity classifier: it has a row for each training patient, which is a template of that person.
    """

    def __init__(self, disentangler: str, identity_vae: str, channel: Channel, path: str):
        self.sources = {"disentangler": disentangler, "identity_vae": identity_vae}
        self.channel, self.path = channel, Path(path)

    def write(self) -> Path:
        """The file's path; written whole or not at all."""
        weights: dict[str, Tensor] = {}
        for name, source in self.sources.items():
            state = torch.load(source, map_location="cpu", weights_only=True)
            weights |= {f"{name}.{key}": tensor for key, tensor in state.items() if not key.startswith(TEMPLATES)}
        weights |= {f"channel.{key}": tensor for key, tensor in self.channel.state_dict().items()}
        save_weights(weights, self.path)
        logger.info("wrote %s", self.path)
        return self.path
