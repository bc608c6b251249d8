"""PPRL-VGAN: the original's finding in the image of a given other person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.baselines.games import LOGISTIC
from monai_anon.baselines.system import Setting
from monai_anon.baselines.translation import (
    BottleneckGenerator,
    Drawn,
    Opponent,
    TargetedSystem,
    TranslationStep,
    another_patient,
    checked,
)
from monai_anon.networks import Recogniser
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {"identity": 0.8, "finding": 0.12, "adversarial": 0.078, "kl": 0.002}


class PPRLVGAN(TargetedSystem):
    """PPRL-VGAN (Chen, Konrad, Ishwar, "VGAN-based image representation learning for privacy-preserving facial
    expression recognition", CVPR Workshops 2018).

    A variational encoder takes a code of the image, a decoder draws it with the code of a given other person. One
    discriminator with three heads is trained along: whether an image is real, who is on it, and what finding it shows;
    it learns the last two from real images only. The generator has to draw what it calls the target person
    (`identity`), the original's finding (`finding`) and real (`adversarial`); `kl` keeps codes near N(0, 1). Nothing
    asks for likeness to the original.

    Where it is not the paper's:

    - A finding in place of a facial expression.
    - Networks, sizes and budget are the comparison's; the decoder is given the target's code in each block.
    - The discriminator's three losses have one weight each.
    - Training: the target is any other patient. Release: any patient at all, see `TargetedSystem`.

    A release looks like a training patient by design: nobody of them is protected.

    Args:
        code: length of the image's code; the default is the paper's.
        condition: length of a patient's code.
        weights: of the terms, by name; the defaults are the paper's.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        classes: int = 2,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        code: int = 128,
        condition: int = 64,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__(condition)
        self.channels, self.classes, self.widths = channels, classes, tuple(encoder_widths)
        self.weights = checked(weights, WEIGHTS, "PPRL-VGAN")
        self.generator = BottleneckGenerator(size, channels, encoder_widths, decoder_widths, code, condition)

    def begin(self, setting: Setting) -> TranslationStep:
        return PPRLVGANStep(self, setting)

    def forward(self, image: Tensor) -> Tensor:
        return self.generator(image, self.someone(image)).image


class PPRLVGANStep(TranslationStep):
    """One step of the discriminator with three heads, one of the generator and the targets' codes."""

    def __init__(self, system: PPRLVGAN, setting: Setting):
        self.generator, self.table = system.generator, system.begin_table(setting)
        self.heads = (1, setting.cohort.num_patients, system.classes)
        self.discriminator = Recogniser(system.channels, sum(self.heads), system.widths)
        trained = nn.ModuleDict({"generator": self.generator, "table": self.table})
        super().__init__(trained, system.weights, setting)

    def make_opponents(self, setting: Setting) -> dict[str, Opponent]:
        return {"discriminator": Opponent(self.discriminator, self.discriminator_loss, setting)}

    def judged(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The heads' logits of images: real `(B,)`, patient `(B, P)`, finding `(B, K)`."""
        real, patient, finding = self.discriminator(images).split(self.heads, dim=1)
        return real.squeeze(1), patient, finding

    def discriminator_loss(self, batch: Batch, drawn: Drawn) -> Tensor:
        count = len(batch["i_ori"])
        real, patient, finding = self.judged(torch.cat([batch["i_ori"], drawn.image]))
        return (
            LOGISTIC.critic(*real.split(count))
            + losses.classification_loss(patient[:count], batch["patient_ori"])
            + losses.classification_loss(finding[:count], batch["finding_ori"])
        )

    def draw(self, batch: Batch) -> Drawn:
        target = another_patient(batch["patient_ori"], self.heads[1])
        drawn: Drawn = self.generator(batch["i_ori"], self.table(target))
        return drawn._replace(target=target)

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        assert drawn.target is not None
        target = drawn.target
        real, patient, finding = self.judged(drawn.image)
        return {
            "identity": lambda: losses.classification_loss(patient, target),
            "finding": lambda: losses.classification_loss(finding, batch["finding_ori"]),
            "adversarial": lambda: LOGISTIC.generator(real),
            "kl": drawn.kl,
        }
