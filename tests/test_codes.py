"""P9: what the code alone tells is computed right, against galleries that were drawn and answers that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from test_channel_curve import scene, subject  # noqa: F401 (a fixture)

from monai_anon.evaluation.attacks.codes import codes, image_hits, pair_scores
from monai_anon.evaluation.subjects import Subject


def test_the_chance_by_the_very_image_is_that_of_drawn_galleries():
    rng = np.random.default_rng(0)
    patients, code = rng.integers(0, 9, 30), rng.integers(0, 3, 30)
    found, drawn = image_hits(code, patients), np.zeros(30)
    people = np.unique(patients)
    for _ in range(4000):
        gallery = {p: rng.choice(np.flatnonzero(patients == p)) for p in people}
        shown = np.array([[code[gallery[p]] == c for p in people] for c in range(3)])
        same = shown[code].sum(1) - shown[code, np.searchsorted(people, patients)]
        drawn += 1 / (1 + same) / 4000
    np.testing.assert_allclose(found, drawn, atol=0.02)


def test_patients_who_count_once_never_beat_the_bound():
    rng = np.random.default_rng(0)
    for codes_there in (2, 5):
        patients = np.sort(rng.choice(12, 60))  # some with many images, some with few
        code = rng.integers(0, codes_there, 60)
        each = 1 / np.bincount(patients)[patients]
        people = len(np.unique(patients))
        assert (image_hits(code, patients) * each).sum() / people <= codes_there / people + 1e-9


@pytest.mark.parametrize("people", [1, 2, 7, 130])
def test_one_code_for_all_leaves_chance_and_a_code_for_each_leaves_none(people):
    patients = np.arange(people).repeat(2)
    np.testing.assert_allclose(image_hits(np.zeros(2 * people, int), patients), 1 / people)
    np.testing.assert_allclose(image_hits(np.arange(2 * people), patients), 1)


def test_a_code_that_stays_with_a_patient_scores_high_and_one_that_varies_freely_nothing():
    patients = np.arange(600).repeat(4)
    rng = np.random.default_rng(0)
    fixed = pair_scores(rng.integers(0, 4, 600).repeat(4), patients, 4)
    assert np.diag(fixed).min() > 1.2 and fixed[~np.eye(4, dtype=bool)].max() < -2  # log 4 at most
    assert np.abs(pair_scores(rng.integers(0, 4, 2400), patients, 4)).max() < 0.15


def test_the_oracle_links_by_the_very_image_up_to_its_bound(scene):  # noqa: F811
    found = {k: {r.metric: r for r in codes(subject(policy="code", prototypes=k), scene)} for k in (2, 16)}
    for k, rows in found.items():
        image, bound = rows["oracle_image_rank_1"].value, rows["oracle_image_chance"].value
        assert 1 / scene.people < image <= bound <= k / scene.people
        assert {"oracle_auc", "oracle_rank_1"} < set(rows)
    assert found[16]["oracle_image_rank_1"].value > found[2]["oracle_image_rank_1"].value
    assert not [curve for curve in scene.curves if curve["attack"] == "oracle"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"policy": "latents"}, "no codes with the policy latents"),
        ({"policy": "residual"}, "no codes with the policy residual"),
        ({"policy": "code", "epsilon": 1.0}, "randomised response"),
    ],
)
def test_where_nobody_can_know_the_code_there_is_no_figure_and_the_reason(options, why, scene):  # noqa: F811
    (row,) = codes(subject(**options), scene)
    assert row.metric == "oracle_auc" and row.value is None and why in row.note


def test_without_a_verdict_or_a_channel_nothing_is_said(scene, monkeypatch):  # noqa: F811
    assert codes(Subject("none", lambda images, _: images), scene) == []
    assert codes(Subject("old", lambda images, _: images, networks=SimpleNamespace()), scene) == []
    monkeypatch.setattr(scene, "silence", "no verdict: for this test")
    assert [(r.value, r.note) for r in codes(subject(policy="code"), scene)] == [(None, "no verdict: for this test")]
