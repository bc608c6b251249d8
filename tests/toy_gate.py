"""An anonymizer whose images show their latents, so that a test plants what it likes, and its gate."""

import math

import torch
from tiny import tiny_channel
from torch import nn

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.gallery_search import SearchableGallery
from monai_anon.gate import Comparator, Gate, embedding
from monai_anon.gate_calibration import calibrate
from monai_anon.identities import Gallery
from monai_anon.networks import Disentangler, IdentityVAE, Latents

SIZES = (24, 4, 4)
SHAPE = (1, 4, 8)
SCALE = 6.0


class ToyEncoder(nn.Module):
    """Pixels are latents, the identity on its sphere."""

    def __init__(self, sizes=SIZES):
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, image):
        identity, medical, residual = (image.flatten(1) * SCALE).split(self.sizes, dim=1)
        return Latents(nn.functional.normalize(identity, dim=1) * math.sqrt(self.sizes[0]), medical, residual)


class ToyDecoder(nn.Module):
    def __init__(self, shape=SHAPE):
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, z):
        return (torch.cat(z, 1) / SCALE).clamp(-1, 1).unflatten(1, self.shape)


class ToyClassifier(nn.Module):
    """Of the channel's two findings, whose medical latents are 3 apart."""

    def forward(self, medical):
        score = 8 * (medical.mean(1) - 1.5)
        return torch.stack([-score, score], 1)


def toy_network(policy="code", sizes=SIZES, shape=SHAPE, prototypes=8, **settings):
    """A module; its weights are the one parameter that tells its device."""
    disentangler = Disentangler(ToyEncoder(sizes), ToyDecoder(shape), ToyClassifier())
    channel = tiny_channel(policy, sizes=tuple(sizes), prototypes=prototypes, **settings)
    return LatentSwapAnonymizer(disentangler, IdentityVAE(sizes[0], 8, 8), channel).eval()


def toy_images(count, seed=5, sizes=SIZES, shape=SHAPE):
    """Images of strangers in the range of 8 bits, half of them with the finding."""
    generator = torch.Generator().manual_seed(seed)
    z = Latents(*(torch.randn(count, size, generator=generator) for size in sizes))
    z = z._replace(medical=z.medical + 3 * (torch.arange(count) % 2)[:, None])
    return ToyDecoder(shape)(z)


def toy_comparators(network, rate=0.02):
    """The model's encoder, and a verifier that sees the identity's pixels turned."""
    turn = torch.linalg.qr(torch.randn(SIZES[0], SIZES[0], generator=torch.Generator().manual_seed(3)))[0]
    seen = {"model": embedding(network), "verifier": lambda images: images.flatten(1)[:, : SIZES[0]] @ turn[:, :16]}
    training, held_out = toy_images(300, seed=1), toy_images(150, seed=2)
    found = []
    for name, embed in seen.items():
        gallery = SearchableGallery.of(Gallery(embed(training), torch.arange(300) // 2), name)
        found.append(
            Comparator(name, name, embed, gallery, calibrate(embed(held_out), torch.arange(150), gallery, rate))
        )
    return found


def toy_gate(network, **settings):
    return Gate(network, toy_comparators(network), **settings)
