"""An anonymizer of the user's own is loaded by name, tried, and refused with the reason."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from test_judges import toy_cohort
from tiny_bundle import SIZE, tiny_anonymizer

from monai_anon.baselines import BASELINES, Blur, Constant, Pixelation
from monai_anon.baselines.system import System
from monai_anon.cohort import Cohort
from monai_anon.evaluation.subjects import Subject, SubjectError, digest, load_subject, subject_of, trained_subject
from monai_anon.readers import to_model_range

MODULE = """
    import torch

    class Gray(torch.nn.Module):
        images_seen = 7

        def forward(self, image):
            return image * 0

    class Needs(torch.nn.Module):
        def __init__(self, strength):
            super().__init__()

    class Smaller(Gray):
        def forward(self, image):
            return image[..., ::2]

    class Broken(Gray):
        def forward(self, image):
            return image * float("nan")

    class TooBright(Gray):
        def forward(self, image):
            return (image + 1) * 127.5

    class BrokenOnDark(Gray):
        def forward(self, image):
            return image / (image.mean((1, 2, 3), keepdim=True) > -0.9)

    class Unseeded(Gray):
        calls = 0

        def forward(self, image):
            self.calls += 1
            return image * 0 + self.calls / 10

    class Random(Gray):
        def forward(self, image):
            return torch.rand_like(image)

    def darker(image):
        return image / 2 - 0.5

    def lighter(image):
        return image / 2 + 0.5

    number = 3

    class MeanPerson(torch.nn.Module):
        calls = []

        def fit(self, images, patients):
            self.calls.append((images, patients))
            self.known = [images.mean().item(), torch.rand(()).item()]
            patients.zero_()

        def forward(self, image):
            return torch.full_like(image, sum(self.known) / 2)

    class Counting(MeanPerson):
        def fit(self, images, patients, epochs=2):
            super().fit(images, patients)
            self.images_seen = epochs * len(images)

    class FitsImages(MeanPerson):
        def fit(self, images):
            self.known = [0.0]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_own.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("users_own", None)
    return "users_own"


def load(path: str) -> Subject:
    return load_subject(path, channels=1, size=16)


def test_a_class_and_a_function_are_measured_under_their_names(module: str) -> None:
    gray, darker = load(f"{module}:Gray"), load(f"{module}:darker")
    images = torch.rand(2, 1, 16, 16)
    assert (gray.name, gray.images_seen, gray.networks) == ("users_own:Gray", 7, None)
    assert (gray.anonymise(images, torch.Generator()) == 0).all()
    assert torch.allclose(darker.anonymise(images, torch.Generator()), images / 2 - 0.5)
    assert darker.name == "users_own:darker" and gray.weights != darker.weights != load(f"{module}:lighter").weights


# ---- fitted ones ----


def fit_to(path: str, training: Cohort) -> Subject:
    return load_subject(path, channels=1, size=32, training=lambda: training)


def test_what_has_a_fit_sees_the_training_part_once_before_it_releases_anything(module: str) -> None:
    training = toy_cohort(6)
    found = fit_to(f"{module}:MeanPerson", training)
    ((images, patients),) = sys.modules[module].MeanPerson.calls
    assert torch.equal(images, to_model_range(training.images)) and patients.dtype == torch.int64
    assert found.images_seen == len(training) == len(patients)
    assert training.patient.any(), "what a fit does to its patients reaches nobody else"
    assert fit_to(f"{module}:Counting", training).images_seen == 2 * len(training)


def test_the_training_part_is_not_read_for_what_has_no_fit(module: str) -> None:
    def unread() -> Cohort:
        raise AssertionError("read")

    assert load_subject(f"{module}:Gray", 1, 16, training=unread).weights == load(f"{module}:Gray").weights


def test_who_was_fitted_to_other_people_is_another_subject(module: str) -> None:
    path, training = f"{module}:MeanPerson", toy_cohort(6)
    relabelled = toy_cohort(6)
    relabelled.patient = relabelled.patient.flip(0)
    weights = [fit_to(path, cohort).weights for cohort in (training, toy_cohort(6), toy_cohort(6, seed=1), relabelled)]
    assert weights[0] == weights[1] and len(set(weights)) == 3 and {len(one) for one in weights} == {16}


def test_a_fit_is_seeded_and_the_global_generator_is_left_alone(module: str) -> None:
    images, before = torch.zeros(1, 1, 32, 32), torch.random.get_rng_state()
    first = fit_to(f"{module}:MeanPerson", toy_cohort(6)).anonymise(images, torch.Generator())
    torch.rand(3)
    second = fit_to(f"{module}:MeanPerson", toy_cohort(6)).anonymise(images, torch.Generator())
    assert torch.equal(first, second)
    torch.random.set_rng_state(before)
    fit_to(f"{module}:MeanPerson", toy_cohort(6))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_fit_that_cannot_be_called_is_refused_with_the_reason(module: str) -> None:
    with pytest.raises(SubjectError, match=r"its fit\(images\) cannot be called as fit\(images, patients\)"):
        fit_to(f"{module}:FitsImages", toy_cohort(6))
    with pytest.raises(SubjectError, match="there is no training part for it"):
        load(f"{module}:MeanPerson")


# ---- the contract ----


def test_random_numbers_of_torch_are_seeded_and_the_global_generator_is_left_alone(module: str) -> None:
    random, images = load(f"{module}:Random"), torch.zeros(2, 1, 16, 16)
    before = torch.random.get_rng_state()
    first, again, other = (random.anonymise(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Needs", r"it needs \['strength'\]"),
        ("Smaller", r"\(2, 1, 16, 16\) gave \(2, 1, 16, 8\)"),
        ("Broken", "NaN or infinite"),
        ("TooBright", r"values from 0 to 255; images lie in \[-1, 1\]"),
        ("Unseeded", "other pixels under the same seed"),
        ("number", "is a int"),
        ("Absent", "has no 'Absent'"),
    ],
)
def test_what_is_no_anonymizer_is_refused_with_the_reason(module: str, name: str, reason: str) -> None:
    with pytest.raises(SubjectError, match=reason):
        load(f"{module}:{name}")


def test_a_module_of_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_me.py").write_text("def same(image):\n    return image\n")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    assert load("beside_me:same").name == "beside_me:same"


def test_an_image_that_comes_back_broken_is_refused_whenever_it_does(module: str) -> None:
    fragile = load(f"{module}:BrokenOnDark")
    with pytest.raises(SubjectError, match="NaN or infinite"):
        fragile.anonymise(torch.full((2, 1, 16, 16), -1.0), torch.Generator())


@pytest.mark.parametrize(
    ("path", "reason"),
    [("Blur", "must be package.module:Class"), ("absent_module:Blur", "no module 'absent_module'")],
)
def test_a_path_that_names_nothing_is_refused(path: str, reason: str) -> None:
    with pytest.raises(SubjectError, match=reason):
        load(path)


def test_a_digest_tells_settings_and_weights_apart() -> None:
    assert digest(Blur(0.1)) == digest(Blur(0.1)) != digest(Blur(0.2))
    assert digest(tiny_anonymizer()) == digest(tiny_anonymizer())
    changed = tiny_anonymizer()
    next(changed.parameters()).data.add_(1)
    assert digest(changed) != digest(tiny_anonymizer())


def test_trained_networks_come_with_their_weights_and_what_they_have_seen(tmp_path: Path) -> None:
    saved = tiny_anonymizer()
    next(saved.parameters()).data.add_(1)
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"images_seen": 480}')
    found = trained_subject("ours", tiny_anonymizer(), tmp_path / "model.pt")
    assert found.networks is not None and found.images_seen == 480 and len(found.weights) == 16
    assert torch.equal(next(found.networks.parameters()), next(saved.parameters()))
    with pytest.raises(FileNotFoundError, match=r"absent.pt is missing. Make one with: python -m monai.bundle run"):
        trained_subject("ours", tiny_anonymizer(), tmp_path / "absent.pt")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt does not fit the configured networks"):
        trained_subject("ours", tiny_anonymizer(), tmp_path / "other.pt")
    (tmp_path / "other.pt").write_text("text, not tensors")
    with pytest.raises(ValueError, match=r"other.pt is no file of tensors"):
        trained_subject("ours", tiny_anonymizer(), tmp_path / "other.pt")


# ---- the baselines; those that are a System: tests/test_systems_contract.py ----


@pytest.mark.parametrize("name", sorted(n for n, c in BASELINES.items() if not issubclass(c, System)))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_baseline_keeps_the_contract(name: str, channels: int) -> None:
    image = torch.rand(3, channels, SIZE, SIZE) * 2 - 1
    baseline = BASELINES[name]()
    if hasattr(baseline, "fit"):
        baseline.fit(torch.rand(40, channels, SIZE, SIZE) * 2 - 1, torch.arange(40))
    before, anonymise = image.clone(), subject_of(name, baseline).anonymise
    released = anonymise(image, torch.Generator().manual_seed(0))
    assert released.shape == image.shape and released.dtype == image.dtype
    assert released.abs().max() <= 1 and torch.equal(image, before)
    for row in range(len(image)):  # among others, not alone: noise is drawn for a whole batch
        others = torch.where(torch.arange(len(image))[:, None, None, None] == row, image, image.flip(0) * 0.5)
        assert torch.allclose(anonymise(others, torch.Generator().manual_seed(0))[row], released[row], atol=1e-6)


def test_baselines_do_what_they_say() -> None:
    image = torch.rand(1, 1, 32, 32)
    assert torch.equal(BASELINES["none"]()(image), image)
    assert (Constant(0.25)(image) == 0.25).all()
    assert len(Pixelation(4)(image).unique()) == 16
    assert Pixelation(4)(image).mean() == pytest.approx(float(image.mean()), abs=1e-5)
    spot = torch.zeros(1, 1, 65, 65)
    spot[..., 32, 32] = 1
    spread = Blur(4 / 65)(spot)[0, 0]
    offsets = torch.arange(65.0) - 32
    assert float(spread.sum()) == pytest.approx(1, abs=1e-4)
    assert float((spread.sum(0) * offsets**2).sum().sqrt()) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("make", [lambda: Blur(0), lambda: Constant(2), lambda: Pixelation(0)])
def test_a_baseline_refuses_what_it_cannot_do(make) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_the_example_of_the_docs_is_an_anonymizer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "docs" / "examples")
    assert load("my_anonymizer:CoarseCopy").images_seen == 0
