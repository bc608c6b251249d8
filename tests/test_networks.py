"""Shapes and laws of the networks for every size, colour and normalisation; the authors' widths; TorchScript."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import LATENT_SIZES, SIZE, tiny_channel, tiny_disentangler
from torch import nn

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.networks import (
    Decoder,
    Discriminator,
    Disentangler,
    Encoder,
    IdentityVAE,
    LatentClassifier,
    Latents,
    Recogniser,
    initialised,
    normalisation,
)


def random_latents(count, sizes=LATENT_SIZES):
    return Latents(*(torch.randn(count, size) for size in sizes))


# ---- Shapes ----


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
def test_shapes_at_every_size(size, channels):
    encoder, decoder = (
        Encoder(size, channels, (4, 4, 8), LATENT_SIZES),
        Decoder(size, channels, (8, 4, 4), LATENT_SIZES),
    )
    image = torch.rand(2, channels, size, size) * 2 - 1
    with torch.no_grad():
        z = encoder(image)
        drawn = decoder(z)
        assert isinstance(z, Latents) and [latent.shape for latent in z] == [(2, length) for length in LATENT_SIZES]
        assert drawn.shape == image.shape and drawn.abs().max() <= 1
        assert Discriminator(size, channels, (4, 4, 8))(image).shape == (2,)
        assert Recogniser(channels, 3, (4, 4, 8))(image).shape == (2, 3)


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("pooling", ["flatten", "average"])
def test_every_normalisation_and_pooling_trains(norm, pooling):
    encoder = Encoder(32, 1, (4, 8), LATENT_SIZES, norm=norm, pooling=pooling, dropout=0.5)
    decoder = Decoder(32, 1, (8, 4), LATENT_SIZES, norm=norm)
    discriminator = Discriminator(32, 1, (4, 8), norm=norm)
    discriminator(decoder(encoder(torch.rand(2, 1, 32, 32)))).sum().backward()
    for network in (encoder, decoder, discriminator):
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert encoder.stem[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("film", "canvas", "head"), [(True, 2, 4), (False, 0, 4), (True, 1, 2), (False, 3, 1)])
def test_decoder_variants_have_the_image_shape(film, canvas, head):
    decoder = Decoder(32, 3, (8, 4), LATENT_SIZES, head=head, film=film, canvas=canvas)
    assert decoder(random_latents(2)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_the_defaults_have_about_two_million_parameters(network):
    assert 1.8e6 < sum(p.numel() for p in network().parameters()) < 2.3e6


@pytest.mark.parametrize("stem", [2, 4])
def test_the_first_and_the_last_pixel_reach_the_latents(stem):
    encoder = Encoder(32, 1, (4, 8), LATENT_SIZES, stem=stem)
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    encoder(image).medical.sum().backward()
    assert (image.grad != 0).all()


# ---- Sizes and names that do not fit ----


@pytest.mark.parametrize(("network", "name"), [(Encoder, "encoder"), (Decoder, "decoder"), (Discriminator, "discrim")])
@pytest.mark.parametrize("size", [40, 8])
def test_a_size_that_does_not_fit_is_named_with_what_would(network, name, size):
    with pytest.raises(ValueError, match=rf"{name}.*image_size is {size}; it must be a multiple of 16"):
        network(size=size, widths=(4, 4, 4))


def test_the_multiple_that_an_error_names_does_fit():
    for network in (Encoder, Decoder, Discriminator):
        network(size=16, widths=(4, 4, 4))
        network(size=48, widths=(4, 4, 4))


def test_unknown_normalisation_and_wrong_number_of_latents_are_named():
    with pytest.raises(ValueError, match=r"'layer'.*'group', 'batch' or 'none'"):
        normalisation("layer", 8)
    with pytest.raises(ValueError, match="2 entries; it needs 3"):
        Encoder(32, latent_sizes=(8, 4))


# ---- Identity on the sphere ----


def test_identity_lies_on_the_sphere_or_not_as_asked():
    image = torch.rand(3, 1, SIZE, SIZE)
    on = Encoder(SIZE, 1, (4, 8), LATENT_SIZES)(image)
    radius = math.sqrt(LATENT_SIZES[0])
    torch.testing.assert_close(on.identity.norm(dim=1), torch.full((3,), radius))
    off = Encoder(SIZE, 1, (4, 8), LATENT_SIZES, unit_identity=False)(image)
    for z in (off.identity, on.medical, on.residual):
        assert (z.norm(dim=1) - radius).abs().min() > 1e-3


def test_identity_vae_answers_on_the_sphere_and_draws_in_training_and_after():
    vae = IdentityVAE(8, 4, 16).eval()
    identity = torch.randn(5, 8)
    reconstruction, mean, log_variance = vae(identity)
    assert reconstruction.shape == (5, 8) and mean.shape == log_variance.shape == (5, 4)
    torch.testing.assert_close(reconstruction.norm(dim=1), torch.full((5,), math.sqrt(8.0)))
    assert not torch.equal(vae(identity)[0], reconstruction)
    torch.testing.assert_close(vae(identity)[1], mean)
    free = IdentityVAE(8, 4, 16, unit_identity=False).eval().decode(torch.randn(5, 4))
    assert (free.norm(dim=1) - math.sqrt(8.0)).abs().min() > 1e-3


def test_identity_vae_variance_cannot_overflow():
    vae = IdentityVAE(8, 4, 16)
    assert vae.encode(1e8 * torch.randn(5, 8))[1].abs().max() <= 10


@pytest.mark.parametrize("network", [IdentityVAE(8, 4, 16).encoder, LatentClassifier(4, 3, 16)])
def test_perceptrons_have_one_hidden_and_one_dropout_layer(network):
    kinds = [type(layer) for layer in network]
    assert kinds.count(nn.Linear) == 2 and kinds.count(nn.Dropout) == 1


# ---- The canvas ----


def pose_for(shift):
    """The pose that the soft bound turns into this shift."""
    return 0.4 * math.atanh(shift / 0.4)


def test_zero_pose_on_a_canvas_of_the_image_size_is_the_identity():
    drawn = torch.rand(2, 1, SIZE, SIZE)
    placed = Decoder(SIZE, 1, (8, 4), LATENT_SIZES, canvas=1).place(drawn, torch.zeros(2, 4))
    torch.testing.assert_close(placed, drawn, atol=1e-5, rtol=0)


def test_zero_pose_on_a_double_canvas_averages_its_pixels():
    drawn = torch.rand(2, 1, 2 * SIZE, 2 * SIZE)
    placed = Decoder(SIZE, 1, (8, 4), LATENT_SIZES, canvas=2).place(drawn, torch.zeros(2, 4))
    torch.testing.assert_close(placed, F.avg_pool2d(drawn, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shift_moves_by_its_share_of_the_side(axis):
    drawn = torch.rand(1, 1, SIZE, SIZE)
    pose = torch.zeros(1, 4)
    pose[0, axis] = pose_for(3 * 2 / SIZE)
    placed = Decoder(SIZE, 1, (8, 4), LATENT_SIZES, canvas=1).place(drawn, pose)
    dim = 3 - axis
    torch.testing.assert_close(placed.narrow(dim, 0, SIZE - 3), drawn.narrow(dim, 3, SIZE - 3), atol=1e-4, rtol=0)


def test_zoom_enlarges_rotation_turns_and_no_pose_is_absurd():
    decoder = Decoder(SIZE, 1, (8, 4), LATENT_SIZES, canvas=1)
    ramp = torch.linspace(-1, 1, SIZE).expand(1, 1, SIZE, SIZE)
    zoomed = decoder.place(ramp, torch.tensor([[0.0, 0.0, pose_for(math.log(0.8)), 0.0]]))
    torch.testing.assert_close(zoomed, 0.8 * ramp, atol=1e-4, rtol=0)
    angle = 0.2
    turned = decoder.place(ramp, torch.tensor([[0.0, 0.0, 0.0, pose_for(angle)]]))
    centre = slice(SIZE // 2 - 4, SIZE // 2 + 4)
    expected = math.cos(angle) * ramp - math.sin(angle) * ramp.mT
    torch.testing.assert_close(turned[..., centre, centre], expected[..., centre, centre], atol=1e-4, rtol=0)
    wild = decoder.place(ramp, torch.tensor([[1e6, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(wild[0, 0, 0, 0], torch.tensor(-1 + 0.4 * SIZE / (SIZE - 1)), atol=2e-2, rtol=0)


@pytest.mark.parametrize("film", [True, False])
def test_on_a_canvas_the_residual_places_and_exposes_and_draws_nothing(film):
    torch.manual_seed(0)
    decoder = Decoder(SIZE, 1, (8, 4), LATENT_SIZES, canvas=2, film=film)
    z, other = random_latents(2), random_latents(2)
    moved = z._replace(residual=other.residual)
    assert not torch.equal(decoder(z), decoder(moved))
    with torch.no_grad():
        decoder.placing.weight.zero_()
    assert torch.equal(decoder(z), decoder(moved))


def test_a_tone_of_zeros_leaves_the_drawing_and_its_three_parts_do_what_they_say():
    decoder = Decoder(SIZE, 1, (8, 4), LATENT_SIZES, canvas=1)
    drawn = torch.randn(2, 1, SIZE, SIZE)
    assert torch.equal(decoder.expose(drawn, torch.zeros(2, 3)), drawn)
    tone = torch.tensor([[0.5, 0.0, 0.0], [0.0, math.log(2), 0.1]])
    expected = torch.stack([drawn[0] + 0.5, 2 * drawn[1] + 0.1 * drawn[1] ** 2])
    torch.testing.assert_close(decoder.expose(drawn, tone), expected)


# ---- Disentangler ----


def test_disentangler_is_its_parts():
    model = tiny_disentangler(patients=5).eval()
    image = torch.rand(2, 1, SIZE, SIZE)
    z = model.encode(image)
    torch.testing.assert_close(model(image), model.decode(z))
    torch.testing.assert_close(model.classify(z.medical), model.medical_classifier(z.medical))
    assert model.identity_classifier(z.identity).shape == (2, 5)


def test_images_of_a_batch_do_not_influence_each_other():
    model = tiny_disentangler().eval()
    image = torch.rand(3, 1, SIZE, SIZE)
    torch.testing.assert_close(model(image)[:1], model(image[:1]), atol=1e-5, rtol=0)


def test_recogniser_classifies_its_features():
    network = Recogniser(1, 2, (4, 8, 8, 8)).eval()
    image = torch.rand(2, 1, 64, 64)
    features = network.features(image)
    assert features.shape == (2, 8, 4, 4)
    torch.testing.assert_close(network(image), network.classify(features))


# ---- The authors' widths ----


@pytest.fixture(scope="module")
def paper(root):
    config = json.loads((root / "bundles/chest/configs/paper.json").read_text())

    def arguments(prefix):
        return {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}

    return config, arguments


def test_the_authors_widths_build_and_run_at_64_pixels(paper):
    config, arguments = paper
    sizes = config["latent_sizes"]
    discriminator = {k: v for k, v in config["train#step#discriminator"].items() if k in ("widths", "stem", "norm")}
    model = Disentangler(
        Encoder(64, 1, latent_sizes=sizes, **arguments("network_def#encoder#")),
        Decoder(64, 1, latent_sizes=sizes, **arguments("network_def#decoder#")),
        LatentClassifier(sizes[1], 2),
    ).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert [latent.shape[1] for latent in model.encode(image)] == sizes == [512, 512, 512]
        assert model(image).shape == image.shape
        assert Discriminator(64, 1, **discriminator).eval()(image).shape == (1,)


# ---- TorchScript ----


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ({}, {}),
        (
            {"norm": "batch", "pooling": "average", "unit_identity": False, "dropout": 0.5, "stem": 2},
            {"norm": "batch", "film": False, "canvas": 0, "head": 1},
        ),
    ],
    ids=["ours", "authors"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_anonymizer_equals_the_eager_one(encoder, decoder):
    model = Disentangler(
        Encoder(SIZE, 1, (4, 8), LATENT_SIZES, **encoder),
        Decoder(SIZE, 1, (8, 4), LATENT_SIZES, **decoder),
        LatentClassifier(LATENT_SIZES[1], 2),
    )
    vae = IdentityVAE(LATENT_SIZES[0], 5, 16, unit_identity=encoder.get("unit_identity", True))
    channel = tiny_channel("code", epsilon=2.0)
    anonymizer = LatentSwapAnonymizer(model, vae, channel).eval()
    scripted = torch.jit.script(anonymizer)
    image, noise = torch.rand(2, 1, SIZE, SIZE) * 2 - 1, torch.randn(2, anonymizer.noise_size)
    with torch.no_grad():
        torch.testing.assert_close(scripted(image, noise), anonymizer(image, noise))
        torch.manual_seed(3)
        drawn = scripted(image)
        torch.manual_seed(3)
        torch.testing.assert_close(drawn, anonymizer(image))


def test_evidence_adds_up_to_the_logits_and_has_no_mean_over_the_classes():
    torch.manual_seed(0)
    recogniser = Recogniser(1, 3, (8, 8, 8))
    features = recogniser.features(torch.randn(4, 1, 32, 32))
    evidence = recogniser.evidence(features)
    assert evidence.shape == (4, 3, 4, 4)
    logits = recogniser.classify(features) - recogniser.head.bias
    assert torch.allclose(evidence.mean((2, 3)), logits - logits.mean(1, keepdim=True), atol=1e-5)
    assert float(evidence.detach().mean(1).abs().max()) < 1e-6


def test_initialised_takes_the_weights_of_a_file_or_says_which_file_does_not_fit(tmp_path):
    source, other = Recogniser(1, 2, (8, 8)), Recogniser(1, 2, (8, 8))
    torch.save(source.state_dict(), tmp_path / "a.pt")
    assert initialised(other, None) is other
    initialised(other, str(tmp_path / "a.pt"))
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), other.parameters()))
    with pytest.raises(ValueError, match=r"a\.pt"):
        initialised(Recogniser(1, 2, (8, 16)), str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match=r"absent\.pt"):
        initialised(other, str(tmp_path / "absent.pt"))


def test_initialised_takes_the_first_stage_of_a_model_of_both(tmp_path):
    stage_1, other = tiny_disentangler(), tiny_disentangler()
    both = {f"disentangler.{name}": tensor for name, tensor in stage_1.state_dict().items()}
    torch.save(both | {"identity_vae.weight": torch.zeros(1)}, tmp_path / "model.pt")
    initialised(other, str(tmp_path / "model.pt"))
    for a, b in zip(stage_1.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def disentangler_of(size, *widths):
    return Disentangler(
        Encoder(size, 1, widths, LATENT_SIZES, stem=2),
        Decoder(size, 1, widths[::-1], LATENT_SIZES, head=2),
        LatentClassifier(LATENT_SIZES[1], 2),
    )


@pytest.mark.parametrize("more", [(), (4,), (2, 4)])
def test_initialised_takes_a_smaller_models_weights_for_all_layers_that_see_the_same_maps(more, tmp_path):
    small, large = disentangler_of(16, 8, 12), disentangler_of(16 * 2 ** len(more), *more, 8, 12)
    torch.save(small.state_dict(), tmp_path / "small.pt")
    fresh = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    initialised(large, str(tmp_path / "small.pt"))
    shift = 2 * len(more)
    for index, block in enumerate(small.encoder.blocks):
        for a, b in zip(block.parameters(), large.encoder.blocks[index + shift].parameters(), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(small.decoder.blocks, large.decoder.blocks):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert torch.equal(small.encoder.head.weight, large.encoder.head.weight)
    assert torch.equal(small.decoder.dense.weight, large.decoder.dense.weight)
    new = [
        name
        for name, tensor in large.state_dict().items()
        if torch.equal(tensor, fresh[name]) and "conv1.weight" in name
    ]
    assert len(new) == 2 * shift  # of new blocks, as many in the encoder as in the decoder


def test_initialised_refuses_a_smaller_model_of_other_widths(tmp_path):
    torch.save(disentangler_of(16, 8, 16).state_dict(), tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"(?s)small\.pt cannot be used for these networks.*size mismatch"):
        initialised(disentangler_of(32, 4, 8, 12), str(tmp_path / "small.pt"))


def test_initialised_starts_the_classes_of_other_people_anew(tmp_path):
    """Whether the file has none, as many, or others."""
    for number, source in enumerate((tiny_disentangler(), tiny_disentangler(5), tiny_disentangler(7))):
        torch.save(source.state_dict(), tmp_path / f"{number}.pt")
        other = tiny_disentangler(5)
        before = other.identity_classifier[0].weight.detach().clone()
        initialised(other, str(tmp_path / f"{number}.pt"))
        assert torch.equal(other.identity_classifier[0].weight, before)
        assert torch.equal(other.encoder.head.weight, source.encoder.head.weight)
    initialised(tiny_disentangler(), str(tmp_path / "2.pt"))


def test_initialised_names_a_file_that_holds_no_weights(tmp_path):
    (tmp_path / "notes.pt").write_text("not a model")
    with pytest.raises(ValueError, match=r"notes\.pt cannot be used"):
        initialised(nn.Linear(1, 1), str(tmp_path / "notes.pt"))
