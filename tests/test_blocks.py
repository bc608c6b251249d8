"""Blocks and factors with known answers: an oracle scores 1, a shuffled code 0, all in each has no gap."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_factors import Oracle, oracle_subject, phantom_scene

from monai_anon.evaluation.contents import blocks
from monai_anon.evaluation.contents.blocks import Coded, Predictions, block_importance, block_table, predict_factors

SIZES = {"identity": 5, "medical": 2, "residual": 3}


def coded(patients, encode, seed):
    """Factors of four images a patient, as ``encode`` turns them into blocks."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 4)
    factors = {group: rng.normal(size=(len(patient), size)) for group, size in SIZES.items()}
    factors["identity"] = factors["identity"][patient]
    return Coded(encode(factors, rng), factors, patient)


def oracle(factors, rng):
    return {group: values @ np.triu(np.ones((values.shape[1],) * 2)) for group, values in factors.items()}


def shuffled(factors, rng):
    return {group: values[rng.permutation(len(values))] for group, values in factors.items()}


def entangled(factors, rng):
    everything = np.concatenate([*factors.values()], axis=1)
    turns = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 10, 10)))[0]
    return {group: everything @ turn for group, turn in zip(factors, turns)}


def scores(encode):
    predictions = predict_factors(coded(100, encode, 0), coded(60, encode, 1))
    ones = np.ones(240)
    matrix = blocks.importance(predictions, ones)
    return matrix, {
        "disentanglement": blocks.disentanglement(matrix),
        "completeness": blocks.completeness(matrix),
        "informativeness": blocks.informativeness(predictions, ones),
        "mig": blocks.mutual_information_gap(predictions, ones),
        "sap": blocks.separated_predictability(predictions, ones),
    }


def test_an_oracle_scores_one_in_everything():
    matrix, found = scores(oracle)
    np.testing.assert_allclose(matrix, np.eye(3), atol=0.03)
    assert min(found.values()) >= 0.97


def test_a_shuffled_code_scores_nothing():
    matrix, found = scores(shuffled)
    assert matrix.max() <= 0.03 and max(found.values()) <= 0.03


def test_blocks_that_all_hold_everything_are_informative_and_have_no_gap():
    matrix, found = scores(entangled)
    np.testing.assert_allclose(matrix, 1, atol=0.03)
    assert found.pop("informativeness") >= 0.97
    assert max(found.values()) <= 0.03


def test_a_group_in_two_blocks_costs_completeness_and_one_block_with_two_groups_disentanglement():
    twice = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert blocks.disentanglement(twice) == pytest.approx(1)
    assert blocks.completeness(twice) == pytest.approx((2 * (1 - np.log(2) / np.log(3)) + 1) / 3)
    assert blocks.completeness(twice.T) == pytest.approx(1)
    assert blocks.disentanglement(np.zeros((3, 3))) == 0


def test_what_only_a_curve_explains_is_found_and_counts_for_mig_but_not_for_sap():
    training, test = coded(300, oracle, 0), coded(60, oracle, 1)
    squares = [
        Coded(c.blocks, {"square": (c.factors["medical"][:, :1] ** 2 - 1) / np.sqrt(2)}, c.patients)
        for c in (training, test)
    ]
    predictions = predict_factors(*squares)
    assert blocks.mutual_information_gap(predictions, np.ones(240)) > 0.2
    assert blocks.separated_predictability(predictions, np.ones(240)) <= 0.03


def test_gaps_are_of_the_best_and_the_second_block():
    truth = np.random.default_rng(0).normal(size=(4000, 1))
    noise = np.random.default_rng(1).normal(size=(4000, 1))

    def with_r2(r2):  # unit variance, residual orthogonal enough to the truth
        return r2 * truth + np.sqrt(r2 * (1 - r2)) * noise

    answers = np.stack([with_r2(0.8), with_r2(0.5), with_r2(0.3)])
    predictions = Predictions(
        np.concatenate([answers, answers[:1]]), answers, truth, np.zeros(1, int), ["a", "b", "c"], ["g"]
    )
    ones = np.ones(4000)
    assert blocks.separated_predictability(predictions, ones) == pytest.approx(0.3, abs=0.03)
    expected = (np.log(0.2) - np.log(0.5)) / np.log(1 - blocks.FULL_R2)
    assert blocks.mutual_information_gap(predictions, ones) == pytest.approx(expected, abs=0.02)


def test_images_without_weight_do_not_count():
    predictions = predict_factors(coded(60, oracle, 0), coded(20, oracle, 1))
    broken = predictions.best.copy()
    broken[:, 40:] = 99
    weights = np.r_[np.ones(40), np.zeros(40)]
    np.testing.assert_allclose(
        blocks.importance(predictions._replace(best=broken), weights), blocks.importance(predictions, weights)
    )


def test_importance_in_one_call_is_that_of_all_images_alike():
    training, test = coded(60, oracle, 0), coded(20, oracle, 1)
    expected = blocks.importance(predict_factors(training, test), np.ones(80))
    np.testing.assert_array_equal(block_importance(training, test), expected)


# ---- rows ----


@pytest.fixture(scope="module")
def scene():
    return phantom_scene((400, 20, 160), (100, 5, 40), steps=1)


def test_an_oracle_of_the_phantoms_scores_one(scene):
    rows = {row.metric: row for row in block_table(oracle_subject(scene), scene)}
    assert len(rows) == 9 + 5
    for name in ("disentanglement", "completeness", "informativeness", "mig", "sap"):
        assert rows[f"blocks_{name}"].value >= 0.97
    assert rows["block_medical_medical_r2"].value >= 0.97 >= 0.03 >= rows["block_medical_identity_r2"].value
    known = [row for name, row in rows.items() if name.startswith("blocks_")]
    assert all(row.ci_low - 1e-9 <= row.value <= row.ci_high + 1e-9 for row in known)


def test_a_shuffled_oracle_of_the_phantoms_scores_nothing(scene):
    shuffled_oracle = Oracle(scene.factors)
    order = np.random.default_rng(0).permutation(len(shuffled_oracle.codes))
    codes = list(shuffled_oracle.codes.values())
    shuffled_oracle.codes = {image: codes[i] for image, i in zip(shuffled_oracle.codes, order)}
    rows = block_table(oracle_subject(scene, shuffled_oracle, "shuffled"), scene)
    assert max(row.value for row in rows) <= 0.03


def test_without_latents_or_exact_factors_there_is_nothing_to_say(scene):
    subject = oracle_subject(scene)
    assert block_table(subject, SimpleNamespace(factors=None)) == []
    assert block_table(SimpleNamespace(networks=None), scene) == []
