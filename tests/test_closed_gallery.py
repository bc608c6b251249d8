"""The 1/k of K-Same and its kin: where a gallery's own images are released, each as the own group's mean, nobody links
more than 1 in k of them to its person.
"""

from __future__ import annotations

import pytest
import torch
from tiny import LATENT_SIZES, SIZE, tiny_recogniser
from torch import Tensor

from monai_anon.baselines.k_same import KSame, distances, greedy_groups, patient_means, principal_components
from monai_anon.baselines.k_same_m import KSameM
from monai_anon.baselines.k_same_select import KSameSelect
from monai_anon.baselines.system import Guides, IdentityGuide, Setting
from monai_anon.cohort import Cohort
from monai_anon.optimisation import Optimisation
from monai_anon.readers import to_model_range

K, PATIENTS = 4, 30


def gallery() -> Cohort:
    """One image of each patient, smooth enough to be told apart by its pixels."""
    coarse = torch.rand(PATIENTS, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear") * 255
    patient = torch.arange(PATIENTS)
    return Cohort(images.to(torch.uint8), patient, patient % 2, [{}] * PATIENTS, ["absent", "effusion"], name="gallery")


def setting(cohort: Cohort) -> Setting:
    guides = Guides(tiny_recogniser(), IdentityGuide(1, PATIENTS, (8, 8), 6))
    return Setting(cohort, guides, Optimisation(), 1, 4)


def of_groups(groups: list[Tensor], means: Tensor) -> Tensor:
    """Each person's release: the mean of the group that they are in."""
    released = means.new_zeros(PATIENTS, *means.shape[1:])
    for group, mean in zip(groups, means, strict=True):
        released[group] = mean
    return released


def k_same(cohort: Cohort) -> tuple[KSame, Tensor]:
    module, images = KSame(K), to_model_range(cohort.images)
    module.fit(images, cohort.patient)
    groups = greedy_groups(principal_components(images.flatten(1), module.components), K)
    return module, of_groups(groups, module.means)


def k_same_select(cohort: Cohort) -> tuple[KSameSelect, Tensor]:
    module, images = KSameSelect(1, 2, (8, 8, 8), K), to_model_range(cohort.images)
    module.predict = lambda image: (image.mean((1, 2, 3)) > 0).long()  # type: ignore[method-assign]
    module.conclude(setting(cohort))
    groups = []
    for finding in (0, 1):
        people = (module.predict(images) == finding).nonzero().squeeze(1)
        assert len(people) >= 2 * K, "a gallery of one finding tests nothing"
        groups += [people[g] for g in greedy_groups(principal_components(images[people].flatten(1), 64), K)]
    return module, of_groups(groups, module.means)


def k_same_m(cohort: Cohort) -> tuple[KSameM, Tensor]:
    module = KSameM(SIZE, 1, (8, 16), (16, 8), LATENT_SIZES, K)
    module.eval().conclude(setting(cohort))
    with torch.no_grad():
        latents = module.encode(to_model_range(cohort.images))
        return module, of_groups(greedy_groups(latents, K), module.decode(module.means))


@pytest.mark.parametrize("made", [k_same, k_same_select, k_same_m])
def test_on_the_closed_gallery_one_in_k_is_linked_at_most(made) -> None:
    cohort = gallery()
    images = to_model_range(cohort.images)
    module, released = made(cohort)
    person = torch.arange(PATIENTS)
    assert (distances(images, images).argmin(1) == person).all(), "the attack links what is not anonymised"
    # The strongest attacker knows who is in which group and still has to guess one of those who share a release.
    _, shared = released.flatten(1).round(decimals=5).unique(dim=0, return_counts=True)
    assert int(shared.min()) >= K
    assert len(shared) / PATIENTS <= 1 / K
    # One who looks for the nearest person of the gallery is no better.
    linked = distances(released, images).argmin(1) == person
    assert float(linked.float().mean()) <= 1 / K
    assert len(module.means) == len(shared)


def test_groups_of_fewer_than_k_would_be_seen() -> None:
    images = to_model_range(gallery().images)
    pairs = greedy_groups(images.flatten(1), 2)
    released = of_groups(pairs, torch.stack([images[group].mean(0) for group in pairs]))
    linked = distances(released, images).argmin(1) == torch.arange(PATIENTS)
    assert float(linked.float().mean()) > 1 / K


def test_a_release_holds_its_person_as_one_of_k_in_the_models_space() -> None:
    cohort = gallery()
    module, _ = k_same_m(cohort)
    with torch.no_grad():
        latents = module.encode(to_model_range(cohort.images))
    people = patient_means(latents[:, :, None, None], cohort.patient).flatten(1)
    groups = greedy_groups(people, K)
    assert all(len(group) >= K for group in groups)
    assert torch.allclose(module.means, torch.stack([people[group].mean(0) for group in groups]))
