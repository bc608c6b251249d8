"""Privacy-Net: an image that a task network can use and a verification network, trained along, cannot link."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.baselines.system import Setting, System
from monai_anon.baselines.translation import Drawn, Opponent, PairVerifier, TranslationStep, checked, u_net
from monai_anon.networks import Recogniser
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {"identity": 1.0, "finding": 1.0}


class PrivacyNet(System):
    """Privacy-Net (Kim, Dolz, Jodoin, Desrosiers, "Privacy-Net: an adversarial approach for identity-obfuscated
    segmentation of medical images", IEEE TMI 2021).

    Three networks are trained together. A U-Net changes images; a task network has to solve its task on the changed
    images, and the U-Net helps it (`finding`); a verification network has to tell whether two changed images are of
    one patient, and the U-Net works against it (`identity`: minus its cross-entropy). Nothing asks for an image that
    looks real or like the original: in the paper images go to a machine that only segments them.

    Where it is not the paper's:

    - The task is the finding's classification, not segmentation.
    - The task network begins as the finding guide, so that the finding stays where that one has learnt to see it.
    - The verification network is trained along from random weights, by one step for each of the U-Net's.
    - The weights are ours: the source gives none for this task.
    - MONAI's U-Net with a tanh, so that a changed image is an image; widths and budget are the comparison's.

    The release is a formula of its image: no noise is in it.

    Args:
        weights: of the terms, by name.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__()
        self.channels, self.widths = channels, tuple(encoder_widths)
        self.weights = checked(weights, WEIGHTS, "Privacy-Net")
        self.generator = u_net(size, channels, channels, encoder_widths)

    def begin(self, setting: Setting) -> TranslationStep:
        return PrivacyNetStep(self, setting)

    def forward(self, image: Tensor) -> Tensor:
        return torch.tanh(self.generator(image))


class PrivacyNetStep(TranslationStep):
    """One step of the verification network, one of the U-Net and the task network."""

    def __init__(self, system: PrivacyNet, setting: Setting):
        self.system, self.verifier = system, PairVerifier(system.channels, system.widths)
        self.task = unlocked(setting.guides.finding)
        super().__init__(nn.ModuleDict({"generator": system.generator, "task": self.task}), system.weights, setting)

    def make_opponents(self, setting: Setting) -> dict[str, Opponent]:
        return {"verifier": Opponent(self.verifier, self.verification, setting)}

    def verification(self, batch: Batch, drawn: Drawn) -> Tensor:
        """The verifier's cross-entropy on changed pairs, as many of one patient as of two."""
        ori, same, tar = drawn.image.chunk(3)
        alike, unlike = self.verifier(torch.cat([ori, ori]), torch.cat([same, tar])).chunk(2)
        return 0.5 * (F.softplus(-alike) + F.softplus(unlike)).mean()

    def draw(self, batch: Batch) -> Drawn:
        """Changed images of I_ori, I_same and I_tar, `(3 B, C, S, S)`."""
        return Drawn(self.system(torch.cat([batch["i_ori"], batch["i_same"], batch["i_tar"]])))

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        label = torch.cat([batch[f"finding_{which}"] for which in ("ori", "same", "tar")])
        return {
            "identity": lambda: -self.verification(batch, drawn),
            "finding": lambda: losses.classification_loss(self.task(drawn.image), label),
        }


def unlocked(guide: Recogniser) -> Recogniser:
    """A copy of a guide that can be trained; the guide stays as it is."""
    widths = [layer.out_channels for layer in guide.body if isinstance(layer, nn.Conv2d)]
    first = guide.body[0]
    assert isinstance(first, nn.Conv2d)
    copy = Recogniser(first.in_channels, guide.head.out_features, widths)
    copy.load_state_dict(guide.state_dict())
    return copy
