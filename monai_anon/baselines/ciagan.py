"""CIAGAN: the outlines of the original, filled in as another person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon.baselines.games import LEAST_SQUARES
from monai_anon.baselines.system import Setting
from monai_anon.baselines.translation import (
    BottleneckGenerator,
    Drawn,
    Opponent,
    TargetedSystem,
    TranslationStep,
    another_patient,
    checked,
    distances,
    gallery,
    repulsion,
)
from monai_anon.networks import Discriminator
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {"identity": 1.0, "adversarial": 1.0}


def edges(image: Tensor, share: float) -> Tensor:
    """The strongest edges of each image `(B, C, S, S)`: 1 at a share of its pixels, -1 elsewhere."""
    smooth = F.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
    down, across = torch.gradient(smooth, dim=(2, 3))
    strength = (across.square() + down.square()).flatten(1)
    least = strength.quantile(1 - share, dim=1, keepdim=True)
    return (strength > least).to(image).reshape(image.shape) * 2 - 1


class CIAGAN(TargetedSystem):
    """CIAGAN (Maximov, Elezi, Leal-Taixe, "CIAGAN: conditional identity anonymization generative adversarial
    networks", CVPR 2020).

    The generator never sees the original's pixels, only where its structure is; it fills that in as the person whose
    code it is given. An identity network pulls the image to a real image of that person and pushes it from the
    original (`identity`, contrastive with a margin); a critic is to take it for real (`adversarial`: LSGAN).

    Where it is not the paper's:

    - Edges stand for the face's landmarks: the strongest of the whole image, with a share that is ours. There is no
      background to keep apart and to put back.
    - The identity network is the frozen guide, where the paper's is trained along. Its vectors have length 1, so that
      distances are at most 2 and the paper's margin 3 is never reached: the push from the original never ends.
    - Attraction and repulsion are one term; its weight, and the critic's, are ours: the source gives none.
    - A code of the edges in one vector and no skips between encoder and decoder; networks, sizes and budget are the
      comparison's.
    - Training: the target is any other patient. Release: any patient at all, see `TargetedSystem`.

    Nothing is asked of the finding: what of it is no edge is lost. A release looks like a training patient by design:
    nobody of them is protected.

    Args:
        code: length of the edges' code.
        condition: length of a patient's code.
        edge_share: share of the pixels that are edges.
        margin: of the contrastive loss; the default is the paper's.
        weights: of the terms, by name.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        code: int = 128,
        condition: int = 64,
        edge_share: float = 0.15,
        margin: float = 3.0,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__(condition)
        if not 0 < edge_share < 1:
            raise ValueError(f"edge_share is {edge_share}; it must be a share of the pixels, between 0 and 1")
        self.sizes = size, channels, tuple(encoder_widths)
        self.edge_share, self.margin = edge_share, margin
        self.weights = checked(weights, WEIGHTS, "CIAGAN")
        self.generator = BottleneckGenerator(
            size, channels, encoder_widths, decoder_widths, code, condition, variational=False
        )

    def begin(self, setting: Setting) -> TranslationStep:
        return CIAGANStep(self, setting)

    def forward(self, image: Tensor) -> Tensor:
        return self.generator(edges(image, self.edge_share), self.someone(image)).image


class CIAGANStep(TranslationStep):
    """One critic step, one step of the generator and the targets' codes; the patients' vectors are made anew from the
    cohort when a run goes on.
    """

    def __init__(self, system: CIAGAN, setting: Setting):
        self.generator, self.table = system.generator, system.begin_table(setting)
        self.edge_share, self.margin = system.edge_share, system.margin
        self.critic = Discriminator(*system.sizes)
        self.patients = gallery(setting.guides.identity, setting.cohort, setting.device)
        trained = nn.ModuleDict({"generator": self.generator, "table": self.table})
        super().__init__(trained, system.weights, setting)

    def make_opponents(self, setting: Setting) -> dict[str, Opponent]:
        def loss(batch: Batch, drawn: Drawn) -> Tensor:
            return LEAST_SQUARES.critic_loss(self.critic, batch["i_ori"], drawn.image)

        return {"critic": Opponent(self.critic, loss, setting)}

    def draw(self, batch: Batch) -> Drawn:
        target = another_patient(batch["patient_ori"], len(self.patients))
        drawn: Drawn = self.generator(edges(batch["i_ori"], self.edge_share), self.table(target))
        return drawn._replace(target=target)

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        assert drawn.target is not None
        wanted = self.patients[drawn.target]

        def contrastive() -> Tensor:
            vectors, original = self.guides.identity(torch.cat([drawn.image, batch["i_ori"]])).chunk(2)
            near = (vectors - wanted).square().sum(1).mean()
            return near + repulsion(distances(vectors, original).diagonal(), self.margin)

        return {
            "identity": contrastive,
            "adversarial": lambda: LEAST_SQUARES.generator(self.critic(drawn.image)),
        }
