"""Fits the channel on training images' latents: medical prototypes, priors of identity and residual."""

import logging
from collections.abc import Collection

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from monai_anon.channel import FINEST, LEVELS, Channel, ChannelError, Codebook, Mixture
from monai_anon.networks import Latents

logger = logging.getLogger("monai_anon")


def fit_channel(
    latents: Latents,
    patient: Tensor,
    finding: Tensor,
    classes: int = 2,
    fewest: int = 20,
    components: int = 16,
    seed: int = 0,
    undivided: Collection[int] = (),
) -> Channel:
    """Prototypes and priors of training images' latents, on the CPU.

    Where there are too few patients the channel stays unfitted, and a warning says why: the policy `latents` can still
    be had.

    Args:
        patient: codes `(N,)`.
        finding: predicted, `(N,)`: a release has nothing else to go by.
        classes: findings that the medical classifier tells apart.
        fewest: training patients that must share each prototype.
        components: of the residual's prior, at most.
        undivided: findings whose images share one prototype, so that nothing but the finding passes of them.

    Raises:
        ChannelError: `fewest` is below 1; `undivided` names a finding that is none of the classes.
    """
    if fewest < 1:
        raise ChannelError(f"patients_a_prototype is {fewest}; it must be 1 or more")
    if unknown := sorted(set(undivided) - set(range(classes))):
        raise ChannelError(f"undivided names the findings {unknown}; there are {list(range(classes))}")
    sizes = [latent.shape[1] for latent in latents]
    channel = Channel(sizes, classes, components=components)
    identity, medical, residual = (latent.numpy() for latent in latents)
    try:
        channel.codebook = fit_codebook(
            medical, patient.numpy(), finding.numpy(), classes, fewest, seed=seed, undivided=undivided
        )
        channel.identity = fit_identity(identity, finding.numpy(), classes)
        channel.residual = fit_mixture(residual, components, seed=seed)
    except ValueError as error:
        logger.warning("no prototypes: %s. Only the policy latents can be had, which has no bound", error)
        return Channel(sizes, classes, components=components)
    return channel


# ---- Prototypes ----


def invariant_axes(medical: np.ndarray, patient: np.ndarray, limit: float = 0.3) -> np.ndarray:
    """Directions `(D, d)` of the medical latents `(N, D)` of one finding that say little of who the patient is, each of
    within-patient variance 1; the others are zeros.

    Solves the generalised eigenproblem of between- and within-patient covariance, over patients `(N,)` with two images
    or more, and keeps the directions whose ratio of variances is at most `limit`. Of one finding, so that a finding
    which never changes within a patient is not taken for identity, and because what varies depends on it: among images
    without a finding there is nothing but anatomy. With fewer than two such patients nobody can tell, and none is kept.
    """
    from scipy.linalg import eigh

    size = medical.shape[1]
    centred = medical.astype(np.float64) - medical.mean(0)
    _, codes, counts = np.unique(patient, return_inverse=True, return_counts=True)
    means = np.zeros((len(counts), size))
    np.add.at(means, codes, centred)
    means /= counts[:, None]
    several = counts > 1
    found = np.zeros((size, size))
    if several.sum() < 2:
        return found
    rest = (centred - means[codes])[several[codes]]
    least = 1e-4 * max(centred.var(0).mean(), 1e-12)  # below it a direction says nothing, and is not blown up
    within = rest.T @ rest / (len(rest) - several.sum()) + least * np.eye(size)
    between = np.cov(means[several].T).reshape(within.shape) - within / counts[several].mean()
    ratios, axes = eigh(between, within)
    found[:, ratios <= limit] = axes[:, ratios <= limit]
    return found


def fit_codebook(
    medical: np.ndarray,
    patient: np.ndarray,
    finding: np.ndarray,
    classes: int = 2,
    fewest: int = 20,
    limit: float = 0.3,
    seed: int = 0,
    undivided: Collection[int] = (),
) -> Codebook:
    """Prototypes of the medical latents `(N, D)` of training images.

    k-means within each predicted finding `(N,)`, in its patient-invariant coordinates: the finding is always part of
    the code, and one without such coordinates has one prototype. Clusters are then merged, each time the two of one
    finding whose union costs least (Ward 1963), until there are at most `FINEST` and every one holds `fewest` patients:
    counted anew with each image at the nearest centre that is left, since only those centres are kept. Each coarser
    level merges the groups of the finer one. A prototype is the mean latent of its images, all of its dimensions: an
    average of many people.

    Args:
        patient: codes `(N,)`.
        classes: findings there may be.
        fewest: training patients that must share each prototype, at every level.
        limit: see `invariant_axes`.
        undivided: findings with one prototype: what varies where there is none is no finding, and would take some.

    Raises:
        ValueError: a finding has fewer patients than `fewest`.
    """
    axes = np.zeros((classes, medical.shape[1], medical.shape[1]))
    for one in set(np.unique(finding)) - set(undivided):
        axes[one] = invariant_axes(medical[finding == one], patient[finding == one], limit)
    places = np.einsum("ni,nij->nj", medical, axes[finding])
    labels, kinds = clustered(places, patient, finding, fewest, seed)
    people = np.zeros(1)
    while people.min() < fewest:  # merge, let each image go to the nearest centre, and count again
        members = merged(np.arange(len(kinds)), labels, kinds, places, patient, FINEST, fewest)
        kinds = np.array([kinds[members == group][0] for group in range(members.max() + 1)])
        points = centres(places, members[labels])
        used, labels = np.unique(nearest(places, points, finding, kinds), return_inverse=True)
        kinds, points = kinds[used], points[used]
        people = np.array([len(np.unique(patient[labels == group])) for group in range(len(points))])
    book = Codebook(medical.shape[1], classes)
    book.axes.copy_(torch.from_numpy(axes))
    book.points[: len(points)] = torch.from_numpy(points).float()
    book.finding[: len(kinds)] = torch.from_numpy(kinds)
    members = np.arange(len(points))
    for level in range(len(LEVELS) - 1, -1, -1):
        members = merged(members, labels, kinds, places, patient, LEVELS[level], fewest)
        codes = members[labels]
        book.members[level, : len(members)] = torch.from_numpy(members)
        for code in range(members.max() + 1):
            book.prototypes[level, code] = torch.from_numpy(medical[codes == code].mean(0))
            book.patients[level, code] = len(np.unique(patient[codes == code]))
    return book


def clustered(
    places: np.ndarray, patient: np.ndarray, finding: np.ndarray, fewest: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Many small clusters within each finding: each image's cluster `(N,)`, and each cluster's finding.

    Raises:
        ValueError: a finding has fewer patients than `fewest`.
    """
    from sklearn.cluster import KMeans

    labels, kinds = np.zeros(len(places), int), list[int]()
    for one in np.unique(finding):
        rows = np.flatnonzero(finding == one)
        people = len(np.unique(patient[rows]))
        if people < fewest:
            raise ValueError(f"finding {one} has {people} patients; each prototype must be shared by {fewest}")
        different = len(np.unique(places[rows], axis=0))  # more clusters than that would leave some empty
        count = min(FINEST, max(1, len(rows) // 4), different)
        labels[rows] = KMeans(count, n_init=1, random_state=seed).fit(places[rows]).labels_ + len(kinds)
        kinds += [one] * count
    return labels, np.array(kinds)


def centres(places: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Means `(G, d)` of the places `(N, d)` of each group, labels `(N,)` from 0 without gaps."""
    return np.array([places[labels == group].mean(0) for group in range(labels.max() + 1)])


def nearest(places: np.ndarray, points: np.ndarray, finding: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """For each place the nearest point of its own finding, `(N,)`."""
    apart = cdist(places, points)
    apart[finding[:, None] != kinds[None]] = np.inf
    found: np.ndarray = apart.argmin(1)
    return found


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


# ---- The priors ----


def fit_identity(identity: np.ndarray, finding: np.ndarray, classes: int) -> Mixture:
    """A Gaussian of identity latents `(N, D)` for each finding `(N,)`: means of their own, one covariance.

    Where a finding never changes within a patient the identity latent tells it, and an identity drawn for all findings
    alike would draw a finding of its own. Where it does change the means are alike. One covariance, since it is the
    covariance that could remember people.

    Raises:
        ValueError: too few images, as in `fit_mixture`.
    """
    means = np.stack([identity[finding == kind if (finding == kind).any() else ...].mean(0) for kind in range(classes)])
    around = fit_mixture(identity - means[finding], 1)
    prior = Mixture(identity.shape[1], classes)
    shares = np.bincount(finding, minlength=classes) / len(finding)
    prior.shares.copy_(torch.from_numpy(shares))
    prior.means.copy_(torch.from_numpy(means) + around.means)
    prior.factors.copy_(around.factors.expand_as(prior.factors))
    return prior


def fit_mixture(latents: np.ndarray, components: int = 16, fewest: int = 100, seed: int = 0) -> Mixture:
    """The mixture that fits latents `(N, D)` of training images.

    No component may be a few people's: one with fewer than `fewest` images (by its share) makes the fit start again
    with one component less.

    Raises:
        ValueError: fewer than `fewest` images.
    """
    from sklearn.mixture import GaussianMixture

    if len(latents) < fewest:
        raise ValueError(f"{len(latents)} latents; at least {fewest} are needed for a prior")
    for count in range(min(components, len(latents) // fewest), 0, -1):
        mixture = GaussianMixture(count, reg_covar=1e-4, random_state=seed).fit(latents)
        if mixture.weights_.min() * len(latents) >= fewest or count == 1:
            break
    prior = Mixture(latents.shape[1], components)
    prior.shares.zero_()
    prior.shares[:count] = torch.from_numpy(mixture.weights_).float()
    prior.means[:count] = torch.from_numpy(mixture.means_).float()
    prior.factors[:count] = torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)).float()
    return prior
