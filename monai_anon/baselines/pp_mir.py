"""PP-MIR: an image that a multi-class identity network cannot put to any patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anon import losses
from monai_anon.baselines.games import WASSERSTEIN
from monai_anon.baselines.saliency import saliency
from monai_anon.baselines.system import Setting, System
from monai_anon.baselines.translation import BottleneckGenerator, Drawn, Opponent, TranslationStep, checked
from monai_anon.networks import Discriminator, Recogniser
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {
    "identity": 1.0,
    "adversarial": 0.4,
    "reconstruction": 0.002,
    "finding": 0.001,
    "kl": 0.002,
}


def uniform_loss(logits: Tensor) -> Tensor:
    """Cross-entropy `(B, P)` from the uniform distribution; lowest, log P, when all patients are as likely."""
    return -F.log_softmax(logits, dim=1).mean(1).mean()


def masked_reconstruction(i_ori: Tensor, i_gen: Tensor, mask: Tensor) -> Tensor:
    """Squared error under a mask `(B, 1, S, S)`, summed over the pixels of `(B, C, S, S)`, mean of the images."""
    return (mask * (i_gen - i_ori)).square().sum((1, 2, 3)).mean()


class PPMIR(System):
    """PP-MIR (Montenegro, Silva, Cardoso, "Privacy-preserving generative adversarial network for case-based
    explainability in medical image analysis", IEEE Access 2021), with multi-class identity recognition.

    A variational autoencoder redraws the image. It is moved towards images that an identity network gives to each
    training patient with the same probability (`identity`: cross-entropy to the uniform distribution), that a critic
    takes for real (`adversarial`: WGAN-GP), that are the original where the saliency of its finding lies
    (`reconstruction`), and that a finding network takes for the original's finding (`finding`); `kl` keeps the codes
    near N(0, 1). A release draws its code from q(z | image).

    Where it is not the paper's:

    - Identity and finding network are the frozen guides that all systems here share, in place of the paper's own.
    - The saliency is the guide's class activation map, in place of the paper's saliency maps: fast enough for every
      batch, and coarse (a map of S/16, enlarged).
    - Networks, sizes and budget are the comparison's. The length of the code is ours.
    - The reconstruction is a sum over pixels: the source gives a weight and no normalisation, and on a mean the weight
      would be nothing.
    - One step of the critic for each of the generator's.

    Args:
        code: length of the code.
        weights: of the terms, by name; the defaults are the paper's.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        code: int = 128,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__()
        self.sizes = size, channels, tuple(encoder_widths)
        self.weights = checked(weights, WEIGHTS, "PP-MIR")
        self.generator = BottleneckGenerator(size, channels, encoder_widths, decoder_widths, code)

    def begin(self, setting: Setting) -> TranslationStep:
        return PPMIRStep(self, setting)

    def forward(self, image: Tensor) -> Tensor:
        return self.generator(image).image


class SalientStep(TranslationStep):
    """The terms that PP-MIR and PP-SIR share: all but the identity's."""

    def __init__(self, system: System, weights: Mapping[str, float], setting: Setting, critic: Discriminator):
        self.critic, self.generator = critic, system.get_submodule("generator")
        super().__init__(self.generator, weights, setting)

    def make_opponents(self, setting: Setting) -> dict[str, Opponent]:
        def loss(batch: Batch, drawn: Drawn) -> Tensor:
            return WASSERSTEIN.critic_loss(self.critic, batch["i_ori"], drawn.image)

        return {"critic": Opponent(self.critic, loss, setting)} if self.weights["adversarial"] > 0 else {}

    def draw(self, batch: Batch) -> Drawn:
        drawn: Drawn = self.generator(batch["i_ori"])
        return drawn

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        finding, i_ori, i_gen = self.guides.finding, batch["i_ori"], drawn.image

        def reconstruction() -> Tensor:
            return masked_reconstruction(i_ori, i_gen, self.mask(finding, i_ori))

        return {
            "adversarial": lambda: WASSERSTEIN.generator(self.critic(i_gen)),
            "reconstruction": reconstruction,
            "finding": lambda: losses.classification_loss(finding(i_gen), batch["finding_ori"]),
            "kl": drawn.kl,
        }

    @staticmethod
    @torch.no_grad()
    def mask(finding: Recogniser, i_ori: Tensor) -> Tensor:
        return saliency(finding, finding.features(i_ori), i_ori.shape[-1])


class PPMIRStep(SalientStep):
    """One critic step, one generator step."""

    def __init__(self, system: PPMIR, setting: Setting):
        super().__init__(system, system.weights, setting, Discriminator(*system.sizes))

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        identity = self.guides.identity
        return super().terms(batch, drawn) | {
            "identity": lambda: uniform_loss(identity.patients(identity(drawn.image)))
        }
