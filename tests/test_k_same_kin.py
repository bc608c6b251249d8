"""K-Same-Select keeps to the finding, K-Same-M to its model's space; what is K-Same's own is in test_k_same.py."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import LATENT_SIZES, SIZE, tiny_cohort, tiny_recogniser

from monai_anon.baselines.k_same import distances
from monai_anon.baselines.k_same_m import KSameM
from monai_anon.baselines.k_same_select import KSameSelect
from monai_anon.baselines.system import Guides, IdentityGuide, Setting, train_system
from monai_anon.cohort import Cohort
from monai_anon.optimisation import Optimisation


def setting(cohort: Cohort, batches: int = 2) -> Setting:
    guides = Guides(tiny_recogniser(), IdentityGuide(1, 10, (8, 8), 6))
    return Setting(cohort, guides, Optimisation(lr=0.01, ema=0.5), batches, 8)


def marked(shades: list[float], findings: list[int]) -> Cohort:
    """Gray images, one a patient; the upper left corner is white where there is a finding."""
    images = torch.tensor(shades)[:, None, None, None].expand(-1, 1, SIZE, SIZE).clone()
    finding = torch.tensor(findings)
    images[:, :, :4, :4] = finding[:, None, None, None] * 255.0
    people = torch.arange(len(shades))
    return Cohort(images.to(torch.uint8), people, finding, [{}] * len(shades), ["absent", "effusion"], name="marked")


def reads_the_corner(image: torch.Tensor) -> torch.Tensor:
    return (image[:, 0, :4, :4].mean((1, 2)) > 0).long()


def select(cohort: Cohort, k: int = 2) -> KSameSelect:
    module = KSameSelect(1, 2, (8, 8, 8), k)
    module.predict = reads_the_corner  # type: ignore[method-assign]
    module.conclude(setting(cohort))
    return module


# ---- K-Same-Select ----

SHADES, FINDINGS = [90.0, 100, 110, 120, 190, 200, 210, 220], [1, 1, 1, 1, 0, 0, 0, 0]


def test_a_release_is_of_the_images_own_finding_also_where_another_group_is_nearer() -> None:
    module = select(marked(SHADES, FINDINGS))
    assert sorted(module.finding_of.tolist()) == [0, 0, 1, 1] and module.bits == 2
    asked = marked([104.0, 206.0, 104.0, 206.0], [1, 1, 0, 0]).batch(range(4))["image"]
    released = module(asked)
    assert reads_the_corner(released).tolist() == [1, 1, 0, 0]
    nearest = module.finding_of[distances(asked, module.means).argmin(1)]
    assert nearest.tolist() == [1, 0, 1, 0], "the shades do not test the finding"
    own = [module.means[module.finding_of == finding] for finding in (1, 1, 0, 0)]
    for image, groups, one in zip(asked, own, released):
        assert torch.equal(one, groups[(groups - image).square().sum((1, 2, 3)).argmin()])


def test_groups_are_of_k_people_of_one_finding() -> None:
    module = select(marked(SHADES, FINDINGS))
    body = module.means[:, 0, 8:, 8:].mean((1, 2)) * 127.5 + 127.5
    assert sorted(body.round().tolist()) == [95, 115, 195, 215]


def test_a_finding_that_too_few_show_has_no_group_and_is_released_from_all() -> None:
    module = select(marked(SHADES, [1, 0, 0, 0, 0, 0, 0, 0]))
    assert set(module.finding_of.tolist()) == {0}
    asked = marked([100.0, 215.0], [1, 1]).batch([0, 1])["image"]
    nearest = distances(asked, module.means).argmin(1)
    assert nearest[0] != nearest[1] and torch.equal(module(asked), module.means[nearest])


def test_too_few_patients_of_every_finding_are_refused() -> None:
    with pytest.raises(ValueError, match="marked: no finding is predicted for 5 of its 8 patients"):
        select(marked(SHADES, FINDINGS), k=5)


def test_the_finding_is_predicted_by_a_copy_of_the_guide() -> None:
    module, given = KSameSelect(1, 2, (8, 8, 8), 2), setting(tiny_cohort())
    module.conclude(given)
    image = torch.rand(5, 1, SIZE, SIZE)
    expected = given.guides.finding(image).argmax(1)
    assert torch.equal(module.predict(image), expected)
    given.guides.finding.head.bias.data += torch.tensor([100.0, -100.0])
    assert torch.equal(module.predict(image), expected), "it shares the guide's weights"


@pytest.mark.parametrize(("k", "components", "reason"), [(1, 4, "k is 1; it must be"), (2, 0, "components is 0")])
def test_a_group_of_one_and_a_space_without_axes_are_refused(k: int, components: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        KSameSelect(1, 2, (8, 8, 8), k, components)


def test_nothing_is_released_before_it_is_concluded() -> None:
    for module in (KSameSelect(1, 2, (8, 8, 8)), model()):
        with pytest.raises(RuntimeError, match=r"no groups yet: conclude\(setting\) comes before"):
            module(torch.zeros(1, 1, SIZE, SIZE))
    module = select(marked(SHADES, FINDINGS))
    with pytest.raises(ValueError, match=r"images are \(1, 16, 16\); conclude has seen \(1, 32, 32\)"):
        module(torch.zeros(1, 1, 16, 16))


# ---- K-Same-M ----


def model(k: int = 2) -> KSameM:
    return KSameM(SIZE, 1, (8, 16), (16, 8), LATENT_SIZES, k)


def test_its_model_learns_to_reconstruct(tmp_path) -> None:
    cohort = marked([40.0, 60, 200, 220] * 4, [0, 1] * 8)
    module = model()
    images = cohort.batch(range(8))["image"]

    def error() -> float:
        with torch.no_grad():
            return float((module.decode(module.encode(images)) - images).abs().mean())

    before = error()
    train_system(module, setting(cohort, batches=40), tmp_path, "k-same-m")
    assert error() < 0.5 * before


def test_a_release_is_the_image_of_the_nearest_groups_mean_latent() -> None:
    module, cohort = model(), tiny_cohort()
    module.eval().conclude(setting(cohort))
    assert module.means.shape == (5, sum(LATENT_SIZES)) and module.bits == math.log2(5)
    image = torch.rand(6, 1, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        latents, released = module.encode(image), module(image)
        drawn = module.decode(module.means)
    for latent, one in zip(latents, released):
        assert torch.allclose(one, drawn[(module.means - latent).square().sum(1).argmin()], atol=1e-6)


def test_fewer_patients_than_k_and_unknown_terms_are_refused() -> None:
    with pytest.raises(ValueError, match="tiny: 10 patients and k is 11"):
        model(11).conclude(setting(tiny_cohort()))
    with pytest.raises(ValueError, match=r"weights are of \['pixels'\]; they must be of \['pixel', 'ssim'\]"):
        KSameM(SIZE, 1, (8, 16), (16, 8), LATENT_SIZES, weights={"pixels": 1.0})
