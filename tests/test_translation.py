"""Adversarial image-to-image systems: identity terms do what their papers say, and a step moves what it may."""

import functools

import pytest
import torch
import torch.nn.functional as F
from test_judges import toy_cohort
from torch import nn

from monai_anon.baselines import BASELINES
from monai_anon.baselines.ciagan import edges
from monai_anon.baselines.games import WASSERSTEIN, gradient_penalty
from monai_anon.baselines.pp_mir import masked_reconstruction, uniform_loss
from monai_anon.baselines.saliency import saliency
from monai_anon.baselines.system import Guides, IdentityGuide, Setting, System, load_system, run_step, train_system
from monai_anon.baselines.translation import Drawn, another_patient, checked, distances, gallery, repulsion
from monai_anon.networks import Recogniser
from monai_anon.optimisation import Optimisation
from monai_anon.pairs import PairLoader

PEOPLE, SIZE, STEPS = 9, 32, 30
NAMES = ["pprl-vgan", "ciagan", "sgap", "pp-gan", "pp-mir", "pp-sir", "privacy-net", "prichexy-net"]
U_NETS = ("pp-gan", "privacy-net", "prichexy-net")
SLOWER = {"privacy-net": 3}  # an opponent has to learn first
SEVERAL = {"pp-mir": 4}  # trainings: after so few steps one of them says little
STRONGER = {  # a few steps are to show
    "prichexy-net": {"mu": 0.3},
    "pp-gan": {"margin": 1.5},
    "pprl-vgan": {"encoder_widths": (16, 32, 32), "decoder_widths": (32, 32, 16)},
}
OPTIMISATION = Optimisation(lr=5e-3, ema=0.5)


@functools.cache
def guides():
    """Frozen networks that know the toy people and their bars."""
    torch.manual_seed(0)
    cohort = toy_cohort(PEOPLE)
    images = cohort.batch(range(len(cohort)))["image"]
    finding, identity = Recogniser(1, 2, (16, 32, 32)), IdentityGuide(1, PEOPLE, (16, 32, 32), 16)
    optimizer = torch.optim.Adam([*finding.parameters(), *identity.parameters()], lr=3e-3)
    for _ in range(100):
        shown = images + 0.05 * torch.randn_like(images)
        loss = F.cross_entropy(finding(shown), cohort.finding)
        loss = loss + F.cross_entropy(identity.patients(identity(shown)), cohort.patient)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    assert (identity.patients(identity(images)).argmax(1) == cohort.patient).float().mean() > 0.9
    assert (finding(images).argmax(1) == cohort.finding).float().mean() > 0.9
    return Guides(finding.eval().requires_grad_(False), identity.eval().requires_grad_(False))


def setting(batches=STEPS):
    return Setting(toy_cohort(PEOPLE), guides(), OPTIMISATION, batches, 12)


def made(name, seed=0, **options):
    torch.manual_seed(seed)
    widths = {"encoder_widths": (8, 16)} | ({} if name in U_NETS else {"decoder_widths": (16, 8)})
    return BASELINES[name](size=SIZE, **(widths | options))


@functools.cache
def trained(name, identity=True, **options):
    """A system and its step after some iterations, with the weight of its identity terms or without."""
    off = {} if identity else {"identity": 0.0} | ({"original": 0.0} if name == "pp-sir" else {})
    system = made(name, **options)
    system.weights |= off
    where = setting()
    step, loader = system.begin(where), PairLoader(where.cohort, where.batch_size)
    if name == "pprl-vgan":
        knows_people(step, loader)
    for iteration in range(SLOWER.get(name, 1) * STEPS):
        torch.manual_seed(iteration)
        step(loader.batch(iteration), 0.2)
    system.eval()
    return system, step


def knows_people(step, loader):
    """Show the discriminator real people before it is asked for them."""
    opponent = step.opponents["discriminator"]
    for iteration in range(80):
        real = loader.batch(iteration)
        opponent.updater.update(opponent.loss(real, Drawn(real["i_ori"])), 0.2)


def batch():
    return PairLoader(toy_cohort(PEOPLE), 16, seed=7).batch(0)


def looked_at(name, identity, measure):
    """A measure of drawn images, its mean over `SEVERAL` trainings."""
    found = []
    for seed in range(SEVERAL.get(name, 1)):
        _, step = trained(name, identity, seed=seed, **STRONGER.get(name, {}))
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(float(measure(step, step.draw(batch()), batch())))
    return sum(found) / len(found)


def likeness(step, drawn, of):
    """Mean cosine of what was drawn and the original, to the guide."""
    guide = guides().identity
    return (guide(drawn.image) * guide(of["i_ori"])).sum(1).mean()


def nearest_patient(step, drawn, of):
    """Mean probability of the patient whom the guide holds for the likeliest."""
    guide = guides().identity
    return guide.patients(guide(drawn.image)).softmax(1).amax(1).mean()


def nearest_in_the_gallery(step, drawn, of):
    """Mean of the largest cosine to a patient's image, to the guide."""
    return (guides().identity(drawn.image) @ step.patients.T).amax(1).mean()


def target_found(step, drawn, of):
    """Mean log-probability of the target to the discriminator's own head."""
    return -F.cross_entropy(step.judged(drawn.image)[1], drawn.target)


def nearness_to_target(step, drawn, of):
    """Mean cosine of what was drawn and the person whom it is to look like, to the guide."""
    return (guides().identity(drawn.image) * step.patients[drawn.target]).sum(1).mean()


def linked(step, drawn, of):
    """Mean square distance to the original, to the Siamese network that was trained along."""
    return F.pairwise_distance(step.siamese(drawn.image), step.siamese(of["i_ori"])).mean()


def told_apart(step, drawn, of):
    """Cross-entropy of the verification network that was trained along."""
    return step.verification(of, drawn)


@pytest.mark.parametrize(
    ("name", "measure", "rises"),
    [
        ("pprl-vgan", target_found, True),
        ("ciagan", nearness_to_target, True),
        ("sgap", linked, True),
        ("pp-gan", likeness, False),
        ("pp-mir", nearest_patient, False),
        ("pp-sir", nearest_in_the_gallery, False),
        ("privacy-net", told_apart, True),
        ("prichexy-net", likeness, False),
    ],
)
def test_the_identity_term_does_what_the_paper_says(name, measure, rises):
    with_term, without = looked_at(name, True, measure), looked_at(name, False, measure)
    print(f"{name} {measure.__name__}: {with_term:.3f} with the term, {without:.3f} without")
    assert (with_term > without + 0.05) if rises else (with_term < without - 0.05)


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before, module):
    return all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_the_generator_and_its_opponents_and_no_guide(name):
    system = made(name)
    step = system.begin(setting())
    pair = nn.ModuleList([guides().finding, guides().identity])
    kept, moving = tensors(pair), {part: tensors(child) for part, child in step.trained.named_children()}
    opponents = {one: tensors(opponent.network) for one, opponent in step.opponents.items()}
    found = step(batch(), 0.2)
    assert same(kept, pair), "a guide moved"
    assert all(part.grad is None for part in pair.parameters())
    assert not any(same(before, step.trained.get_submodule(part)) for part, before in moving.items())
    opposing = [part for opponent in step.opponents.values() for part in opponent.network.parameters()]
    assert all(part.grad is None for part in opposing), "the generator's terms reach its opponents"
    assert not any(same(before, step.opponents[one].network) for one, before in opponents.items())
    assert set(found) == set(system.weights) | {f"opponent/{one}" for one in opponents}
    assert all(value.ndim == 0 and not value.requires_grad and value.isfinite() for value in found.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_term_without_weight_is_not_computed_and_wrong_names_are_refused(name):
    weights = dict(made(name).weights)
    assert all(weight > 0 for weight in weights.values())
    off = dict.fromkeys(weights, 0.0) | {"identity": 1.0}
    step = made(name, weights=off).begin(setting())
    assert {term for term in step(batch(), 0.2) if not term.startswith("opponent/")} == {"identity"}
    with pytest.raises(ValueError, match=r"unknown \['idenity'\]"):
        made(name, weights=weights | {"idenity": 1.0})
    with pytest.raises(ValueError, match=r"missing \['identity'\]"):
        made(name, weights={term: weight for term, weight in weights.items() if term != "identity"})
    with pytest.raises(ValueError, match=r"negative \['identity'\]"):
        checked({"identity": -1.0}, ["identity"], name)


@pytest.mark.parametrize("name", ["pprl-vgan", "pp-sir", "privacy-net"])
def test_a_stopped_training_goes_on_to_the_same_weights(name, tmp_path, monkeypatch):
    class Killed(RuntimeError):
        pass

    whole = train_system(made(name), setting(4), tmp_path / "whole", name)
    stopped = made(name)
    begin = type(stopped).begin

    def dying(system, where):
        step = begin(system, where)
        parts, moves = step.parts, iter(range(2))

        class Dying:
            def __call__(self, *arguments):
                if next(moves, None) is None:
                    raise Killed
                return step(*arguments)

            def parts(self):
                return parts()

        return Dying()

    monkeypatch.setattr("monai_anon.baselines.system.run_step", every_iteration())
    with monkeypatch.context() as patched:
        patched.setattr(type(stopped), "begin", dying)
        with pytest.raises(Killed):
            train_system(stopped, setting(4), tmp_path / "stopped", name)
    assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    gone_on = train_system(made(name, seed=5), setting(4), tmp_path / "stopped", name)
    assert same(tensors(whole), gone_on)


def every_iteration():
    """`run_step` with a checkpoint after each iteration."""
    return functools.partial(run_step, every=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_systems_file_holds_no_guide_and_is_read_again(name, tmp_path):
    system = train_system(made(name), setting(1), tmp_path, name)
    state = torch.load(tmp_path / "system.pt", weights_only=True)
    templates = guides().identity.templates
    assert not any("templates" in key or "guide" in key or "identity" in key for key in state)
    people = {key: value.shape for key, value in state.items() if len(value.shape) and value.shape[0] == len(templates)}
    assert people.keys() == ({"codes"} if name in ("pprl-vgan", "ciagan") else set())
    again = load_system(made(name, seed=3), tmp_path / "system.pt").eval()
    images = batch()["i_ori"]
    torch.manual_seed(2)
    first = system(images)
    torch.manual_seed(2)
    assert torch.equal(again(images), first)
    assert first.shape == images.shape and first.abs().max() <= 1 + 1e-5


def test_whoever_knows_nobody_draws_nobody():
    for name in ("pprl-vgan", "ciagan"):
        with pytest.raises(RuntimeError, match="knows nobody to draw yet"):
            made(name)(batch()["i_ori"])
        with pytest.raises(RuntimeError, match="call begin"):
            made(name).conclude(setting())


def test_all_are_systems_of_the_table_with_an_overlay_of_their_own(root):
    from monai.bundle import ConfigParser

    systems = root / "bundles" / "chest" / "configs" / "systems"
    for name in NAMES:
        file = systems / f"{name}.json"
        assert len(file.read_text().splitlines()) <= 20
        parser = ConfigParser()
        parser.read_config(str(systems.parent / "compare.json"))
        parser.read_config([str(systems.parent / "compare.json"), str(file)])
        built = parser.get_parsed_content("system")
        assert isinstance(built, System) and type(built) is BASELINES[name]
        default = BASELINES[name]()
        assert built.weights == default.weights and built.state_dict().keys() == default.state_dict().keys()


# ---- parts ----


def test_nobody_is_made_themselves():
    patient = torch.arange(5).repeat(40)
    target = another_patient(patient, 5)
    assert not (target == patient).any() and target.min() == 0 and target.max() == 4


def test_distances_are_euclidean_and_repulsion_ends_at_the_margin():
    a, b = F.normalize(torch.randn(4, 6), dim=1), F.normalize(torch.randn(3, 6), dim=1)
    assert torch.allclose(distances(a, b), torch.cdist(a, b), atol=1e-4)
    assert float(repulsion(torch.tensor([0.0, 0.5, 1.0, 1.5]), 1.0)) == pytest.approx((1 + 0.25) / 4)
    itself = a.clone().requires_grad_(True)
    distances(itself, a).sum().backward()
    assert itself.grad.isfinite().all()


def test_a_uniform_guess_costs_the_least():
    assert float(uniform_loss(torch.zeros(2, 7))) == pytest.approx(torch.tensor(7.0).log().item())
    assert uniform_loss(torch.randn(5, 7)) > uniform_loss(torch.zeros(5, 7))


def test_the_gallery_is_of_each_patients_first_image():
    cohort = toy_cohort(PEOPLE)
    vectors = gallery(guides().identity, cohort, "cpu")
    assert torch.allclose(vectors[3], guides().identity(cohort.batch([12])["image"])[0], atol=1e-5)
    assert len(vectors) == PEOPLE


def test_reconstruction_asks_for_the_masked_pixels_only():
    ori, gen, mask = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    gen[..., 3] = 1
    assert masked_reconstruction(ori, gen, mask) == 0
    gen[..., 1] = 1
    assert masked_reconstruction(ori, gen, mask) == 12


def test_saliency_is_where_the_predicted_finding_is_seen():
    recogniser = Recogniser(1, 2, (4, 2))
    recogniser.head.weight.data = torch.eye(2)
    recogniser.head.bias.data.zero_()
    features = torch.zeros(2, 2, 4, 4)
    features[0, 1, 3, 0], features[0, 0, 0, 3] = 3.0, 2.0  # the finding at the lower left, less against it elsewhere
    features[1, 0, 0, 3] = 1.0
    mask = saliency(recogniser, features, 16)
    assert mask.shape == (2, 1, 16, 16) and mask.min() == 0 and mask.max() == 1
    assert mask[0, 0, 14, 1] == 1 and mask[0, 0, 1, 14] == 0
    assert mask[1, 0, 1, 14] == 1 and mask[1, 0, 14, 1] == 0


def test_the_penalty_is_zero_for_a_critic_of_slope_one():
    direction = F.normalize(torch.randn(1 * 8 * 8), dim=0)
    real, gen = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    assert float(gradient_penalty(lambda images: images.flatten(1) @ direction, real, gen)) == pytest.approx(
        0, abs=1e-6
    )
    assert float(gradient_penalty(lambda images: 3 * images.flatten(1) @ direction, real, gen)) == pytest.approx(4)
    assert WASSERSTEIN.critic(torch.ones(2), torch.zeros(2)) == -1 and WASSERSTEIN.generator(torch.ones(2)) == -1


def test_edges_show_structure_and_no_exposure():
    image = torch.rand(2, 3, SIZE, SIZE)
    found = edges(image, 0.1)
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert float((found > 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    assert torch.equal(found, edges(image * 0.5 - 0.3, 0.1))


def test_the_flow_bends_by_mu_at_most_and_invents_no_pixel():
    system = made("prichexy-net", mu=0.1).eval()
    image = torch.rand(2, 1, SIZE, SIZE)
    for parameter in system.parameters():
        parameter.data.mul_(30)
    assert 0 < float(system.flow(image).detach().abs().max()) <= 0.1 + 1e-6
    released = system(image)
    assert released.min() >= image.min() and released.max() <= image.max()
    still = made("prichexy-net", mu=1e-6)
    assert torch.allclose(still(image), image, atol=1e-3)
