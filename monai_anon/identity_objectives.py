"""What makes the identity latent hold the identity: Siamese, contrastive or multi-class is one injected object.

Each is a term of the batches of all ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from monai_anon import losses
from monai_anon.networks import LatentClassifier, Latents
from monai_anon.ranks import average_over_ranks, gathered

Batch = Mapping[str, Tensor]


class IdentityObjective(Protocol):
    """What makes the identity latent hold the identity: latents of the three images and the batch to one scalar."""

    @property
    def needs_target(self) -> bool:
        """Whether I_tar must be encoded for it."""

    @property
    def knows_people(self) -> bool:
        """Whether it has a class for each training patient, of whom none may then be made another person."""

    def __call__(self, z_ori: Latents, z_same: Latents, z_tar: Latents | None, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class SiameseIdentity:
    """Eq. 6 (paper) with its margin."""

    margin: float = 0.1
    needs_target: ClassVar[bool] = True
    knows_people: ClassVar[bool] = False

    def __call__(self, z_ori: Latents, z_same: Latents, z_tar: Latents | None, batch: Batch) -> Tensor:
        assert z_tar is not None
        has_same = batch["has_same"]
        pairs = average_over_ranks(has_same.sum())
        return losses.siamese_loss(z_ori.identity, z_same.identity, z_tar.identity, has_same, self.margin, pairs)


@dataclass(frozen=True)
class ContrastiveIdentity:
    """Ours: supervised contrastive loss over the batch's patients."""

    temperature: float = 0.1
    needs_target: ClassVar[bool] = False
    knows_people: ClassVar[bool] = False

    def __call__(self, z_ori: Latents, z_same: Latents, z_tar: Latents | None, batch: Batch) -> Tensor:
        ori, same, patient, has_same = gathered(
            z_ori.identity, z_same.identity, batch["patient_ori"], batch["has_same"]
        )
        return losses.contrastive_loss(ori, same, patient, has_same, self.temperature)


@dataclass(frozen=True)
class ClassifiedIdentity:
    """Eq. 2 (paper), identity part: cross-entropy of C_id over the training patients."""

    classifier: LatentClassifier
    needs_target: ClassVar[bool] = False
    knows_people: ClassVar[bool] = True

    def __call__(self, z_ori: Latents, z_same: Latents, z_tar: Latents | None, batch: Batch) -> Tensor:
        return losses.classification_loss(self.classifier(z_ori.identity), batch["patient_ori"])


@dataclass(frozen=True)
class SummedIdentity:
    """The sum of several objectives."""

    objectives: Sequence[IdentityObjective]

    @property
    def needs_target(self) -> bool:
        return any(objective.needs_target for objective in self.objectives)

    @property
    def knows_people(self) -> bool:
        return any(objective.knows_people for objective in self.objectives)

    def __call__(self, z_ori: Latents, z_same: Latents, z_tar: Latents | None, batch: Batch) -> Tensor:
        return torch.stack([objective(z_ori, z_same, z_tar, batch) for objective in self.objectives]).sum()
