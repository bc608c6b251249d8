"""P5: is somebody whose image trained the anonymizer recognisable as such, or put into what it releases?

Some attackers only see releases or may ask for them; others hold the model file (white box). All have candidate images:
of training patients, the members, and as many of test patients, whom nothing was trained on. The figure is how well one
number an image tells the two apart. None of them trains a network: attacks that do, on models of the attacker's own
(Carlini et al. 2022), are stronger.

In a closed set the test people are training people: members and others are then images of the same people, and nothing
can be compared with strangers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from monai_anon.channel import Channel, Mixture
from monai_anon.evaluation import metrics
from monai_anon.evaluation.latents import Disentangling, decode, device_of, real_latents
from monai_anon.evaluation.people import NO_STRANGERS, OUTSIDE
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject, channel_of, release
from monai_anon.evaluation.tables import Row
from monai_anon.identities import SampledIdentities
from monai_anon.losses import latent_distance
from monai_anon.networks import IdentityVAE, Latents
from monai_anon.readers import to_model_range

Array = np.ndarray
SAMPLES = 4096
"""Synthetic identities that are drawn to compare with."""
OF_IMAGES = "which images were trained on, of people who all were"
LEAST = 1e-6
"""Errors and variations below this count as this much, so that they have a logarithm."""


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Images of whom the attacker asks.

    Args:
        images: uint8 (N, C, S, S), members first.
        member: whether the image was trained on, bool (N,).
        patients: (N,) codes.
        chosen: where the members stand in the training part.
    """

    images: Tensor
    member: Array
    patients: Array
    chosen: Tensor


def membership(subject: Subject, scene: Scene) -> list[Row]:
    """P5: rows `membership_CASE_auc` and `membership_CASE_tpr_at_fpr_1`.

    Of releases, for every anonymizer:

    - nearest: similarity of a released test image to the nearest training patient against that of an untouched test
      image. Above 0.5 the releases look like training patients, as those of a model that hands out what it remembers.
      (The verifier's own memory of the training part is in both.)
    - black_box: how well the anonymizer keeps an image that it was trained on against one it was not (Shokri et al.
      2017: what was seen is treated better).

    Of the model file, for the paper's networks:

    - reconstruction: how well D(E(image)) is the image (Hilprecht et al. 2019).
    - pairs: how alike the identity latents of a patient's images are, for who has several images of a person.
    - vae: the identity VAE's error on the identity latent.
    - identity_samples: how near the nearest of many sampled identities comes to the candidate's (Chen et al. 2020).
    - identity_nearest: how near sampled identities come to the nearest training image's, against those of test images.
    - prior: where the channel is fitted, the residual latent's density under the prior and the medical latent's
      distance to the codebook's tables.

    Several scores of one attack are tried and the stronger counts (its note names it): two measures of likeness, each
    as it is and `calibrated`; four tables of the channel. With the number of attacks this makes the strongest figure
    of P5 a little too strong by chance, an error to the safe side.
    """
    if scene.silence:
        return [scene.silent(subject, "membership_nearest_auc", scene.silence)]
    candidates = candidates_of(scene)
    rows = nearest_rows(subject, scene) + black_box_rows(subject, scene, candidates)
    rows += white_box_rows(subject, scene, candidates) if subject.networks is not None else []
    return [of_images(row) for row in rows] if scene.closed_set else rows


def of_images(row: Row) -> Row:
    """A row of a closed set, which says that images and not people are asked about."""
    if row.value is None:
        return row
    return dataclasses.replace(row, note="; ".join(filter(None, [row.note, OF_IMAGES])))


# ---- who is asked about ----


def candidates_of(scene: Scene) -> Candidates:
    """The test part, and about as many images of training patients drawn by the scene's seed: in a closed set of the
    test people, as many of each as there are in the test part.
    """
    trained = scene.training.patient.numpy()
    if scene.closed_set:
        chosen = images_of_the_same(trained, scene.known, scene.seed)
    else:
        chosen = member_indices(trained, len(scene.test.images), scene.seed)
    rows = torch.from_numpy(chosen)
    images = torch.cat([scene.training.images[rows], scene.test.images])
    member = np.arange(len(images)) < len(chosen)
    patients = codes([trained[chosen], scene.patients])
    if scene.closed_set:  # one code a person: intervals draw people, with all of their images
        outside = trained.max() + 1 + scene.patients
        patients = np.concatenate([trained[chosen], np.where(scene.known == OUTSIDE, outside, scene.known)])
    return Candidates(images, member, patients, rows)


def member_indices(patients: Array, count: int, seed: int) -> Array:
    """Images of randomly drawn training patients, all of each, until there are about `count`."""
    names = np.random.default_rng(seed).permutation(np.unique(patients))
    sizes = np.array([(patients == name).sum() for name in names]).cumsum()
    chosen = names[: int(np.searchsorted(sizes, count)) + 1]
    return np.flatnonzero(np.isin(patients, chosen))


def images_of_the_same(patients: Array, known: Array, seed: int) -> Array:
    """Images of training patients (M,), of each as many as known codes (N,) hold, or all where there are fewer."""
    draw, chosen = np.random.default_rng(seed), []
    for patient, count in zip(*np.unique(known[known != OUTSIDE], return_counts=True), strict=True):
        chosen.append(draw.permutation(np.flatnonzero(patients == patient))[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def codes(parts: list[Array]) -> Array:
    """Patients of several parts as codes that no two parts share."""
    first, shifted = 0, []
    for part in parts:
        _, code = np.unique(part, return_inverse=True)
        shifted.append(code + first)
        first += int(code.max()) + 1
    return np.concatenate(shifted)


# ---- scores to rows ----


def stronger(
    subject: Subject, scene: Scene, candidates: Candidates, case: str, scores: Mapping[str, Array]
) -> list[Row]:
    """The rows of the one of several scores (N,), by name, whose AUC is farthest from 0.5."""
    telling = {name: score for name, score in scores.items() if len(np.unique(score)) > 1}
    if not telling:
        n = len(candidates.images)
        return [scene.plain(subject, f"membership_{case}_auc", 0.5, 0.5, 0.5, n=n, note="nothing differs")]
    name = max(telling, key=lambda key: abs(metrics.verification_auc(telling[key], candidates.member) - 0.5))
    note = f"by {name}" if name else ""
    prefix = f"membership_{case}"
    return told_apart(subject, scene, prefix, telling[name], candidates.member, candidates.patients, note)


def told_apart(
    subject: Subject, scene: Scene, prefix: str, scores: Array, positive: Array, patients: Array, note: str = ""
) -> list[Row]:
    """`PREFIX_auc` and `PREFIX_tpr_at_fpr_1` of scores (N,) that should tell `positive` (N,) from the others."""
    auc, roc = metrics.WeightedAuc(scores, positive), metrics.WeightedRoc(scores, positive)
    options: dict[str, Any] = {"patients": patients, "note": note}
    return [
        scene.row(subject, f"{prefix}_auc", auc, **options),
        scene.row(subject, f"{prefix}_tpr_at_fpr_1", lambda w: roc.true_accepts(w, 0.01), **options),
    ]


# ---- by releases ----


def nearest_rows(subject: Subject, scene: Scene) -> list[Row]:
    """Whether released test images are nearer to training patients than strangers' real images are."""
    if scene.closed_set:
        return [scene.silent(subject, "membership_nearest_auc", NO_STRANGERS)]
    known = scene.vectors("training")
    released = (scene.judges.embed(scene.released(subject, "test").images) @ known.T).max(axis=1)
    strangers = (scene.vectors("test") @ known.T).max(axis=1)
    scores, made = np.concatenate([released, strangers]), np.arange(2 * len(released)) < len(released)
    patients = np.concatenate([scene.patients, scene.patients])
    return told_apart(subject, scene, "membership_nearest", scores, made, patients)


def black_box_rows(subject: Subject, scene: Scene, candidates: Candidates) -> list[Row]:
    """Whether members are kept better than strangers."""
    images = candidates.images
    released = release(subject.anonymise, images, scene.seed)
    scores = likeness(to_model_range(images), to_model_range(released))
    return stronger(subject, scene, candidates, "black_box", scores)


def likeness(before: Tensor, after: Tensor) -> dict[str, Array]:
    """How alike images (N, C, S, S) in [-1, 1] and what was made of them are: (N,) by two measures, raw and calibrated;
    larger is more alike.
    """
    squared = (before - after).square().mean(dim=(1, 2, 3)).numpy()
    unlike = {"squared error": squared, "SSIM": 1 - metrics.ssim(after, before)}
    errors = {name: np.log(np.maximum(value, LEAST)) for name, value in unlike.items()}
    hard = {
        f"{name}, calibrated": calibrated(error, before) for name, error in errors.items() if len(np.unique(error)) > 1
    }
    return {name: -error for name, error in (errors | hard).items()}


def calibrated(error: Array, images: Tensor) -> Array:
    """What of the log errors (N,) the difficulty of images (N, C, S, S) does not explain.

    An image of many edges has a large error, seen or not, which hides the small difference that training makes (Watson
    et al. 2022). They compare with models that never saw the image; we, who have none, with a line in the log of the
    image's total variation, fitted to members and strangers alike: it needs no label.
    """
    variation = images.diff(dim=-1).abs().mean(dim=(1, 2, 3)) + images.diff(dim=-2).abs().mean(dim=(1, 2, 3))
    difficulty = np.log(np.maximum(variation.numpy(), LEAST))
    columns = np.stack([np.ones_like(difficulty), difficulty], axis=1)
    line: Array = np.linalg.lstsq(columns, error, rcond=None)[0]
    rest: Array = error - columns @ line
    return rest


# ---- by the model file ----


def white_box_rows(subject: Subject, scene: Scene, candidates: Candidates) -> list[Row]:
    """What the networks themselves remember, and the channel where it is fitted."""
    networks: Any = subject.networks
    training, test = (real_latents(subject, scene, part) for part in ("training", "test"))
    z = Latents(*(torch.cat([a[candidates.chosen], b]) for a, b in zip(training, test, strict=True)))
    vae, channel = networks.identity_vae, channel_of(subject)
    samples = sampled_identities(vae, channel, scene.seed)
    cases = {
        "reconstruction": reconstruction_scores(networks.disentangler, candidates.images, z),
        "vae": {"": -vae_error(vae, z.identity)},
        "identity_samples": {"": nearest_similarity(z.identity, samples)},
    }
    if channel is not None and channel.codebook.count(-1):
        cases["prior"] = prior_scores(channel, z, predicted_finding(networks.disentangler, z.medical))
    rows = [row for case, scores in cases.items() for row in stronger(subject, scene, candidates, case, scores)]
    rows += pair_rows(subject, scene, candidates, z.identity)
    return rows + identity_nearest_rows(subject, scene, samples, training.identity, test.identity)


def reconstruction_scores(disentangler: Disentangling, images: Tensor, z: Latents) -> dict[str, Array]:
    """How well images (N, C, S, S), uint8, come back from their latents."""
    return likeness(to_model_range(images), decode(disentangler, z))


def pair_rows(subject: Subject, scene: Scene, candidates: Candidates, identity: Tensor) -> list[Row]:
    """Whether members' images have identity latents (N, D) that are more alike: each image's mean cosine similarity to
    the patient's others, of those that are members as it is, or are not.
    """
    unit = F.normalize(identity, dim=1).numpy()
    same = candidates.patients[:, None] == candidates.patients[None, :]
    same &= candidates.member[:, None] == candidates.member[None, :]
    np.fill_diagonal(same, False)
    several = same.any(axis=1)
    member = candidates.member[several]
    if member.all() or not member.any():
        why = "not measured: it needs members and strangers with two images"
        return [scene.silent(subject, "membership_pairs_auc", why)]
    alike = np.where(same, unit @ unit.T, 0.0).sum(axis=1)[several] / same.sum(axis=1)[several]
    return told_apart(subject, scene, "membership_pairs", alike, member, candidates.patients[several])


@torch.no_grad()
def vae_error(vae: IdentityVAE, identity: Tensor) -> Array:
    """The identity VAE's squared error (N,) on identity latents (N, D), without its noise."""
    vae = vae.eval()
    identity = identity.to(next(vae.parameters()).device)
    return latent_distance(identity, vae.decode(vae.encode(identity)[0])).cpu().numpy()


@torch.no_grad()
def sampled_identities(vae: IdentityVAE, channel: Channel | None, seed: int) -> Tensor:
    """`SAMPLES` identities (M, D) as a release draws them: from the VAE, or from the prior of a channel that draws."""
    device, nobody = next(vae.parameters()).device, torch.full((SAMPLES,), -1)
    if channel is not None and channel.policy != "latents":
        prior = copy.deepcopy(channel.identity).cpu()
        noise = torch.randn(SAMPLES, channel.identity_size, generator=torch.Generator().manual_seed(seed))
        return prior(torch.zeros(SAMPLES), noise)  # its length does not matter here: cosines are compared
    like = torch.zeros(SAMPLES, 1, device=device)
    return SampledIdentities(vae)(like, nobody, torch.Generator().manual_seed(seed)).cpu()


def nearest_similarity(identity: Tensor, others: Tensor) -> Array:
    """Cosine similarity (N,) of identity latents (N, D) to the nearest of others (M, D)."""
    others = F.normalize(others, dim=1).T
    return torch.cat([(part @ others).amax(1) for part in F.normalize(identity, dim=1).split(512)]).numpy()


def identity_nearest_rows(
    subject: Subject, scene: Scene, samples: Tensor, training: Tensor, strangers: Tensor
) -> list[Row]:
    """Whether sampled identities come nearer to training images' than the identities of people unseen do.

    Below 0.5 they lie apart from real ones. An average of many people lies near everybody: above 0.5 need not be memory
    where `identity_samples`, which compares training with test people, is at chance.
    """
    if scene.closed_set:
        return [scene.silent(subject, "membership_identity_nearest_auc", NO_STRANGERS)]
    near = [nearest_similarity(identity, training) for identity in (samples, strangers)]
    made = np.arange(len(samples) + len(strangers)) < len(samples)
    patients = codes([np.arange(len(samples)), scene.patients])
    return told_apart(subject, scene, "membership_identity_nearest", np.concatenate(near), made, patients)


@torch.no_grad()
def predicted_finding(disentangler: Disentangling, medical: Tensor) -> Tensor:
    """The model's own findings (N,) of medical latents (N, D), by which the codebook looks."""
    return disentangler.classify(medical.to(device_of(disentangler))).argmax(1).cpu()


@torch.no_grad()
def prior_scores(channel: Channel, z: Latents, finding: Tensor) -> dict[str, Array]:
    """How well latents fit the channel's tables (N,): the densities of identity and residual, and minus the medical
    latent's distance to the nearest of its finding's points and to the nearest prototype, both of the finest level.
    """
    book = channel.codebook
    place, points = copy.deepcopy(book).cpu().places(z.medical, finding), book.points.cpu()
    apart = torch.cdist(place, points).masked_fill(finding[:, None] != book.finding.cpu(), np.inf)
    prototypes = book.prototypes[-1][book.patients[-1] > 0].cpu()
    return {
        "identity density": log_density(channel.identity, z.identity).numpy(),
        "residual density": log_density(channel.residual, z.residual).numpy(),
        "nearest point": -apart.amin(1).numpy(),
        "nearest prototype": -torch.cdist(z.medical, prototypes).amin(1).numpy(),
    }


def log_density(prior: Mixture, latent: Tensor) -> Tensor:
    """Log-likelihood (N,) in nats of latents (N, D) on the CPU; components without a share do not count."""
    shares, means, factors = (table.cpu().double() for table in (prior.shares, prior.means, prior.factors))
    used = shares > 0
    components = MultivariateNormal(means[used], scale_tril=factors[used])
    return MixtureSameFamily(Categorical(shares[used]), components).log_prob(latent.double())
