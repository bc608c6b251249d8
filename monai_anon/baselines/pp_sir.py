"""PP-SIR: an image that a Siamese identity network finds far from its original and from every patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from monai_anon.baselines.pp_mir import SalientStep
from monai_anon.baselines.system import Setting, System
from monai_anon.baselines.translation import BottleneckGenerator, Drawn, checked, distances, gallery, repulsion
from monai_anon.networks import Discriminator
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {
    "identity": 10.0,
    "original": 5.0,
    "adversarial": 0.4,
    "reconstruction": 0.002,
    "finding": 0.001,
    "kl": 0.002,
}


class PPSIR(System):
    """PP-SIR (Montenegro, Silva, Cardoso, "Privacy-preserving generative adversarial network for case-based
    explainability in medical image analysis", IEEE Access 2021), with Siamese identity recognition.

    PP-MIR with another identity term: distances of a Siamese network's vectors to one image of every training patient
    (`identity`) and to the original (`original`) are pushed over a margin, by the contrastive loss of unlike pairs.

    Where it is not the paper's, besides what is said of PP-MIR:

    - The Siamese network is the identity guide, whose vectors have length 1: distances are at most 2, two people's
      mostly about 1.4. The margin is ours and smaller than that.
    - Of each patient it is the same image all the time, and the loss is a mean over patients: with many of them each
      one's push is small.

    Args:
        code: length of the code.
        margin: distance that is far enough, from 0 to 2.
        weights: of the terms, by name; the defaults are the paper's.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        code: int = 128,
        margin: float = 1.0,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__()
        self.sizes, self.margin = (size, channels, tuple(encoder_widths)), margin
        self.weights = checked(weights, WEIGHTS, "PP-SIR")
        self.generator = BottleneckGenerator(size, channels, encoder_widths, decoder_widths, code)

    def begin(self, setting: Setting) -> SalientStep:
        return PPSIRStep(self, setting)

    def forward(self, image: Tensor) -> Tensor:
        return self.generator(image).image


class PPSIRStep(SalientStep):
    """One critic step, one generator step; the patients' vectors are made anew from the cohort when a run goes on."""

    def __init__(self, system: PPSIR, setting: Setting):
        super().__init__(system, system.weights, setting, Discriminator(*system.sizes))
        self.margin = system.margin
        self.patients = gallery(setting.guides.identity, setting.cohort, setting.device)

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        identity = self.guides.identity
        vectors = identity(drawn.image)

        def original() -> Tensor:
            return repulsion(distances(vectors, identity(batch["i_ori"])).diagonal(), self.margin)

        return super().terms(batch, drawn) | {
            "identity": lambda: repulsion(distances(vectors, self.patients), self.margin),
            "original": original,
        }
