"""K-Same-Select: K-Same among people with the same finding, so that the mean keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from monai_anon.baselines.k_same import (
    check_group_size,
    distances,
    greedy_groups,
    patient_means,
    principal_components,
)
from monai_anon.baselines.system import Setting, System
from monai_anon.networks import Recogniser


class KSameSelect(System):
    """k-Same-Select (Gross, Airoldi, Malin, Sweeney, "Integrating utility into face de-identification", PET 2005; used
    again by Gross et al. 2006).

    The training part is split by the finding, and K-Same (`KSame`) is run inside each of its parts. An image is
    released as the mean image of the group nearest to it among those of its own finding. Nothing is optimised: there is
    no identity term, what hides a person is that k people or more are averaged.

    What 1/k says is what it says of `KSame`: it rests on the closed gallery, where each person is released as the own
    group's mean, and does not hold for other people's images. A release says at most `bits` of its original, the
    finding that was predicted included.

    Where it is not the paper's, besides what is said of `KSame`:

    - The finding is not given but predicted, for training images, too: by the guide's network, of which a copy is kept.
      Where that errs, a release shows the wrong finding.
    - A patient whose images show several findings is one of the people of each, with the mean of those images alone.
    - A finding that fewer than k training patients show has no group. Images of it are released from the nearest group
      of all.

    Args:
        k: the fewest patients of a group, at least 2.
        components: of the PCA in which neighbours are found.
    """

    means: Tensor
    """The groups' mean images (G, C, H, W) in [-1, 1]; none before `conclude`."""
    finding_of: Tensor
    """The finding of each group, int64 (G,)."""

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        guide_widths: Sequence[int] = (32, 64, 96, 128),
        k: int = 10,
        components: int = 64,
    ):
        super().__init__()
        check_group_size(k)
        if components < 1:
            raise ValueError(f"components is {components}; it must be at least 1")
        self.k, self.components = k, components
        self.finding = Recogniser(channels, classes, guide_widths).requires_grad_(False)
        self.register_buffer("means", torch.empty(0))
        self.register_buffer("finding_of", torch.empty(0, dtype=torch.int64))

    @torch.no_grad()
    def conclude(self, setting: Setting) -> None:
        """Groups of the training patients, by predicted finding.

        Raises:
            ValueError: no finding is predicted for k patients.
        """
        self.finding.load_state_dict(setting.guides.finding.state_dict())
        cohort = setting.cohort
        rows = torch.arange(len(cohort)).split(256)
        predicted = torch.cat([self.predict(cohort.batch(some)["image"].to(setting.device)).cpu() for some in rows])
        means, finding_of = [], []
        for finding in range(cohort.num_classes):
            chosen = (predicted == finding).nonzero().squeeze(1)
            people = patient_means(cohort.batch(chosen)["image"], cohort.patient[chosen])
            if len(people) < self.k:
                continue
            groups = greedy_groups(principal_components(people.flatten(1), self.components), self.k)
            means += [people[group].mean(0) for group in groups]
            finding_of += [finding] * len(groups)
        if not means:
            raise ValueError(
                f"{cohort.name}: no finding is predicted for {self.k} of its {cohort.num_patients} patients; a group "
                "needs k different ones"
            )
        self.means = torch.stack(means).to(setting.device)
        self.finding_of = torch.tensor(finding_of, device=setting.device)

    def predict(self, image: Tensor) -> Tensor:
        """Findings `(B,)` of images `(B, C, S, S)`."""
        return self.finding(image).argmax(1)

    @property
    def bits(self) -> float:
        """The most that the release of an image says of it: log2 of the number of groups."""
        return math.log2(len(self._fitted()))

    @property
    def proved(self) -> str:
        """What is proved of a release of somebody outside the gallery."""
        return f"{self.bits:.1f} bits an image"

    def forward(self, image: Tensor) -> Tensor:
        """For each of the images `(B, C, S, S)` the mean of the nearest group of its finding.

        Raises:
            RuntimeError: before `conclude`.
            ValueError: images of another shape than the training part's.
        """
        means = self._fitted()
        if image.shape[1:] != means.shape[1:]:
            raise ValueError(f"images are {tuple(image.shape[1:])}; conclude has seen {tuple(means.shape[1:])}")
        other = self.finding_of != self.predict(image)[:, None]
        other = other & ~other.all(1, keepdim=True)  # a finding without a group: any group
        return means[distances(image, means).masked_fill(other, math.inf).argmin(1)]

    def _fitted(self) -> Tensor:
        if not len(self.means):
            raise RuntimeError("KSameSelect has no groups yet: conclude(setting) comes before a release")
        return self.means
