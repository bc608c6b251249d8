"""Known answers of the protocol: a model that splits a toy image perfectly, one that hides nothing, one that hides all.

A toy image is its own latents: the upper half is who it is, the lower half what it has. So `Halves` is an oracle
disentangler and `SeeingJudges` oracle judges, and every figure of the tables is known beforehand.
"""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_figures import tiny_anonymizer
from test_judges import toy_cohort

from monai_anon.evaluation import evaluation
from monai_anon.evaluation.judges import Judges, JudgeSchedule
from monai_anon.evaluation.protocol import (
    OUTSIDE,
    Settings,
    evaluate_anonymization,
    evaluate_disentanglement,
)
from monai_anon.evaluation.reporting.report import write_report
from monai_anon.evaluation.tables import report, table_2, table_3
from monai_anon.evaluation.targets import draw_targets
from monai_anon.networks import Latents
from monai_anon.phantoms.chest import ensure_cohort

SETTINGS = Settings(hit_threshold=0.01, n_bootstrap=20, batch_size=16)


def bar(lower):
    """Height (N,) of the bar in lower halves (N, 16, 32), and whether it stands at the right of the picture."""
    left, right = (lower[:, :, part].mean(2).gt(0.2).sum(1) for part in (slice(0, 10), slice(20, 30)))
    return torch.maximum(left, right), (right > left).long()


class Halves(torch.nn.Module):
    """Identity: the upper half; medical: the lower half; residual: nothing."""

    def encode(self, image):
        upper, lower = image[:, 0, :16].flatten(1), image[:, 0, 16:].flatten(1)
        return Latents(upper, lower, torch.zeros(len(image), 1))

    def decode(self, z):
        return torch.cat([z.identity, z.medical], dim=1).view(-1, 1, 32, 32)

    def classify(self, medical):
        has = bar(medical.view(-1, 16, 32))[0] > 0
        return torch.stack([~has, has], dim=1).float()


class SeeingJudges(Judges):
    """Read the picture as it was drawn."""

    def __init__(self, blind=False):
        super().__init__(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), ["absent", "effusion"], ["left", "right"])
        self.blind = blind

    def _float(self, images):
        return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images

    def embed(self, images, batch_size=256):
        if self.blind:
            return np.ones((len(images), 4), dtype=np.float32) / 2
        upper = self._float(images)[:, 0, :16].flatten(1)
        return torch.nn.functional.normalize(upper - upper.mean(1, keepdim=True), dim=1).numpy()

    def read(self, images, batch_size=256):
        height, right = bar(self._float(images)[:, 0, 16:])
        has = (height > 0).numpy()
        side = torch.nn.functional.one_hot(1 - right, 2).numpy()
        return np.stack([~has, has], axis=1).astype(float), side, height.numpy() / 16


@pytest.fixture(scope="module")
def cohort():
    return toy_cohort(20, seed=11)


@pytest.fixture(scope="module")
def rows(cohort):
    return evaluate_disentanglement(Halves(), cohort, SeeingJudges(), SETTINGS)


def value(rows, method, metric):
    (found,) = [row.value for row in rows if (row.method, row.metric) == (method, metric)]
    return found


def test_targets_are_other_patients_with_other_findings_and_repeatable(cohort):
    patients, finding = cohort.patient.numpy(), cohort.finding.numpy()
    first, last = draw_targets(patients, finding, seed=4)
    for target in (first, last):
        assert (patients[target] != patients).all() and (finding[target] != finding).all()
    assert (patients[first] != patients[last]).all()
    np.testing.assert_array_equal(first, draw_targets(patients, finding, seed=4)[0])
    assert (first != draw_targets(patients, finding, seed=5)[0]).any()


def test_an_image_without_target_is_named():
    with pytest.raises(ValueError, match="image 0 has no target"):
        draw_targets(np.array([1, 1, 1]), np.array([0, 1, 1]), seed=0)


def test_an_oracle_disentangler_scores_one_where_it_should_and_chance_elsewhere(rows):
    assert value(rows, "reconstruction", "ssim_original") == pytest.approx(1.0, abs=1e-4)
    for method in ("reconstruction", "medical replacement", "identity replacement"):
        assert value(rows, method, "ssim_twice") == pytest.approx(1.0, abs=1e-4)
        assert value(rows, method, "judge_finding_accuracy") == 1.0
        assert value(rows, method, "own_finding_accuracy") == value(rows, method, "own_finding_f1") == 1.0
        assert value(rows, method, "judge_side_accuracy") == 1.0
        assert value(rows, method, "judge_severity_correlation") > 0.95
    assert value(rows, "identity replacement", "own_target_accuracy") == 1.0
    assert value(rows, "identity replacement", "own_original_accuracy") == 0.0
    assert value(rows, "identity replacement", "own_original_accuracy_eer") == 0.0
    assert value(rows, "identity replacement", "own_target_accuracy_eer") == 1.0
    assert value(rows, "identity replacement", "judge_target_auc") > 0.99
    assert value(rows, "identity replacement", "judge_target_rank_1") == 1.0
    assert value(rows, "identity replacement", "judge_original_auc") == pytest.approx(0.5, abs=0.15)
    assert value(rows, "identity replacement", "judge_original_rank_1") == 0.0
    assert value(rows, "medical replacement", "own_original_accuracy") == 1.0
    assert value(rows, "medical replacement", "own_target_accuracy") == 0.0
    assert value(rows, "medical replacement", "judge_original_rank_1") == 1.0


def test_the_baseline_is_the_balanced_accuracy_of_pairs_of_untouched_images(rows):
    accepts, false = (value(rows, "reconstruction", f"own_{kind}_accepts") for kind in ("true", "false"))
    assert value(rows, "reconstruction", "own_original_accuracy") == pytest.approx((accepts + 1 - false) / 2)
    assert accepts == 1.0 and false == 0.0


def test_towards_the_target_the_original_patient_is_neither_right_nor_wrong(cohort, rows):
    patients = cohort.patient.numpy()
    target = draw_targets(patients, cohort.finding.numpy(), SETTINGS.seed)[0]
    vectors = SeeingJudges().embed(cohort.images)  # a medical replacement keeps what the verifier sees
    pairs = [(i, j) for i in range(len(patients)) for j in range(len(patients))]
    pairs = [(i, j) for i, j in pairs if j != target[i] and patients[j] != patients[i]]
    scores, same = zip(*[(vectors[i] @ vectors[j], patients[j] == patients[target[i]]) for i, j in pairs])
    expected = roc_auc_score(same, scores)
    assert value(rows, "medical replacement", "judge_target_auc") == pytest.approx(expected, abs=1e-3)


def test_a_model_that_replaces_nothing_is_found_out(cohort, rows):
    class Stubborn(Halves):
        def decode(self, z):
            return self.kept[: len(z.identity)] if len(z.identity) == len(self.kept) else super().decode(z)

    model = Stubborn()
    model.kept = cohort.images.float() / 127.5 - 1
    stubborn = evaluate_disentanglement(model, cohort, SeeingJudges(), Settings(0.01, 5, batch_size=len(cohort.images)))
    assert value(stubborn, "identity replacement", "own_target_accuracy") == 0.0
    assert value(stubborn, "identity replacement", "judge_original_rank_1") == 1.0
    assert value(stubborn, "medical replacement", "judge_finding_accuracy") == 0.0  # targets have another finding


def test_identity_sources_none_is_recognised_constant_is_at_chance(cohort):
    asked = {}

    def none(identity, patient, generator):
        asked["codes"] = patient
        return identity

    sources = {
        "none": none,
        "constant": lambda identity, patient, generator: torch.linspace(-1, 1, 512).expand_as(identity),
        "drawn": lambda identity, patient, generator: torch.rand(identity.shape, generator=generator) - 0.5,
    }
    rows = evaluate_anonymization(Halves(), sources, toy_cohort(9, seed=3), cohort, SeeingJudges(), SETTINGS)
    assert (asked["codes"] == OUTSIDE).all()
    assert value(rows, "none", "own_original_accuracy") == 1.0
    assert value(rows, "none", "own_overall_accuracy") == 0.0
    assert value(rows, "none", "judge_original_auc") > 0.99 and value(rows, "none", "judge_original_rank_1") == 1.0
    assert value(rows, "constant", "judge_original_auc") == pytest.approx(0.5, abs=1e-3)
    assert value(rows, "constant", "own_original_accuracy") == 0.0
    assert {value(rows, method, "judge_finding_accuracy") for method in sources} == {1.0}
    again = evaluate_anonymization(Halves(), sources, toy_cohort(9, seed=3), cohort, SeeingJudges(), SETTINGS)
    assert rows == again


def test_overall_accuracy_counts_the_training_patients_an_image_is_taken_for(cohort):
    training = toy_cohort(10, seed=3)
    planted = training.images[:1].float()[:, 0, :16].flatten(1) / 127.5 - 1
    rows = evaluate_anonymization(
        Halves(), {"planted": lambda z, p, g: planted.expand_as(z)}, training, cohort, SeeingJudges(), SETTINGS
    )
    assert value(rows, "planted", "own_overall_accuracy") == pytest.approx(1 / 10)


def test_a_blind_verifier_gives_no_verdict_on_persons_but_findings_are_still_read(cohort):
    rows = evaluate_disentanglement(Halves(), cohort, SeeingJudges(blind=True), SETTINGS)
    persons = [row for row in rows if row.metric.startswith(("judge_original", "judge_target"))]
    assert len(persons) == 2 + 4 + 4
    assert all(row.value is None and "no verdict" in row.note for row in persons)
    assert value(rows, "identity replacement", "judge_finding_accuracy") == 1.0
    assert "own AUC is 0.500" in report(rows)


def test_the_rows_fill_both_tables(cohort, rows):
    table = table_2(rows)
    ours = table[table["data"] == "toy"].set_index("method")
    assert list(ours.index) == ["reconstruction", "medical replacement", "identity replacement"]
    empty = {(m, c) for m in ours.index for c in ours.columns if ours.loc[m, c] == "-"}
    assert empty == {("reconstruction", c) for c in ("AUC target", "rank-1 target", "at own EER: original", "target")}
    anonymized = evaluate_anonymization(Halves(), {"none": lambda z, p, g: z}, cohort, cohort, SeeingJudges(), SETTINGS)
    table = table_3(anonymized)
    assert "-" not in table[table["data"] == "toy"].iloc[0].tolist()
    assert all(math.isfinite(row.value) for row in rows + anonymized)


def test_a_collapsed_encoder_shows_in_the_standard_deviations(cohort):
    class Collapsed(Halves):
        def encode(self, image):
            return Latents(*(latent * 0 for latent in super().encode(image)))

    rows = evaluate_disentanglement(Collapsed(), cohort, SeeingJudges(), SETTINGS)
    assert value(rows, "untouched images", "own_identity_std") == 0.0
    # the paper's criterion alone does not see it: everything matches everything
    assert value(rows, "identity replacement", "own_original_accuracy") == 1.0
    assert value(rows, "identity replacement", "own_target_accuracy") == 1.0
    assert value(rows, "reconstruction", "own_original_accuracy") == pytest.approx(0.5)


def test_a_cohort_without_pairs_leaves_the_person_out(cohort):
    single = toy_cohort(12, images=1, seed=2)
    rows = evaluate_disentanglement(Halves(), single, SeeingJudges(), SETTINGS)
    assert "no verdict: no patient has two images" in {row.note for row in rows}


def test_a_test_part_with_one_finding_is_measured_without_table_2(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_anon.evaluation.judges.LEAST_VERIFIER_AUC", 0.0)
    manifest = ensure_cohort(tmp_path / "cohort", images=(24, 12, 20), patients=(6, 3, 5), size=32, progress=False)
    content = json.loads(manifest.read_text())
    content["test"] = [entry for entry in content["test"] if entry["finding"] == 0]
    manifest.write_text(json.dumps(content))
    model = tiny_anonymizer()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    settings = Settings(0.05, n_bootstrap=5, plain_vae_epochs=1)
    places = evaluation.Places(str(tmp_path / "run"), str(tmp_path / "judges"))
    schedule = JudgeSchedule(verifier_steps=2, medical_steps=2, batch_size=8, planes=(8, 8, 8, 8))
    rows = evaluation.Evaluation(model, str(tmp_path / "model.pt"), str(manifest), places, settings, schedule).run()
    (silent,) = (row for row in rows if row.metric == "ssim_original" and row.method == "reconstruction")
    assert silent.value is None and "no other patient has another finding" in silent.note
    assert value(rows, "VAE (plain)", "judge_finding_accuracy") is not None
    assert (tmp_path / "run" / "report.md").exists() and not list((tmp_path / "run").rglob("figure_4.png"))
    assert write_report([tmp_path / "run"], tmp_path / "page.html").path.exists()
