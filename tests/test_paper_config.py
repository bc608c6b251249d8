"""paper.json and paper_identity_vae.json are section 4.2 for chest, number by number, down to the built steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_anon import losses
from monai_anon.channel_fitting import fit_channel
from monai_anon.identities import Gallery
from monai_anon.identity_objectives import SiameseIdentity
from monai_anon.identity_vae_step import VAE_TERMS, IdentityVAEStep
from monai_anon.networks import IdentityVAE, Latents
from monai_anon.recipe import TERMS
from monai_anon.steps import DisentanglementStep

CONFIGS = Path(__file__).resolve().parent.parent / "bundles" / "chest" / "configs"
STAGE_1, STAGE_2 = ("train.json", "paper.json"), ("train_identity_vae.json", "paper_identity_vae.json")

# Section 4.2, chest: what the paper prints, under its own names.
SECTION_4_2 = {
    "epochs": 1551,
    "learning rate": 2e-5,
    "lambda_med": 5.0,
    "lambda_id": 5.0,
    "lambda_r": 1.0,
    "lambda_d": 5.0,
    "alpha": 48.0,
    "margin": 0.1,  # section 4.3 names it again, with the threshold
    "epochs of the VAE": 223,
}
THRESHOLD = 0.05  # section 4.3
# Our weights of each lambda's terms: Eq. 2 and 6, Eq. 3's three terms, Eq. 1.
TERMS_OF = {
    "lambda_med": ("medical",),
    "lambda_id": ("identity",),
    "lambda_r": ("adversarial", "ssim", "psnr"),
    "lambda_d": ("disentanglement",),
}
# What the paper does not say and the authors' code does.
AUTHORS = {"batch": 32, "latent": 512, "noise": 0.1, "widths": [64, 128, 256, 512, 1024], "up": [256, 128, 64, 32, 16]}
AUTHORS_VAE = {"hidden": 512 // 4, "latent": 64, "dropout": 0.2, "learning rate": 1e-4, "kl": 2e-3, "hinge": 0.1}


def merged(*names: str, **overrides: Any) -> ConfigParser:
    """The configs as MONAI merges them, on the CPU."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    parser.update({"device": "cpu", **overrides})
    parser.parse()
    return parser


def value(parser: ConfigParser, id_: str) -> Any:
    return parser.get_parsed_content(id_)


@pytest.fixture(scope="module")
def stage_1() -> ConfigParser:
    torch.manual_seed(0)
    return merged(*STAGE_1)


@pytest.fixture(scope="module")
def step(stage_1: ConfigParser) -> DisentanglementStep:
    return value(stage_1, "train#step")


@pytest.fixture(scope="module")
def stage_2() -> ConfigParser:
    torch.manual_seed(0)
    return merged(*STAGE_2)


@pytest.fixture(scope="module")
def vae_step(stage_2: ConfigParser) -> IdentityVAEStep:
    return value(stage_2, "train#step")


def pairs(size: int = 64, count: int = 2) -> dict[str, torch.Tensor]:
    """A batch of two patients with two images each."""
    images = {f"i_{which}": torch.rand(count, 1, size, size) * 2 - 1 for which in ("ori", "tar", "same")}
    index = torch.arange(count)
    labels = {"finding_ori": index % 2, "finding_tar": 1 - index % 2, "finding_same": index % 2}
    return {**images, **labels, "patient_ori": index, "patient_tar": 1 - index, "has_same": index >= 0}


def test_stage_1_has_the_numbers_of_section_4_2(stage_1: ConfigParser) -> None:
    assert value(stage_1, "max_epochs") == SECTION_4_2["epochs"]
    assert value(stage_1, "learning_rate") == SECTION_4_2["learning rate"]
    assert value(stage_1, "train#recipe").alpha == SECTION_4_2["alpha"]
    assert value(stage_1, "train#identity_objective") == SiameseIdentity(SECTION_4_2["margin"])
    weights = value(stage_1, "weights")
    assert weights == dict.fromkeys(TERMS, 0.0) | {
        term: SECTION_4_2[name] for name, terms in TERMS_OF.items() for term in terms
    }


def test_the_trainer_gets_the_epochs(stage_1: ConfigParser) -> None:
    assert stage_1["train"]["trainer"]["max_epochs"] == "@max_epochs"
    assert stage_1["run"] == ["$@train::trainer.run()"]  # no recogniser: it is ours


def test_the_threshold_is_that_of_section_4_3() -> None:
    assert value(merged("evaluate.json", "paper_model.json"), "hit_threshold") == THRESHOLD


def test_stage_1_is_the_authors_code_where_the_paper_is_silent(stage_1: ConfigParser) -> None:
    assert value(stage_1, "batch_size") == AUTHORS["batch"]
    assert value(stage_1, "image_size") == 64
    assert value(stage_1, "latent_sizes") == [AUTHORS["latent"]] * 3
    assert value(stage_1, "noise") == dict.fromkeys(Latents._fields, AUTHORS["noise"])


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


def test_the_built_networks_have_the_authors_widths(step: DisentanglementStep) -> None:
    def convolved(network: nn.Module) -> list[int]:
        widths = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        return list(dict.fromkeys(widths))

    encoder, decoder = step.model.encoder, step.model.decoder
    assert convolved(encoder) == AUTHORS["widths"]
    assert convolved(decoder) == [*AUTHORS["up"], 1]
    assert decoder.dense.out_features == 256 * (64 // 16) ** 2
    assert encoder.head.in_features == AUTHORS["widths"][-1]  # global mean
    assert not encoder.unit_identity and getattr(decoder, "placing", None) is None
    assert set(step.critics) == {"adversarial"} and convolved(step.critics["adversarial"]) == [128, 256, 512]
    for network in (encoder, decoder, step.critics["adversarial"]):
        kinds = {type(m) for m in network.modules()}
        assert nn.BatchNorm2d in kinds and nn.GroupNorm not in kinds
    assert {m.p for m in encoder.modules() if isinstance(m, nn.Dropout2d)} >= {0.5}
    assert {m.p for m in step.model.medical_classifier.modules() if isinstance(m, nn.Dropout)} == {0.5}


def test_noise_is_in_the_reconstruction_only(step: DisentanglementStep) -> None:
    latents = Latents(*(torch.randn(2, AUTHORS["latent"]) for _ in Latents._fields))
    step.model.eval()
    with torch.no_grad():
        (rec_1, gen_1), (rec_2, gen_2) = (step.decode(latents, latents) for _ in range(2))
        noise = torch.cat([(a - b).flatten() for a, b in zip(step.noisy(latents), latents)])
    assert not torch.equal(rec_1, rec_2) and torch.equal(gen_1, gen_2)
    assert noise.std().item() == pytest.approx(AUTHORS["noise"], rel=0.1)


def test_one_step_of_the_paper_at_64_pixels(step: DisentanglementStep) -> None:
    before = [p.detach().clone() for p in step.model.parameters()]
    terms = step(pairs(), progress=0.5)
    paper = {term for terms in TERMS_OF.values() for term in terms}
    assert {name for name in terms if not name.startswith("latent/")} == paper | {"discriminator"}
    assert all(torch.isfinite(term) for term in terms.values())
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(step.model.parameters(), before))
    assert moved == pytest.approx(2e-5, rel=0.05)  # Adam's first step is the learning rate


def test_stage_2_has_the_numbers_of_section_4_2_and_of_the_authors_code(stage_2: ConfigParser) -> None:
    assert value(stage_2, "max_epochs") == SECTION_4_2["epochs of the VAE"]
    assert stage_2["train"]["trainer"]["max_epochs"] == "@max_epochs"
    assert value(stage_2, "margin") == SECTION_4_2["margin"]
    assert value(stage_2, "learning_rate") == AUTHORS_VAE["learning rate"]
    assert value(stage_2, "batch_size") == AUTHORS["batch"]
    assert value(stage_2, "weights") == {
        "reconstruction": 1.0,
        "kl": AUTHORS_VAE["kl"],
        "entropy": 0.0,  # Eq. 7, not Eq. 5
        "repulsion_original": AUTHORS_VAE["hinge"],
        "repulsion_other": AUTHORS_VAE["hinge"],
    }
    assert set(value(stage_2, "weights")) == set(VAE_TERMS)


def test_the_built_stage_2_is_the_papers(vae_step: IdentityVAEStep) -> None:
    vae = vae_step.vae
    assert isinstance(vae, IdentityVAE) and not vae.unit_identity
    assert (vae.identity_size, vae.latent_size) == (AUTHORS["latent"], AUTHORS_VAE["latent"])
    shapes = {tuple(m.weight.shape) for m in vae.modules() if isinstance(m, nn.Linear)}
    hidden, latent = AUTHORS_VAE["hidden"], AUTHORS_VAE["latent"]
    assert shapes == {(hidden, 512), (2 * latent, hidden), (hidden, latent), (512, hidden)}
    assert {m.p for m in vae.modules() if isinstance(m, nn.Dropout)} == {AUTHORS_VAE["dropout"]}
    assert vae_step.margin == SECTION_4_2["margin"] and vae_step.updater.average is None
    group = vae_step.updater.optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"])) == (AUTHORS_VAE["learning rate"], (0.9, 0.999))
    assert [vae_step.updater.settings.factor(p) for p in (0.0, 1.0)] == [1.0, 1.0]
    terms = vae_step({"identity": torch.randn(4, 512), "other": torch.randn(4, 512)}, progress=0.0)
    assert set(terms) - {"latent/sampled_std"} == set(VAE_TERMS) - {"entropy"}


def test_an_epoch_of_stage_2_is_as_many_latents_as_the_training_part_has() -> None:
    parser = merged(*STAGE_2)
    parser["train"]["gallery"] = Gallery(torch.zeros(6000, 1), torch.arange(6000))
    assert len(parser.get_parsed_content("train#loader")) == 6000 // 32


def test_all_paper_overlays_describe_the_same_networks() -> None:
    """A model of paper.json can be read by stage 2, evaluation and inference with their overlays."""
    overlays = {name: json.loads((CONFIGS / name).read_text()) for name in (STAGE_1[1], STAGE_2[1], "paper_model.json")}

    def nodes(name: str, prefix: str) -> dict[str, Any]:
        return {k.removeprefix(prefix): v for k, v in overlays[name].items() if k.startswith(prefix)}

    networks = nodes("paper.json", "network_def#")
    assert networks and networks == nodes("paper_identity_vae.json", "network_def#")
    assert networks == nodes("paper_model.json", "disentangler#")
    assert nodes("paper_identity_vae.json", "identity_vae#") == nodes("paper_model.json", "network_def#identity_vae#")
    assert len({str(overlay["latent_sizes"]) for overlay in overlays.values()}) == 1


@pytest.mark.parametrize("base", ["evaluate.json", "inference.json"])
def test_a_model_of_the_paper_fits_evaluation_and_inference(
    base: str, step: DisentanglementStep, vae_step: IdentityVAEStep
) -> None:
    weights = {f"disentangler.{name}": tensor for name, tensor in step.model.state_dict().items()}
    weights |= {f"identity_vae.{name}": tensor for name, tensor in vae_step.vae.state_dict().items()}
    network = value(merged(base, "paper_model.json"), "network_def")
    assert network.channel.policy == "latents"
    stage_2 = merged("train_identity_vae.json", "paper_identity_vae.json")
    latents = Latents(*torch.randn(3, 240, 512))
    fitted = fit_channel(
        latents, torch.arange(240) // 4, torch.arange(240) % 2, components=stage_2["channel"]["components"]
    )
    network.load_state_dict(weights | {f"channel.{name}": tensor for name, tensor in fitted.state_dict().items()})
    assert not network.identity_vae.unit_identity


def test_psnr_follows_the_equation_with_alpha_48() -> None:
    a, b = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.2)
    psnr = 10 * torch.log10(torch.tensor(2.0**2 / 0.2**2))
    assert losses.psnr_loss(a, b, SECTION_4_2["alpha"]).item() == pytest.approx(1 - psnr.item() / 48)
