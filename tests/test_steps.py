"""A step adds up exactly the terms that have a weight, swaps the right latents, and repeats itself."""

import copy
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import LATENT_SIZES, SIZE, pair_batch, tiny_discriminator, tiny_disentangler, tiny_recogniser
from torch import nn

from monai_anon import losses, optimisation
from monai_anon.identity_objectives import ClassifiedIdentity, ContrastiveIdentity, SiameseIdentity, SummedIdentity
from monai_anon.identity_vae_step import VAE_TERMS, IdentityVAEStep
from monai_anon.independence import CORRELATIONS
from monai_anon.networks import IdentityVAE, LatentClassifier, Latents, Recogniser
from monai_anon.optimisation import Optimisation, Updater, frozen
from monai_anon.recipe import RECOGNISED, SWAP_TERMS, TERMS, Recipe
from monai_anon.recognition import RecogniserStep, finding_objective, jitter
from monai_anon.steps import DisentanglementStep, latent_statistics
from monai_anon.variation import other_captures, other_people

ALL = {term: 0.1 * (number + 1) for number, term in enumerate(TERMS)}
NOISE = {"identity": 0.1, "medical": 0.2, "residual": 0.3}


def make_step(recipe=None, identity=None, optimisation=None, model=None, **parts):
    """A step with both discriminators and a recogniser, from the same weights each time."""
    torch.manual_seed(0)
    model = model or tiny_disentangler()
    networks = {"discriminator": tiny_discriminator(), "recogniser": tiny_recogniser()}
    parts = networks | {"swap_discriminator": tiny_discriminator()} | parts
    optimisation = optimisation or Optimisation(lr=1e-3)
    return DisentanglementStep(
        model, recipe or Recipe(ALL, NOISE), optimisation, identity or SiameseIdentity(), **parts
    )


class Recorder:
    """In place of an updater: keeps the loss and leaves the networks as they are."""

    def update(self, loss, progress):
        self.loss = float(loss.detach())


def total_and_terms(recipe, progress=0.5, **options):
    """The loss that would be minimised, and what the step returns, always from the same weights and random numbers."""
    step = make_step(recipe, **options)
    step.updater, step.critic_updaters = Recorder(), dict.fromkeys(step.critics, Recorder())
    for correlation in step.independence.correlations.values():  # what they remember is 0 in the first step
        before = correlation.correlation.before
        before.copy_(torch.randn(before.shape))
    torch.manual_seed(1)
    terms = step(pair_batch(), progress)
    return step.updater.loss, terms


def gradients_of_updates(updater):
    """A list that each update fills with the gradients its optimiser sees; they are freed right after."""
    seen = []
    updater.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in updater.parameters if p.grad is not None)
    )
    return seen


@contextmanager
def counted(*modules):
    """Forward calls of each module."""
    calls = [0] * len(modules)

    def count(index):
        def hook(*_):
            calls[index] += 1

        return hook

    handles = [module.register_forward_hook(count(index)) for index, module in enumerate(modules)]
    yield calls
    for handle in handles:
        handle.remove()


# ---- What is refused ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"sim": 1.0}}, r"weights: unknown \['sim'\].*'ssim'"),
        ({"weights": {}, "noise": {"medicine": 0.1}}, r"noise: unknown \['medicine'\].*'medical'"),
        ({"weights": {}, "swaps": ("identity", "pose")}, r"swaps: unknown \['pose'\].*'residual'"),
        ({"weights": {"ssim": -1.0}}, r"weights: \['ssim'\] are negative"),
        ({"weights": {}, "noise": {"medical": -0.1}}, r"noise: \['medical'\] are negative"),
        ({"weights": {"disentanglement": 1.0}, "swaps": ()}, "swaps is empty"),
        ({"weights": {}, "finding_exchange": 1.5}, "finding_exchange is 1.5; it must be a share, from 0 to 1"),
    ],
)
def test_recipe_refuses_unknown_names_and_negative_numbers(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


@pytest.mark.parametrize("term", ["adversarial", "swap_adversarial", *RECOGNISED])
def test_a_weighted_term_needs_its_network(term):
    with pytest.raises(ValueError, match=term):
        make_step(Recipe({term: 1.0}), discriminator=None, swap_discriminator=None, recogniser=None)
    make_step(Recipe({term: 0.0, "ssim": 1.0}), discriminator=None, swap_discriminator=None, recogniser=None)


def test_identity_vae_step_refuses_unknown_terms_and_entropy_without_classifier():
    with pytest.raises(ValueError, match=r"unknown \['repulsion'\].*'repulsion_other'"):
        IdentityVAEStep(IdentityVAE(8, 4, 16), {"repulsion": 1.0}, Optimisation())
    with pytest.raises(ValueError, match=r"'entropy'.*needs the multi-class identity classifier"):
        IdentityVAEStep(IdentityVAE(8, 4, 16), {"entropy": 1.0}, Optimisation())


# ---- Eq. 4: each term once, with its weight ----


@pytest.mark.parametrize("every_swap", [False, True])
@pytest.mark.parametrize("identity_from_same", [False, True])
def test_the_loss_is_the_weighted_sum_of_the_returned_terms(every_swap, identity_from_same):
    recipe = Recipe(ALL, NOISE, every_swap=every_swap, identity_from_same=identity_from_same)
    total, terms = total_and_terms(recipe)
    assert set(TERMS) < set(terms)
    assert total == pytest.approx(sum(ALL[term] * float(terms[term]) for term in TERMS), rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
def test_a_weight_moves_the_loss_by_its_term_once(term):
    before, terms = total_and_terms(Recipe(ALL, NOISE))
    after, _ = total_and_terms(Recipe(ALL | {term: ALL[term] + 0.5}, NOISE))
    assert abs(float(terms[term])) > 1e-3
    assert after - before == pytest.approx(0.5 * float(terms[term]), rel=1e-3, abs=1e-5)


def test_with_the_papers_weights_the_loss_is_equations_3_4_and_6(root):
    config = json.loads((root / "bundles/chest/configs/paper.json").read_text())
    switches = ("every_swap", "noisy_swaps", "identity_from_same", "free_cycle", "alpha")
    recipe = Recipe(config["weights"], config["noise"], **{name: config[f"train#recipe#{name}"] for name in switches})
    total, t = total_and_terms(recipe, recogniser=None)
    lambda_med, lambda_id, lambda_r, lambda_d = 5, 5, 1, 5  # section 4.2, chest
    expected = lambda_med * t["medical"] + lambda_id * t["identity"]
    expected += lambda_r * (t["adversarial"] + t["ssim"] + t["psnr"]) + lambda_d * t["disentanglement"]
    assert total == pytest.approx(float(expected), rel=1e-5)


def test_the_papers_terms_are_those_of_a_slow_reference():
    recipe = Recipe(
        {"medical": 1.0, "identity": 1.0, "ssim": 1.0, "psnr": 1.0, "disentanglement": 1.0},
        every_swap=True,
        identity_from_same=False,
        free_cycle=True,
    )
    step = make_step(recipe, model=tiny_disentangler(dropout=0.0))
    step.updater = Recorder()
    batch = pair_batch()
    terms = step(batch, 0.0)
    model = step.model.eval()
    with torch.no_grad():
        z_ori, z_tar, z_same = (model.encode(batch[f"i_{which}"]) for which in ("ori", "tar", "same"))
        cycle = 0.0
        for row in range(6):
            ori, tar = (Latents(*(latent[row : row + 1] for latent in z)) for z in (z_ori, z_tar))
            for name in Latents._fields:
                wanted = ori._replace(**{name: getattr(tar, name)})
                again = model.encode(model.decode(wanted))
                cycle += sum(float((a - b).square().mean()) for a, b in zip(again, wanted)) / 6
        encoded = [(z, batch[f"finding_{which}"]) for z, which in ((z_ori, "ori"), (z_tar, "tar"), (z_same, "same"))]
        medical = [losses.classification_loss(model.classify(z.medical), finding) for z, finding in encoded]
        i_rec = model(batch["i_ori"])
        expected = {
            "disentanglement": cycle,
            "medical": sum(medical) / 3,
            "identity": losses.siamese_loss(z_ori.identity, z_same.identity, z_tar.identity, batch["has_same"]),
            "ssim": losses.ssim_loss(batch["i_ori"], i_rec),
            "psnr": losses.psnr_loss(batch["i_ori"], i_rec),
        }
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-4), name


@pytest.mark.parametrize("term", TERMS)
def test_weight_0_costs_nothing(term):
    needed = {"adversarial": 0, "swap_adversarial": 2} | dict.fromkeys(RECOGNISED, 1)
    without = ALL | {term: 0.0}
    if term in RECOGNISED:
        without |= dict.fromkeys(RECOGNISED, 0.0)
    given = {"discriminator": tiny_discriminator(), "swap_discriminator": tiny_discriminator()}
    step = make_step(Recipe(without, NOISE), **given)
    with counted(given["discriminator"], step.recogniser.body, given["swap_discriminator"]) as calls:
        terms = step(pair_batch(), 0.5)
    assert term not in terms
    assert ("discriminator" in terms) == (term != "adversarial")
    assert ("swap_discriminator" in terms) == (term != "swap_adversarial")
    for network, count in enumerate(calls):
        assert (count == 0) == (network == needed.get(term))


def test_a_discriminator_without_weight_is_dropped_and_not_kept_in_checkpoints():
    step = make_step(Recipe({"ssim": 1.0}))
    assert step.critics == {} and set(step.parts()) == {"model", "updater"}
    critics = {
        f"{term}_{what}" for term in ("adversarial", "swap_adversarial") for what in ("discriminator", "updater")
    }
    assert set(make_step().parts()) == {"model", "updater", *CORRELATIONS} | critics


@pytest.mark.parametrize("identity_from_same", [False, True])
def test_the_exchange_is_told_the_finding_of_the_image_that_each_identity_is_of(identity_from_same):
    step = make_step(Recipe({"ssim": 1.0}, finding_exchange=0.5, identity_from_same=identity_from_same))
    told = []
    step.exchange.register_forward_hook(lambda _, given, __: told.append(given))
    batch = pair_batch()
    step.updater = Recorder()
    step(batch, 0.5)
    (identity, finding), which = told[0], ("same", "ori") if identity_from_same else ("ori",)
    with torch.no_grad():
        images = torch.cat([batch[f"i_{w}"] for w in which])
        torch.testing.assert_close(identity.detach(), step.model.encode(images).identity)
    assert torch.equal(finding, torch.cat([batch[f"finding_{w}"] for w in which]))
    assert "finding_exchange" in step.parts()


def test_without_swap_terms_nothing_is_swapped_or_encoded_for_it():
    step = make_step(Recipe({"ssim": 1.0, "medical": 1.0}), identity=ContrastiveIdentity())
    rows = []
    handles = [
        network.register_forward_hook(
            lambda _, inputs, __: rows.append(len(inputs[0][0] if isinstance(inputs[0], Latents) else inputs[0]))
        )
        for network in (step.model.encoder, step.model.decoder)
    ]
    step(pair_batch(), 0.5)
    for handle in handles:
        handle.remove()
    assert rows == [12, 12]  # I_ori and I_same, encoded and decoded once


def test_swap_terms_join_after_their_share_of_the_training():
    step = make_step(Recipe(ALL, NOISE, swaps_from=0.4))
    assert not set(SWAP_TERMS) & set(step(pair_batch(), 0.39))
    assert set(SWAP_TERMS) <= set(step(pair_batch(), 0.4))


def test_correlation_terms_join_after_their_share_of_the_training():
    step = make_step(Recipe(ALL, NOISE, independence_from=0.15))
    assert not set(CORRELATIONS) & set(step(pair_batch(), 0.14))
    assert set(CORRELATIONS) <= set(step(pair_batch(), 0.15))


@pytest.mark.parametrize("varied", [other_captures, partial(other_people, warp=0.04)])
def test_varied_images_stay_in_range_and_the_labels_as_they_are(varied):
    batch = pair_batch()
    changed = varied(batch)
    for name, value in batch.items():
        image = name.startswith("i_")
        assert torch.equal(changed[name], value) != image and changed[name].shape == value.shape
        assert not image or changed[name].abs().max() <= 1


def test_a_pair_is_one_person_in_two_captures():
    batch = pair_batch()
    pair = {**batch, "i_same": batch["i_ori"], "i_tar": batch["i_ori"]}
    person, captures = other_people(pair, 0.04), other_captures(pair)
    assert torch.equal(person["i_same"], person["i_ori"]) and not torch.equal(person["i_tar"], person["i_ori"])
    assert not torch.equal(captures["i_same"], captures["i_ori"])


def test_another_person_is_near_the_first_and_moves_no_further_than_told():
    """A column of light, which stands still where nothing is displaced; the shade alone never reaches a quarter."""
    image = torch.full((200, 1, 32, 32), -0.5)
    image[..., 15:17] = 0.5
    pair = dict.fromkeys(("i_ori", "i_same", "i_tar"), image)
    for warp, furthest in ((0.0, 0.0), (0.1, 0.1 * 32 * 1.3)):  # bicubic fields overshoot their knots
        light = other_people(pair, warp)["i_ori"][:, 0] > 0.0
        column = torch.arange(32.0) - 15.5
        moved = (column * light).sum(-1) / light.sum(-1).clamp_min(1)
        assert moved.abs().max() <= furthest + 0.5 and (moved.abs().max() > 1) == (warp > 0)


@pytest.mark.parametrize("how", ["vary", "warp"])
def test_a_step_varies_its_images_only_if_told(monkeypatch, how):
    seen = []
    monkeypatch.setattr(losses, "ssim_loss", lambda real, _: seen.append(real) or real.sum())
    batch = pair_batch()
    for told in ({}, {how: True if how == "vary" else 0.04}):
        make_step(Recipe({"ssim": 1.0, "pixel": 1.0}, **told), identity=ContrastiveIdentity())(batch, 0.5)
    both = torch.cat([batch["i_ori"], batch["i_same"]])
    assert torch.equal(seen[0], both) and not torch.equal(seen[1], both)


@pytest.mark.parametrize("augment", [True, False])
def test_the_discriminator_sees_augmented_images_only_if_told(augment):
    critic, seen = tiny_discriminator(), []
    critic.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    recipe = Recipe({"ssim": 1.0, "adversarial": 0.1}, augment=augment)
    batch = pair_batch()
    make_step(recipe, identity=ContrastiveIdentity(), discriminator=critic)(batch, 0.5)
    real = torch.cat([batch["i_ori"], batch["i_same"]])
    assert [len(images) for images in seen] == [24, 12]  # the discriminator's own step, then the decoder's
    assert torch.equal(seen[0][:12], real) != augment
    assert torch.equal(seen[0][12:], seen[1])  # both of its sides see the same, augmented once


# ---- Swaps ----


def marked(count, value):
    """Latents whose every number tells the image: value + row."""
    rows = torch.arange(count)[:, None] + value
    return Latents(*(rows.expand(-1, size).float() for size in LATENT_SIZES))


@pytest.mark.parametrize("every_swap", [True, False])
@pytest.mark.parametrize("size", [2, 6, 7])
def test_swapped_latents_come_from_the_target_and_the_others_from_the_original(every_swap, size):
    step = make_step(Recipe(ALL, every_swap=every_swap))
    source, z_tar = marked(2 * size, 0), marked(size, 100)  # the second half of the source is I_same
    mixed, segments = step.swap(source, z_tar)
    made = []
    for name, rows, place in segments:
        for row, generated in zip(range(size)[rows], range(len(mixed.identity))[place], strict=True):
            for latent in Latents._fields:
                assert (getattr(mixed, latent)[generated] == row + (100 if latent == name else 0)).all()
            made.append((name, row))
    assert len(made) == len(mixed.identity) == len(set(made))
    if every_swap:
        assert set(made) == {(name, row) for name in Latents._fields for row in range(size)}
    else:
        assert sorted(row for _, row in made) == list(range(size))
        assert all(rows.stop > rows.start for _, rows, _ in segments)


def test_fewer_images_than_swaps_give_finite_terms():
    batch = {name: value[:2] for name, value in pair_batch().items()}
    terms = make_step()(batch, 0.5)
    assert all(math.isfinite(float(terms[term])) for term in TERMS)


def test_only_the_named_latents_are_swapped():
    step = make_step(Recipe(ALL, swaps=("medical",)))
    _, segments = step.swap(marked(6, 0), marked(6, 100))
    assert [(name, rows) for name, rows, _ in segments] == [("medical", slice(0, 6))]


def test_identity_from_same_crosses_the_two_images_of_a_patient():
    z_ori, z_same = marked(3, 0), marked(3, 50)
    crossed = make_step(Recipe(ALL, identity_from_same=True)).sources(z_ori, z_same)
    assert crossed.identity[:, 0].tolist() == [50, 51, 52, 0, 1, 2]
    for latent in (crossed.medical, crossed.residual):
        assert latent[:, 0].tolist() == [0, 1, 2, 50, 51, 52]
    plain = make_step(Recipe(ALL, identity_from_same=False)).sources(z_ori, z_same)
    assert all(torch.equal(a, b) for a, b in zip(plain, z_ori))


@pytest.mark.parametrize("identity_from_same", [True, False])
def test_what_is_reconstructed_is_compared_with_its_own_image(identity_from_same):
    step = make_step(Recipe({"ssim": 1.0}, identity_from_same=identity_from_same), identity=ContrastiveIdentity())
    batch = pair_batch()
    i_real, z_ori, z_same, z_tar = step.encode_pairs(batch, with_target=True)
    wanted = [batch["i_ori"], batch["i_same"]] if identity_from_same else [batch["i_ori"]]
    assert torch.equal(i_real, torch.cat(wanted))
    model = step.model.eval()
    for z, which in ((z_ori, "ori"), (z_same, "same"), (z_tar, "tar")):
        torch.testing.assert_close(z.residual, model.encode(batch[f"i_{which}"]).residual, atol=1e-5, rtol=0)


def test_noise_is_added_where_it_is_asked_for():
    z = Latents(*(torch.zeros(4000, size) for size in LATENT_SIZES))
    noisy = make_step(Recipe(ALL, {"medical": 0.2})).noisy(z)
    assert noisy.identity is z.identity and noisy.residual is z.residual
    assert float(noisy.medical.std()) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("noisy_swaps", [True, False])
def test_swapped_latents_are_noisy_if_so_asked(noisy_swaps):
    step = make_step(Recipe(ALL, NOISE, noisy_swaps=noisy_swaps))
    decoded = []
    step.model.decoder.register_forward_hook(lambda _, inputs, __: decoded.append(inputs[0]))
    step.decode(marked(4, 0), marked(4, 0))
    assert (decoded[0].medical[4:] != marked(4, 0).medical).any() == noisy_swaps
    assert (decoded[0].medical[:4] != marked(4, 0).medical).any()


# ---- Gradients ----


def test_frozen_leaves_no_gradient_on_the_network_and_passes_it_to_the_input():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    network[0].bias.requires_grad_(False)
    x = torch.randn(2, 3, requires_grad=True)
    with frozen(network) as fixed:
        y = fixed(x).sum()
    y.backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]
    with pytest.raises(ZeroDivisionError), frozen(network):
        _ = 1 / 0
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]


def cycle_gradients(free_cycle):
    """Which of encoder, decoder and latents Eq. 1 moves, given generated images that come from the decoder."""
    step = make_step(Recipe({"disentanglement": 1.0}, free_cycle=free_cycle))
    z_ori, z_tar = (Latents(*(latent.requires_grad_() for latent in marked(6, value))) for value in (0.0, 1.0))
    fixed = (Latents(*(latent.detach() for latent in z)) for z in (z_ori, z_tar))
    mixed, segments = step.swap(*fixed)
    step.cycle(step.model.decode(mixed), z_ori, z_tar, segments).backward()
    model = step.model
    moved = [
        any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        for net in (model.encoder, model.decoder)
    ]
    targets = any(latent.grad is not None for z in (z_ori, z_tar) for latent in z)
    assert all(p.requires_grad for p in model.parameters())
    return {"encoder": moved[0], "decoder": moved[1], "targets": targets}


def test_cycle_moves_the_decoder_alone_unless_free():
    assert cycle_gradients(False) == {"encoder": False, "decoder": True, "targets": False}
    assert cycle_gradients(True) == {"encoder": True, "decoder": True, "targets": True}


@pytest.mark.parametrize(
    ("term", "reported"), [("adversarial", "discriminator"), ("swap_adversarial", "swap_discriminator")]
)
def test_a_discriminator_learns_from_its_own_step_alone(term, reported):
    step = make_step(Recipe({term: 1.0, "ssim": 1.0}))
    critic, updater, seen = step.critics[term], step.critic_updaters[term], []
    original = updater.update
    updater.update = lambda loss, progress: (seen.append(float(loss.detach())), original(loss, progress))
    before = [p.detach().clone() for p in critic.parameters()]
    generator_update = step.updater.update

    def update(loss, progress):
        kept = [p.detach().clone() for p in critic.parameters()]
        generator_update(loss, progress)
        assert all(p.grad is None and torch.equal(a, p) for a, p in zip(kept, critic.parameters()))

    step.updater.update = update
    terms = step(pair_batch(), 0.5)
    assert seen == [float(terms[reported])]
    assert any(not torch.equal(a, p) for a, p in zip(before, critic.parameters()))


def test_the_swap_discriminator_tells_swapped_images_from_reconstructions():
    step = make_step(Recipe({"swap_adversarial": 1.0, "ssim": 1.0}))
    seen = []
    step.discriminator_step = lambda term, images, progress: seen.append((term, images)) or images.mean()
    made = []
    decode = step.decode
    step.decode = lambda *z: made.append(decode(*z)) or made[-1]
    step(pair_batch(), 0.5)
    (term, images), (i_rec, i_gen) = seen[0], made[0]
    assert term == "swap_adversarial" and not images.requires_grad
    assert torch.equal(images, torch.cat([i_rec[: len(i_gen)], i_gen]))


def test_the_recogniser_looks_through_a_veil_of_noise():
    looked = []
    for veil in (0.0, 0.5):
        step = make_step(Recipe({"evidence_matching": 1.0}, veil=veil))
        step.recogniser.body.register_forward_pre_hook(lambda _, inputs: looked.append(inputs[0].detach()))
        torch.manual_seed(3)
        step(pair_batch(), 0.5)
    (real, made), (veiled_real, veiled_made) = looked[:2], looked[2:]
    for clear, veiled in ((real, veiled_real), (made, veiled_made)):
        assert float((veiled - clear).std()) == pytest.approx(0.5, rel=0.05)


def test_the_recogniser_is_never_trained():
    step = make_step()
    before = {name: value.clone() for name, value in step.recogniser.state_dict().items()}
    step(pair_batch(), 0.5)
    assert not step.recogniser.training and not any(p.requires_grad for p in step.recogniser.parameters())
    assert all(torch.equal(value, before[name]) for name, value in step.recogniser.state_dict().items())


def test_the_recogniser_wants_the_targets_finding_after_a_medical_swap_alone():
    class Seeing(Recogniser):
        """Sees the first pixel: feature maps and logits tell which image was looked at."""

        def features(self, image):
            return image[:, :, :1, :1]

        def evidence(self, features):
            return torch.cat([-features, features], 1)

        def classify(self, features):
            return torch.cat([-features[:, 0, :, 0], features[:, 0, :, 0]], 1) * 100

    step = make_step(Recipe(ALL, every_swap=True, identity_from_same=False), recogniser=Seeing(1, 2, (4,)))
    batch = pair_batch(2) | {"finding_ori": torch.tensor([0, 0]), "finding_tar": torch.tensor([1, 1])}
    batch["i_ori"], batch["i_tar"] = -torch.ones(2, 1, SIZE, SIZE), torch.ones(2, 1, SIZE, SIZE)
    _, segments = step.swap(marked(2, 0), marked(2, 0))
    right = torch.cat([batch["i_tar" if name == "medical" else "i_ori"] for name, _, _ in segments])
    features = step.look_at_real(set(TERMS), [batch["i_ori"], batch["i_tar"]])
    good = step.finding_terms(set(TERMS), batch["i_ori"], right, segments, batch, features)
    assert float(good["swap_finding"]) == pytest.approx(0, abs=1e-5) and float(good["evidence_matching"]) == 0
    bad = step.finding_terms(set(TERMS), batch["i_ori"], -right, segments, batch, features)
    assert bad["swap_finding"] > 100 and bad["evidence_matching"] > 1


# ---- Identity objectives ----


@pytest.mark.parametrize("objective", [SiameseIdentity(0.2), ContrastiveIdentity(0.5)])
def test_identity_objectives_are_their_losses(objective):
    batch = pair_batch()
    z_ori, z_same, z_tar = (Latents(*(torch.randn(6, size) for size in LATENT_SIZES)) for _ in range(3))
    if objective.needs_target:
        expected = losses.siamese_loss(z_ori.identity, z_same.identity, z_tar.identity, batch["has_same"], 0.2)
    else:
        counted = batch["patient_ori"], batch["has_same"]
        expected = losses.contrastive_loss(z_ori.identity, z_same.identity, *counted, 0.5)
    assert torch.equal(objective(z_ori, z_same, z_tar, batch), expected)


def test_multi_class_identity_trains_its_classifier():
    model = tiny_disentangler(patients=4)
    step = make_step(Recipe({"identity": 1.0}), ClassifiedIdentity(model.identity_classifier), model=model)
    before = model.identity_classifier[0].weight.detach().clone()
    terms = step(pair_batch(), 0.5)
    assert float(terms["identity"]) == pytest.approx(math.log(4), rel=0.5)
    assert not torch.equal(model.identity_classifier[0].weight, before)


def test_summed_identity_is_its_objectives_sum_and_needs_what_they_need():
    batch, classifier = pair_batch(), tiny_disentangler(patients=4, dropout=0.0).identity_classifier
    z_ori, z_same, z_tar = (Latents(*(torch.randn(6, size) for size in LATENT_SIZES)) for _ in range(3))
    parts = [ClassifiedIdentity(classifier), ContrastiveIdentity(0.5), SiameseIdentity(0.2)]
    expected = sum(part(z_ori, z_same, z_tar, batch) for part in parts)
    assert torch.allclose(SummedIdentity(parts)(z_ori, z_same, z_tar, batch), expected)
    assert SummedIdentity(parts).needs_target and not SummedIdentity(parts[:2]).needs_target
    assert SummedIdentity(parts).knows_people and not SummedIdentity(parts[1:]).knows_people


def test_nobody_whose_class_is_learnt_is_made_another_person():
    model = tiny_disentangler(patients=4)
    known = SummedIdentity([ContrastiveIdentity(), ClassifiedIdentity(model.identity_classifier)])
    with pytest.raises(ValueError, match=r"warp is 0\.04: it makes every patient another person.*give warp 0"):
        make_step(Recipe({"identity": 1.0}, warp=0.04), known, model=model)
    make_step(Recipe({"identity": 1.0}, warp=0.04), ContrastiveIdentity(), model=model)


# ---- Statistics ----


def test_latent_statistics_tell_a_collapse_from_an_identity():
    patient, has_same = torch.arange(4), torch.tensor([True, True, True, False])
    apart = Latents(torch.eye(4) * 2, torch.zeros(4, 2), torch.randn(4, 3))
    healthy = latent_statistics(apart, apart, patient, has_same)
    assert healthy["latent/same_hit"] == 1 and healthy["latent/other_hit"] == 0
    assert healthy["latent/same_distance"] == 0 and healthy["latent/other_distance"] == 2
    assert healthy["latent/identity_std"] == 1 and healthy["latent/medical_std"] == 0
    collapsed = latent_statistics(Latents(*(0 * z for z in apart)), Latents(*(0 * z for z in apart)), patient, has_same)
    assert collapsed["latent/same_hit"] == collapsed["latent/other_hit"] == 1


def test_latent_statistics_count_no_neighbour_of_the_same_patient_and_no_missing_second_image():
    z = Latents(torch.tensor([[0.0], [0.0], [1.0]]), torch.zeros(3, 1), torch.zeros(3, 1))
    same = z._replace(identity=torch.tensor([[0.0], [1.0], [9.0]]))
    found = latent_statistics(z, same, torch.tensor([0, 0, 1]), torch.tensor([True, True, False]))
    assert found["latent/same_hit"] == 0.5 and found["latent/other_hit"] == 0  # pairs (0, 2) and (2, 1)
    nobody = latent_statistics(z, same, torch.tensor([0, 0, 0]), torch.zeros(3, dtype=torch.bool))
    assert nobody["latent/same_hit"] == nobody["latent/other_hit"] == 0


def test_one_image_has_no_spread_and_is_no_reason_to_stop():
    one = Latents(torch.ones(1, 4), torch.ones(1, 2), torch.ones(1, 3))
    found = latent_statistics(one, one, torch.zeros(1, dtype=torch.long), torch.tensor([True]))
    assert found and all(value.isfinite() for value in found.values())


# ---- Stage 2 and the recogniser ----


def identity_batch(count=16):
    return {"identity": torch.randn(count, 8), "other": torch.randn(count, 8)}


@pytest.mark.parametrize("term", VAE_TERMS)
def test_identity_vae_step_computes_each_weighted_term_once(term):
    classifier = LatentClassifier(8, 5, 8)
    weights = dict.fromkeys(VAE_TERMS, 0.3)

    def total(weights):
        torch.manual_seed(0)
        step = IdentityVAEStep(IdentityVAE(8, 4, 16), weights, Optimisation(), 3.0, classifier.eval())
        step.updater = Recorder()
        return step.updater, step(identity_batch(), 0.0)

    (before, terms), (after, _), (_, without) = (
        total(weights),
        total({**weights, term: 0.8}),
        total(weights | {term: 0.0}),
    )
    assert before.loss == pytest.approx(sum(0.3 * float(terms[name]) for name in VAE_TERMS), rel=1e-5)
    assert after.loss - before.loss == pytest.approx(0.5 * float(terms[term]), rel=1e-3, abs=1e-6)
    assert abs(float(terms[term])) > 1e-4 and term not in without


def test_identity_vae_step_repels_from_the_original_and_from_the_other():
    weights = {"repulsion_original": 1.0, "repulsion_other": 1.0}
    step = IdentityVAEStep(IdentityVAE(8, 4, 16), weights, Optimisation(), margin=1.0)
    near, far = torch.full((4, 8), 0.1), torch.full((4, 8), 100.0)
    step.vae.decode = lambda z: near.clone().requires_grad_()
    for original, other in ((near, far), (far, near)):
        terms = step({"identity": original, "other": other}, 0.0)
        assert terms["repulsion_original"] == (original is near) and terms["repulsion_other"] == (other is near)


def test_identity_vae_step_leaves_the_classifier_alone_and_keeps_nothing_but_the_vae():
    classifier = LatentClassifier(8, 5, 8)
    step = IdentityVAEStep(IdentityVAE(8, 4, 16), {"entropy": 1.0}, Optimisation(), identity_classifier=classifier)
    gradients = gradients_of_updates(step.updater)
    step(identity_batch(), 0.0)
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert set(step.parts()) == {"vae", "updater"}


def test_recogniser_step_learns_a_visible_finding():
    torch.manual_seed(0)
    step = RecogniserStep(Recogniser(1, 2, (16, 32)), finding_objective, Optimisation(lr=1e-2, warmup=0.0))
    stripes = torch.ones(2, 1, SIZE, SIZE)
    stripes[0, :, ::4] = stripes[0, :, 1::4] = stripes[1, ..., ::4] = stripes[1, ..., 1::4] = -1.0
    batch = pair_batch()
    batch |= {f"i_{which}": stripes[batch[f"finding_{which}"]] for which in ("ori", "tar")}
    values = [float(step(batch, 0.1)["finding"]) for _ in range(40)]
    assert values[0] > 0.5 and values[-1] < 0.15


def test_jitter_keeps_the_side_and_moves_little():
    image = torch.zeros(2, 1, SIZE, SIZE)
    image[..., :12] = 1.0
    for _ in range(20):
        changed = jitter(image, noise=0.0)
        bright = changed[..., 4:8].mean((1, 2, 3))
        assert (bright > changed[..., 20:28].mean((1, 2, 3)) + 0.5).all()


# ---- Optimisation ----


def test_learning_rate_rises_then_falls_to_its_final_share():
    schedule = Optimisation(warmup=0.1, final=0.02)
    rising = [schedule.factor(p) for p in (0.0, 0.03, 0.06, 0.0999)]
    falling = [schedule.factor(p) for p in (0.1, 0.3, 0.5, 0.9, 1.0)]
    assert rising == sorted(rising) and 0 < rising[0] < 0.02 and rising[-1] == pytest.approx(1, abs=1e-2)
    assert falling == sorted(falling, reverse=True) and falling[-1] == pytest.approx(0.02)
    assert [replace(schedule, warmup=0.0, final=1.0).factor(p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]


@pytest.mark.parametrize("muon", [False, True])
def test_a_checkpoint_goes_on_in_another_memory_layout_and_with_this_runs_kernel(muon):
    def updater(layout):
        torch.manual_seed(0)
        network = nn.Conv2d(16, 20, 3).to(memory_format=layout)
        return network, Updater([network], Optimisation(lr=0.1, muon=muon), averaged=network)

    torch.manual_seed(1)
    images = torch.randn(2, 16, 8, 8)
    network, before = updater(torch.contiguous_format)
    before.update(network(images).square().mean(), 0.5)
    saved = copy.deepcopy(before.state_dict())
    saved["optimizer"]["param_groups"][0] |= {"fused": None, "foreach": True}  # as an older version saved it
    weights, results = copy.deepcopy(network.state_dict()), []
    for layout in (torch.contiguous_format, torch.channels_last):
        network, after = updater(layout)
        network.load_state_dict(weights)
        after.load_state_dict(copy.deepcopy(saved))
        after.update(network(images).square().mean(), 0.5)
        assert after.optimizer.param_groups[0]["fused"] and not after.optimizer.param_groups[0]["foreach"]
        results.append([*network.parameters(), *after.smoothed.parameters()])
    # Muon may work in bfloat16: sums in another order differ by more.
    tolerance = {"atol": 2e-3, "rtol": 0.1} if muon else {}
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, check_stride=False, **tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_kernels_equally_far_in_every_direction_and_adam_the_rest(layout):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 20, 3), nn.Conv2d(20, 4, 1)).to(memory_format=layout)
    before = [p.detach().clone() for p in network.parameters()]
    updater = Updater([network], Optimisation(lr=0.01, warmup=0.0, muon=True))
    pulled = [torch.randn_like(p) for p in network.parameters()]  # any direction as strongly as any other
    updater.update(torch.stack([(p * pull).sum() for p, pull in zip(network.parameters(), pulled)]).sum(), 0.0)
    kernels, bias, thin, _ = (after.detach() - old for after, old in zip(network.parameters(), before))
    lengths = torch.linalg.svdvals(kernels.flatten(1)) / (0.01 * 0.2 * math.sqrt(16 * 9))
    assert float(lengths.min()) > 0.6 and float(lengths.max()) < 1.4  # five steps of its iteration end near 1
    for moved in (bias, thin):  # Adam's first step is as long as the learning rate
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01), rtol=1e-2, atol=0)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("pays", [False, True])
def test_muon_moves_as_torchs_own_does_in_either_precision(monkeypatch, pays):
    monkeypatch.setattr(optimisation, "bf16_pays", lambda device: pays)
    torch.manual_seed(0)
    ours, theirs = nn.Linear(24, 20, bias=False), nn.Linear(24, 20, bias=False)
    theirs.load_state_dict(ours.state_dict())
    mine = optimisation.Matrices(ours.parameters(), Optimisation(weight_decay=0.1))
    reference = torch.optim.Muon(
        theirs.parameters(), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )  # in bfloat16 always
    for _ in range(3):
        gradient = torch.randn(20, 24)
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        mine.step(0.01)
        reference.step()
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if pays else {"atol": 1e-3, "rtol": 0.05}
    torch.testing.assert_close(ours.weight, theirs.weight, **tolerance)


def test_updater_clips_and_uses_the_schedule():
    network = nn.Linear(3, 1)
    updater = Updater([network], Optimisation(lr=0.1, warmup=0.0, clip=0.5))
    gradients = gradients_of_updates(updater)
    updater.update(1000 * network(torch.ones(4, 3)).sum(), 0.5)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)
    assert updater.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * Optimisation(warmup=0.0).factor(0.5))


def test_average_is_exponential_and_starts_at_the_first_update():
    network = nn.Linear(2, 1, bias=False)
    updater = Updater([network], Optimisation(lr=0.1, warmup=0.0, ema=0.75), averaged=network)
    expected = None
    for _ in range(4):
        updater.update(network(torch.ones(1, 2)).square().sum(), 0.0)
        weight = network.weight.detach().clone()
        expected = weight if expected is None else 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(updater.smoothed.weight, expected)
    assert not updater.smoothed.weight.requires_grad and not torch.equal(expected, weight)


def test_without_average_the_network_itself_is_kept():
    network = nn.Linear(2, 1)
    assert Updater([network], Optimisation(ema=0.0), averaged=network).smoothed is network
    with pytest.raises(ValueError, match="averages no network"):
        _ = Updater([network], Optimisation()).smoothed


def test_average_holds_the_buffers_of_batch_normalisation_too():
    model = tiny_disentangler(norm="batch")
    step = make_step(Recipe({"ssim": 1.0}), optimisation=Optimisation(ema=0.75), model=model)
    seen = []
    for seed in (1, 2):
        step(pair_batch(seed=seed), 0.5)
        seen.append(model.encoder.final_norm.running_mean.clone())
    averaged = step.updater.smoothed.encoder.final_norm.running_mean
    torch.testing.assert_close(averaged, 0.75 * seen[0] + 0.25 * seen[1])


# ---- Three steps, to the digit ----

GOLDEN = {
    "medical": 0.7441932,
    "identity": 0.2153639,
    "medical_rate": 4.66995,
    "residual_rate": 4.639779,
    "ssim": 1.005129,
    "psnr": 0.7983332,
    "pixel": 0.5477912,
    "texture": 0.8371437,
    "adversarial": 0.6966701,
    "patient_correlation": 0.008556791,
    "finding_correlation": 0.000754441,
    "disentanglement": 0.811317,
    "swap_adversarial": 0.8072953,
    "evidence_matching": 1.292288,
    "swap_finding": 0.8431597,
    "discriminator": 1.386135,
    "swap_discriminator": 1.397453,
    "latent/identity_std": 0.3220172,
    "latent/medical_std": 0.1640332,
    "latent/residual_std": 0.1503514,
    "latent/same_hit": 0,
    "latent/same_distance": 0.2153639,
    "latent/other_hit": 0,
    "latent/other_distance": 0.2873096,
}


def three_steps():
    step = make_step(Recipe(ALL, NOISE), model=None)
    for iteration in range(3):
        torch.manual_seed(10 + iteration)
        terms = step(pair_batch(seed=iteration), iteration / 3)
    return {name: float(value) for name, value in terms.items()}


def test_three_steps_give_the_golden_scalars():
    found = three_steps()
    assert set(found) == set(GOLDEN)
    for name, value in GOLDEN.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_step_repeats_itself_exactly():
    assert three_steps() == three_steps()
