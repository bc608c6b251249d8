"""DeepPrivacy: the person is blanked before the generator sees anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monai_anon.baselines.games import WASSERSTEIN, gradient_penalty
from monai_anon.baselines.inpainting import Inpainter, InpaintingNet, InpaintingStep, Window
from monai_anon.baselines.system import Setting
from monai_anon.networks import Recogniser


class DeepPrivacyStep(InpaintingStep):
    """Wasserstein GAN with gradient penalty (Gulrajani et al. 2017): one step of the critic, one of the generator."""

    def critic_terms(self, real: Tensor, filled: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The critic's means of filled less real images; squared distance of its slope between them from 1."""
        seen = torch.cat([torch.cat([real, filled]), mask.repeat(2, 1, 1, 1)], dim=1)
        penalty = gradient_penalty(lambda images: self.critic(torch.cat([images, mask], dim=1)), real, filled)
        return {"critic": WASSERSTEIN.critic(*self.critic(seen).chunk(2)), "penalty": penalty}

    def adversarial_loss(self, logit: Tensor) -> Tensor:
        return WASSERSTEIN.generator(logit)


class DeepPrivacy(Inpainter):
    """DeepPrivacy (Hukkelås, Mester, Lindseth, "DeepPrivacy: a generative adversarial network for face anonymization",
    ISVC 2019).

    The person is removed before a network draws anything: the generator is given what may be known and noise, and fills
    in the rest. It is optimised for realism alone, by a Wasserstein critic with gradient penalty; there is no identity
    term, since the identity is not there.

    What passes nevertheless: the pixels of the window as they are, and where the window lies, which depends on the
    whole image (see `Inpainter`). A person who can be told by what is inside the window is not hidden; and nothing
    keeps the generator from drawing somebody of the training part, as Montenegro and Cardoso say of it.

    Where it is not the paper's:

    - The other way round: DeepPrivacy blanks a face in its box and keeps everything around it. Here everything is
      blanked but a window on the evidence of the finding: the share `kept` of the pixels with the largest class
      activation maps of the finding that the guide's network predicts, dilated. Both numbers are ours.
    - No keypoints: the paper gives the face's to the generator, for its pose. A medical image has none, so that nothing
      says how the patient lay, besides the window.
    - 64 pixels and the widths of all compared systems at once, in place of progressive growing to 128 pixels; group
      normalisation; the budget and optimiser of all systems; one step of the critic for each of the generator.
    - Noise is given beside the U-Net's smallest map; its number of channels is ours. What is shown is put back over
      what was drawn before the critic looks.
    - The weight of the gradient penalty, 10, is that of Gulrajani et al.

    Args:
        noise: channels of noise.
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
        noise: int = 32,
        kept: float = 0.1,
        dilation: float = 1 / 32,
        weights: Mapping[str, float] | None = None,
    ):
        super().__init__(
            size,
            channels,
            InpaintingNet(size, channels, encoder_widths, noise_maps=noise),
            Window(Recogniser(channels, classes, guide_widths), kept, dilation),
            encoder_widths,
            {"adversarial": 1.0, "critic": 1.0, "penalty": 10.0} if weights is None else weights,
        )

    def begin(self, setting: Setting) -> DeepPrivacyStep:
        self.watch(setting)
        return DeepPrivacyStep(self, setting)
