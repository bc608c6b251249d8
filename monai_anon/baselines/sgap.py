"""SGAP: a game with a Siamese network that learns to link what was made of an image to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anon.baselines.games import LOGISTIC
from monai_anon.baselines.system import Setting, System
from monai_anon.baselines.translation import BottleneckGenerator, Drawn, Opponent, TranslationStep, checked, repulsion
from monai_anon.networks import Discriminator, Recogniser
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {"identity": 1.0, "distortion": 10.0, "adversarial": 1.0, "kl": 0.002}


class SGAP(System):
    """SGAP (Oleszkiewicz, Kairouz, Piczak, Rajagopal, Trzcinski, "Siamese generative adversarial privatizer for
    biometric data", ACCV 2018).

    A variational autoencoder redraws the image within a bound of distortion. A Siamese network is trained along by the
    contrastive loss: two images of a patient are alike, so are a redrawn image and its original; two patients' are
    apart by a margin. The generator has to put the redrawn image apart from its original by that margin (`identity`),
    to stay within the bound (`distortion`: what the mean squared error has above it), to look real (`adversarial`) and
    to keep its codes near N(0, 1) (`kl`).

    Where it is not the paper's:

    - The bound is a penalty, in mean squared error. Its size and all the weights are ours: the source gives none.
    - Networks, sizes and budget are the comparison's. The Siamese network takes one step for each of the generator's.

    Nothing is asked of the finding beyond the bound.

    Args:
        code: length of the code.
        margin: distance of the Siamese network's vectors; the default is the paper's.
        bound: mean squared error that costs nothing, of images in [-1, 1].
        weights: of the terms, by name.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        code: int = 128,
        margin: float = 2.0,
        bound: float = 0.02,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__()
        self.sizes, self.margin, self.bound = (size, channels, tuple(encoder_widths)), margin, bound
        self.weights = checked(weights, WEIGHTS, "SGAP")
        self.generator = BottleneckGenerator(size, channels, encoder_widths, decoder_widths, code)

    def begin(self, setting: Setting) -> TranslationStep:
        return SGAPStep(self, setting)

    def forward(self, image: Tensor) -> Tensor:
        return self.generator(image).image


class SGAPStep(TranslationStep):
    """One step of the Siamese network, one of the critic, one of the generator."""

    DIMENSIONS = 64  # of the Siamese network's vectors, as of the identity guide's

    def __init__(self, system: SGAP, setting: Setting):
        _, channels, widths = system.sizes
        self.system, self.critic = system, Discriminator(*system.sizes)
        self.siamese = Recogniser(channels, self.DIMENSIONS, widths)
        super().__init__(system.generator, system.weights, setting)

    def make_opponents(self, setting: Setting) -> dict[str, Opponent]:
        def loss(batch: Batch, drawn: Drawn) -> Tensor:
            return LOGISTIC.critic_loss(self.critic, batch["i_ori"], drawn.image)

        return {
            "siamese": Opponent(self.siamese, self.siamese_loss, setting),
            "critic": Opponent(self.critic, loss, setting),
        }

    def siamese_loss(self, batch: Batch, drawn: Drawn) -> Tensor:
        """Contrastive: a patient's second image and the redrawn one are alike, another patient's is not."""
        images = [batch["i_ori"], batch["i_same"], drawn.image, batch["i_tar"]]
        ori, same, gen, tar = self.siamese(torch.cat(images)).chunk(4)
        alike = (ori - same).square().sum(1).mean() + (ori - gen).square().sum(1).mean()
        return 0.5 * alike + repulsion(F.pairwise_distance(ori, tar), self.system.margin)

    def draw(self, batch: Batch) -> Drawn:
        drawn: Drawn = self.system.generator(batch["i_ori"])
        return drawn

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        i_ori, i_gen = batch["i_ori"], drawn.image

        def apart() -> Tensor:
            ori, gen = self.siamese(torch.cat([i_ori, i_gen])).chunk(2)
            return repulsion(F.pairwise_distance(ori, gen), self.system.margin)

        return {
            "identity": apart,
            "distortion": lambda: F.relu((i_gen - i_ori).square().mean((1, 2, 3)) - self.system.bound).mean(),
            "adversarial": lambda: LOGISTIC.generator(self.critic(i_gen)),
            "kl": drawn.kl,
        }
