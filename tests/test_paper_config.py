"""Each bundle's paper.json and paper_identity_vae.json are section 4.2, number by number, down to the built steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bundle_commands import BUNDLES, CHEST, IRIS, Bundle
from monai.bundle import ConfigParser
from torch import nn

from monai_anon import losses
from monai_anon.channel_fitting import fit_channel
from monai_anon.identities import Gallery
from monai_anon.identity_objectives import ClassifiedIdentity, SiameseIdentity
from monai_anon.identity_vae_step import VAE_TERMS, IdentityVAEStep
from monai_anon.networks import TEMPLATES, IdentityVAE, Latents
from monai_anon.recipe import TERMS
from monai_anon.steps import DisentanglementStep

STAGE_1, STAGE_2 = ("train.json", "paper.json"), ("train_identity_vae.json", "paper_identity_vae.json")

# Section 4.2: what the paper prints, under its own names. All: learning rate 2e-5, alpha 48.
SECTION_4_2 = {
    "chest": {
        "epochs": 1551,
        "lambda_med": 5.0,
        "lambda_id": 5.0,
        "lambda_r": 1.0,
        "lambda_d": 5.0,
        "epochs of the VAE": 223,
        "identity": "Siamese",
    },
    "face": {
        "epochs": 1644,
        "lambda_med": 0.5,
        "lambda_id": 10.0,
        "lambda_r": 0.02,
        "lambda_d": 10.0,
        "epochs of the VAE": 135,
        "identity": "Siamese",
    },
    "iris": {
        "epochs": 4635,
        "lambda_med": 1.0,
        "lambda_id": 1.0,
        "lambda_r": 0.1,
        "lambda_d": 5.0,
        "epochs of the VAE": 803,
        "identity": "multi-class",
    },
}
LEARNING_RATE, ALPHA = 2e-5, 48.0
MARGIN, THRESHOLD = 0.1, 0.05  # section 4.3
# Our weights of each lambda's terms: Eq. 2 and 6, Eq. 3's three terms, Eq. 1.
TERMS_OF = {
    "lambda_med": ("medical",),
    "lambda_id": ("identity",),
    "lambda_r": ("adversarial", "ssim", "psnr"),
    "lambda_d": ("disentanglement",),
}
# What the paper does not say and the authors' code does; they have one program for each kind of identity.
EVERY = {"batch": 32, "noise": 0.1, "up": [256, 128, 64, 32, 16], "dropout of the VAE": 0.2, "rate of the VAE": 1e-4}
AUTHORS = {
    "Siamese": EVERY | {"latent": 512, "widths": [64, 128, 256, 512, 1024], "latent of the VAE": 64, "kl": 2e-3},
    "multi-class": EVERY | {"latent": 256, "widths": [64, 128, 256, 512], "latent of the VAE": 16, "kl": 1e-3},
}
# Eq. 7 with the authors' weight of its hinges, Eq. 5 as it is printed.
PRIVACY = {
    "Siamese": {"entropy": 0.0, "repulsion_original": 0.1, "repulsion_other": 0.1},
    "multi-class": {"entropy": 1.0, "repulsion_original": 0.0, "repulsion_other": 0.0},
}
TRAINING_PATIENTS = 115  # of iris: known from the cohort, which is not made here


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda bundle: bundle.name)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return request.param


@pytest.fixture(scope="module")
def printed(bundle: Bundle) -> dict[str, Any]:
    return SECTION_4_2[bundle.name]


@pytest.fixture(scope="module")
def authors(printed: dict[str, Any]) -> dict[str, Any]:
    return AUTHORS[printed["identity"]]


def merged(bundle: Bundle, *names: str) -> ConfigParser:
    """The configs as MONAI merges them, on the CPU."""
    parser = bundle.parser(*names, device="cpu")
    if "identity_classifier" in parser.get("network_def", {}):
        parser["network_def"]["identity_classifier"]["classes"] = TRAINING_PATIENTS
    return parser


def value(parser: ConfigParser, id_: str) -> Any:
    return parser.get_parsed_content(id_)


@pytest.fixture(scope="module")
def stage_1(bundle: Bundle) -> ConfigParser:
    torch.manual_seed(0)
    return merged(bundle, *STAGE_1)


@pytest.fixture(scope="module")
def step(stage_1: ConfigParser) -> DisentanglementStep:
    return value(stage_1, "train#step")


@pytest.fixture(scope="module")
def stage_2(bundle: Bundle) -> ConfigParser:
    torch.manual_seed(0)
    parser = merged(bundle, *STAGE_2)
    parser["encoder"] = "@network_def"  # untrained
    return parser


@pytest.fixture(scope="module")
def vae_step(stage_2: ConfigParser) -> IdentityVAEStep:
    return value(stage_2, "train#step")


def pairs(channels: int, size: int = 64, count: int = 2) -> dict[str, torch.Tensor]:
    """A batch of two patients with two images each."""
    images = {f"i_{which}": torch.rand(count, channels, size, size) * 2 - 1 for which in ("ori", "tar", "same")}
    index = torch.arange(count)
    labels = {"finding_ori": index % 2, "finding_tar": 1 - index % 2, "finding_same": index % 2}
    return {**images, **labels, "patient_ori": index, "patient_tar": 1 - index, "has_same": index >= 0}


def test_stage_1_has_the_numbers_of_section_4_2(stage_1: ConfigParser, printed: dict[str, Any]) -> None:
    assert value(stage_1, "max_epochs") == printed["epochs"]
    assert value(stage_1, "learning_rate") == LEARNING_RATE
    assert value(stage_1, "train#recipe").alpha == ALPHA
    weights = value(stage_1, "weights")
    assert weights == dict.fromkeys(TERMS, 0.0) | {
        term: printed[name] for name, terms in TERMS_OF.items() for term in terms
    }


def test_identity_is_siamese_or_multi_class_as_printed(stage_1: ConfigParser, printed: dict[str, Any]) -> None:
    objective, classifier = (
        value(stage_1, "train#identity_objective"),
        value(stage_1, "network_def").identity_classifier,
    )
    if printed["identity"] == "Siamese":
        assert objective == SiameseIdentity(MARGIN) and classifier is None
    else:
        assert isinstance(objective, ClassifiedIdentity) and objective.classifier is classifier
        assert classifier[-1].out_features == TRAINING_PATIENTS


def test_the_trainer_gets_the_epochs(stage_1: ConfigParser) -> None:
    assert stage_1["train"]["trainer"]["max_epochs"] == "@max_epochs"
    assert stage_1["run"] == ["$@train::trainer.run()"]  # no recogniser: it is ours


def test_the_threshold_is_that_of_section_4_3(bundle: Bundle) -> None:
    assert value(merged(bundle, "evaluate.json", "paper_model.json"), "hit_threshold") == THRESHOLD


def test_stage_1_is_the_authors_code_where_the_paper_is_silent(stage_1: ConfigParser, authors: dict[str, Any]) -> None:
    assert value(stage_1, "batch_size") == authors["batch"]
    assert value(stage_1, "image_size") == 64
    assert value(stage_1, "latent_sizes") == [authors["latent"]] * 3
    assert value(stage_1, "noise") == dict.fromkeys(Latents._fields, authors["noise"])


def test_the_built_step_weighs_and_updates_so(step: DisentanglementStep, stage_1: ConfigParser) -> None:
    assert step.recipe.weights == value(stage_1, "weights")
    assert step.recipe.every_swap and step.recipe.free_cycle and step.recipe.swaps_from == 0.0
    assert not step.recipe.identity_from_same and not step.recipe.noisy_swaps
    assert step.recipe.swaps == Latents._fields
    assert step.recogniser is None and not step.compute.bf16
    for updater in (step.updater, *step.critic_updaters.values()):
        assert updater is not None
        group = updater.optimizer.param_groups[0]
        assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (2e-5, (0.9, 0.999), 0.0)
        assert updater.settings.clip == 0 and updater.average is None
        assert [updater.settings.factor(p) for p in (0.0, 0.3, 1.0)] == [1.0] * 3  # constant rate


def test_the_built_networks_have_the_authors_widths(
    step: DisentanglementStep, bundle: Bundle, authors: dict[str, Any]
) -> None:
    def convolved(network: nn.Module) -> list[int]:
        widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        return list(dict.fromkeys(widths))

    encoder, decoder = step.model.encoder, step.model.decoder
    assert convolved(encoder) == authors["widths"]
    assert convolved(decoder) == [*authors["up"], bundle.config("train.json")["channels"]]
    assert decoder.dense.out_features == 256 * (64 // 16) ** 2
    assert encoder.head.in_features == authors["widths"][-1]  # global mean
    assert not encoder.unit_identity and getattr(decoder, "placing", None) is None
    assert set(step.critics) == {"adversarial"} and convolved(step.critics["adversarial"]) == [128, 256, 512]
    for network in (encoder, decoder, step.critics["adversarial"]):
        kinds = {type(m) for m in network.modules()}
        assert nn.BatchNorm2d in kinds and nn.GroupNorm not in kinds
    assert {m.p for m in encoder.modules() if isinstance(m, nn.Dropout2d)} >= {0.5}
    assert {m.p for m in step.model.medical_classifier.modules() if isinstance(m, nn.Dropout)} == {0.5}


def test_noise_is_in_the_reconstruction_only(step: DisentanglementStep, authors: dict[str, Any]) -> None:
    latents = Latents(*(torch.randn(2, authors["latent"]) for _ in Latents._fields))
    step.model.eval()
    with torch.no_grad():
        (rec_1, gen_1), (rec_2, gen_2) = (step.decode(latents, latents) for _ in range(2))
        noise = torch.cat([(a - b).flatten() for a, b in zip(step.noisy(latents), latents)])
    assert not torch.equal(rec_1, rec_2) and torch.equal(gen_1, gen_2)
    assert noise.std().item() == pytest.approx(authors["noise"], rel=0.1)


@pytest.mark.parametrize("bundle", [CHEST, IRIS], ids=lambda bundle: bundle.name, indirect=True, scope="module")
def test_one_step_of_the_paper_at_64_pixels(step: DisentanglementStep) -> None:
    before = [p.detach().clone() for p in step.model.parameters()]
    terms = step(pairs(step.model.encoder.channels), progress=0.5)
    paper = {term for terms in TERMS_OF.values() for term in terms}
    assert {name for name in terms if not name.startswith("latent/")} == paper | {"discriminator"}
    assert all(torch.isfinite(term) for term in terms.values())
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(step.model.parameters(), before))
    assert moved == pytest.approx(2e-5, rel=0.05)  # Adam's first step is the learning rate


def test_stage_2_has_the_numbers_of_section_4_2_and_of_the_authors_code(
    stage_2: ConfigParser, printed: dict[str, Any], authors: dict[str, Any]
) -> None:
    assert value(stage_2, "max_epochs") == printed["epochs of the VAE"]
    assert stage_2["train"]["trainer"]["max_epochs"] == "@max_epochs"
    assert value(stage_2, "margin") == MARGIN
    assert value(stage_2, "learning_rate") == authors["rate of the VAE"]
    assert value(stage_2, "batch_size") == authors["batch"]
    weights = {"reconstruction": 1.0, "kl": authors["kl"], **PRIVACY[printed["identity"]]}
    assert value(stage_2, "weights") == weights and set(weights) == set(VAE_TERMS)


def test_the_built_stage_2_is_the_papers(
    vae_step: IdentityVAEStep, stage_2: ConfigParser, printed: dict[str, Any], authors: dict[str, Any]
) -> None:
    vae, size = vae_step.vae, authors["latent"]
    hidden, latent = size // 4, authors["latent of the VAE"]
    assert isinstance(vae, IdentityVAE) and not vae.unit_identity
    assert (vae.identity_size, vae.latent_size) == (size, latent)
    shapes = {tuple(m.weight.shape) for m in vae.modules() if isinstance(m, nn.Linear)}
    assert shapes == {(hidden, size), (2 * latent, hidden), (hidden, latent), (size, hidden)}
    assert {m.p for m in vae.modules() if isinstance(m, nn.Dropout)} == {authors["dropout of the VAE"]}
    assert vae_step.margin == MARGIN and vae_step.updater.average is None
    assert vae_step.identity_classifier is value(stage_2, "network_def").identity_classifier
    group = vae_step.updater.optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"])) == (authors["rate of the VAE"], (0.9, 0.999))
    assert [vae_step.updater.settings.factor(p) for p in (0.0, 1.0)] == [1.0, 1.0]
    terms = vae_step({"identity": torch.randn(4, size), "other": torch.randn(4, size)}, progress=0.0)
    unused = {name for name, weight in PRIVACY[printed["identity"]].items() if weight == 0}
    assert set(terms) - {"latent/sampled_std"} == set(VAE_TERMS) - unused


def test_an_epoch_of_stage_2_is_as_many_latents_as_the_training_part_has(bundle: Bundle) -> None:
    parser = merged(bundle, *STAGE_2)
    parser["train"]["gallery"] = Gallery(torch.zeros(6000, 1), torch.arange(6000))
    assert len(parser.get_parsed_content("train#loader")) == 6000 // 32


def test_all_paper_overlays_describe_the_same_networks(bundle: Bundle) -> None:
    """A model of paper.json can be read by stage 2, evaluation and inference with their overlays."""
    overlays = {name: bundle.config(name) for name in (STAGE_1[1], STAGE_2[1], "paper_model.json")}

    def nodes(name: str, prefix: str) -> dict[str, Any]:
        return {k.removeprefix(prefix): v for k, v in overlays[name].items() if k.startswith(prefix)}

    networks = nodes("paper.json", "network_def#")
    assert networks and networks == nodes("paper_identity_vae.json", "network_def#")
    assert networks == nodes("paper_model.json", "disentangler#")
    assert nodes("paper_identity_vae.json", "identity_vae#") == nodes("paper_model.json", "network_def#identity_vae#")
    assert len({str(overlay["latent_sizes"]) for overlay in overlays.values()}) == 1


def test_a_model_of_the_paper_fits_inference(
    bundle: Bundle, step: DisentanglementStep, vae_step: IdentityVAEStep, authors: dict[str, Any]
) -> None:
    """And evaluation, whose networks are the same; what has a row for each training patient is no part of it."""
    weights = {f"disentangler.{name}": tensor for name, tensor in step.model.state_dict().items()}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(f"disentangler.{TEMPLATES}")}
    weights |= {f"identity_vae.{name}": tensor for name, tensor in vae_step.vae.state_dict().items()}
    network = value(merged(bundle, "inference.json", "paper_model.json"), "network_def")
    assert network.channel.policy == "latents"
    stage_2 = merged(bundle, *STAGE_2)
    latents = Latents(*torch.randn(3, 240, authors["latent"]))
    fitted = fit_channel(
        latents, torch.arange(240) // 4, torch.arange(240) % 2, components=stage_2["channel"]["components"]
    )
    network.load_state_dict(weights | {f"channel.{name}": tensor for name, tensor in fitted.state_dict().items()})
    assert not network.identity_vae.unit_identity


def test_psnr_follows_the_equation_with_alpha_48() -> None:
    a, b = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.2)
    psnr = 10 * torch.log10(torch.tensor(2.0**2 / 0.2**2))
    assert losses.psnr_loss(a, b, ALPHA).item() == pytest.approx(1 - psnr.item() / 48)
