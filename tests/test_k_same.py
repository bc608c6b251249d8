"""K-Same: every group is k people or more, a release is the nearest group's mean, and nothing else is kept."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from test_judges import toy_cohort

from monai_anon.baselines import KSame
from monai_anon.baselines.k_same import greedy_groups, patient_means, principal_components
from monai_anon.evaluation.evaluation import Evaluation
from monai_anon.readers import to_model_range


def people(count: int, images: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count * images, 1, 8, 8) and their patients, whose numbers have gaps."""
    generator = torch.Generator().manual_seed(seed)
    person = torch.rand(count, 1, 1, 8, 8, generator=generator) * 1.6 - 0.8
    capture = torch.rand(count, images, 1, 8, 8, generator=generator) * 0.4 - 0.2
    return (person + capture).flatten(0, 1), (torch.arange(count) * 3 + 5).repeat_interleave(images)


def fitted(images: torch.Tensor, patients: torch.Tensor, **options: int) -> KSame:
    module = KSame(**options)
    module.fit(images, patients)
    return module


# ---- groups ----


@pytest.mark.parametrize("count", [5, 9, 10, 14, 33])
def test_every_patient_is_in_one_group_and_every_group_has_k_or_more(count: int) -> None:
    groups = greedy_groups(torch.rand(count, 4, generator=torch.Generator().manual_seed(count)), k=5)
    assert sorted(torch.cat(groups).tolist()) == list(range(count))
    assert len(groups) == count // 5
    assert all(len(group) == 5 for group in groups[:-1]) and 5 <= len(groups[-1]) < 10


def test_groups_are_those_of_the_algorithm_step_by_step() -> None:
    places = torch.rand(23, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, expected = list(range(23)), []
    while len(left) >= 8:
        first = left[0]
        nearest = sorted(left, key=lambda other: math.dist(places[first].tolist(), places[other].tolist()))[:4]
        expected.append(set(nearest))
        left = [one for one in left if one not in nearest]
    assert [set(group.tolist()) for group in greedy_groups(places, k=4)] == [*expected, set(left)]


def test_people_who_are_alike_share_a_group() -> None:
    dark, bright = -0.5 + torch.arange(3.0) / 50, 0.5 + torch.arange(3.0) / 50
    shades = torch.stack([dark, bright], 1).flatten()  # by turns, so that the order of patients gives other groups
    module = fitted(shades[:, None, None, None].expand(6, 1, 4, 4), torch.arange(6), k=3)
    assert module.means.mean((1, 2, 3)).tolist() == pytest.approx([float(dark.mean()), float(bright.mean())])


def test_neighbours_are_found_along_the_largest_components() -> None:
    points = torch.rand(12, 20, generator=torch.Generator().manual_seed(0))
    centred = points - points.mean(0)
    scale = torch.linalg.svd(centred, full_matrices=False)
    places = principal_components(points, 3)
    assert places.shape == (12, 3) and principal_components(points, 99).shape == (12, 12)
    assert torch.allclose(places.abs(), (scale.U[:, :3] * scale.S[:3]).abs(), atol=1e-5)
    assert torch.allclose(torch.pdist(principal_components(points, 99)), torch.pdist(points), atol=1e-5)


def test_fewer_components_look_at_the_larger_differences_only() -> None:
    images = torch.zeros(6, 1, 1, 2)
    images[:, 0, 0, 0] = torch.tensor([0.0, 0.3, 0.6, 0.9, 1.2, 1.5]) - 0.75
    images[:, 0, 0, 1] = torch.tensor([0.0, 0.6, 0.0, 0.6, 0.6, 0.0])
    for components, groups in ((1, [[0, 1], [2, 3], [4, 5]]), (2, [[0, 2], [1, 3], [4, 5]])):
        module = fitted(images, torch.arange(6), k=2, components=components)
        assert torch.allclose(module.means, torch.stack([images[group].mean(0) for group in groups]))


def test_a_patient_counts_once_however_many_images_they_have() -> None:
    images, patients = people(12)
    again = patients == patients[0]
    more = fitted(torch.cat([images, *[images[again]] * 30]), torch.cat([patients, *[patients[again]] * 30]), k=4)
    assert torch.allclose(more.means, fitted(images, patients, k=4).means, atol=1e-5)
    assert torch.allclose(patient_means(images, patients)[1], images[3:6].mean(0), atol=1e-6)


def test_the_order_of_the_images_changes_nothing() -> None:
    images, patients = people(25)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    other = fitted(images[shuffled], patients[shuffled], k=4)
    assert torch.allclose(other.means, fitted(images, patients, k=4).means, atol=1e-6)


# ---- releases ----


def test_a_release_is_the_mean_of_the_nearest_group() -> None:
    module, (asked, _) = fitted(*people(40), k=5), people(20, seed=9)
    for image, released in zip(asked, module(asked), strict=True):
        apart = [float((image - mean).square().sum()) for mean in module.means]
        assert torch.equal(released, module.means[apart.index(min(apart))])


def test_there_are_no_more_releases_than_groups() -> None:
    module = fitted(*people(43), k=5)
    released = module(torch.cat([people(400, seed=9)[0], torch.rand(400, 1, 8, 8) * 2 - 1]))
    assert len(released.unique(dim=0)) <= len(module.means) == 43 // 5
    assert module.bits == math.log2(8)


def test_a_release_has_its_original_only_as_one_of_k() -> None:
    images, patients = people(40, images=1)
    module = fitted(images, patients, k=8)
    without = fitted(images, patients, k=8)
    moved = images.clone()
    moved[7] += 0.01 * torch.sign(moved[7])
    without.fit(moved, patients)
    assert float((without.means - module.means).abs().max()) <= 0.01 / 8 + 1e-6


def test_after_fitting_it_knows_the_means_and_nothing_else() -> None:
    module = fitted(*people(20), k=5)
    assert list(module.state_dict()) == ["means"]
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    assert plain == {"k": 5, "components": 64, "training": True}
    module.fit(*people(11, seed=4))
    assert torch.equal(module.means, fitted(*people(11, seed=4), k=5).means)


# ---- refusals ----


def test_it_releases_nothing_before_it_is_fitted() -> None:
    with pytest.raises(RuntimeError, match=r"call fit\(images, patients\) before it releases"):
        KSame()(torch.zeros(2, 1, 8, 8))
    with pytest.raises(RuntimeError, match="no groups yet"):
        _ = KSame().bits


def test_fewer_patients_than_k_are_refused_and_what_was_fitted_stays() -> None:
    module = fitted(*people(20), k=5)
    before = module.means.clone()
    with pytest.raises(ValueError, match="there are 4 patients and k is 5"):
        module.fit(*people(4, images=9))
    assert torch.equal(module.means, before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"k": 1}, "k is 1; it must be at least 2"), ({"components": 0}, "components is 0; it must")],
)
def test_a_group_of_one_and_a_space_without_axes_are_refused(options: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        KSame(**options)


def test_images_that_do_not_fit_are_refused_with_both_shapes() -> None:
    images, patients = people(20)
    with pytest.raises(ValueError, match=r"images are \(60, 1, 8, 8\), patients \(59,\)"):
        KSame().fit(images, patients[1:])
    with pytest.raises(ValueError, match=r"images are \(3, 8, 8\); fit has seen \(1, 8, 8\)"):
        fitted(images, patients)(torch.zeros(2, 3, 8, 8))


# ---- in an evaluation ----


def test_an_evaluation_fits_it_to_the_training_part_alone() -> None:
    parts = {"training": toy_cohort(24), "test": toy_cohort(12, seed=2)}
    asked: list[str] = []

    def cohort(part: str) -> Any:
        asked.append(part)
        return parts[part]

    path = "monai_anon.baselines.k_same:KSame"
    run = SimpleNamespace(anonymizer=path, channels=1, size=32, device=torch.device("cpu"), cohort=cohort)
    subject = Evaluation.subject(cast(Any, run))
    training = parts["training"]
    expected = fitted(to_model_range(training.images), training.patient)
    images = to_model_range(parts["test"].images)
    assert torch.equal(subject.anonymise(images, torch.Generator()), expected(images))
    assert (subject.name, subject.images_seen, asked) == ("KSame", len(training), ["training"])
