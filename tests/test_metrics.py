"""Laws and known answers of the figures: an oracle scores 1, a blind judge is at chance, a wrong one below."""

import time

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from monai_anon.evaluation import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_verification_auc_is_one_for_an_oracle_half_for_the_blind_zero_for_the_contrary():
    same = np.array([1, 1, 0, 0, 0])
    assert metrics.verification_auc(same, same) == 1.0
    assert metrics.verification_auc(np.zeros(5), same) == 0.5
    assert metrics.verification_auc(-same, same) == 0.0


def test_verification_auc_needs_both_kinds():
    with pytest.raises(ValueError, match="both kinds"):
        metrics.verification_auc(np.arange(3), np.ones(3))


def test_equal_error_rate_of_known_scores():
    assert metrics.equal_error_rate(np.array([3, 2, 1, 0]), np.array([1, 1, 0, 0])) == pytest.approx(0.0)
    assert metrics.equal_error_rate(np.zeros(4), np.array([1, 1, 0, 0])) == pytest.approx(0.5)
    assert metrics.equal_error_rate(np.array([4, 1, 3, 0]), np.array([1, 1, 0, 0])) == pytest.approx(0.5)
    assert metrics.equal_error_threshold(np.array([3, 2, 1, 0]), np.array([1, 1, 0, 0])) == 2


def test_true_accepts_at_a_false_accept_rate():
    scores, same = np.array([9.0, 7, 5, 8, 6, 4, 3]), np.array([1, 1, 1, 0, 0, 0, 0])
    assert metrics.tar_at_far(scores, same, 0.0) == pytest.approx(1 / 3)
    assert metrics.tar_at_far(scores, same, 0.25) == pytest.approx(2 / 3)
    assert metrics.tar_at_far(scores, same, 1.0) == 1.0


def test_weighted_auc_equals_scikit_learn_with_ties_and_weights(rng):
    scores, positive = rng.integers(0, 8, 300), rng.random(300) < 0.3
    curve = metrics.WeightedAuc(scores, positive)
    for _ in range(5):
        weights = rng.integers(0, 4, 300).astype(float)
        assert curve(weights) == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))
    assert np.isnan(curve(np.where(positive, 0.0, 1.0)))


def test_pair_weights_equal_those_of_images_written_out_as_often_as_drawn(rng):
    patients = np.repeat([0, 1, 2, 3], 3)
    first, second = np.triu_indices(12, 1)
    scores, same = rng.random(len(first)), patients[first] == patients[second]
    draw = np.array([2, 1, 0, 3])[patients].astype(float)
    statistic = metrics.pair_auc(scores, first, second, same, patients)
    copies = np.where(same, draw[first], draw[first] * draw[second]).astype(int)
    expected = roc_auc_score(np.repeat(same, copies), np.repeat(scores, copies))
    assert statistic(draw) == pytest.approx(expected)


def test_rank_k_of_an_oracle_of_the_blind_and_of_the_second_best():
    patients = np.arange(5)
    assert metrics.rank_k(np.eye(5), patients, patients) == 1.0
    assert metrics.rank_k(np.zeros((5, 5)), patients, patients) == pytest.approx(metrics.rank_k_chance(5))
    assert metrics.rank_k(np.zeros((5, 5)), patients, patients, k=2) == pytest.approx(metrics.rank_k_chance(5, 2))
    second = np.eye(5) + 2 * np.roll(np.eye(5), 1, axis=1)
    assert metrics.rank_k(second, patients, patients) == 0.0
    assert metrics.rank_k(second, patients, patients, k=2) == 1.0


def test_rank_k_refuses_an_open_gallery_and_a_patient_twice():
    with pytest.raises(ValueError, match="no image of their patient"):
        metrics.rank_k(np.zeros((1, 2)), np.array([7]), np.array([1, 2]))
    with pytest.raises(ValueError, match="repeats"):
        metrics.rank_k(np.zeros((1, 2)), np.array([1]), np.array([1, 1]))


def test_claim_pairs_leave_out_the_image_used_and_the_patient_left_out():
    patients = np.array([0, 0, 1, 2])
    first, second, same = metrics.claim_pairs(patients)
    assert not (first == second).any() and len(first) == 12
    assert set(zip(first[same], second[same])) == {(0, 1), (1, 0)}
    claimed, used = np.array([1, 1, 0, 0]), np.array([2, 2, 0, 1])
    first, second, same = metrics.claim_pairs(patients, claimed, used, left_out=patients)
    assert set(zip(first, second)) == {(0, 3), (1, 3), (2, 1), (2, 3), (3, 0), (3, 2)}
    assert set(zip(first[same], second[same])) == {(2, 1), (3, 0)}


def test_linkage_never_shows_the_image_a_query_was_made_from():
    patients = np.array([0, 0, 1, 1, 2])
    itself = np.eye(5)  # a "recogniser" that knows images, not people, finds nobody
    hits, gallery = metrics.linkage_hits(itself, patients, patients, np.arange(5))
    assert gallery == 3 and np.isnan(hits[4])  # the last patient has no other image to be found by
    assert (hits[:4] < 1).all()
    people = (patients[:, None] == patients[None, :]).astype(float)
    hits, _ = metrics.linkage_hits(people, patients, patients, np.arange(5), seed=1)
    np.testing.assert_array_equal(hits[:4], 1.0)


def test_hit_rate_counts_distances_strictly_below_the_threshold():
    latents = np.array([[0.0, 0.0], [0.2, 0.2], [1.0, 0.0]])
    distances = metrics.squared_distance(latents, np.zeros(2))
    np.testing.assert_allclose(distances, [0.0, 0.04, 0.5])
    assert metrics.hit_rate(distances, 0.05) == pytest.approx(2 / 3)
    assert metrics.hit_rate(distances, 0.0) == 0.0
    assert metrics.hit_rate(distances, 0.05, np.array([1.0, 0, 1])) == 0.5


def test_accuracy_and_f1_of_known_predictions():
    finding, predicted = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
    assert metrics.accuracy(predicted, finding) == 0.75
    assert metrics.f1(predicted, finding, 2) == pytest.approx(2 / 3)
    assert metrics.f1(np.zeros(4), finding, 2) == 0.0
    assert metrics.f1(np.array([0, 1, 2]), np.array([0, 1, 2]), 3) == 1.0


def test_finding_auc_is_scikit_learns_for_two_and_for_three_classes(rng):
    two, labels = rng.random((60, 2)), rng.integers(0, 2, 60)
    assert metrics.finding_auc(two, labels)(np.ones(60)) == pytest.approx(roc_auc_score(labels, two[:, 1]))
    three, labels = rng.random((60, 3)), rng.integers(0, 3, 60)
    three /= three.sum(axis=1, keepdims=True)
    assert metrics.finding_auc(three, labels)(np.ones(60)) == pytest.approx(
        roc_auc_score(labels, three, multi_class="ovr")
    )
    with pytest.raises(ValueError, match="two classes"):
        metrics.finding_auc(two, np.zeros(60))


def test_severity_correlation_is_pearsons_and_zero_for_the_blind(rng):
    x, y = rng.random(50), rng.random(50)
    assert metrics.severity_correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert metrics.severity_correlation(y, 3 * y + 1) == pytest.approx(1.0)
    assert metrics.severity_correlation(np.ones(50), y) == 0.0


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    torch.manual_seed(0)
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    np.testing.assert_allclose(metrics.ssim(images, images), 1.0, atol=1e-5)
    little, much = (metrics.ssim(images + s * torch.randn_like(images), images) for s in (0.05, 0.5))
    assert little.shape == (3,) and (little > much).all()


def test_bootstrap_resamples_patients_not_images():
    patients = np.repeat(np.arange(20), 50)
    wrong = (patients < 4).astype(float)  # all images of a patient agree: 1000 images, but only 20 facts
    interval = metrics.patient_bootstrap(lambda w: metrics.weighted_mean(1 - wrong, w), patients, n=400)
    images = metrics.patient_bootstrap(lambda w: metrics.weighted_mean(1 - wrong, w), np.arange(1000), n=400)
    assert interval.value == images.value == 0.8
    assert interval.high - interval.low > 4 * (images.high - images.low)
    assert interval.low == pytest.approx(0.8 - 1.96 * np.sqrt(0.16 / 20), abs=0.06)


def test_bootstrap_is_repeatable_skips_empty_draws_and_refuses_the_undefined():
    auc = metrics.WeightedAuc(np.array([0.1, 0.9, 0.2]), np.array([0, 1, 0]))
    first, again = (metrics.patient_bootstrap(auc, np.arange(3), n=50, seed=3) for _ in range(2))
    assert first == again and first.value == 1.0 and np.isfinite(first.low)
    with pytest.raises(ValueError, match="nothing to resample"):
        metrics.patient_bootstrap(lambda w: float("nan"), np.arange(3))


def test_a_thousand_resamples_of_all_pairs_of_300_images_take_less_than_two_seconds(rng):
    patients = rng.integers(0, 130, 300)
    first, second = (index.ravel() for index in np.meshgrid(np.arange(300), np.arange(300), indexing="ij"))
    same = patients[first] == patients[second]
    statistic = metrics.pair_auc(rng.random(90_000) + same, first, second, same, patients)
    start = time.process_time()
    metrics.patient_bootstrap(statistic, patients, n=1000)
    assert time.process_time() - start < 4.0  # 2 s on an idle core; slack for a busy machine
