"""The judges on a toy cohort: they learn, they are saved without code, and a bad verifier gives no verdict."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monai_anon.cohort import Cohort
from monai_anon.evaluation import judges as module
from monai_anon.evaluation.judge_training import augment
from monai_anon.evaluation.judges import Judges, JudgeSchedule, quality, train_judges, verdict
from monai_anon.evaluation.metrics import Interval

TINY = JudgeSchedule(verifier_steps=100, medical_steps=60, batch_size=32, planes=(8, 8, 16, 16), checks=2)


def toy_cohort(patients=24, images=4, size=32, seed=0, columns=True):
    """Identity: a coarse random pattern in the upper half; finding: a bar of some height at the lower left or right."""
    rng = np.random.default_rng(seed)
    pattern = np.kron(rng.uniform(40, 180, (patients, 4, 8)), np.ones((4, 4)))
    patient = np.repeat(np.arange(patients), images)
    finding, side = rng.integers(0, 2, len(patient)), rng.integers(0, 2, len(patient))
    severity = np.where(finding == 1, rng.uniform(0.2, 1, len(patient)), 0.0)
    pixels = np.full((len(patient), size, size), 60.0)
    pixels[:, : size // 2] = pattern[patient]
    for image, (f, s, v) in enumerate(zip(finding, side, severity)):
        if f:
            pixels[image, size - int(v * 12) - 3 :, s * 20 : s * 20 + 10] = 230
    pixels += rng.normal(0, 4, pixels.shape)
    entries = [
        {"image": f"{i}.png", "patient": str(p), "finding": int(f)} for i, (p, f) in enumerate(zip(patient, finding))
    ]
    if columns:
        for entry, f, s, v in zip(entries, finding, side, severity):
            entry |= {"side": ("right", "left")[s] if f else "none", "severity": float(v)}
    return Cohort(
        images=torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))[:, None],
        patient=torch.from_numpy(patient),
        finding=torch.from_numpy(finding),
        entries=entries,
        classes=["absent", "effusion"],
        name="toy",
    )


@pytest.fixture(scope="module")
def trained():
    return train_judges(toy_cohort(), toy_cohort(8, seed=1), seed=5, schedule=TINY, progress=False)


def test_judges_recognise_patients_and_findings_they_have_not_seen(trained):
    figures = quality(trained, toy_cohort(12, seed=2), n_bootstrap=50)
    assert figures["verification_auc"].value > 0.9
    assert figures["rank_1"].value > 3 * figures["rank_1_chance"].value == pytest.approx(3 / 12)
    assert figures["finding_auc"].value > 0.9 and figures["finding_accuracy"].value > 0.8
    assert figures["side_accuracy"].value > 0.9
    assert figures["severity_correlation"].value > 0.5
    assert all(f.low <= f.value <= f.high for f in figures.values())


def test_untrained_judges_are_no_better_than_chance_about_the_finding(trained):
    blind = Judges(trained.verifier, module.MedicalJudge(1, TINY.planes, 2, 2), trained.classes, trained.sides)
    figures = quality(blind, toy_cohort(30, seed=3), n_bootstrap=50)
    assert abs(figures["finding_accuracy"].value - 0.5) < 0.2


def test_judges_too_narrow_for_torch_are_refused():
    with pytest.raises(ValueError, match=r"planes are \(8, 8, 4, 8\); at least 8 each"):
        JudgeSchedule(planes=(8, 8, 4, 8))


def test_a_cohort_without_side_and_severity_gets_no_such_figures():
    cohort = toy_cohort(6, columns=False)
    schedule = JudgeSchedule(verifier_steps=2, medical_steps=2, batch_size=8, planes=(8, 8, 8, 8))
    judges = train_judges(cohort, None, schedule=schedule, progress=False)
    assert judges.sides == [] and judges.quality == {}
    assert not {"side_accuracy", "severity_correlation"} & set(quality(judges, cohort, n_bootstrap=5))


def test_training_is_repeatable_and_leaves_the_global_generator_alone():
    cohort, schedule = (
        toy_cohort(6),
        JudgeSchedule(verifier_steps=2, medical_steps=2, batch_size=8, planes=(8, 8, 8, 8)),
    )
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_judges(cohort, seed=3, schedule=schedule, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    again = train_judges(cohort, seed=3, schedule=schedule, progress=False)
    np.testing.assert_array_equal(first.embed(cohort.images), again.embed(cohort.images))
    other = train_judges(cohort, seed=4, schedule=schedule, progress=False)
    assert not np.array_equal(first.embed(cohort.images), other.embed(cohort.images))


def test_saved_judges_are_tensors_only_and_judge_alike(trained, tmp_path):
    trained.save(tmp_path / "judges.safetensors")
    again = Judges.load(tmp_path / "judges.safetensors")
    images = toy_cohort(4).images
    np.testing.assert_array_equal(again.embed(images), trained.embed(images))
    np.testing.assert_array_equal(again.read(images)[1], trained.read(images)[1])
    assert again.quality == trained.quality and again.sides == ["left", "right"]
    assert [path.name for path in tmp_path.iterdir()] == ["judges.safetensors"]


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text, not tensors")
    for name in ("other", "text"):
        with pytest.raises(ValueError, match=f"{name}.safetensors holds no judges"):
            Judges.load(tmp_path / f"{name}.safetensors")


def test_uint8_and_float_images_are_read_alike(trained):
    images = toy_cohort(4).images
    np.testing.assert_allclose(trained.embed(images), trained.embed(images.float() / 127.5 - 1), atol=1e-6)


def test_judges_learn_from_blurred_images_too():
    checks = torch.tensor([[0.0, 0.9], [0.9, 0.0]]).repeat(16, 16).expand(200, 1, -1, -1)
    generator = torch.Generator().manual_seed(1)

    def detail(blur):
        images = augment(checks, generator, blur)
        return (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))

    sharp = detail(0.0).mean()
    smooth = (detail(0.2) < 0.5 * sharp).float().mean()  # half of them, whatever the width drawn
    assert 0.4 < float(smooth) < 0.6


def test_a_verifier_needs_two_patients_with_two_images():
    with pytest.raises(ValueError, match="two images"):
        module.train_verifier(toy_cohort(6, images=1), progress=False)


def test_a_medical_judge_needs_two_findings():
    cohort = toy_cohort(4)
    cohort.finding[:] = 1
    with pytest.raises(ValueError, match="only one finding"):
        module.train_medical_judge(cohort, progress=False)


def test_no_verdict_below_an_auc_of_080():
    assert verdict(Interval(0.81, 0.7, 0.9, 10)) == ""
    assert "0.790" in verdict(Interval(0.79, 0.7, 0.9, 10))
    assert "two images" in verdict(None)


def test_judges_are_trained_once_for_the_same_settings_and_images(tmp_path, monkeypatch):
    cohort = toy_cohort(6)
    (tmp_path / "a.png").write_bytes(b"1")
    manifest = SimpleNamespace(
        classes=cohort.classes,
        parts={"training": [{"image": "a.png", "patient": "p", "finding": 0}], "validation": []},
        image_path=lambda entry: tmp_path / entry["image"],
    )
    loads = []
    fake = SimpleNamespace(Cohort=SimpleNamespace(from_manifest=lambda *a, **k: loads.append(a) or cohort))
    monkeypatch.setitem(__import__("sys").modules, "monai_anon.cohort", fake)
    options = {"schedule": JudgeSchedule(verifier_steps=1, medical_steps=1, planes=(8, 8, 8, 8)), "progress": False}
    first = module.judges_for(manifest, 32, 1, tmp_path / "judges", **options)
    again = module.judges_for(manifest, 32, 1, tmp_path / "judges", **options)
    assert len(loads) == 1 and json.dumps(again.settings) == json.dumps(first.settings)
    (tmp_path / "a.png").write_bytes(b"12")
    module.judges_for(manifest, 32, 1, tmp_path / "judges", **options)
    module.judges_for(manifest, 32, 1, tmp_path / "judges", seed=8, **options)
    assert len(loads) == 3
