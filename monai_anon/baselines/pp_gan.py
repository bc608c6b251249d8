"""PP-GAN: an image like its original that a verification network takes for somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from monai_anon import losses
from monai_anon.baselines.games import LOGISTIC
from monai_anon.baselines.system import Setting, System
from monai_anon.baselines.translation import Drawn, Opponent, TranslationStep, checked, distances, repulsion, u_net
from monai_anon.networks import Discriminator
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {"identity": 1.0, "adversarial": 1.0, "ssim": 1.0}


class PPGAN(System):
    """PP-GAN (Wu, Yang, Xu, Ling, "Privacy-protective-GAN for privacy preserving face de-identification", Journal of
    Computer Science and Technology 2019).

    A U-Net redraws the image. A critic is to take it for real (`adversarial`), a *verificator* to find it far from its
    original (`identity`: max(0, margin - distance)^2), a *regulator* to find its structure the same (`ssim`).

    Where it is not the paper's:

    - The verificator is the identity guide, whose vectors have length 1: distances are at most 2. The margin is ours.
    - The weights are ours: the source gives none.
    - MONAI's U-Net; widths and budget are the comparison's. The critic judges whole images.

    Nothing is asked of the finding beyond SSIM. The release is a formula of its image: no noise is in it.

    Args:
        margin: distance that is far enough, from 0 to 2.
        weights: of the terms, by name.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        margin: float = 1.0,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__()
        self.sizes, self.margin = (size, channels, tuple(encoder_widths)), margin
        self.weights = checked(weights, WEIGHTS, "PP-GAN")
        self.generator = u_net(size, channels, channels, encoder_widths)

    def begin(self, setting: Setting) -> TranslationStep:
        return PPGANStep(self, setting)

    def forward(self, image: Tensor) -> Tensor:
        return torch.tanh(self.generator(image))


class PPGANStep(TranslationStep):
    """One critic step, one generator step."""

    def __init__(self, system: PPGAN, setting: Setting):
        self.system, self.critic = system, Discriminator(*system.sizes)
        super().__init__(system.generator, system.weights, setting)

    def make_opponents(self, setting: Setting) -> dict[str, Opponent]:
        def loss(batch: Batch, drawn: Drawn) -> Tensor:
            return LOGISTIC.critic_loss(self.critic, batch["i_ori"], drawn.image)

        return {"critic": Opponent(self.critic, loss, setting)}

    def draw(self, batch: Batch) -> Drawn:
        return Drawn(self.system(batch["i_ori"]))

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        def verificator() -> Tensor:
            vectors, original = self.guides.identity(torch.cat([drawn.image, batch["i_ori"]])).chunk(2)
            return repulsion(distances(vectors, original).diagonal(), self.system.margin)

        return {
            "identity": verificator,
            "adversarial": lambda: LOGISTIC.generator(self.critic(drawn.image)),
            "ssim": lambda: losses.ssim_loss(batch["i_ori"], drawn.image),
        }
