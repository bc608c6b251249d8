"""The retrained attacker on a toy cohort with known answers: nothing hidden, everything hidden, a planted leak."""

import numpy as np
import pytest
import torch
from test_judges import toy_cohort

from monai_anon.evaluation.attacks import PAIRINGS, adaptive_attack, release, strongest, train_towers
from monai_anon.evaluation.judge_training import train_verifier
from monai_anon.evaluation.judges import JudgeSchedule
from monai_anon.evaluation.tables import Row

BUDGET = JudgeSchedule(verifier_steps=80, batch_size=32, planes=(8, 8, 16, 16), checks=1, blur=0.0)


@pytest.fixture(scope="module")
def verifier():
    """Knows untouched images of the training patients."""
    schedule = JudgeSchedule(verifier_steps=150, batch_size=64, planes=(8, 8, 16, 16), checks=1)
    return train_verifier(toy_cohort(60), seed=5, schedule=schedule, progress=False)


def attack(anonymise, start=None, budget=BUDGET):
    parts = toy_cohort(60), None, toy_cohort(16, seed=2)
    rows = adaptive_attack("toy", anonymise, *parts, start=start, n_bootstrap=50, schedule=budget, progress=False)
    return {row.metric: row for row in rows}


def nothing(images, generator):
    return images


def everything(images, generator):
    return torch.zeros_like(images)


def leaky(images, generator):
    """Gray, but for a stripe that holds the top of the original at a fiftieth of its contrast, upside down."""
    out = torch.zeros_like(images)
    out[..., -8:, :] = images[..., :16:2, :].flip(-2) / 50
    return out + 0.001 * torch.randn(images.shape, generator=generator)


def test_untouched_images_are_linked(verifier):
    rows = attack(nothing, verifier)
    assert rows["adaptive_auc"].value > 0.9
    assert rows["adaptive_released-real_rank_1"].value > 0.3  # chance is 1 in 16


def test_nothing_is_linked_where_nothing_is_left():
    rows = attack(everything, None, JudgeSchedule(verifier_steps=5, batch_size=32, planes=(4, 4, 4, 4), checks=1))
    for pairing in PAIRINGS:
        assert rows[f"adaptive_{pairing}_auc"].value == pytest.approx(0.5, abs=0.03)


def test_a_leak_that_no_untrained_eye_sees_is_learned(verifier):
    rows = attack(leaky, verifier)
    strongest = max(rows[f"adaptive_{pairing}_auc"].value for pairing in PAIRINGS)
    assert strongest > 0.8
    assert rows["adaptive_auc"].value == strongest and "strongest pairing" in rows["adaptive_auc"].note


@pytest.mark.parametrize(("values", "pairing"), [((0.6, 0.3, 0.55), 1), ((0.9, 0.0, 0.5), 1), ((0.2, 0.4, 0.85), 2)])
def test_an_auc_far_below_chance_counts_as_one_above(values, pairing):
    rows = [Row("m", "d", f"adaptive_{p}_auc", value) for p, value in zip(PAIRINGS, values)]
    found = strongest(rows)
    assert (found.metric, found.value) == ("adaptive_auc", values[pairing])
    assert found.note == f"strongest pairing: {PAIRINGS[pairing]}"


def test_a_release_is_repeatable_and_its_pairs_stay_in_order():
    cohort = toy_cohort(4)

    def noisy(images, generator):
        return images * 0.5 + 0.1 * torch.randn(images.shape, generator=generator)

    first, again, other = (release(noisy, cohort, seed, batch_size=3).images for seed in (1, 1, 2))
    assert first.dtype == torch.uint8 and torch.equal(first, again) and not torch.equal(first, other)
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first.numpy(), cohort.images.numpy())]
    assert min(correlation) > 0.5


def test_an_attacker_needs_pairs_and_a_known_pairing():
    lonely, cohort = toy_cohort(4, images=1), toy_cohort(4)
    with pytest.raises(ValueError, match="0 patients have two images"):
        train_towers(release(nothing, lonely, 0), None, "mixed", schedule=BUDGET, progress=False)
    with pytest.raises(ValueError, match="must be one of"):
        train_towers(release(nothing, cohort, 0), None, "real-real", schedule=BUDGET, progress=False)
