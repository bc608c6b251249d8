"""Content, realism, retrieval and counterfactuals: slow references, laws, and subjects whose answer is known."""

import copy

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.metrics import ndcg_score
from test_factors import CONSTANT, NONE, Oracle, oracle_subject, phantom_scene
from test_judges import TINY, toy_cohort
from torchmetrics.image.kid import poly_mmd

from monai_anon.evaluation.contents import content as module
from monai_anon.evaluation.contents import realism as clouds
from monai_anon.evaluation.contents import retrieval as lookup
from monai_anon.evaluation.contents.content import content
from monai_anon.evaluation.contents.counterfactual import counterfactual, evidence
from monai_anon.evaluation.contents.realism import judge_features, realism
from monai_anon.evaluation.contents.retrieval import retrieval
from monai_anon.evaluation.findings import Truth, finding_figures
from monai_anon.evaluation.judges import train_judges
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject


@pytest.fixture(scope="module")
def scene():
    """A toy cohort with judges that know it."""
    parts = toy_cohort(30), toy_cohort(8, seed=1), toy_cohort(16, seed=2)
    judges = train_judges(*parts[:2], seed=5, schedule=TINY, progress=False)
    return Scene(*parts, judges, steps=60, schedule=TINY, n_bootstrap=100, progress=False)


def only_the_finding(images, generator):
    """The lower half as it is, the person in the upper half gone."""
    out = images.clone()
    out[..., :16, :] = 0
    return out


FINDING = Subject("only the finding", only_the_finding, "finding")


def values(rows):
    return {row.metric: row.value for row in rows}


# ---- M1 to M3 ----


def test_untouched_images_keep_everything(scene):
    rows = content(NONE, scene)
    found = values(rows)
    assert found["judge_finding_agreement"] == found["ssim_original"] == 1
    assert found["judge_finding_accuracy_change"] == 0
    for name in ("finding_auc", "finding_accuracy", "side_accuracy", "severity_correlation"):
        assert found[f"judge_{name}"] == pytest.approx(scene.quality[name].value, abs=1e-6)
    assert found["psnr_original"] == pytest.approx(module.ROUNDING_DB)
    assert found["trained_on_released_finding_auc"] > 0.9
    assert all(row.value is not None and row.ci_low <= row.value <= row.ci_high for row in rows)


def test_a_constant_image_keeps_nothing(scene):
    found = values(content(CONSTANT, scene))
    assert found["judge_finding_auc"] == pytest.approx(0.5)
    assert found["judge_severity_correlation"] == pytest.approx(0, abs=1e-6)
    assert found["ssim_original"] < 0.2 and found["psnr_original"] < 15


def test_what_keeps_the_finding_alone_teaches_the_finding(scene):
    found = values(content(FINDING, scene))
    assert found["judge_finding_auc"] > 0.8 and found["trained_on_released_finding_auc"] > 0.8
    assert found["ssim_original"] < 0.8


def test_a_judge_learns_from_released_images_and_from_nothing_else(scene):
    """Findings shown at the top of the picture: who learns that cannot read the original, whatever its labels."""

    def moved(images, generator):
        return images.flip(-2).roll(8, -2)

    found = values(content(Subject("moved", moved, "moved"), scene))
    untouched = values(content(NONE, scene))
    assert found["trained_on_released_finding_auc"] < untouched["trained_on_released_finding_auc"] - 0.1


def test_one_finding_only_gives_rows_without_value(scene):
    lone = copy.copy(scene)
    lone.test = copy.copy(scene.test)
    lone.test.finding = torch.ones_like(scene.test.finding)
    rows = {row.metric: row for row in module.trained_on_released(NONE, lone)}
    assert rows["trained_on_released_finding_auc"].value is None
    assert "two findings" in rows["trained_on_released_finding_auc"].note


def test_figures_of_the_finding_have_known_answers():
    truth = Truth(np.array([0, 1, 1, 1]), np.array([-1, 0, 1, 1]), np.array([0.0, 0.2, 0.6, np.nan]))
    finding = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    side = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    figures = finding_figures((finding, side, np.array([0.1, 0.3, 0.7, 0.2])), truth, np.array([0, 1, 0, 0]))
    found = {name: (round(figure.statistic(np.ones(4)), 6), figure.n) for name, figure in figures.items()}
    assert found == {
        "finding_auc": (1.0, 4),
        "finding_accuracy": (0.75, 4),
        "finding_agreement": (0.75, 4),
        "finding_accuracy_change": (0.25, 4),
        "side_accuracy": (round(2 / 3, 6), 3),
        "severity_correlation": (1.0, 2),
        "severity_correlation_all": (round(np.corrcoef([0, 0.2, 0.6], [0.1, 0.3, 0.7])[0, 1], 6), 3),
    }
    assert figures["finding_accuracy"].statistic(np.array([0.0, 0.0, 1.0, 1.0])) == 0.5


def test_psnr_is_that_of_the_mean_square_and_no_more_than_rounding_leaves():
    reference = torch.zeros(2, 1, 8, 8)
    images = reference.clone()
    images[0] += 0.2
    np.testing.assert_allclose(module.psnr(images, reference), [20.0, module.ROUNDING_DB], rtol=1e-5)


# ---- realism: arrays ----


@pytest.fixture
def two_clouds():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 4)), 1.0 + 1.2 * rng.normal(size=(40, 4))


def slow_fid(real, generated):
    a, b = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    away = real.mean(axis=0) - generated.mean(axis=0)
    return away @ away + np.trace(a + b - 2 * sqrtm(a @ b).real)


def test_fid_is_the_frechet_distance_and_a_weight_counts_as_often_as_a_copy(two_clouds):
    real, generated = two_clouds
    statistic = clouds.fid(real, generated)
    assert statistic(np.ones(40)) == pytest.approx(slow_fid(real, generated))
    weights = np.random.default_rng(1).integers(0, 4, 40)
    copies = np.repeat(generated, weights, axis=0)
    assert statistic(weights.astype(float)) == pytest.approx(slow_fid(real, copies))
    assert clouds.fid(real, real)(np.ones(60)) == pytest.approx(0, abs=1e-9)


def test_kid_is_torchmetrics_where_every_patient_has_one_image(two_clouds):
    real, generated = two_clouds
    found = clouds.kid(real[:40], generated, np.arange(40), np.arange(40))(np.ones(40))
    assert found == pytest.approx(float(poly_mmd(torch.from_numpy(real[:40]), torch.from_numpy(generated))))


def test_kid_leaves_out_pairs_of_one_patient(two_clouds):
    real, generated = two_clouds
    patients, weights = np.arange(40) // 2, np.repeat(np.random.default_rng(1).integers(0, 3, 20), 2).astype(float)
    inside = [
        (weights[i] * weights[j], (generated[i] @ generated[j] / 4 + 1) ** 3)
        for i in range(40) for j in range(40) if patients[i] != patients[j]
    ]  # fmt: skip
    reals = [(real[i] @ real[j] / 4 + 1) ** 3 for i in range(60) for j in range(60) if i != j]
    between = [(w, (g @ r / 4 + 1) ** 3) for w, g in zip(weights, generated) for r in real]
    weighted = [np.average([k for _, k in pairs], weights=[w for w, _ in pairs]) for pairs in (inside, between)]
    found = clouds.kid(real, generated, np.arange(60), patients)(weights)
    assert found == pytest.approx(np.mean(reals) + weighted[0] - 2 * weighted[1])


def slow_manifold(real, generated, k):
    """Precision, recall, density, coverage by their definitions, point by point."""

    def distance(a, b):
        return np.sqrt(((a - b) ** 2).sum())

    def radius(point, others):
        return sorted(distance(point, other) for other in others)[k]  # its own distance, 0, comes first

    real_radii, own_radii = [radius(p, real) for p in real], [radius(p, generated) for p in generated]
    inside = [[distance(g, r) < radius for r, radius in zip(real, real_radii)] for g in generated]
    among = [[distance(g, r) < radius for g, radius in zip(generated, own_radii)] for r in real]
    return (
        np.mean([any(row) for row in inside]),
        np.mean([any(row) for row in among]),
        np.sum(inside) / k / len(generated),
        np.mean([any(row[i] for row in inside) for i in range(len(real))]),
    )


MANIFOLD = clouds.precision, clouds.recall, clouds.density, clouds.coverage


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage_are_as_defined(two_clouds, k):
    found = [figure(*two_clouds, k).mean() for figure in MANIFOLD]
    np.testing.assert_allclose(found, slow_manifold(*two_clouds, k))
    assert min(found) > 0 and 1 not in found


def test_the_same_cloud_scores_one_and_a_far_one_nothing(two_clouds):
    real, _ = two_clouds
    np.testing.assert_allclose([figure(real, real).mean() for figure in MANIFOLD], 1)
    np.testing.assert_allclose([figure(real, real + 100).mean() for figure in MANIFOLD], 0)


def test_one_picture_for_all_may_be_precise_but_covers_nothing(two_clouds):
    real, _ = two_clouds
    one = np.repeat(real[:1], 40, axis=0)
    assert clouds.precision(real, one).mean() == 1
    assert clouds.recall(real, one).mean() == 0 and clouds.coverage(real, one).mean() < 0.5


# ---- realism: rows ----


def test_untouched_images_are_realistic_and_a_constant_is_not(scene):
    none, constant = ({row.metric: row for row in realism(s, scene)} for s in (NONE, CONSTANT))
    assert none["fid"].value < 0.2 * constant["fid"].value and none["kid"].value < 0.1 * constant["kid"].value
    for name in ("precision", "recall", "coverage"):
        assert none[name].value > 0.5
    assert constant["recall"].value == 0 and constant["coverage"].value < 0.2
    least = 1e-9  # a constant's interval is one point, give or take the last digit
    assert all(row.ci_low - least <= row.value <= row.ci_high + least for row in [*none.values(), *constant.values()])
    assert none["kid"].ci_low < 0.05  # the test patients are like the training patients


def test_features_are_what_the_judges_last_layer_sees_and_the_judge_stays_as_it_is(scene):
    judge, images = scene.judges.medical, scene.test.images[:5]
    features = judge_features(scene.judges, images)
    layer = judge.backbone.fc
    out = features @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    finding = torch.from_numpy(out[:, : judge.num_classes]).softmax(dim=1).numpy()
    np.testing.assert_allclose(finding, scene.judges.read(images)[0], atol=1e-5)


def test_too_few_images_give_rows_without_value(scene):
    small = copy.copy(scene)
    small.training, small.memo = toy_cohort(2, images=2), {}
    rows = realism(NONE, small)
    assert len(rows) == 6 and all(row.value is None and "4 real ones" in row.note for row in rows)


# ---- E1 ----


def test_ndcg_is_scikit_learns(two_clouds):
    rng = np.random.default_rng(0)
    gain, score = rng.choice([0, 0.3, 1], (6, 30)), rng.normal(size=(6, 30))
    nearest = np.argsort(-score, axis=1)[:, :10]
    expected = [ndcg_score(gain[i : i + 1], score[i : i + 1], k=10) for i in range(6)]
    np.testing.assert_allclose(lookup.ndcg(gain, nearest), expected)
    assert np.isnan(lookup.ndcg(np.zeros((1, 30)), nearest[:1])).all()


def test_random_answers_reach_the_expected_ndcg():
    rng = np.random.default_rng(0)
    gain = np.tile(rng.choice([0, 0.3, 1], (1, 30)), (4000, 1))
    nearest = np.argsort(rng.normal(size=gain.shape), axis=1)[:, :10]
    assert lookup.ndcg(gain, nearest).mean() == pytest.approx(lookup.expected_ndcg(gain[:1], 10)[0], abs=0.01)


def test_an_answer_is_worth_the_class_less_the_difference_in_severity():
    side = np.zeros(3)
    asked = Truth(np.array([1, 0, 1]), side, np.array([0.5, 0.0, np.nan]))
    held = Truth(np.array([1, 0, 1]), side, np.array([0.9, 0.0, 0.5]))
    np.testing.assert_allclose(lookup.gains(asked, held), [[0.6, 0, 1], [0, 1, 0], [1, 0, 1]])


def test_untouched_images_find_their_like_and_a_constant_is_at_chance(scene):
    none, constant, kept = ({row.metric: row for row in retrieval(s, scene)} for s in (NONE, CONSTANT, FINDING))
    assert none["retrieval_precision_at_10"].value > 0.8 and none["retrieval_ndcg_at_10"].value > 0.8
    assert kept["retrieval_precision_at_10"].value > 0.7
    share = scene.test.finding.double().mean().item()
    assert constant["retrieval_precision_at_10"].value <= max(share, 1 - share) + 1e-6
    same = (scene.test.finding[:, None] == scene.training.finding[None]).double().mean().item()
    assert none["retrieval_precision_at_10"].note == f"{same:.3f} by chance"


def test_an_oracles_own_latent_finds_class_and_severity_before_and_after():
    phantoms = phantom_scene((60, 10, 30), (15, 3, 8), steps=1)
    subject = oracle_subject(phantoms)
    found = values(retrieval(subject, phantoms))
    for name in ("retrieval_own", "retrieval_own_before"):
        assert found[f"{name}_precision_at_10"] > 0.8 and found[f"{name}_ndcg_at_10"] > 0.85
    assert set(values(retrieval(NONE, phantoms))) == {"retrieval_precision_at_10", "retrieval_ndcg_at_10"}


# ---- E2 ----


@pytest.fixture(scope="module")
def phantoms():
    return phantom_scene((20, 10, 30), (5, 3, 8), steps=1)


def test_an_oracle_changes_the_evidence_and_nothing_else(phantoms):
    rows = counterfactual(oracle_subject(phantoms), phantoms)
    assert {row.method for row in rows} == {"medical replacement"}
    found = values(rows)
    assert found["outside_evidence_share"] < 0.01 < 0.5 < found["outside_evidence_area"] < 1


def test_a_change_spread_evenly_lies_outside_as_much_as_the_picture_does(phantoms):
    class Flat(Oracle):
        """Every finding makes the whole picture a little brighter."""

        def decode(self, latents):
            return torch.zeros(len(latents.medical), 1, 32, 32) + latents.medical[:, :1, None, None] / 4

    found = values(counterfactual(oracle_subject(phantoms, Flat(phantoms.factors), "flat"), phantoms))
    assert found["outside_evidence_share"] == pytest.approx(found["outside_evidence_area"])


def test_the_evidence_is_where_the_fluid_is(phantoms):
    table = phantoms.factors["test"]
    sick = table[table["med_severity"] > 0.4].reset_index(drop=True)
    healthy = sick.assign(med_present=0, med_side=0, med_severity=0.0)
    inside = evidence(sick, healthy, 32)
    right = sick["med_side"].to_numpy() < 0  # the left half of the picture
    shares = inside[:, :, :16].sum(axis=(1, 2)) / inside.sum(axis=(1, 2))
    assert shares[right].min() > 0.7 and shares[~right].max() < 0.3
    assert not evidence(sick, sick, 32).any()


def test_without_exact_factors_the_evidence_is_not_known(phantoms, scene):
    unknown = copy.copy(phantoms)
    unknown.factors = None
    (row,) = counterfactual(oracle_subject(phantoms), unknown)
    assert row.value is None and "not known" in row.note
    assert counterfactual(NONE, scene) == []
