"""The contract of an anonymizer, held by every one of them, and the file that leaves the hospital."""

import pytest
import torch
from tiny import LATENT_SIZES, SIZE, tiny_channel, tiny_cohort, tiny_disentangler

from monai_anon.anonymizers import LatentSwapAnonymizer, ModelFile
from monai_anon.channel import POLICIES, ChannelError
from monai_anon.channel_fitting import fit_channel
from monai_anon.identities import build_gallery
from monai_anon.model_files import save_weights
from monai_anon.networks import IdentityVAE

IDENTITY_NOISE = 5
NOISE_SIZE = IDENTITY_NOISE + LATENT_SIZES[0] + LATENT_SIZES[2] + 3


def latent_swap(norm="group", unit_identity=True, channel=None):
    torch.manual_seed(0)
    model = tiny_disentangler(norm=norm, unit_identity=unit_identity)
    vae = IdentityVAE(LATENT_SIZES[0], IDENTITY_NOISE, 16, unit_identity=unit_identity)
    return LatentSwapAnonymizer(model, vae, tiny_channel() if channel is None else channel)


@pytest.fixture(params=["ours", "authors", "residual", "code", "response"])
def anonymizer(request):
    """Networks of ours and of the authors' shapes under the policy `latents`, then the other policies."""
    if request.param == "authors":
        return latent_swap("batch", unit_identity=False).eval()
    policies = {
        "ours": {},
        "residual": {"policy": "residual"},
        "code": {"policy": "code", "prototypes": 8},
        "response": {"policy": "code", "prototypes": 8, "epsilon": 1.0},
    }
    return latent_swap(channel=tiny_channel(**policies[request.param]))


@pytest.fixture
def image():
    return torch.rand(4, 1, SIZE, SIZE) * 2 - 1


def noise(count=4, seed=1):
    return torch.randn(count, NOISE_SIZE, generator=torch.Generator().manual_seed(seed))


# ---- The contract ----


def test_shape_type_and_range_are_kept(anonymizer, image):
    anonymizer.eval()
    given = anonymizer(image)
    assert given.shape == image.shape and given.dtype == image.dtype
    assert torch.isfinite(given).all() and given.abs().max() <= 1


def test_the_input_is_not_touched(anonymizer, image):
    kept = image.clone()
    anonymizer.eval()(image)
    assert torch.equal(image, kept)


def test_a_seed_makes_it_repeatable_and_no_seed_draws_anew(anonymizer, image):
    anonymizer.eval()
    torch.manual_seed(3)
    first = anonymizer(image)
    assert not torch.equal(anonymizer(image), first)
    torch.manual_seed(3)
    assert torch.equal(anonymizer(image), first)


def test_with_noise_given_an_image_does_not_depend_on_its_batch(anonymizer, image):
    anonymizer.eval()
    together = anonymizer(image, noise())
    for row in range(4):
        alone = anonymizer(image[row : row + 1], noise()[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


def test_under_the_policy_latents_noise_makes_the_identity_and_only_that(image):
    anonymizer = latent_swap().eval()
    seen = []
    anonymizer.disentangler.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    first, other = anonymizer(image, noise(seed=1)), anonymizer(image, noise(seed=2))
    z = anonymizer.disentangler.encode(image)
    assert not torch.equal(first, other)
    for decoded, seed in zip(seen, (1, 2)):
        torch.testing.assert_close(
            decoded.identity, anonymizer.identity_vae.decode(noise(seed=seed)[:, :IDENTITY_NOISE])
        )
        torch.testing.assert_close(decoded.medical, z.medical)
        torch.testing.assert_close(decoded.residual, z.residual)


def test_the_original_identity_does_not_reach_the_result(anonymizer, image):
    anonymizer.eval()
    encoder = anonymizer.disentangler.encoder
    first = anonymizer(image, noise())
    encoder.register_forward_hook(lambda _, __, z: z._replace(identity=z.identity + 100))
    assert torch.equal(anonymizer(image, noise()), first)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_can_be_scripted_saved_and_loaded(anonymizer, image, tmp_path):
    anonymizer.eval()
    torch.jit.script(anonymizer).save(tmp_path / "model.ts")
    loaded = torch.jit.load(tmp_path / "model.ts")
    torch.testing.assert_close(loaded(image, noise()), anonymizer(image, noise()))
    assert loaded(image).shape == image.shape


# ---- What passes ----


@torch.no_grad()
def with_prototypes_of(images, epsilon=None):
    """An anonymizer with prototypes of these images' own latents, two images a patient."""
    anonymizer = latent_swap(channel=tiny_channel("code", prototypes=4, epsilon=epsilon)).eval()
    z = anonymizer.disentangler.encode(images)
    finding = anonymizer.disentangler.classify(z.medical).argmax(1)
    fitted = fit_channel(z, torch.arange(len(images)) // 2, finding, fewest=3)
    anonymizer.channel.load_state_dict(fitted.state_dict())
    anonymizer.channel.require_fitted()
    return anonymizer


def varied_images(count=200):
    generator = torch.Generator().manual_seed(5)
    gain, offset = torch.rand(2, count, 1, 1, 1, generator=generator)
    return (torch.rand(count, 1, SIZE, SIZE, generator=generator) * 2 - 1) * gain + offset - 0.5


def codes_of(anonymizer, image):
    z = anonymizer.disentangler.encode(image)
    finding = anonymizer.disentangler.classify(z.medical).argmax(1)
    return anonymizer.channel.codebook(z.medical, finding, anonymizer.channel.level)


@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_originals_with_one_code_and_one_noise_are_released_as_equal_pixels(epsilon):
    images = varied_images()
    anonymizer = with_prototypes_of(images, epsilon)
    code, released = codes_of(anonymizer, images), anonymizer(images, noise(1).expand(len(images), -1))
    assert len(code.unique()) > 1  # otherwise nothing was tried
    assert len(released.flatten(1).unique(dim=0)) <= len(code.unique())
    for one in code.unique():
        assert len(released[code == one].flatten(1).unique(dim=0)) == 1


def test_under_the_policy_latents_originals_with_one_code_are_told_apart():
    images = varied_images(60)
    for policy in ("latents", "residual"):
        anonymizer = latent_swap(channel=tiny_channel(policy)).eval()
        assert len(anonymizer(images, noise(1).expand(60, -1)).flatten(1).unique(dim=0)) == 60


def test_under_the_policy_residual_the_residual_does_not_reach_the_result(image):
    anonymizer = latent_swap(channel=tiny_channel("residual")).eval()
    first = anonymizer(image, noise())
    anonymizer.disentangler.encoder.register_forward_hook(lambda _, __, z: z._replace(residual=z.residual + 100))
    assert torch.equal(anonymizer(image, noise()), first)


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_without_prototypes_are_refused_where_the_policy_needs_them(policy):
    unfitted = latent_swap(channel=tiny_channel(fitted=False)).state_dict()
    anonymizer = latent_swap(channel=tiny_channel(policy, fitted=False))
    if policy == "latents":
        anonymizer.load_state_dict(unfitted)
    else:
        with pytest.raises(ChannelError, match=f"no prototypes.*policy {policy}"):
            anonymizer.load_state_dict(unfitted)


def test_before_prototypes_are_fitted_nothing_of_the_original_passes(image):
    anonymizer = latent_swap(channel=tiny_channel("code", fitted=False)).eval()
    released = anonymizer(image, noise(1).expand(4, -1))
    assert len(released.flatten(1).unique(dim=0)) == 1


# ---- The file ----


@pytest.fixture
def files(tmp_path):
    trained = latent_swap().eval()
    save_weights(trained.disentangler.state_dict(), tmp_path / "disentangler.pt")
    save_weights(trained.identity_vae.state_dict(), tmp_path / "identity_vae.pt")
    sources = str(tmp_path / "disentangler.pt"), str(tmp_path / "identity_vae.pt")
    return trained, ModelFile(*sources, trained.channel, str(tmp_path / "models" / "model.pt"))


def test_the_model_file_loads_into_an_anonymizer(files, image):
    trained, file = files
    path = file.write()
    torch.manual_seed(99)
    fresh = LatentSwapAnonymizer(
        tiny_disentangler(), IdentityVAE(LATENT_SIZES[0], IDENTITY_NOISE, 16), tiny_channel(fitted=False)
    ).eval()
    assert not torch.equal(fresh(image, noise()), trained(image, noise()))
    fresh.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(fresh(image, noise()), trained(image, noise()))


def test_the_model_file_holds_the_networks_and_nothing_else(files):
    trained, file = files
    gallery = build_gallery(trained.disentangler, tiny_cohort(10, 5))
    state = torch.load(file.write(), weights_only=True)
    assert set(state) == set(trained.state_dict())
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in state.values())
    latents = {tuple(row.tolist()) for row in gallery.identity}
    for tensor in state.values():
        if tensor.ndim == 2 and tensor.shape[1] == gallery.identity.shape[1]:
            assert not latents & {tuple(row.tolist()) for row in tensor}
    assert file.path.stat().st_size < 2 * sum(tensor.numel() * 4 for tensor in state.values()) + 2**16


def test_the_model_file_leaves_out_the_classifier_that_has_a_row_for_each_patient(files, tmp_path):
    _, file = files
    save_weights(tiny_disentangler(patients=7).state_dict(), tmp_path / "disentangler.pt")
    state = torch.load(file.write(), weights_only=True)
    assert not [name for name in state if "identity_classifier" in name]
    assert not [name for name, tensor in state.items() if 7 in tensor.shape]
    fresh = LatentSwapAnonymizer(
        tiny_disentangler(), IdentityVAE(LATENT_SIZES[0], IDENTITY_NOISE, 16), tiny_channel(fitted=False)
    )
    fresh.load_state_dict(state)  # all that is needed to anonymise


def test_a_missing_stage_is_named(files, tmp_path):
    _, file = files
    (tmp_path / "identity_vae.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"identity_vae\.pt"):
        file.write()
    assert not file.path.exists()
