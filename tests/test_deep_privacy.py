"""DeepPrivacy: what is outside of the window cannot be in the release, since nothing that draws has seen it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import SIZE, tiny_recogniser
from torch import nn

from monai_anon.baselines.deep_privacy import DeepPrivacy
from monai_anon.baselines.deep_privacy_2 import DeepPrivacy2
from monai_anon.baselines.games import gradient_norms
from monai_anon.baselines.inpainting import Inpainter, Window
from monai_anon.baselines.system import Guides, IdentityGuide, Setting
from monai_anon.cohort import Cohort
from monai_anon.optimisation import Optimisation
from monai_anon.pairs import PairLoader

both = pytest.mark.parametrize("kind", [DeepPrivacy, DeepPrivacy2])


def made(kind: type, **options) -> Inpainter:
    torch.manual_seed(0)
    return kind(SIZE, 1, 2, (8, 16), (8, 8, 8), 4, **options)


def stirred(system: Inpainter) -> Inpainter:
    """With every weight drawn: what starts at zero says nothing of what passes."""
    for parameter in system.generator.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    return system.eval()


def window(count: int = 2) -> torch.Tensor:
    mask = torch.zeros(count, 1, SIZE, SIZE)
    mask[..., 8:16, 12:20] = 1
    return mask


def filled(system: Inpainter, image: torch.Tensor, mask: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        return system.fill(image, mask)


# ---- what passes ----


@both
def test_pixels_outside_of_the_window_have_no_influence(kind: type) -> None:
    system, mask = stirred(made(kind)), window()
    image = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    released = filled(system, image, mask)
    for outside in (torch.rand_like(image) * 2 - 1, torch.full_like(image, float("nan"))):
        assert torch.equal(filled(system, torch.where(mask > 0, image, outside), mask), released)


@both
def test_the_windows_pixels_stay_and_the_rest_is_drawn_from_them_and_from_noise(kind: type) -> None:
    system, mask = stirred(made(kind)), window()
    image = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    first, again, other = (filled(system, image, mask, seed) for seed in (1, 1, 2))
    inside = mask > 0
    assert torch.equal(first[inside], image[inside]) and torch.equal(first, again)
    assert float((first - other)[~inside].abs().max()) > 1e-3, "the noise is not heard"
    changed = filled(system, torch.where(inside, -image, image), mask, 1)
    assert float((first - changed)[~inside].abs().max()) > 1e-3, "the window is not seen"


class Bright(nn.Module):
    """Sees the finding where the image is bright; no finding in a dark one."""

    def features(self, image):
        return F.avg_pool2d(image, 4)

    def classify(self, features):
        return torch.stack([torch.zeros(len(features)), features.flatten(1).amax(1)], 1)

    def evidence(self, features):
        return torch.cat([-features, features], 1)


def test_the_window_lies_where_the_predicted_finding_is_seen_and_is_no_larger_than_it_says() -> None:
    image = torch.full((3, 1, SIZE, SIZE), -0.5)
    image[0, :, 8:12, 20:24] = 1.0  # the finding
    image[1, :, 8:12, 20:24] = -1.0  # the least of it: predicted absent, and seen there
    mask = Window(Bright(), kept=16 / SIZE**2, dilation=0)(image)
    assert mask.shape == image.shape and mask.flatten(1).sum(1).tolist() == [16, 16, 16], "a flat image shows no more"
    for one in mask[:2]:
        assert float(one[:, 7:13, 19:25].sum()) == 16
    grown = Window(Bright(), kept=1 / SIZE**2, dilation=2 / SIZE)(image)
    assert grown.flatten(1).sum(1).tolist()[0] == 25


@both
def test_it_watches_with_a_copy_of_the_guide(kind: type) -> None:
    given, system = setting(), made(kind)
    system.begin(given)
    image = torch.rand(4, 1, SIZE, SIZE) * 2 - 1
    options = {"kept": system.window.kept, "dilation": system.window.dilation}
    expected = Window(given.guides.finding, **options)(image)
    assert torch.equal(system.window(image), expected)
    given.guides.finding.head.weight.data.neg_()
    assert torch.equal(system.window(image), expected), "it shares the guide's weights"


# ---- training ----


def setting() -> Setting:
    """Bright people, 0.8 on average."""
    pixels = torch.randint(210, 250, (24, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    index = torch.arange(24)
    cohort = Cohort(pixels.to(torch.uint8), index % 12, index // 2 % 2, [{}] * 24, ["absent", "effusion"], "bright")
    torch.manual_seed(3)
    guides = Guides(tiny_recogniser().eval(), IdentityGuide(1, 12, (8, 8), 6))
    return Setting(cohort, guides, Optimisation(lr=0.01, ema=0.5, warmup=0.0, final=1.0), 40, 8)


def brightness(kind: type, adversarial: float, steps: int) -> float:
    """The mean of what is drawn after some steps."""
    given = setting()
    system = made(kind, weights={"adversarial": adversarial, "critic": 1.0, "penalty": 1.0})
    step, loader = system.begin(given), PairLoader(given.cohort, given.batch_size)
    for iteration in range(steps):
        step(loader.batch(iteration), 0.5)
    image = loader.batch(0)["i_ori"]
    mask = window(len(image))
    return float(filled(system, image, mask)[mask < 0.5].mean())


@both
def test_the_adversarial_term_makes_what_is_drawn_like_the_people_of_the_training_part(kind: type) -> None:
    before, without, trained = brightness(kind, 1.0, 0), brightness(kind, 0.0, 5), brightness(kind, 1.0, 30)
    assert without == pytest.approx(before, abs=1e-4)
    assert abs(trained - 0.8) < abs(before - 0.8) - 0.2


@both
def test_a_step_moves_the_generator_and_the_critic_and_not_what_watches(kind: type) -> None:
    given, system = setting(), made(kind)
    step = system.begin(given)
    watched = {name: tensor.clone() for name, tensor in system.window.state_dict().items()}
    drawing = [parameter.clone() for parameter in system.generator.parameters()]
    looking = [parameter.clone() for parameter in step.critic.parameters()]
    terms = step(PairLoader(given.cohort, 4).batch(0), 0.5)
    assert sorted(terms) == ["adversarial", "critic", "penalty"]
    assert all(torch.equal(tensor, watched[name]) for name, tensor in system.window.state_dict().items())
    for before, network in ((drawing, system.generator), (looking, step.critic)):
        assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters()))
    assert all(parameter.requires_grad for parameter in step.critic.parameters())


def test_gradient_norms_are_those_of_each_image() -> None:
    images = torch.rand(3, 1, 4, 4).requires_grad_(True)
    weight = torch.tensor([1.0, 2.0, 3.0])
    norms = gradient_norms((images * weight[:, None, None, None]).sum((1, 2, 3)), images)
    assert norms.tolist() == pytest.approx([16.0, 64.0, 144.0])


def test_the_penalty_of_the_wasserstein_critic_is_zero_at_slope_one() -> None:
    class Slope(nn.Module):
        def forward(self, seen):
            return seen[:, :1].sum((1, 2, 3)) / SIZE  # a gradient of 1 / SIZE in each of SIZE^2 pixels

    given, system = setting(), made(DeepPrivacy)
    step = system.begin(given)
    step.critic = Slope()
    real, drawn = torch.rand(2, 2, 1, SIZE, SIZE).unbind(0)
    terms = step.critic_terms(real, drawn, window())
    assert float(terms["penalty"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(terms["critic"].detach()) == pytest.approx(
        float((drawn - real).sum((1, 2, 3)).mean()) / SIZE, rel=1e-4
    )


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kept": 0.0}, "kept is 0.0; it must be a share of the pixels above 0 and below 1"),
        ({"kept": 1.0}, "kept is 1.0"),
        ({"dilation": 0.5}, "dilation is 0.5; it must be a share of the side"),
        ({"weights": {"adversarial": 1.0}}, r"weights are of \['adversarial'\]; they must be of \['adversarial', 'cri"),
    ],
)
@both
def test_a_window_of_everything_or_nothing_and_missing_weights_are_refused(
    kind: type, options: dict, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        made(kind, **options)
