"""P9: what the code alone tells, under the policy `code`, to an oracle who knows every image's code without error.

Who holds the very image that was released can do no better: of its original a release says its code and nothing else.
Who holds another image of the patient could do a little better, by guessing the code from more than that image's own
code. An attack far below these figures has missed something; one above them by more than chance found another leak.
"""

import numpy as np
import torch

from monai_anon.channel import Channel
from monai_anon.evaluation import metrics
from monai_anon.evaluation.latents import real_latents
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject, channel_of
from monai_anon.evaluation.tables import Row

Array = np.ndarray
UNSEEN = 1.0
"""Added to each count of two codes, so that a pair which no training patient has is unlikely and not impossible."""


def codes(subject: Subject, scene: Scene) -> list[Row]:
    """P9: what the code alone tells of the patient, to who knows it exactly.

    By another image of the patient: a pair of codes is scored by how much more often two images of one training patient
    have it than two images of two. By the very image that was released: among N people, one of them with that image,
    the oracle guesses one of those who have its code.

    Returns:
        `oracle_{auc,eer,tar_at_far_10,tar_at_far_1,rank_1}` by other images, `oracle_image_rank_1` by the very image
        and its bound `oracle_image_chance`, K / N. None for anonymizers without a channel, no value under a policy
        without codes or with a randomised response, whose ceiling is lower.
    """
    channel = channel_of(subject)
    if channel is None:
        return []
    if scene.silence:
        return [scene.silent(subject, "oracle_auc", scene.silence)]
    if channel.policy != "code":
        why = f"not measured: there are no codes with the policy {channel.policy}"
        return [scene.silent(subject, "oracle_auc", why)]
    if channel.epsilon > 0:
        return [scene.silent(subject, "oracle_auc", "not measured: with a randomised response nobody knows the code")]
    count = channel.codebook.count(channel.level)
    taught, asked = (codes_of(subject, scene, part) for part in ("training", "test"))
    score = pair_scores(taught, scene.training.patient.numpy(), count)
    curves = len(scene.curves)
    rows = scene.person_rows(subject, "oracle", [score[asked[:, None], asked[None]]])
    del scene.curves[curves:]  # steps of a few codes, no curve
    hits, each = image_hits(asked, scene.patients), 1 / np.bincount(scene.patients)[scene.patients]
    # Every patient counts once, as in the bound.
    rows.append(scene.row(subject, "oracle_image_rank_1", lambda w: metrics.weighted_mean(hits, w * each)))
    bound = min(1.0, count / scene.people)
    return [*rows, scene.plain(subject, "oracle_image_chance", bound, n=scene.people, note="bound: K / N")]


def codes_of(subject: Subject, scene: Scene, part: str) -> Array:
    """The code (N,) of every image of a part."""
    assert subject.networks is not None
    found: Channel = subject.networks.channel
    z = real_latents(subject, scene, part)
    device = found.codebook.points.device
    medical = z.medical.to(device)
    with torch.no_grad():
        finding = subject.networks.disentangler.classify(medical).argmax(1)
        code: Array = found.codebook(medical, finding, found.level).cpu().numpy()
    return code


def pair_scores(code: Array, patients: Array, count: int) -> Array:
    """For two codes (K, K) the log ratio of how often two images of one patient have them, to two images of two."""
    together = np.full((count, count), UNSEEN / count)
    for patient in np.unique(patients):
        of_one = np.bincount(code[patients == patient], minlength=count).astype(float)
        together += (np.outer(of_one, of_one) - np.diag(of_one)) / max(of_one.sum() - 1, 1)  # each image counts once
    share = np.bincount(code, minlength=count) + UNSEEN
    share = share / share.sum()
    scores: Array = np.log(together / together.sum()) - np.log(np.outer(share, share))
    return scores


def image_hits(code: Array, patients: Array) -> Array:
    """Chance (N,) that who knows each image's code finds it among one image of each patient, itself one of them.

    Exact over all such galleries: 1 / (1 + S), S the number of other patients whose image has the code, has the
    expectation of the integral from 0 to 1 of the product of 1 - p + p t over the patients, p the share of a patient's
    images with the code. Its degree is below N, so that Gauss and Legendre's rule of N / 2 points is exact.
    """
    people, index = np.unique(patients, return_inverse=True)
    points, weights = np.polynomial.legendre.leggauss(len(people) // 2 + 1)
    points, weights = (points + 1) / 2, weights / 2
    share = np.zeros((len(people), int(code.max()) + 1))
    np.add.at(share, (index, code), 1.0)
    share /= share.sum(1, keepdims=True)
    logs = np.log(np.maximum(1 - share[:, :, None] * (1 - points), 1e-300))  # (people, codes, points)
    others = logs.sum(0)[code] - logs[index, code]
    hits: Array = np.exp(others) @ weights
    return hits
