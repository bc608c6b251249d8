"""Every equation against a slow reference written here, the laws of each term, and the module's index."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from monai.losses import SSIMLoss
from scipy import special, stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from monai_anon import losses
from monai_anon.networks import Latents

FIELDS = Latents._fields


def latents(count, sizes=(5, 3, 4)):
    return Latents(*(torch.randn(count, size) for size in sizes))


def images(count=3, channels=1, size=24):
    return torch.rand(count, channels, size, size) * 2 - 1


def mean_square(a, b):
    """Mean squared difference of two vectors, one number after the other."""
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b)) / len(a)


# ---- The index ----


def index():
    """First column of the docstring's table to the functions named in the second."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", losses.__doc__, re.MULTILINE)
    return {first: re.findall(r"`(\w+)`", second) for first, second in rows if first != "equation"}


def test_index_names_every_public_function_and_nothing_else():
    public = {
        name
        for name, function in vars(losses).items()
        if callable(function) and getattr(function, "__module__", "") == losses.__name__ and not name.startswith("_")
    }
    named = [name for names in index().values() for name in names]
    assert sorted(named) == sorted(public)


def test_index_has_equations_one_to_seven_and_their_functions_say_so():
    table = index()
    numbers = [int(match[1]) for row in table if (match := re.match(r"Eq\. (\d)", row))]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    for row, names in table.items():
        if not row.startswith("Eq."):
            continue
        for name in names:
            text = inspect.getdoc(getattr(losses, name))
            assert row[:5] in text or (name == "augment" and "section 3.1" in text)


# ---- Eq. 1 ----


def reference_disentanglement(z_ori, z_tar, z_gen, swapped):
    total = 0.0
    for row in range(len(z_ori.identity)):
        for name in FIELDS:
            wanted = z_tar if name == swapped else z_ori
            total += mean_square(getattr(wanted, name)[row], getattr(z_gen, name)[row])
    return total / len(z_ori.identity)


@pytest.mark.parametrize("swapped", FIELDS)
def test_disentanglement_is_equation_1(swapped):
    z_ori, z_tar, z_gen = latents(4), latents(4), latents(4)
    expected = reference_disentanglement(z_ori, z_tar, z_gen, swapped)
    assert float(losses.disentanglement_loss(z_ori, z_tar, z_gen, swapped)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("swapped", FIELDS)
def test_disentanglement_is_zero_for_a_perfect_swap_alone(swapped):
    z_ori, z_tar = latents(4), latents(4)
    perfect = z_ori._replace(**{swapped: getattr(z_tar, swapped)})
    assert losses.disentanglement_loss(z_ori, z_tar, perfect, swapped) == 0
    for other in FIELDS:
        if other != swapped:
            assert losses.disentanglement_loss(z_ori, z_tar, perfect, other) > 0
    assert losses.disentanglement_loss(z_ori, z_tar, z_ori, swapped) > 0


def test_latent_distance_is_a_symmetric_mean_over_dimensions():
    a, b = torch.randn(4, 7), torch.randn(4, 7)
    expected = [mean_square(x, y) for x, y in zip(a, b)]
    np.testing.assert_allclose(losses.latent_distance(a, b), expected, rtol=1e-5)
    assert torch.equal(losses.latent_distance(a, b), losses.latent_distance(b, a))
    doubled = losses.latent_distance(a.repeat(1, 2), b.repeat(1, 2))
    torch.testing.assert_close(doubled, losses.latent_distance(a, b))


# ---- Eq. 2 ----


def test_classification_is_equation_2():
    logits, label = torch.randn(6, 4), torch.randint(4, (6,))
    one_hot = np.eye(4)[label]
    expected = -(one_hot * special.log_softmax(logits.double().numpy(), axis=1)).sum(1).mean()
    assert float(losses.classification_loss(logits, label)) == pytest.approx(expected, rel=1e-5)


def test_classification_falls_as_the_right_logit_rises():
    values = [float(losses.classification_loss(torch.tensor([[x, 0.0]]), torch.tensor([0]))) for x in (-2, 0, 2, 40)]
    assert values == sorted(values, reverse=True)
    assert values[1] == pytest.approx(math.log(2)) and values[3] < 1e-12


# ---- Eq. 3 ----


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_skimage_and_monai(channels):
    a = images(3, channels)
    b = (a + 0.3 * torch.randn_like(a)).clamp(-1, 1)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    expected = [
        structural_similarity(x.double().numpy(), y.double().numpy(), channel_axis=0, **settings) for x, y in zip(a, b)
    ]
    np.testing.assert_allclose(losses.ssim(a, b), expected, atol=1e-5)
    monai = SSIMLoss(spatial_dims=2, data_range=2.0, win_size=11, kernel_sigma=1.5)(a, b)
    torch.testing.assert_close(losses.ssim_loss(a, b), monai, atol=1e-5, rtol=0)


def test_ssim_works_on_oblong_images():
    a, b = torch.rand(2, 1, 16, 28), torch.rand(2, 1, 16, 28)
    torch.testing.assert_close(losses.ssim(a, b), losses.ssim(a.mT, b.mT))


def test_ssim_loss_is_zero_for_equal_images_symmetric_and_rises_with_noise():
    a, noise = images(), torch.randn(3, 1, 24, 24)
    assert float(losses.ssim_loss(a, a)) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(losses.ssim(a, a + 0.1 * noise), losses.ssim(a + 0.1 * noise, a))
    values = [float(losses.ssim_loss(a, a + strength * noise)) for strength in (0.0, 0.1, 0.3, 1.0)]
    assert values == sorted(values) and values[-1] <= 2


def test_ssim_is_the_same_under_autocast():
    a = images()
    b = a + 0.05 * torch.randn_like(a)
    expected = losses.ssim(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.ssim(a, b), expected)


def test_ssim_has_gradients_although_first_used_in_inference_mode():
    losses.gaussian_band.cache_clear()
    a, b = images(), images()
    with torch.inference_mode():
        losses.ssim(a, b)
    b.requires_grad_()
    losses.ssim_loss(a, b).backward()
    assert b.grad.abs().sum() > 0


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match=r"at least 11 pixels a side, got 8"):
        losses.ssim(images(size=8), images(size=8))


def test_psnr_loss_is_equation_3():
    a = images(4)
    b = a + torch.tensor([0.01, 0.1, 0.3, 1.0])[:, None, None, None] * torch.randn_like(a)
    psnr = [peak_signal_noise_ratio(x.double().numpy(), y.double().numpy(), data_range=2.0) for x, y in zip(a, b)]
    assert float(losses.psnr_loss(a, b, alpha=48)) == pytest.approx(1 - np.mean(psnr) / 48, rel=1e-5)
    assert float(losses.psnr_loss(a, b, alpha=24)) == pytest.approx(1 - np.mean(psnr) / 24, rel=1e-5)


def test_psnr_loss_is_zero_at_alpha_symmetric_and_finite_for_equal_images():
    a = torch.zeros(2, 1, 16, 16)
    error = 2 / 10 ** (48 / 20)  # a constant error of 48 dB
    assert float(losses.psnr_loss(a, a + error)) == pytest.approx(0, abs=1e-5)
    b = images(2, size=16).requires_grad_()
    assert losses.psnr_loss(a, b) == losses.psnr_loss(b, a)
    losses.psnr_loss(b, b.detach()).backward()
    assert torch.isfinite(b.grad).all()


def test_adversarial_and_discriminator_losses_are_cross_entropies():
    real, generated = torch.randn(5), torch.randn(5)
    p_real, p_generated = special.expit(real.double().numpy()), special.expit(generated.double().numpy())
    assert float(losses.adversarial_loss(generated)) == pytest.approx(-np.log(p_generated).mean(), rel=1e-5)
    expected = -np.log(p_real).mean() - np.log(1 - p_generated).mean()
    assert float(losses.discriminator_loss(real, generated)) == pytest.approx(expected, rel=1e-5)


def test_adversary_gains_from_a_fooled_discriminator_and_neither_overflows():
    good, bad = torch.full((2,), 200.0), torch.full((2,), -200.0)
    assert losses.adversarial_loss(good) == 0 and losses.adversarial_loss(bad) == 200
    assert losses.discriminator_loss(good, bad) == 0 and losses.discriminator_loss(bad, good) == 400


# ---- Augmentation ----


def shifted(image, flip, dx, dy):
    """Reference: pixel (y, x) of the result is pixel (y + dy, x + dx) of the image, mirrored first, border repeated."""
    height, width = image.shape[-2:]
    result = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            column = (width - 1 - x if flip else x) + dx
            result[:, y, x] = image[:, np.clip(y + dy, 0, height - 1), np.clip(column, 0, width - 1)]
    return result


def test_augment_flips_and_shifts_by_whole_pixels():
    picture = torch.randn(1, 2, 16, 16)
    seen = set()
    references = {
        (flip, dx, dy): shifted(picture[0].numpy(), flip, dx, dy)
        for flip in (False, True)
        for dx in range(-2, 3)
        for dy in range(-2, 3)
    }
    for result in losses.augment(picture.expand(60, -1, -1, -1), brightness=0.0, crop=0.125).numpy():
        matches = [key for key, expected in references.items() if np.abs(result - expected).max() < 1e-4]
        assert len(matches) == 1, "neither a flip nor a whole-pixel shift of at most 2 of 16 pixels"
        seen.add(matches[0])
    for place, values in enumerate(({False, True}, {-2, -1, 0, 1, 2}, {-2, -1, 0, 1, 2})):
        assert {key[place] for key in seen} == values


def parameters(rows):
    """Flip, shifts and brightness of augmented ramps: a column ramp, a row ramp and a flat channel."""
    middle = rows[:, :, 8, 8]
    return torch.stack([(rows[:, 0, 8, 9] < middle[:, 0]).float(), middle[:, 0], middle[:, 1], middle[:, 2]], 1)


def test_augment_has_one_law_for_real_and_generated_images():
    ramp = torch.arange(16.0).expand(16, 16)
    picture = torch.stack([ramp, ramp.T, torch.zeros(16, 16)])
    count = 1500
    found = parameters(losses.augment(picture.expand(2 * count, -1, -1, -1)))
    for column in found.T:
        real, generated = column.chunk(2)
        assert stats.ks_2samp(real, generated).pvalue > 1e-3
    assert found[:, 0].mean() == pytest.approx(0.5, abs=0.05)
    brightness = found[:, 3]
    assert -0.5 <= brightness.min() < -0.49 and 0.49 < brightness.max() <= 0.5


def test_augment_without_flip_keeps_sides_and_with_contrast_changes_the_gain():
    torch.manual_seed(0)
    picture = torch.linspace(-0.5, 0.5, 32).expand(100, 1, 32, 32)
    found = losses.augment(picture, brightness=0.0, crop=0.0, contrast=0.2, flip=False)
    gain = (found[:, 0, 0, -1] - found[:, 0, 0, 0]).numpy()
    assert 0.79 < gain.min() < 0.85 and 1.15 < gain.max() < 1.21
    torch.testing.assert_close(losses.augment(picture, brightness=0.0, crop=0.0, flip=False), picture)


def test_augment_draws_for_the_place_in_the_batch_not_for_the_picture():
    a, b = images(4, size=16), images(4, size=16)
    seeded = [torch.Generator().manual_seed(3) for _ in range(3)]
    together = losses.augment(torch.cat([a, b]), seeded[0])
    torch.testing.assert_close(together[:4], losses.augment(torch.cat([a, a]), seeded[1])[:4])
    torch.testing.assert_close(losses.augment(torch.cat([a, b]) + 0.25, seeded[2]), together + 0.25)


def test_augment_passes_gradients():
    a = images(6, size=16).requires_grad_()
    losses.augment(a, crop=0.0).sum().backward()
    torch.testing.assert_close(a.grad, torch.ones_like(a), atol=1e-4, rtol=0)


# ---- Eq. 4 ----


def test_weighted_sum_is_equation_4():
    terms = {"medical": torch.tensor(2.0), "ssim": torch.tensor(0.5)}
    assert losses.weighted_sum(terms, {"medical": 5.0, "ssim": 3.0, "psnr": 7.0}) == 11.5


def test_weighted_sum_refuses_a_term_without_weight():
    with pytest.raises(KeyError, match=r"\['ssim'\].*\['medical'\]"):
        losses.weighted_sum({"medical": torch.tensor(2.0), "ssim": torch.tensor(0.5)}, {"medical": 1.0})


# ---- Eq. 5 ----


def test_identity_reconstruction_is_a_mean_square():
    a, b = torch.randn(4, 7), torch.randn(4, 7)
    expected = np.mean([mean_square(x, y) for x, y in zip(a, b)])
    assert float(losses.identity_reconstruction_loss(a, b)) == pytest.approx(expected, rel=1e-5)
    assert losses.identity_reconstruction_loss(a, a) == 0


def test_kl_is_the_divergence_from_a_standard_normal():
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    q = torch.distributions.Normal(mean.double(), (0.5 * log_variance).exp().double())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert float(losses.kl_loss(mean, log_variance)) == pytest.approx(float(expected), rel=1e-5)
    assert losses.kl_loss(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_negative_entropy_is_minus_the_entropy_of_the_classifier():
    logits = torch.randn(5, 6)
    expected = -stats.entropy(special.softmax(logits.double().numpy(), axis=1), axis=1).mean()
    assert float(losses.negative_entropy_loss(logits)) == pytest.approx(expected, rel=1e-5)


def test_negative_entropy_is_lowest_where_nobody_is_recognised():
    assert float(losses.negative_entropy_loss(torch.zeros(2, 6))) == pytest.approx(-math.log(6))
    certain = torch.tensor([[500.0, 0.0, -500.0]])
    assert losses.negative_entropy_loss(certain) == 0


# ---- Eq. 6 and 7 ----


def reference_siamese(ori, same, tar, has_same, margin):
    attraction = [mean_square(a, b) for a, b, counted in zip(ori, same, has_same) if counted]
    repulsion = [max(margin - mean_square(a, b), 0.0) for a, b in zip(ori, tar)]
    return (np.mean(attraction) if attraction else 0.0) + np.mean(repulsion)


@pytest.mark.parametrize("has_same", [[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
def test_siamese_is_equation_6(has_same):
    ori, same, tar = (0.3 * torch.randn(4, 6) for _ in range(3))
    counted = torch.tensor(has_same, dtype=torch.bool)
    expected = reference_siamese(ori, same, tar, has_same, 0.2)
    assert float(losses.siamese_loss(ori, same, tar, counted, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_siamese_is_zero_for_one_person_together_and_others_beyond_the_margin():
    ori = torch.zeros(3, 4)
    far = ori + math.sqrt(0.11)
    assert losses.siamese_loss(ori, ori, far, torch.ones(3, dtype=torch.bool)) == 0
    assert losses.siamese_loss(ori, ori, ori, torch.ones(3, dtype=torch.bool)) == pytest.approx(0.1)


def test_repulsion_is_the_hinge_of_equation_7():
    a, b = 0.3 * torch.randn(6, 5), 0.3 * torch.randn(6, 5)
    expected = np.mean([max(0.2 - mean_square(x, y), 0.0) for x, y in zip(a, b)])
    assert float(losses.repulsion_loss(a, b, 0.2)) == pytest.approx(expected, rel=1e-5)
    assert losses.repulsion_loss(a, b) == losses.repulsion_loss(b, a)
    assert losses.repulsion_loss(a, a) == pytest.approx(0.1) and losses.repulsion_loss(a, a + 1) == 0


# ---- Ours ----


def test_pixel_loss_is_a_mean_absolute_error():
    a, b = images(), images()
    assert float(losses.pixel_loss(a, b)) == pytest.approx(np.abs(a.numpy() - b.numpy()).mean(), rel=1e-5)
    assert losses.pixel_loss(a, a) == 0 and losses.pixel_loss(a, b) == losses.pixel_loss(b, a)


def reference_contrastive(ori, same, patient, has_same, temperature):
    """Khosla et al. 2020, L_out, one anchor after the other; an image without a second one stands there once."""
    rows = [(vector, int(code)) for vector, code in zip(ori, patient)]
    rows += [(vector, int(code)) for vector, code, counted in zip(same, patient, has_same) if counted]
    vectors = [(vector / vector.norm()).double().numpy() for vector, _ in rows]
    each = []
    for i, (_, code) in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        positives = [j for j in others if rows[j][1] == code]
        if positives:
            norm = special.logsumexp([vectors[i] @ vectors[j] / temperature for j in others])
            each.append(np.mean([norm - vectors[i] @ vectors[j] / temperature for j in positives]))
    return np.mean(each) if each else 0.0


@pytest.mark.parametrize(
    ("patient", "has_same"),
    [
        ([0, 1, 2, 3], [1, 1, 1, 1]),
        ([0, 1, 2, 3], [1, 0, 1, 0]),  # patients with one image: negatives, no anchors
        ([0, 1, 0, 2], [1, 1, 1, 0]),  # a patient twice in the batch
        ([0, 1, 0, 2], [0, 0, 0, 0]),
        ([0, 1, 2, 3], [0, 0, 0, 0]),  # no positive pair at all
    ],
)
def test_contrastive_is_that_of_a_loop(patient, has_same):
    ori, same = torch.randn(4, 6), torch.randn(4, 6)
    same = torch.where(torch.tensor(has_same, dtype=torch.bool)[:, None], same, ori)
    given = losses.contrastive_loss(ori, same, torch.tensor(patient), torch.tensor(has_same, dtype=torch.bool), 0.3)
    assert float(given) == pytest.approx(reference_contrastive(ori, same, patient, has_same, 0.3), rel=1e-4)


@pytest.mark.parametrize("has_same", [[1, 0, 1, 0], [0, 0, 0, 0]])
def test_contrastive_has_finite_gradients_with_single_images(has_same):
    ori = torch.randn(4, 6, requires_grad=True)
    counted = torch.tensor(has_same, dtype=torch.bool)
    losses.contrastive_loss(ori, ori.detach() + 0.1, torch.arange(4), counted).backward()
    assert torch.isfinite(ori.grad).all()


def test_contrastive_prefers_separated_patients_and_ignores_lengths():
    corners, everybody = torch.eye(4), torch.ones(4, dtype=torch.bool)
    apart = losses.contrastive_loss(corners, corners, torch.arange(4), everybody)
    collapsed = losses.contrastive_loss(torch.ones(4, 4), torch.ones(4, 4), torch.arange(4), everybody)
    mixed = losses.contrastive_loss(corners, corners.roll(1, 0), torch.arange(4), everybody)
    assert apart < 1e-3 and float(collapsed) == pytest.approx(math.log(7), rel=1e-5) and mixed > collapsed
    torch.testing.assert_close(losses.contrastive_loss(9 * corners, corners, torch.arange(4), everybody), apart)


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_rate_is_the_divergence_of_a_noisy_latent(noise):
    z = torch.randn(5, 3)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(z, noise), normal(0.0, 1.0)).sum(1).mean()
    assert float(losses.rate_loss(z, noise)) == pytest.approx(float(expected), rel=1e-5)


def test_rate_without_noise_keeps_its_gradient():
    z = torch.randn(5, 3, requires_grad=True)
    losses.rate_loss(z, 0.0).backward()
    torch.testing.assert_close(z.grad, z.detach() / 5)
    assert losses.rate_loss(torch.zeros(2, 3), 1.0) == 0


def test_class_centred_takes_each_class_s_own_mean():
    z, finding = torch.randn(9, 3), torch.tensor([0, 1, 0, 1, 1, 3, 0, 1, 3])
    expected = z.clone().numpy()
    for code in (0, 1, 3):
        expected[finding.numpy() == code] -= expected[finding.numpy() == code].mean(0)
    np.testing.assert_allclose(losses.class_centred(z, finding), expected, atol=1e-6)


def test_whitened_has_the_identity_as_covariance_and_noise_hides():
    torch.manual_seed(0)
    z = torch.randn(60, 3, dtype=torch.float64) @ torch.tensor([[3.0, 2, 0], [0, 1, 0], [0, 0, 0.01]]).double() + 7
    covariance = torch.from_numpy(np.cov(z.numpy().T, bias=True))
    white = losses.whitened(z, covariance, torch.zeros(3))
    np.testing.assert_allclose(np.cov(white.numpy().T, bias=True), np.eye(3), atol=0.02)
    hidden = losses.whitened(z, covariance, torch.tensor([0.0, 0.0, 1.0]))
    assert hidden[:, 2].abs().max() < 0.05


def test_patient_correlation_against_a_slow_reference():
    ori, same, counted = torch.randn(9, 3), torch.randn(9, 3), torch.tensor([1, 1, 1, 0, 1, 1, 0, 1, 1]).bool()
    a, b = ori[counted].double().numpy(), same[counted].double().numpy()
    expected = np.array([[a[:, i] @ b[:, j] / 7 for j in range(3)] for i in range(3)])
    found = losses.patient_correlation(ori, same, counted)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    before = torch.randn(3, 3)
    product = float((expected * before.numpy()).sum())
    assert float(losses.correlation_loss(found, before)) == pytest.approx(product, rel=1e-4)


def test_patient_correlation_of_patients_with_one_image_is_zero():
    z = torch.randn(4, 3, requires_grad=True)
    found = losses.patient_correlation(z, z, torch.zeros(4, dtype=torch.bool))
    found.sum().backward()
    assert not found.any() and torch.isfinite(z.grad).all()


def test_finding_correlation_against_a_slow_reference():
    evidence, residual = torch.randn(7, 2, 2, 2), torch.randn(7, 3)
    maps, z = evidence.flatten(1).double().numpy(), residual.double().numpy()
    maps = maps - maps.mean(0)
    whole = math.sqrt((maps**2).sum() / 7)
    expected = np.array([[(maps[:, p] / whole * z[:, r]).mean() for r in range(3)] for p in range(8)])
    np.testing.assert_allclose(losses.finding_correlation(evidence, residual), expected, atol=1e-5)


def test_finding_correlation_is_one_for_a_residual_that_says_what_the_maps_say():
    torch.manual_seed(0)
    told, pose = torch.randn(5000, 1), torch.randn(5000, 1)
    evidence = torch.cat([told, 0 * told, -2 * told, 0.01 * pose], dim=1)[:, None, None, :]
    residual = torch.cat([told, pose, (told + pose) / math.sqrt(2)], dim=1)
    squares = losses.finding_correlation(evidence, residual).square().sum(0)
    np.testing.assert_allclose(squares, [1, 0, 0.5], atol=0.05)  # what hardly ever varies in the maps counts little


def test_evidence_matching_is_relative_to_the_real_maps():
    generated, real = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    a, b = generated.double().numpy(), real.double().numpy()
    expected = ((a - b) ** 2).sum() / (b**2).sum()
    assert float(losses.evidence_matching_loss(generated, real)) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        losses.evidence_matching_loss(7 * generated, 7 * real), losses.evidence_matching_loss(generated, real)
    )
    assert losses.evidence_matching_loss(real, real) == 0
