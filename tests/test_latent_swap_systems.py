"""Compared systems that replace an identity latent: what each of them says that it does, on a tiny cohort."""

import dataclasses
import json

import pytest
import torch
from tiny import SIZE, tiny_recogniser

from monai_anon.baselines import BASELINES
from monai_anon.baselines.cleanir import CLEANIR, turned
from monai_anon.baselines.latent_swap import averages_of
from monai_anon.baselines.montenegro_2023 import Montenegro2023
from monai_anon.baselines.ours import RECIPE as OUR_RECIPE
from monai_anon.baselines.ours import Ours
from monai_anon.baselines.paper import RECIPE as PAPER_RECIPE
from monai_anon.baselines.paper import WITH_ENTROPY, AverageOfAll, AveragesOf6, AveragesOf12, PlainVAE, PrivateVAE
from monai_anon.baselines.r2vae import exchanged
from monai_anon.baselines.system import Guides, IdentityGuide, Setting, load_system, train_system
from monai_anon.channel import ChannelError
from monai_anon.cohort import Cohort
from monai_anon.identities import Gallery, build_gallery
from monai_anon.optimisation import Optimisation
from monai_anon.pairs import PairLoader

FAMILY = ["averaging-6", "averaging-12", "averaging-all", "vae", "vae-privacy", "ours"]
FAMILY += ["cleanir", "r2vae", "montenegro-2023"]
NETS = {"size": SIZE, "encoder_widths": (8, 16), "decoder_widths": (16, 8)}
SMALL = NETS | {"latent_sizes": (8, 4, 6)}


def people(patients=16, images=8):
    """Patients are stripes of a frequency and a shade, the finding a bright square, each image a little shifted."""
    generator = torch.Generator().manual_seed(0)
    patient, index = torch.arange(patients * images) % patients, torch.arange(patients * images)
    finding = index // patients % 2
    x = torch.linspace(0, 1, SIZE)[None, None, None, :] + 0.02 * torch.randn(len(index), 1, 1, 1, generator=generator)
    waves = torch.sin(6.28 * (1 + patient % 4)[:, None, None, None] * x).expand(-1, 1, SIZE, SIZE)
    pictures = 128 + 50 * waves + 40 * ((patient // 4).float()[:, None, None, None] - 1.5)
    pictures[finding == 1, :, 16:28, 4:16] = 255
    pixels = pictures.clamp(0, 255).to(torch.uint8)
    return Cohort(pixels, patient, finding, [{}] * len(index), ["absent", "effusion"], name="people")


def setting(batches=2, lr=5e-3, **changed):
    guides = Guides(tiny_recogniser(), IdentityGuide(1, 16, (8, 8), 8).eval().requires_grad_(False))
    return Setting(people(), guides, Optimisation(lr=lr, ema=0.9), batches, 8, **changed)


def made(name, **changed):
    torch.manual_seed(0)
    if name in ("cleanir", "r2vae"):
        return BASELINES[name](**NETS, identity_size=8, **changed)
    return BASELINES[name](**SMALL, **({"patients_a_prototype": 1} if name == "ours" else {}), **changed)


def trained(system, given):
    """A system after its batches, concluded."""
    torch.manual_seed(0)
    step, loader = system.begin(given), PairLoader(given.cohort, given.batch_size)
    for iteration in range(given.batches):
        torch.manual_seed(iteration)
        terms = step(loader.batch(iteration), iteration / given.batches)
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    system.eval().requires_grad_(False)
    system.conclude(dataclasses.replace(given, batches=2))
    return system, step


# ---- all of them ----


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_moves_the_system_and_no_guide_and_keeps_nobodys_template(name, tmp_path):
    given, system = setting(), made(name)
    guides = [given.guides.finding, given.guides.identity]
    before = [p.clone() for guide in guides for p in guide.parameters()]
    first = {key: value.clone() for key, value in system.state_dict().items()}
    train_system(system, given, tmp_path / name, name)
    assert all(torch.equal(a, b) for a, b in zip(before, [p for g in guides for p in g.parameters()], strict=True))
    moved = [key for key, value in system.state_dict().items() if key in first and not torch.equal(value, first[key])]
    assert any("encoder" in key for key in moved) and any("decoder" in key for key in moved)
    templates = given.guides.identity.templates
    for key, value in torch.load(tmp_path / name / "system.pt", weights_only=True).items():
        assert value.shape != templates.shape, key
        assert not any(word in key for word in ("identity_classifier", "templates", "probe", "guide")), key
    again = load_system(made(name), tmp_path / name / "system.pt").eval()
    image = torch.rand(3, 1, SIZE, SIZE) * 2 - 1
    assert torch.equal(*(released(one, image) for one in (system, again)))
    changed = image.clone()
    changed[1:] = -image[1:]
    assert torch.allclose(released(again, changed)[0], released(again, image)[0], atol=1e-5), "not of its image alone"


def released(system, image, seed=3):
    torch.manual_seed(seed)
    with torch.no_grad():
        return system(image)


def test_the_configs_give_what_the_classes_take_for_granted(root):
    from monai.bundle import ConfigParser

    folder = root / "bundles" / "chest" / "configs"
    for name in FAMILY:
        parser = ConfigParser()
        overlay = folder / "systems" / f"{name}.json"
        assert len(overlay.read_text().splitlines()) <= 20
        parser.read_config([folder / "compare.json", overlay])
        system, usual = parser.get_parsed_content("system"), BASELINES[name]()
        assert type(system) is BASELINES[name]
        shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (system, usual)]
        assert shapes[0] == shapes[1]
        for knob in ("recipe", "weights", "vae_weights", "vae_margin", "theta", "k", "kept", "patients_a_prototype"):
            if hasattr(usual, knob):
                assert getattr(system, knob) == getattr(usual, knob), (name, knob)


def test_recipes_are_those_of_the_bundle(root):
    folder = root / "bundles" / "chest" / "configs"
    ours, paper = (json.loads((folder / name).read_text()) for name in ("train.json", "paper_losses.json"))
    for recipe, config in ((OUR_RECIPE, ours), (PAPER_RECIPE, paper)):
        assert recipe.weights == {term: weight for term, weight in config["weights"].items() if weight}
        assert recipe.noise == {name: noise for name, noise in config["noise"].items() if noise}
        assert [recipe.vary, recipe.warp] == [config["vary"], config["warp"]]
    assert [OUR_RECIPE.swaps_from, OUR_RECIPE.independence_from] == [ours["swaps_from"], ours["independence_from"]]
    assert ours["train"]["recipe"]["veil"] == OUR_RECIPE.veil
    for switch in ("every_swap", "noisy_swaps", "identity_from_same", "free_cycle", "alpha"):
        assert getattr(PAPER_RECIPE, switch) == paper[f"train#recipe#{switch}"]


# ---- the paper's ----


def test_the_papers_systems_share_one_training(tmp_path):
    made_of = [train_system(made(name), setting(), tmp_path / name, name) for name in ("averaging-6", "vae-privacy")]
    assert torch.equal(*(one.disentangler.encoder.head.weight for one in made_of))
    assert (tmp_path / "paper-autoencoder" / "checkpoint.pt").is_file()


def test_averages_are_of_k_patients_means_on_the_sphere():
    gallery = Gallery(torch.eye(8).repeat(2, 1), torch.arange(16) % 8)
    for k in (2, 6):
        found = averages_of(gallery, k, 5, seed=0)
        assert found.shape == (5, 8) and torch.allclose(found.norm(dim=1), torch.full((5,), 8**0.5))
        assert (found > 0).sum(1).tolist() == [k] * 5
    assert torch.allclose(averages_of(gallery, None, 5, seed=0), torch.ones(1, 8))
    with pytest.raises(ValueError, match="averaging 8 identities: it must be from 1 to 7"):
        averages_of(gallery, 8, 5, seed=0)


def test_an_average_of_more_patients_is_nearer_to_that_of_all():
    given, image = setting(), torch.rand(2, 1, SIZE, SIZE)
    made_of = [made(name) for name in ("averaging-6", "averaging-12", "averaging-all")]
    for one in made_of:
        one.eval().conclude(given)
    six, twelve, everyone = (one.averages for one in made_of)
    assert (len(six), len(twelve), len(everyone)) == (256, 256, 1)
    assert (six - everyone).square().mean() > (twelve - everyone).square().mean() > 0
    assert torch.equal(released(made_of[2], image, 1), released(made_of[2], image, 2)), "there is one average only"
    assert not torch.equal(released(made_of[0], image, 1), released(made_of[0], image, 2))
    with pytest.raises(RuntimeError, match="no averages of identities yet"):
        released(AveragesOf6(**SMALL), image)


def test_the_hinges_keep_drawn_identities_away_from_real_ones():
    def nearness(vae_weights):
        torch.manual_seed(0)
        system = PrivateVAE(**SMALL, vae_weights=vae_weights, vae_margin=4.0).eval()
        system.conclude(dataclasses.replace(setting(150)))
        real = build_gallery(system.disentangler, people()).identity
        torch.manual_seed(1)
        return float((system.another(torch.zeros(200, 8))[:, None] - real).square().mean())

    plain = {"reconstruction": 1.0, "kl": 0.002}
    assert nearness(plain | {"repulsion_original": 3.0, "repulsion_other": 3.0}) > 1.5 * nearness(plain)


def test_the_entropy_needs_the_classifier_of_patients_which_stays_in_the_training(tmp_path):
    system = PrivateVAE(**SMALL, multi_class=True)
    assert system.vae_weights == WITH_ENTROPY and "entropy" not in PlainVAE(**SMALL).vae_weights
    train_system(system, setting(), tmp_path / "vae-privacy", "vae-privacy")
    state = torch.load(tmp_path / "vae-privacy" / "system.pt", weights_only=True)
    assert not any("identity_classifier" in key for key in state)
    checkpoint = torch.load(tmp_path / "paper-autoencoder" / "checkpoint.pt", weights_only=True)
    assert any("identity_classifier" in key for key in checkpoint["model"])


def test_averages_have_their_number_of_patients():
    assert (AveragesOf6.k, AveragesOf12.k, AverageOfAll.k) == (6, 12, None)


# ---- ours ----


def test_ours_releases_one_of_the_prototypes_and_refuses_to_be_without():
    given, system = setting(), made("ours")
    with pytest.raises(ChannelError, match="no prototypes"):
        Ours(**SMALL, patients_a_prototype=1000).eval().conclude(given)
    system.eval().conclude(given)
    channel = system.networks.channel
    assert 1 <= channel.codebook.count(channel.level) <= 32
    z = system.networks.disentangler.encode(given.cohort.batch(range(40))["image"])
    drawn = system.networks.drawn(z, torch.zeros(40, system.networks.noise_size))
    prototypes = channel.codebook.prototypes[channel.level]
    assert ((drawn.medical[:, None] - prototypes).square().sum(2).amin(1) < 1e-10).all()


# ---- CLEANIR ----


@pytest.mark.parametrize("theta", [0.0, 30.0, 90.0, 180.0])
def test_theta_is_the_angle_between_the_identities(theta):
    identity = torch.nn.functional.normalize(torch.randn(50, 12), dim=1) * 12**0.5
    found = turned(identity, torch.randn(50, 12), theta)
    assert torch.allclose(found.norm(dim=1), identity.norm(dim=1), atol=1e-5)
    cosine = torch.cosine_similarity(identity, found)
    assert torch.allclose(cosine, torch.tensor(theta).deg2rad().cos().expand(50), atol=1e-5)
    system = CLEANIR(**NETS, identity_size=12, theta=theta)
    assert torch.allclose(torch.cosine_similarity(identity, system.another(identity)), cosine, atol=1e-5)


def test_cleanirs_first_half_becomes_the_guides_embedding():
    def likeness(weight):
        given = setting(40)
        weights = {"reconstruction": 1.0, "kl": 1.0, "identity": weight}
        system, _ = trained(made("cleanir", weights=weights), given)
        image = given.cohort.batch(range(64))["image"]
        with torch.no_grad():
            return float(torch.cosine_similarity(system.encode(image)[0], given.guides.identity(image)).mean())

    assert likeness(1000.0) > 0.9 > likeness(0.0) + 0.3


def test_cleanir_refuses_another_length_and_no_angle():
    with pytest.raises(ValueError, match="identity_size is 12; the identity guide's vectors have 8"):
        CLEANIR(**NETS, identity_size=12).begin(setting())
    with pytest.raises(ValueError, match="theta is 200"):
        CLEANIR(theta=200)


# ---- R2VAE ----


def test_r2vaes_replaced_images_show_the_other_and_are_restored():
    def exchange(**changed):
        given = setting(120)
        weights = {"reconstruction": 1.0, "kl": 1.0, "restoration": 1.0, "replacement": 100.0, "identity": 100.0}
        system, _ = trained(made("r2vae", weights=weights | changed), given)
        batch = PairLoader(given.cohort, 32).batch(999)
        pair = torch.cat([batch["i_ori"], batch["i_tar"]])
        with torch.no_grad():
            identity, rest, _ = system.encode(pair)
            found, left, _ = system.encode(system.decode(exchanged(identity), rest))
            restored = system.decode(exchanged(found), left)
        towards = torch.cosine_similarity(found, exchanged(identity)) - torch.cosine_similarity(found, identity)
        return float((restored - pair).square().mean()), float(towards.mean())

    found, (error, ignored) = exchange(), exchange(replacement=0.0)
    assert found[1] > ignored + 0.2, "the cycle alone lets the decoder overlook the identity"
    assert error < 0.85 * exchange(replacement=0.0, restoration=0.0)[0]


# ---- Montenegro 2023 ----


def test_the_encoder_learns_to_fool_the_probes():
    def known(weight):
        torch.manual_seed(0)
        given, system = setting(), made("montenegro-2023")
        system.weights |= {"ssim": 0.0, "finding_invariance": 0.0, "patient_invariance": 0.0}
        step, loader = system.begin(given), PairLoader(given.cohort, 16)
        seen = []
        for iteration in range(70):  # the probes learn first, unopposed
            torch.manual_seed(iteration)
            if iteration == 45:
                system.weights |= {"finding_invariance": weight, "patient_invariance": weight}
            seen.append(step(loader.batch(iteration), 0.3))
        return [sum(float(terms[f"{name}_invariance"]) for terms in seen[-5:]) / 5 for name in ("finding", "patient")]

    fooled, unopposed = known(5.0), known(0.0)
    assert all(one < 0.7 * other for one, other in zip(fooled, unopposed, strict=True))


def test_a_stopped_training_goes_on_with_its_probes(tmp_path):
    def run(step, iterations):
        loader = PairLoader(people(), 8)
        for iteration in iterations:
            torch.manual_seed(iteration)
            terms = step(loader.batch(iteration), iteration / 4)
        return terms

    whole = run(Montenegro2023(**SMALL).begin(setting()), range(2)), None
    torch.manual_seed(0)
    first = made("montenegro-2023").begin(setting())
    run(first, range(2))
    kept = {name: part.state_dict() for name, part in first.parts().items()}
    torch.save(kept, tmp_path / "kept.pt")
    second = Montenegro2023(**SMALL).begin(setting())
    for name, part in second.parts().items():
        part.load_state_dict(torch.load(tmp_path / "kept.pt", weights_only=True)[name])
    assert run(first, range(2, 4)) == run(second, range(2, 4)) != whole
