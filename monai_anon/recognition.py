"""Fits a recogniser of the finding: the guide of stage 1. It never judges; judges are in `evaluation/`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.compute import PLAIN, Compute
from monai_anon.optimisation import Optimisation, Updater

Batch = Mapping[str, Tensor]


class RecogniserStep:
    """One network, one objective: `objective(network, batch)` returns named unweighted terms that are summed.

    The guide of stage 1 is fitted on the finding; judges bring their own networks and objectives.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Callable[[nn.Module, Batch], dict[str, Tensor]],
        optimisation: Optimisation,
        compute: Compute = PLAIN,
    ):
        compute.prepare(network)
        self.network, self.objective = network, objective
        self.updater = Updater([network], optimisation, averaged=network)
        self.compute = compute

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms."""
        self.network.train()
        self.compute.begin_step()
        with self.compute.autocast(next(iter(batch.values())).device):
            terms = self.objective(self.network, batch)
        self.updater.update(torch.stack(list(terms.values())).sum(), progress)
        return {name: value.detach() for name, value in terms.items()}

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {"network": self.network, "updater": self.updater}


def finding_objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of the finding on both images of a pair, slightly shifted and exposed otherwise (see `jitter`)."""
    images = jitter(torch.cat([batch["i_ori"], batch["i_tar"]]))
    label = torch.cat([batch["finding_ori"], batch["finding_tar"]])
    return {"finding": losses.classification_loss(network(images).float(), label)}


def jitter(images: Tensor, shift: int = 4, contrast: float = 0.15, noise: float = 0.1) -> Tensor:
    """Training-time nuisance: one whole-pixel shift a batch, gain and offset a picture, a little noise; no flips (side
    matters).
    """
    offsets = torch.randint(-shift, shift + 1, (2,)).tolist()
    rolled = torch.roll(images, offsets, dims=(2, 3))
    gain, offset = (torch.rand(2, len(images), 1, 1, 1, device=images.device) * 2 - 1).unbind(0)
    changed = rolled * (1 + contrast * gain) + contrast * offset
    return changed + noise * torch.randn_like(images)
