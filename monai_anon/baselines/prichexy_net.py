"""PriCheXy-Net: the image itself, bent by a smooth field until a verification network loses the person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

from monai_anon import losses
from monai_anon.baselines.system import IdentityGuide, Setting, System
from monai_anon.baselines.translation import Drawn, TranslationStep, checked, u_net
from monai_anon.pairs import PairLoader
from monai_anon.recognition import Batch

WEIGHTS: Mapping[str, float] = {"identity": 1.0, "finding": 1.0}


class PriCheXyNet(System):
    """PriCheXy-Net (Packhaeuser, Guendel, Thamm, Denzinger, Maier, "Deep learning-based anonymization of chest
    radiographs: a utility-preserving measure for patient privacy", MICCAI 2023).

    A U-Net draws a flow field between -1 and 1, which is smoothed, multiplied by `mu` and bends the image: each pixel
    is read at most `mu` half sides away, and no pixel is invented. A verification network SNN is to see two people in
    image and original (`identity`: -log(1 - SNN)), a classifier to see the finding (`finding`).

    Where it is not the paper's:

    - The verification network is the identity guide: SNN is the probability, by a logistic regression on the training
      part's pairs, that two images at a cosine are of one person. The finding network is the other guide. Both are
      frozen.
    - One finding by cross-entropy, where the paper has binary ones for many.
    - `mu` is a share of half the image's side, as in the paper, whose images are larger than ours: 0.01 is a third of
      a pixel of 64. The smoothing's width is ours.
    - MONAI's U-Net; widths and budget are the comparison's.

    The release is a formula of its image: no noise is in it.

    Args:
        mu: the longest displacement, in halves of the side; the paper has 0.001, 0.005 and 0.01.
        smoothing: standard deviation in pixels of the Gaussian that smooths the field.
        weights: of the terms, by name; the paper adds both as they are.
    """

    kernel: Tensor

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        encoder_widths: Sequence[int] = (32, 64, 96),
        mu: float = 0.01,
        smoothing: float = 2.0,
        weights: Mapping[str, float] = WEIGHTS,
    ):
        super().__init__()
        if mu <= 0 or smoothing <= 0:
            raise ValueError(f"mu is {mu}, smoothing is {smoothing}; both must be above 0")
        self.mu = mu
        kernel = gaussian_1d(torch.tensor(smoothing), truncated=3.0, normalize=True)
        self.register_buffer("kernel", kernel, persistent=False)
        self.weights = checked(weights, WEIGHTS, "PriCheXy-Net")
        self.generator = u_net(size, channels, 2, encoder_widths)

    def begin(self, setting: Setting) -> TranslationStep:
        return PriCheXyNetStep(self, setting)

    def flow(self, image: Tensor) -> Tensor:
        """Displacements `(B, 2, S, S)` along x and y in halves of the side, at most `mu` long each."""
        field = torch.tanh(self.generator(image))
        return self.mu * separable_filtering(field, [self.kernel, self.kernel], mode="reflect")

    def forward(self, image: Tensor) -> Tensor:
        still = torch.eye(2, 3, device=image.device).expand(len(image), 2, 3)
        grid = F.affine_grid(still, list(image.shape), align_corners=False)
        places = grid + self.flow(image).permute(0, 2, 3, 1)
        return F.grid_sample(image, places, padding_mode="border", align_corners=False)


class PriCheXyNetStep(TranslationStep):
    """One step of the U-Net; the verification's two numbers are made anew from the cohort when a run goes on."""

    def __init__(self, system: PriCheXyNet, setting: Setting):
        self.system = system
        self.slope, self.offset = verification_of(setting)
        super().__init__(system.generator, system.weights, setting)

    def draw(self, batch: Batch) -> Drawn:
        return Drawn(self.system(batch["i_ori"]))

    def terms(self, batch: Batch, drawn: Drawn) -> dict[str, Callable[[], Tensor]]:
        def verification() -> Tensor:
            vectors, original = self.guides.identity(torch.cat([drawn.image, batch["i_ori"]])).chunk(2)
            logit = self.slope * (vectors * original).sum(1) + self.offset
            return F.softplus(logit).mean()  # -log(1 - sigmoid(logit))

        return {
            "identity": verification,
            "finding": lambda: losses.classification_loss(self.guides.finding(drawn.image), batch["finding_ori"]),
        }


def verification_of(setting: Setting, batches: int = 20) -> tuple[float, float]:
    """Slope and offset of the log-odds that two training images at a cosine of their vectors are of one patient."""
    from sklearn.linear_model import LogisticRegression

    loader = PairLoader(setting.cohort, setting.batch_size, setting.seed, device=setting.device)
    found = [cosines(setting.guides.identity, loader.batch(iteration)) for iteration in range(batches)]
    cosine, alike = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    if not alike.any():
        raise ValueError("no training patient has two images: PriCheXy-Net has nothing to learn verification from")
    fitted = LogisticRegression(class_weight="balanced").fit(cosine[:, None].astype(np.float64), alike)
    return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])


@torch.no_grad()
def cosines(guide: IdentityGuide, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cosines of a batch's pairs, and whether each is of one patient; a patient's only image makes no pair."""
    ori, same, tar = guide(torch.cat([batch["i_ori"], batch["i_same"], batch["i_tar"]])).chunk(3)
    alike = (ori * same).sum(1)[batch["has_same"]]
    unlike = (ori * tar).sum(1)
    return torch.cat([alike, unlike]), torch.cat([torch.ones_like(alike), torch.zeros_like(unlike)]) > 0
