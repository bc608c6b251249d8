"""Where a finding is seen in an image: what PP-MIR, PP-SIR and inpainting systems keep."""

import torch.nn.functional as F
from torch import Tensor

from monai_anon.networks import Recogniser


def evidence_of_predicted(recogniser: Recogniser, features: Tensor) -> Tensor:
    """Maps `(B, 1, h, w)` of the evidence for the finding that a recogniser predicts, less the mean over findings."""
    predicted = recogniser.classify(features).argmax(1)
    maps = recogniser.evidence(features)
    return maps.gather(1, predicted[:, None, None, None].expand(-1, 1, *maps.shape[2:]))


def saliency(recogniser: Recogniser, features: Tensor, size: int) -> Tensor:
    """Masks `(B, 1, S, S)` in [0, 1] of a recogniser's feature maps `(B, F, h, w)`: 1 where most speaks for the finding
    that it predicts, 0 where nothing does.

    The class activation map of the predicted finding (Zhou et al. 2016), less the mean over findings. For a network
    that ends in a mean over places and a linear layer this is what Grad-CAM (Selvaraju et al. 2017) gives for the
    difference of these logits, without its backward pass.
    """
    chosen = evidence_of_predicted(recogniser, features).relu()
    chosen = chosen / chosen.amax((2, 3), keepdim=True).clamp_min(1e-6)
    return F.interpolate(chosen, size=(size, size), mode="bilinear", align_corners=False)
