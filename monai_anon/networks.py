"""The networks of section 3: encoder E, decoder D, discriminator C_real, the classifiers C_med and C_id, and the
identity VAE.

Sizes, widths, latent lengths and normalisation are arguments. The defaults are our light networks (pixel-unshuffle
stem, group normalisation, about 2 M parameters each); the authors' widths are set in `paper.json`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pickle import UnpicklingError
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger("monai_anon")
TEMPLATES = "identity_classifier."
"""How the names of a disentangler's weights begin that have a row for each training patient."""


class Latents(NamedTuple):
    """The three vectors an image is split into (section 3.1), each `(B, D_i)`."""

    identity: Tensor
    medical: Tensor
    residual: Tensor


def normalisation(kind: str, channels: int) -> nn.Module:
    """`group`, `batch` or `none` normalisation over `channels`."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm is {kind!r}; it must be 'group', 'batch' or 'none'")


def check_size(size: int, factor: int, name: str) -> None:
    """Refuse an image side that the network cannot halve often enough."""
    if size % factor or size < factor:
        raise ValueError(f"{name}: image_size is {size}; it must be a multiple of {factor} for these widths and stem")


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions around an identity path (He et al. 2016), `(B, C_in, H, W)` to `(B, C_out, rH, rW)`.

    Args:
        resample: `down` halves the side by averaging, `up` doubles it by repetition, `same` keeps it.
        condition: length of a vector that scales and shifts the second normalisation (FiLM); 0 for none.
    """

    def __init__(
        self, c_in: int, c_out: int, norm: str, resample: str = "same", condition: int = 0, dropout: float = 0.0
    ):
        super().__init__()
        self.resample = resample
        self.norm1, self.norm2 = normalisation(norm, c_in), normalisation(norm, c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip: nn.Module = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.film: nn.Linear | None = nn.Linear(condition, 2 * c_out) if condition else None
        self.dropout = nn.Dropout2d(dropout)
        nn.init.zeros_(self.conv2.weight)
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.conv1(self.resampled(F.leaky_relu(self.norm1(x), 0.2)))
        h = self.norm2(h)
        if self.film is not None and condition is not None:
            scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        h = self.conv2(self.dropout(F.leaky_relu(h, 0.2)))
        return self.skip(self.resampled(x)) + h


class Encoder(nn.Module):
    """E of section 3.1: an image `(B, C, S, S)` in [-1, 1] to its `Latents`.

    Args:
        size: side S of the image in pixels.
        channels: 1 (gray) or 3 (colour).
        widths: channels of the stem and of each halving after it.
        latent_sizes: lengths of identity, medical and residual latent.
        stem: how many pixels a side the stem folds into channels; 4 unshuffles 4x4 blocks, 2 halves once.
        pooling: `flatten` keeps positions for the heads, `average` is the authors' global mean.
        unit_identity: put the identity latent on the sphere of radius sqrt(D), which gives cosine similarities a scale.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        widths: Sequence[int] = (64, 128, 192),
        latent_sizes: Sequence[int] = (96, 4, 8),
        stem: int = 4,
        norm: str = "group",
        pooling: str = "flatten",
        unit_identity: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_size(size, stem * 2 ** (len(widths) - 1), "encoder")
        if len(latent_sizes) != len(Latents._fields):
            raise ValueError(
                f"latent_sizes has {len(latent_sizes)} entries; it needs {len(Latents._fields)}: {Latents._fields}"
            )
        self.size, self.channels, self.latent_sizes = size, channels, tuple(latent_sizes)
        self.unit_identity, self.pooling = unit_identity, pooling
        self.stem = nn.Sequential(nn.PixelUnshuffle(stem), nn.Conv2d(channels * stem**2, widths[0], 3, padding=1))
        blocks = [PreActivationBlock(widths[0], widths[0], norm, dropout=dropout)]
        for narrow, wide in zip(widths, widths[1:], strict=False):
            blocks += [
                PreActivationBlock(narrow, wide, norm, "down"),
                PreActivationBlock(wide, wide, norm, dropout=dropout),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.final_norm = normalisation(norm, widths[-1])
        side = size // (stem * 2 ** (len(widths) - 1))
        features = widths[-1] * (side**2 if pooling == "flatten" else 1)
        self.head = nn.Linear(features, sum(latent_sizes))

    def forward(self, image: Tensor) -> Latents:
        h = F.leaky_relu(self.final_norm(self.blocks(self.stem(image))), 0.2)
        h = h.flatten(1) if self.pooling == "flatten" else h.mean((2, 3))
        identity, medical, residual = self.head(h).float().split(self.latent_sizes, dim=1)
        if self.unit_identity:
            identity = F.normalize(identity, dim=1) * math.sqrt(self.latent_sizes[0])
        return Latents(identity, medical, residual)


class Decoder(nn.Module):
    """D of section 3.1: `Latents` to an image `(B, C, S, S)` in [-1, 1].

    Args:
        widths: channels from the smallest map to the largest, each step doubles the side.
        head: how many pixels a side the last map unfolds into (pixel shuffle); 1 for a plain convolution.
        film: let the latents that draw scale and shift every block.
        canvas: let identity and medical latent alone draw, upright, on a canvas of this many times the image's side;
            the residual latent only places (shift, zoom, rotation) and exposes what they drew, so that no finding can
            hide in it. 0 draws the image itself from all three (the paper).
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        widths: Sequence[int] = (192, 128, 64),
        latent_sizes: Sequence[int] = (96, 4, 8),
        head: int = 4,
        norm: str = "group",
        film: bool = True,
        canvas: int = 0,
    ):
        super().__init__()
        check_size(size, head * 2 ** (len(widths) - 1), "decoder")
        self.size, self.channels, self.width = size, channels, widths[0]
        self.side = size // (head * 2 ** (len(widths) - 1))
        total = sum(latent_sizes[:2] if canvas else latent_sizes)
        condition = total if film else 0
        self.dense = nn.Linear(total, widths[0] * self.side**2)
        pairs = [(widths[0], widths[0], "same")]
        for wide, narrow in zip(widths, widths[1:], strict=False):
            pairs += [(wide, narrow, "up"), (narrow, narrow, "same")]
        self.blocks = nn.ModuleList([PreActivationBlock(a, b, norm, how, condition) for a, b, how in pairs])
        self.final_norm = normalisation(norm, widths[-1])
        unfold = head * max(canvas, 1)
        self.head = nn.Sequential(nn.Conv2d(widths[-1], channels * unfold**2, 3, padding=1), nn.PixelShuffle(unfold))
        self.placing: nn.Linear | None = nn.Linear(latent_sizes[2], 4 + 3) if canvas else None
        if self.placing is not None:
            nn.init.zeros_(self.placing.bias)
            nn.init.normal_(self.placing.weight, std=0.02)

    def forward(self, latents: Latents) -> Tensor:
        z = torch.cat([latents.identity, latents.medical], dim=1)
        if self.placing is None:
            z = torch.cat([z, latents.residual], dim=1)
        h = self.dense(z).reshape(-1, self.width, self.side, self.side)
        for block in self.blocks:
            h = block(h, z)
        drawn = self.head(F.leaky_relu(self.final_norm(h), 0.2)).float()
        if self.placing is not None:
            pose, tone = self.placing(latents.residual).float().split([4, 3], dim=1)
            drawn = self.expose(self.place(drawn, pose), tone)
        return torch.tanh(drawn)

    def expose(self, drawn: Tensor, tone: Tensor) -> Tensor:
        """A tone curve for each image `(B, C, S, S)`, before tanh: offset, log contrast and curvature `(B, 3)`."""
        offset, contrast, curvature = tone[:, :, None, None, None].unbind(1)
        return offset + contrast.exp() * drawn + curvature * drawn.square()

    def place(self, drawn: Tensor, pose: Tensor) -> Tensor:
        """Sample the canvas `(B, C, cS, cS)` at the pixels of the image.

        Pose `(B, 4)` is shift x, shift y, log zoom and angle (rad) before a soft bound of 0.4: without it early
        training finds absurd poses and draws for them.
        """
        pose = 0.4 * torch.tanh(pose / 0.4)
        zoom = pose[:, 2].exp()
        cosine, sine = zoom * pose[:, 3].cos(), zoom * pose[:, 3].sin()
        theta = torch.stack([cosine, -sine, pose[:, 0], sine, cosine, pose[:, 1]], dim=1).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, [pose.shape[0], self.channels, self.size, self.size], align_corners=False)
        return F.grid_sample(drawn, grid, padding_mode="border", align_corners=False)


class Discriminator(nn.Module):
    """C_real of section 3.1: an image `(B, C, S, S)` to one logit `(B,)`, positive for real."""

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        widths: Sequence[int] = (64, 128, 256),
        stem: int = 4,
        norm: str = "group",
    ):
        super().__init__()
        check_size(size, stem * 2 ** (len(widths) - 1), "discriminator")
        blocks = [PreActivationBlock(a, b, norm, "down") for a, b in zip(widths, widths[1:], strict=False)]
        self.features = nn.Sequential(
            nn.PixelUnshuffle(stem), nn.Conv2d(channels * stem**2, widths[0], 3, padding=1), *blocks, nn.LeakyReLU(0.2)
        )
        side = size // (stem * 2 ** (len(widths) - 1))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side**2, widths[-1] // 4),
            nn.LeakyReLU(0.2),
            nn.Linear(widths[-1] // 4, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image)).float().squeeze(1)


class LatentClassifier(nn.Sequential):
    """C_med or C_id of section 3.1: one hidden layer, dropout, a final layer; `(B, D)` to logits `(B, K)`."""

    def __init__(self, latent_size: int, classes: int, hidden: int = 64, dropout: float = 0.5):
        super().__init__(nn.Linear(latent_size, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))
        self.classes = classes


class IdentityVAE(nn.Module):
    """The VAE of section 3.2, Eq. 5 and 7: perceptrons with one hidden layer and one dropout layer each way.

    With `unit_identity` the output is put back on the encoder's sphere of radius sqrt(D).
    """

    def __init__(
        self,
        identity_size: int = 96,
        latent_size: int = 64,
        hidden: int = 128,
        dropout: float = 0.2,
        unit_identity: bool = True,
    ):
        super().__init__()
        self.latent_size, self.identity_size, self.unit_identity = latent_size, identity_size, unit_identity
        self.encoder = nn.Sequential(
            nn.Linear(identity_size, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 2 * latent_size)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, identity_size)
        )

    def encode(self, identity: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance `(B, Z)` of q(z | identity)."""
        mean, log_variance = self.encoder(identity).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Identity latents `(B, D)` of codes `(B, Z)`."""
        identity = self.decoder(z)
        if self.unit_identity:
            identity = F.normalize(identity, dim=1) * math.sqrt(self.identity_size)
        return identity

    def forward(self, identity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(identity)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decode(z), mean, log_variance


class Recogniser(nn.Module):
    """A medical recogniser for training only: an image `(B, C, S, S)` to finding logits `(B, K)`; `features` is its
    last map.

    It is fitted on the training part and guides the swaps (feature matching). It never judges: judges have another
    architecture.
    """

    def __init__(
        self, channels: int = 1, classes: int = 2, widths: Sequence[int] = (32, 64, 96, 128), norm: str = "group"
    ):
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(channels, widths[0], 5, stride=2, padding=2)]
        for narrow, wide in zip(widths, widths[1:], strict=False):
            blocks += [normalisation(norm, narrow), nn.ReLU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        self.body = nn.Sequential(*blocks, normalisation(norm, widths[-1]), nn.ReLU())
        self.head = nn.Linear(widths[-1], classes)

    def features(self, image: Tensor) -> Tensor:
        """The last convolutional map `(B, F, S/16, S/16)` for four widths."""
        return self.body(image)

    def evidence(self, features: Tensor) -> Tensor:
        """Class activation maps `(B, K, h, w)` (Zhou et al. 2016): each place's share of the logits, less their mean.

        Where a finding is seen and how much of it, with little of the anatomy around it.
        """
        maps = F.conv2d(features.float(), self.head.weight[:, :, None, None].float())
        return maps - maps.mean(1, keepdim=True)

    def classify(self, features: Tensor) -> Tensor:
        """Finding logits `(B, K)` of a feature map."""
        return self.head(features.mean((2, 3))).float()

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(self.features(image))


class Disentangler(nn.Module):
    """What stage 1 trains and stage 2 needs: encoder, decoder, medical classifier and, for multi-class identity, its
    classifier.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        medical_classifier: LatentClassifier,
        identity_classifier: LatentClassifier | None = None,
    ):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.medical_classifier, self.identity_classifier = medical_classifier, identity_classifier

    def encode(self, image: Tensor) -> Latents:
        """`Latents` of images `(B, C, S, S)` in [-1, 1]."""
        return self.encoder(image)

    def decode(self, latents: Latents) -> Tensor:
        """Images `(B, C, S, S)` in [-1, 1] of `Latents`."""
        return self.decoder(latents)

    def classify(self, medical: Tensor) -> Tensor:
        """Finding logits `(B, K)` of medical latents `(B, D)`."""
        return self.medical_classifier(medical)

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction D(E(image)), `(B, C, S, S)`."""
        return self.decoder(self.encoder(image))


def initialised(model: nn.Module, path: str | None) -> nn.Module:
    """`model` with the weights of a file (tensors only), to go on from a trained one; None leaves it as it is.

    The file is a stage's own (`disentangler.pt`), or a `model.pt` of both stages, of which the first is taken. It may
    be of networks for images of half the side, or a quarter (`grown`). An identity classifier starts anew: its classes
    are the people of the cohort that it was trained on.

    Raises:
        ValueError: the file is missing or does not fit; names it.
    """
    if path is None:
        return model
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        stage = "disentangler."
        first = {name.removeprefix(stage): tensor for name, tensor in weights.items() if name.startswith(stage)}
        kept = {name: tensor for name, tensor in (first or weights).items() if not name.startswith(TEMPLATES)}
        own = model.state_dict()
        classes = {name: tensor for name, tensor in own.items() if name.startswith(TEMPLATES)}
        model.load_state_dict({**grown(kept, own), **classes})
    except (OSError, RuntimeError, AttributeError, UnpicklingError) as error:
        raise ValueError(f"initial_weights {path} cannot be used for these networks: {error}") from error
    return model


NEW_IN_A_LARGER = ("encoder.stem.", "decoder.final_norm.", "decoder.head.")


def grown(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of a `Disentangler` for networks with more halvings and doublings than theirs, whose own weights fill
    what is new: the layers next to the image (progressive growing, Karras et al. 2018). Equal networks take them as
    they are.

    The encoder's new blocks come first, the decoder's last; where `widths` are those of before with new ones at the
    image's end, all other layers have the same shapes and see maps of the same side.
    """
    blocks = [
        {int(name.split(".")[2]) for name in names if name.startswith("encoder.blocks.")} for names in (own, weights)
    ]
    more = len(blocks[0]) - len(blocks[1])
    if more <= 0 or not blocks[1]:
        return weights
    taken = dict(own)
    for name, tensor in weights.items():
        parts = name.split(".")
        if name.startswith("encoder.blocks."):
            name = ".".join([*parts[:2], str(int(parts[2]) + more), *parts[3:]])
        if not name.startswith(NEW_IN_A_LARGER):
            taken[name] = tensor
    logger.info("%d halvings more than in the weights: the layers next to the image are new", more // 2)
    return taken
