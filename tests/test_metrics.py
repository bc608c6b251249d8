"""Laws and known answers of the figures: an oracle scores 1, a blind judge is at chance, a wrong one below."""

import itertools
import time

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from monai_anon.evaluation import galleries, metrics


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
    assert galleries.rank_k(np.eye(5), patients, patients) == 1.0
    assert galleries.rank_k(np.zeros((5, 5)), patients, patients) == pytest.approx(galleries.rank_k_chance(5))
    assert galleries.rank_k(np.zeros((5, 5)), patients, patients, k=2) == pytest.approx(galleries.rank_k_chance(5, 2))
    second = np.eye(5) + 2 * np.roll(np.eye(5), 1, axis=1)
    assert galleries.rank_k(second, patients, patients) == 0.0
    assert galleries.rank_k(second, patients, patients, k=2) == 1.0


def test_rank_k_refuses_an_open_gallery_and_a_patient_twice():
    with pytest.raises(ValueError, match="no image of their patient"):
        galleries.rank_k(np.zeros((1, 2)), np.array([7]), np.array([1, 2]))
    with pytest.raises(ValueError, match="repeats"):
        galleries.rank_k(np.zeros((1, 2)), np.array([1]), np.array([1, 1]))


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
    hits, gallery = galleries.linkage_hits(itself, patients, patients, np.arange(5))
    assert gallery == 3 and np.isnan(hits[4])  # the last patient has no other image to be found by
    assert (hits[:4] < 1).all()
    people = (patients[:, None] == patients[None, :]).astype(float)
    hits, _ = galleries.linkage_hits(people, patients, patients, np.arange(5), seed=1)
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


# ---- the curve under many weightings, galleries of any size ----


def weighted_pairs():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(9), 3)
    similarity = (rng.normal(size=(27, 27)) + (patients[:, None] == patients)).round(1)  # with ties
    first, second, same = metrics.claim_pairs(patients)
    return similarity[first, second], first, second, same, patients


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_weighted_curve_is_that_of_scikit_learn(seed):
    scores, first, second, same, patients = weighted_pairs()
    images = np.ones(27) if seed is None else np.random.default_rng(seed).integers(0, 3, 9)[patients].astype(float)
    weights = metrics.pair_weights(first, second, patients)(images)
    roc = metrics.WeightedRoc(scores, same)
    assert roc.equal_error_rate(weights) == pytest.approx(metrics.equal_error_rate(scores, same, weights))
    for far in (0.01, 0.1, 0.5):
        assert roc.true_accepts(weights, far) == pytest.approx(metrics.tar_at_far(scores, same, far, weights))
    auc = metrics.pair_auc(scores, first, second, same, patients)(images)
    assert trapezoid(*roc.curve(weights)[::-1]) == pytest.approx(auc)


def test_a_curve_without_one_kind_is_undefined():
    roc = metrics.WeightedRoc(np.array([1.0, 2.0]), np.array([True, False]))
    assert np.isnan(roc.equal_error_rate(np.array([1.0, 0.0]))) and np.isnan(roc.true_accepts(np.zeros(2), 0.1))


@pytest.mark.parametrize(("size", "k"), [(2, 1), (3, 1), (3, 2), (5, 2), (5, 5)])
def test_the_expected_rank_is_the_mean_over_all_galleries(size, k):
    rng = np.random.default_rng(3)
    mates, others = rng.integers(0, 4, 6).astype(float), rng.integers(0, 4, (6, 4)).astype(float)

    def hit(mate, gallery):
        above, tied = (gallery > mate).sum(), (gallery == mate).sum()
        return np.mean([above + place < k for place in range(tied + 1)])

    slow = [
        np.mean([hit(mate, row[list(chosen)]) for chosen in itertools.combinations(range(4), size - 1)])
        for mate, row in zip(mates, others)
    ]
    assert galleries.expected_rank_k(mates, others, size, k) == pytest.approx(slow)


def test_expected_ranks_know_chance_the_unknown_and_the_limits():
    assert galleries.expected_rank_k(np.zeros(2), np.zeros((2, 9)), 5) == pytest.approx(0.2)
    found = galleries.expected_rank_k(np.array([1.0, np.nan]), np.zeros((2, 3)), 4)
    assert found[0] == 1 and np.isnan(found[1])
    with pytest.raises(ValueError, match="a gallery of 5 people; there are 4"):
        galleries.expected_rank_k(np.zeros(1), np.zeros((1, 3)), 5)


def test_average_precision_at_r_of_an_oracle_of_the_half_right_and_of_the_lonely():
    patients = np.array([0, 0, 0, 1, 1, 2])
    oracle = (patients[:, None] == patients).astype(float)
    found = galleries.average_precision_at_r(oracle, patients)
    assert found[:5] == pytest.approx(1) and np.isnan(found[5])
    # Query 0: the nearest is a stranger, the second is right: 1/2 (0 + 1/2).
    half = np.array([[0, 0.5, 0.1, 0.9, 0, 0]] * 6)
    assert galleries.average_precision_at_r(half, patients)[0] == pytest.approx(0.25)


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.0280), (1.0, 0.9720, 1.0)])
def test_a_proportion_of_none_or_all_has_the_exact_bound(value, low, high):
    found = metrics.with_exact_bounds(metrics.Interval(value, value, value, 300), 130)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    k = int(value * 130)
    exact = binomtest(k, 130).proportion_ci(0.95, "exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    other = metrics.Interval(0.5, 0.5, 0.5, 300)
    assert metrics.with_exact_bounds(other, 130) == other
