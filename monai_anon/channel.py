"""What of an original may pass into its release, and the bound that follows.

A released image is decoded from an identity, a medical and a residual latent. The paper takes the last two from the
original, and both carry the patient. Here are the parts of another way, which no anonymizer uses yet: instead of the
medical latent pass the number of a prototype, its code, and draw the residual as well as the identity.

**The bound.** The release is then g(j, u): j in {1, ..., K} is the number of a prototype that the original is
given, u is noise drawn without looking at the original, g is fixed. Original -> j -> release is then a Markov chain,
and by the data-processing inequality I(original; release) <= H(j) <= log2 K bits, whatever g is and whoever looks. A
guess of who the original is, among N equally likely people with one image each, is right with a probability of at most
K / N. If at least k training patients have each prototype, a release does not tell those k apart. With K-ary randomised
response (Kairouz et al. 2016) j is kept with probability e^eps / (e^eps + K - 1), else another one is drawn; the
release is then eps-locally differentially private in the image.

It does not cover what g remembers of training patients, nor several releases of one person: their bits add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = (2, 4, 8, 16, 32, 64, 128, 256)
FINEST = LEVELS[-1]


@dataclass(frozen=True)
class Statement:
    """What a code may say of its original: for a row, a certificate, a person.

    Args:
        bits: the bound, log2 of the number of prototypes.
        patients: the fewest training patients that share a prototype.
        epsilon: of the randomised response; None where the code is passed as it is.
    """

    bits: float
    patients: int
    epsilon: float | None = None


class Codebook(nn.Module):
    """Nested medical prototypes. A latent's finest one decides which coarser ones it has, so that a coarser code is a
    function of a finer one and says less.

    Tables have room for `FINEST` prototypes; `patients` is 0 where there is none.

    Args:
        size: dimensions of the medical latent.
    """

    axes: Tensor
    points: Tensor
    finding: Tensor
    members: Tensor
    prototypes: Tensor
    patients: Tensor

    def __init__(self, size: int):
        super().__init__()
        levels = len(LEVELS)
        self.register_buffer("axes", torch.eye(size))
        self.register_buffer("points", torch.zeros(FINEST, size))
        self.register_buffer("finding", torch.full((FINEST,), -1))
        self.register_buffer("members", torch.zeros(levels, FINEST, dtype=torch.long))
        self.register_buffer("prototypes", torch.zeros(levels, FINEST, size))
        self.register_buffer("patients", torch.zeros(levels, FINEST, dtype=torch.long))

    def forward(self, medical: Tensor, finding: Tensor, level: int) -> Tensor:
        """The code `(B,)` at a level (an index into `LEVELS`) of medical latents `(B, D)` with predicted findings
        `(B,)`: the nearest of the finding's finest points, and what it belongs to.
        """
        distance = torch.cdist(medical @ self.axes, self.points)
        distance = distance.masked_fill(finding[:, None] != self.finding, math.inf)
        return self.members[level, distance.argmin(1)]

    def latent(self, code: Tensor, level: int) -> Tensor:
        """The medical latents `(B, D)` of codes `(B,)`."""
        return self.prototypes[level, code]

    def statement(self, level: int, epsilon: float | None = None) -> Statement:
        """The bound at a level."""
        shared = self.patients[level][self.patients[level] > 0]
        return Statement(math.log2(len(shared)), int(shared.min()), epsilon)


def respond(code: Tensor, count: int, epsilon: float, chance: Tensor, other: Tensor) -> Tensor:
    """K-ary randomised response (Kairouz et al. 2016): the code `(B,)`, or another of the `count`, uniformly.

    Args:
        epsilon: of the local differential privacy, above 0.
        chance, other: uniform in [0, 1), `(B,)`: whether to keep the code, and which other to take.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 (leave it out for the code as it is)")
    keep = math.exp(epsilon) / (math.exp(epsilon) + count - 1)
    shift = 1 + (other * (count - 1)).long().clamp_max(count - 2)
    return torch.where(chance < keep, code, (code + shift) % count)


def invariant_axes(medical: np.ndarray, patient: np.ndarray, finding: np.ndarray, limit: float = 0.3) -> np.ndarray:
    """Directions `(D, d)` of the medical latent `(N, D)` that say little of who the patient is, each of within-patient
    variance 1.

    Solves the generalised eigenproblem of between- and within-patient covariance, over patients `(N,)` with two images
    or more, after the findings' means are taken out: a finding that never changes within a patient is no identity. Kept
    are directions whose ratio of variances is at most `limit`, and always the best one.

    Raises:
        ValueError: fewer than two patients have two images.
    """
    from scipy.linalg import eigh

    centred = medical.astype(np.float64).copy()
    for one in np.unique(finding):
        centred[finding == one] -= centred[finding == one].mean(0)
    _, codes, counts = np.unique(patient, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), medical.shape[1]))
    np.add.at(means, codes, centred)
    means /= counts[:, None]
    several = counts > 1
    if several.sum() < 2:
        raise ValueError("two patients with two images each are needed to tell what is a patient's")
    rest = (centred - means[codes])[several[codes]]
    within = rest.T @ rest / (len(rest) - several.sum()) + 1e-9 * np.eye(medical.shape[1])
    between = np.cov(means[several].T).reshape(within.shape) - within / counts[several].mean()
    ratios, axes = eigh(between, within)  # ascending
    found: np.ndarray = axes[:, : max(1, int((ratios <= limit).sum()))]
    return found


def fit_codebook(
    medical: np.ndarray,
    patient: np.ndarray,
    finding: np.ndarray,
    fewest: int = 20,
    limit: float = 0.3,
    seed: int = 0,
) -> Codebook:
    """Prototypes of the medical latents `(N, D)` of training images.

    k-means in the patient-invariant coordinates, within each predicted finding `(N,)`: the finding is always part of
    the code. Clusters are then merged, each time the two of one finding whose union costs least (Ward 1963), until at
    most as many are left as a level has and every one holds `fewest` patients; each level goes on from the finer one. A
    prototype is the mean latent of its images, all of its dimensions: an average of many people.

    Args:
        patient: codes `(N,)`.
        fewest: training patients that must share each prototype, at every level.
        limit: see `invariant_axes`.

    Raises:
        ValueError: a finding has fewer patients than `fewest`, or there are too few images.
    """
    from sklearn.cluster import KMeans

    axes = invariant_axes(medical, patient, finding, limit)
    places = medical @ axes
    labels = np.zeros(len(medical), int)
    centres: list[np.ndarray] = []
    kinds: list[int] = []
    findings, images = np.unique(finding, return_counts=True)
    for one, count in zip(findings, images, strict=True):
        people = len(np.unique(patient[finding == one]))
        if people < fewest:
            raise ValueError(f"finding {one} has {people} patients; each prototype must be shared by {fewest}")
        rows = np.flatnonzero(finding == one)
        clusters = min(FINEST // len(findings), max(1, count // 4))
        means = KMeans(clusters, n_init=1, random_state=seed).fit(places[rows])
        labels[rows] = means.labels_ + len(centres)
        centres += list(means.cluster_centers_)
        kinds += [one] * clusters
    book = Codebook(medical.shape[1])
    book.axes[:, : axes.shape[1]] = torch.from_numpy(axes).float()
    book.axes[:, axes.shape[1] :] = 0.0
    book.points[: len(centres), : axes.shape[1]] = torch.from_numpy(np.array(centres)).float()
    book.finding[: len(kinds)] = torch.tensor(kinds)
    members = np.arange(len(centres))
    for level in range(len(LEVELS) - 1, -1, -1):
        members = merged(members, labels, np.array(kinds), places, patient, LEVELS[level], fewest)
        codes = members[labels]
        book.members[level, : len(members)] = torch.from_numpy(members)
        for code in range(members.max() + 1):
            book.prototypes[level, code] = torch.from_numpy(medical[codes == code].mean(0))
            book.patients[level, code] = len(np.unique(patient[codes == code]))
    return book


def merged(
    members: np.ndarray,
    labels: np.ndarray,
    kinds: np.ndarray,
    places: np.ndarray,
    patient: np.ndarray,
    count: int,
    fewest: int,
) -> np.ndarray:
    """`members` (finest cluster to group) with groups of one kind joined, numbered from 0 without gaps.

    First those with fewer than `fewest` patients, then whichever costs least, until `count` are left (or one a kind).
    """
    groups = members.copy()
    while True:
        codes = groups[labels]
        numbers = np.unique(groups)
        people = np.array([len(np.unique(patient[codes == g])) for g in numbers])
        sizes = np.array([(codes == g).sum() for g in numbers])
        means = np.array([places[codes == g].mean(0) for g in numbers])
        kind = np.array([kinds[groups == g][0] for g in numbers])
        small = people < fewest
        if len(numbers) <= max(count, len(np.unique(kinds))) and not small.any():
            return np.unique(groups, return_inverse=True)[1]
        apart = ((means[:, None] - means[None]) ** 2).sum(-1)
        cost = apart * sizes[:, None] * sizes / (sizes[:, None] + sizes)
        cost[(kind[:, None] != kind) | np.eye(len(numbers), dtype=bool)] = np.inf
        if small.any():
            cost[~small] = np.inf
        if not np.isfinite(cost).any():
            raise ValueError(f"prototypes shared by {fewest} patients cannot be had from so few patients")
        one, other = np.unravel_index(cost.argmin(), cost.shape)
        groups[groups == numbers[other]] = numbers[one]


# ---- A residual of nobody ----


class ResidualPrior(nn.Module):
    """A mixture of Gaussians of residual latents, from which a release draws its own.

    Args:
        size: dimensions of the residual latent.
        components: of the mixture.
    """

    shares: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, size: int, components: int = 16):
        super().__init__()
        self.register_buffer("shares", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("factors", torch.eye(size).repeat(components, 1, 1))

    def forward(self, chance: Tensor, noise: Tensor) -> Tensor:
        """Residuals `(B, R)` of uniform numbers in [0, 1) `(B,)`, which choose the component, and standard normal noise
        `(B, R)`: nothing of an original goes in.
        """
        component = torch.searchsorted(self.shares.cumsum(0), chance, right=True).clamp_max(len(self.shares) - 1)
        return self.means[component] + torch.einsum("bij,bj->bi", self.factors[component], noise)


def fit_residual_prior(residual: np.ndarray, components: int = 16, fewest: int = 100, seed: int = 0) -> ResidualPrior:
    """The mixture that fits residual latents `(N, R)` of training images.

    No component may be a few people's: one with fewer than `fewest` images (by its share) makes the fit start again
    with one component less.

    Raises:
        ValueError: fewer than `fewest` images.
    """
    from sklearn.mixture import GaussianMixture

    if len(residual) < fewest:
        raise ValueError(f"{len(residual)} residual latents; at least {fewest} are needed for a prior")
    for count in range(min(components, len(residual) // fewest), 0, -1):
        mixture = GaussianMixture(count, reg_covar=1e-4, random_state=seed).fit(residual)
        if mixture.weights_.min() * len(residual) >= fewest or count == 1:
            break
    prior = ResidualPrior(residual.shape[1], components)
    prior.shares.zero_()
    prior.shares[:count] = torch.from_numpy(mixture.weights_).float()
    prior.means[:count] = torch.from_numpy(mixture.means_).float()
    prior.factors[:count] = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)).float()
    return prior
