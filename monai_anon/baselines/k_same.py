"""K-Same: the mean image of a group of people in place of a person's own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class KSame(nn.Module):
    """K-Same (Newton, Sweeney, Malin, "Preserving privacy by de-identifying face images", IEEE TKDE 2005).

    `fit` puts training patients into groups of at least k. An image is released as the mean image of the group whose
    mean is nearest to it. These means are all that is kept of the training patients.

    Where it is not the paper's:

    - An open gallery. The paper averages the very images that it releases: each person's is replaced by the mean of
      the own group. Here the groups are of training patients, and the images to release are other people's, who are
      sent to the nearest group. A training patient's image may be sent to another group than their own, too.
    - One mean image a patient, where the paper asks for one image of each. A patient counts once, however many images
      they have; but images that are not aligned blur before they meet anybody else's.
    - Patients are taken in the order of their numbers, where the paper leaves the order open.
    - Neighbours are found in a PCA, as in the paper's eigenspace variant, but with the largest components only. Means
      are of pixels. A release compares pixels, too, so that no component of the training images has to be kept.

    What 1/k says. In the paper nobody can link releases to the gallery's people more often than 1 time in k, since the
    k people of a group have the same release. This rests on the closed gallery and *does not hold here*: of the people
    who are released, one alone may be nearest to some group, and their next image may go there again. What holds is
    that there are no more releases than groups, so that one says at most log2(groups) bits of its original (n images of
    a person at most n times that), and that each is the average of at least k training patients. To them an average
    promises nothing more: it may show who is in it, and is not differentially private.

    No label is used: a finding that is not among the largest components is averaged away.

    Args:
        k: the fewest patients of a group, at least 2.
        components: of the PCA in which neighbours are found; fewer where there are fewer patients or pixels.
    """

    means: Tensor
    """The groups' mean images (G, C, H, W) in [-1, 1]; none before `fit`."""

    def __init__(self, k: int = 10, components: int = 64):
        super().__init__()
        check_group_size(k)
        if components < 1:
            raise ValueError(f"components is {components}; it must be at least 1")
        self.k, self.components = k, components
        self.register_buffer("means", torch.empty(0))

    def fit(self, images: Tensor, patients: Tensor) -> None:
        """Keep the means of groups of the patients `(N,)` of images `(N, C, H, W)` in [-1, 1], and of no others.

        Raises:
            ValueError: fewer than k patients, or not one patient an image.
        """
        if images.ndim != 4 or patients.shape != images.shape[:1]:
            raise ValueError(
                f"images are {tuple(images.shape)}, patients {tuple(patients.shape)}; "
                "they must be (N, C, H, W) and (N,)"
            )
        people = patient_means(images, patients)
        if len(people) < self.k:
            raise ValueError(f"there are {len(people)} patients and k is {self.k}; a group needs k different patients")
        groups = greedy_groups(principal_components(people.flatten(1), self.components), self.k)
        self.means = torch.stack([people[group].mean(0) for group in groups])

    @property
    def bits(self) -> float:
        """The most that the release of an image says of it: log2 of the number of groups."""
        return math.log2(len(self._fitted()))

    @property
    def proved(self) -> str:
        """What is proved of a release of somebody outside the gallery."""
        return f"{self.bits:.1f} bits an image"

    def forward(self, image: Tensor) -> Tensor:
        """For each of the images `(B, C, H, W)` the nearest group's mean.

        Raises:
            RuntimeError: before `fit`.
            ValueError: images of another shape than those of `fit`.
        """
        means = self._fitted()
        if image.shape[1:] != means.shape[1:]:
            raise ValueError(f"images are {tuple(image.shape[1:])}; fit has seen {tuple(means.shape[1:])}")
        return means[distances(image, means).argmin(1)]

    def _fitted(self) -> Tensor:
        if not len(self.means):
            raise RuntimeError("KSame has no groups yet: call fit(images, patients) before it releases anything")
        return self.means


def patient_means(images: Tensor, patients: Tensor) -> Tensor:
    """One mean image a patient, `(P, C, H, W)`, in ascending order of the patients' numbers `(N,)`."""
    _, place, count = patients.unique(return_inverse=True, return_counts=True)
    sums = images.new_zeros(len(count), *images.shape[1:]).index_add_(0, place, images)
    return sums / count.to(sums)[:, None, None, None]


def distances(points: Tensor, means: Tensor) -> Tensor:
    """Euclidean distances `(B, G)` of points `(B, ...)` from means `(G, ...)` of the same shape."""
    # By differences, not by a matrix product, whose rounding would depend on what else is in the batch.
    return torch.cdist(points.flatten(1), means.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")


def check_group_size(k: int) -> None:
    """Refuse groups of fewer than two."""
    if k < 2:
        raise ValueError(f"k is {k}; it must be at least 2, or a release is one person's image")


def principal_components(points: Tensor, components: int) -> Tensor:
    """Places `(P, d)` of points `(P, D)` along their largest principal components, at most `components`."""
    from sklearn.decomposition import PCA

    fitted = PCA(min(components, *points.shape), random_state=0)  # large ones are solved by random projections
    return torch.from_numpy(fitted.fit_transform(points.numpy()))


def greedy_groups(places: Tensor, k: int) -> list[Tensor]:
    """Indices of each of P // k groups of the points `(P, d)`: the first one left with its k - 1 nearest, repeatedly.

    When fewer than 2k are left, they are the last group: of k to 2k - 1.
    """
    left, groups = torch.arange(len(places)), list[Tensor]()
    while len(left) >= 2 * k:
        apart = (places[left] - places[left[0]]).square().sum(1)
        order = apart.argsort(stable=True)  # stable: the point itself comes first, also among equals
        groups.append(left[order[:k]])
        left = left[order[k:].sort().values]
    return [*groups, left]
