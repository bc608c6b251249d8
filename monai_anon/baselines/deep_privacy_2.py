"""DeepPrivacy2: DeepPrivacy with a generator whose noise is a style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.baselines.games import gradient_norms
from monai_anon.baselines.inpainting import Inpainter, InpaintingNet, InpaintingStep, Window
from monai_anon.baselines.system import Setting
from monai_anon.networks import Recogniser


class StyleGenerator(nn.Module):
    """A U-Net whose way up is scaled and shifted, block by block, by a style made of noise.

    Args:
        style: length of noise and style.
        layers: of the perceptron that makes a style of noise (StyleGAN's mapping network).
    """

    def __init__(self, size: int, channels: int, widths: Sequence[int], style: int, layers: int = 2):
        super().__init__()
        self.style = style
        mapping = [part for _ in range(layers) for part in (nn.Linear(style, style), nn.LeakyReLU(0.2))]
        self.mapping = nn.Sequential(*mapping)
        self.net = InpaintingNet(size, channels, widths, style=style)

    def forward(self, shown: Tensor, mask: Tensor) -> Tensor:
        """Images `(B, C, S, S)` in [-1, 1] of what is shown, `(B, C, S, S)`, and its mask `(B, 1, S, S)`."""
        noise = torch.randn(len(shown), self.style, device=shown.device)
        noise = F.normalize(noise, dim=1) * self.style**0.5
        return self.net(shown, mask, self.mapping(noise))


class DeepPrivacy2Step(InpaintingStep):
    """Non-saturating GAN (Goodfellow et al. 2014) with a penalty on real images (R1, Mescheder et al. 2018)."""

    def critic_terms(self, real: Tensor, filled: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of real against filled images; half the squared slope at the real ones."""
        real = real.clone().requires_grad_(True)
        seen = torch.cat([torch.cat([real, filled]), mask.repeat(2, 1, 1, 1)], dim=1)
        of_real, of_filled = self.critic(seen).chunk(2)
        return {
            "critic": losses.discriminator_loss(of_real, of_filled),
            "penalty": gradient_norms(of_real, real).mean() / 2,
        }

    def adversarial_loss(self, logit: Tensor) -> Tensor:
        return losses.adversarial_loss(logit)


class DeepPrivacy2(Inpainter):
    """DeepPrivacy2 (Hukkelås, Lindseth, "DeepPrivacy2: towards realistic full-body anonymization", WACV 2023).

    As `DeepPrivacy`: the person is removed first and what is missing is drawn, for realism alone, without any identity
    term. The generator is a U-Net in the manner of StyleGAN: noise becomes a style, which modulates every block on the
    way up, and the critic plays a non-saturating game with an R1 penalty.

    What passes is what passes `DeepPrivacy`: the window's pixels, its place and shape.

    Where it is not the paper's:

    - The window, the missing keypoints, sizes, widths and budget: as said of `DeepPrivacy`. Of the paper's three
      generators, of faces and of bodies with and without a body's surface, this is in the place of the one of faces.
    - A style scales and shifts normalised maps (StyleGAN's first form), in place of modulated and demodulated kernels;
      there is no noise for each pixel and no truncation of styles. The mapping network has two layers.
    - The weight of the R1 penalty, 1, and the length of the style are ours; the penalty is computed in every step.

    Args:
        style: length of the noise and of the style.
        kept, dilation: the window's, see `Window`.
        weights: of the terms `adversarial`, `critic` and `penalty`.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        classes: int = 2,
        encoder_widths: Sequence[int] = (32, 64, 96),
        guide_widths: Sequence[int] = (32, 64, 96, 128),
        style: int = 64,
        kept: float = 0.1,
        dilation: float = 1 / 32,
        weights: Mapping[str, float] | None = None,
    ):
        super().__init__(
            size,
            channels,
            StyleGenerator(size, channels, encoder_widths, style),
            Window(Recogniser(channels, classes, guide_widths), kept, dilation),
            encoder_widths,
            {"adversarial": 1.0, "critic": 1.0, "penalty": 1.0} if weights is None else weights,
        )

    def begin(self, setting: Setting) -> DeepPrivacy2Step:
        self.watch(setting)
        return DeepPrivacy2Step(self, setting)
