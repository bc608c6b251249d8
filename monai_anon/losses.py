"""Every loss of the paper in its order, then our own terms.

| equation | function |
|---|---|
| Eq. 1, disentanglement | `disentanglement_loss` |
| Eq. 2, classification | `classification_loss` (medical and multi-class identity) |
| Eq. 3, realism | `adversarial_loss`, `ssim_loss`, `psnr_loss`; the other side: `discriminator_loss`, `augment` |
| Eq. 4, the sum | `weighted_sum` |
| Eq. 5, identity VAE | `identity_reconstruction_loss`, `kl_loss`, `negative_entropy_loss` |
| Eq. 6, Siamese identity | `siamese_loss` |
| Eq. 7, Siamese VAE | Eq. 5's first two and `repulsion_loss` |
| ours | `pixel_loss`, `contrastive_loss`, `rate_loss`, `evidence_matching_loss` |
| ours, independence | `class_centred`, `whitened`, `patient_correlation`, `finding_correlation`, `correlation_loss` |
| shared | `latent_distance`, `gaussian_band`, `ssim` |

Conventions: images `(B, C, H, W)` in [-1, 1]; every loss is one scalar, a mean over the batch, unweighted. Distances
between latents are *means* over the latent's dimensions, as in the authors' code: the margin 0.1 and the threshold 0.05
act on that mean.
"""

import math
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_anon.networks import Latents

IMAGE_RANGE = 2.0  # of images in [-1, 1]


# ---- Eq. 1 ----


def latent_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over the latent's dimensions: `(B, D)`, `(B, D)` to `(B,)`."""
    return (a - b).square().mean(1)


def disentanglement_loss(z_ori: Latents, z_tar: Latents, z_gen: Latents, swapped: str) -> Tensor:
    """Eq. 1 (paper) for one replaced vector: the generated image must carry the target's `swapped` latent and the
    original's others.

    The authors' multi-class code compares the swapped latent with the original's; we follow the equation.
    """
    wanted = z_ori._replace(**{swapped: getattr(z_tar, swapped)})
    return torch.stack([latent_distance(a, b).mean() for a, b in zip(z_gen, wanted, strict=True)]).sum()


# ---- Eq. 2 ----


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Eq. 2 (paper): cross-entropy of C_med or C_id, logits `(B, K)`, label `(B,)`."""
    return F.cross_entropy(logits, label)


# ---- Eq. 3 ----


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # kept for later calls, which may need gradients
def gaussian_band(size: int, window: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """`(size - window + 1, size)` matrix whose product with an image's columns is the Gaussian-windowed mean ("valid"
    positions); kept on its device, since a copy from the host would wait for a GPU.
    """
    if size < window:
        raise ValueError(f"SSIM needs images of at least {window} pixels a side, got {size}")
    offsets = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    kernel = (-(offsets**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).float()
    band = torch.zeros(size - window + 1, size)
    for row in range(len(band)):
        band[row, row : row + window] = kernel
    return band.to(device)


def ssim(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each pair of images, `(B,)`, at most 1.

    Gaussian window, k1 0.01, k2 0.03.

    The windowed means are two products with banded matrices: the same value as MONAI's SSIMLoss at a tenth of its time
    on a CPU.
    """
    a, b = a.float(), b.float()
    rows, columns = (gaussian_band(side, window, sigma, a.device) for side in a.shape[-2:])
    # A variance is a small difference of two means: bfloat16 would lose it.
    with torch.autocast(a.device.type, enabled=False):
        mean_a, mean_b, aa, bb, ab = (rows @ torch.stack([a, b, a * a, b * b, a * b]) @ columns.T).unbind(0)
    c1, c2 = (0.01 * IMAGE_RANGE) ** 2, (0.03 * IMAGE_RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    return (luminance * structure).mean((1, 2, 3))


def ssim_loss(i_ori: Tensor, i_rec: Tensor) -> Tensor:
    """Eq. 3 (paper), second term: 1 - SSIM."""
    return 1 - ssim(i_ori, i_rec).mean()


def psnr_loss(i_ori: Tensor, i_rec: Tensor, alpha: float = 48.0) -> Tensor:
    """Eq. 3 (paper), third term: 1 - PSNR / alpha, PSNR in dB, alpha in dB. The authors' code has (48 - PSNR)/24; we
    follow the equation.
    """
    mse = (i_ori - i_rec).square().mean((1, 2, 3)).clamp_min(1e-8)
    psnr = 10 * torch.log10(IMAGE_RANGE**2 / mse)
    return 1 - psnr.mean() / alpha


def adversarial_loss(logit_gen: Tensor) -> Tensor:
    """Eq. 3 (paper), first term: -log C_real(D(E(I))), from logits `(B,)`."""
    return F.softplus(-logit_gen).mean()


def discriminator_loss(logit_real: Tensor, logit_gen: Tensor) -> Tensor:
    """The discriminator's side of Eq. 3 (Goodfellow et al. 2014): cross-entropy of real against generated, logits
    `(B,)`.
    """
    return F.softplus(-logit_real).mean() + F.softplus(logit_gen).mean()


def augment(
    images: Tensor,
    generator: torch.Generator | None = None,
    brightness: float = 0.5,
    crop: float = 0.125,
    contrast: float = 0.0,
    flip: bool = True,
) -> Tensor:
    """Differentiable augmentation before the discriminator (section 3.1, after Karras et al. 2020): flip, brightness,
    random crop.

    Call it on the *concatenated* real and generated images: the authors' code augments both, without which the
    discriminator would learn the augmentation. Crops are shifts by up to `crop` of the side, filled with the border;
    `brightness` is the largest shift, `contrast` the largest change of the gain. Without `flip` sides stay as they are.
    """
    b, _, height, width = images.shape
    draw = torch.rand(5 if contrast else 4, b, generator=generator, device=images.device)
    theta = torch.zeros(b, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = (draw[0] < 0.5).float() * -2 + 1 if flip else 1.0, 1.0
    # Whole pixels: bilinear sampling at fractions would blur, and the discriminator would learn to expect blur.
    theta[:, 0, 2] = ((draw[1] * 2 - 1) * crop * width).round() * 2 / width
    theta[:, 1, 2] = ((draw[2] * 2 - 1) * crop * height).round() * 2 / height
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    shifted = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if contrast:
        shifted = shifted * (1 + (draw[4] * 2 - 1)[:, None, None, None] * contrast)
    return shifted + (draw[3] * 2 - 1)[:, None, None, None] * brightness


# ---- Eq. 4 ----


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Eq. 4 (paper): sum of weight times term. Every term needs exactly one weight.

    Raises:
        KeyError: a term has no weight.
    """
    missing = sorted(set(terms) - set(weights))
    if missing:
        raise KeyError(f"no weight for the loss terms {missing}; weights are given for {sorted(weights)}")
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


# ---- Eq. 5 ----


def identity_reconstruction_loss(identity: Tensor, reconstruction: Tensor) -> Tensor:
    """Eq. 5 and 7 (paper), first term: squared error of the VAE, mean over `(B, D)`."""
    return latent_distance(identity, reconstruction).mean()


def kl_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Eq. 5 and 7 (paper), second term: KL(q || N(0, 1)) in nats, summed over `(B, Z)`'s dimensions, mean over the
    batch.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


def negative_entropy_loss(logits: Tensor) -> Tensor:
    """Eq. 5 (paper), third term: sum p log p of C_id on a sampled identity, logits `(B, K)`; lowest, -log K, when C_id
    cannot tell.
    """
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * log_p).sum(1).mean()


# ---- Eq. 6 ----


def siamese_loss(
    identity_ori: Tensor,
    identity_same: Tensor,
    identity_tar: Tensor,
    has_same: Tensor,
    margin: float = 0.1,
    pairs: Tensor | None = None,
) -> Tensor:
    """Eq. 6 (paper), identity part: pull two images of one patient together, push another patient's to `margin`.

    `has_same` `(B,)` marks the images whose patient has a second image; the others have no attraction. `pairs` is their
    number, or its mean where these B images are one of several parts of a batch.
    """
    attraction = latent_distance(identity_ori, identity_same) * has_same
    pairs = has_same.sum() if pairs is None else pairs
    return attraction.sum() / pairs.clamp_min(1e-6) + repulsion_loss(identity_ori, identity_tar, margin)


# ---- Eq. 7 ----


def repulsion_loss(identity: Tensor, other: Tensor, margin: float = 0.1) -> Tensor:
    """Eq. 7 (paper), third and fourth term, and the hinge of Eq. 6: max(margin - distance, 0)."""
    return F.relu(margin - latent_distance(identity, other)).mean()


# ---- Ours ----


def pixel_loss(i_ori: Tensor, i_rec: Tensor) -> Tensor:
    """Mean absolute error in units of [-1, 1]: keeps exposure, of which SSIM is nearly blind."""
    return F.l1_loss(i_rec, i_ori)


def contrastive_loss(
    identity_ori: Tensor, identity_same: Tensor, patient: Tensor, has_same: Tensor, temperature: float = 0.1
) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out) over cosine similarities of two images a patient.

    In place of Eq. 6's margin, which loses its scale under small budgets (the latents shrink until everything matches
    everything). Identities `(B, D)`, patient `(B,)` codes, has_same `(B,)`: a patient's only image is a negative for
    others and no anchor.
    """
    keep = torch.cat([torch.ones_like(has_same), has_same])
    z = F.normalize(torch.cat([identity_ori, identity_same]), dim=1)
    codes = torch.cat([patient, patient])
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself | ~keep, -math.inf)
    positive = (codes[:, None] == codes) & ~itself & keep
    log_p = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    anchors = positive.any(1) & keep
    each = -log_p.sum(1) / positive.sum(1).clamp_min(1)
    return (each * anchors).sum() / anchors.sum().clamp_min(1)


def rate_loss(latent: Tensor, noise: float) -> Tensor:
    """KL(N(z, noise^2) || N(0, 1)) in nats, summed over the dimensions of `(B, D)`, mean over the batch: what a noisy
    latent may say.

    With the noise fixed only z^2 / 2 has a gradient; the constant keeps the value readable as a rate.
    """
    constant = 0.5 * (noise**2 - 1) - math.log(noise) if noise > 0 else 0.0
    return (0.5 * latent.square() + constant).sum(1).mean()


def class_centred(z: Tensor, finding: Tensor) -> Tensor:
    """`(B, D)` less the mean of each finding's images."""
    alike = (finding[:, None] == finding).to(z.dtype)  # one_hot would wait for a GPU to tell the number of classes
    return z - alike @ z / alike.sum(1, keepdim=True)


def whitened(z: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """`(B, D)` with mean 0 in units in which `covariance` `(D, D)` plus noise of standard deviation `(D,)` is the
    identity.

    In these units a small direction counts as much as a large one, but what is far below the noise counts for nothing:
    squared correlations are then, to lowest order, twice the Gaussian mutual information.
    """
    total = covariance + torch.diag(noise.square() + 1e-6)
    factor, _ = torch.linalg.cholesky_ex(total)  # without the check, which would wait for a GPU
    return torch.linalg.solve_triangular(factor, (z - z.mean(0)).T, upper=False).T


def patient_correlation(whitened_ori: Tensor, whitened_same: Tensor, has_same: Tensor) -> Tensor:
    """Correlations `(D, D)` of a whitened latent `(B, D)` between two images of one patient: 0 where it says nothing
    (linear) of who the patient is.
    """
    return (whitened_ori * has_same[:, None]).T @ whitened_same / has_same.sum().clamp_min(1)


def finding_correlation(evidence: Tensor, whitened_residual: Tensor) -> Tensor:
    """Correlations `(K h w, R)` of the residual `(B, R)` with a recogniser's class activation maps `(B, K, h, w)`: 0
    where the residual says nothing (linear) of where a finding is seen and how much of it.

    The maps share one scale, so that places where nothing ever is count little: the squares of a column sum to 1 at
    most. Against the maps and not the medical latent: that could claim the pose, which would then be lost to the
    residual (measured).
    """
    maps = evidence.float().flatten(1)
    maps = maps - maps.mean(0)
    maps = maps / (maps.square().mean(0).sum() + 1e-6).sqrt()
    return maps.T @ whitened_residual / len(maps)


def correlation_loss(correlation: Tensor, before: Tensor) -> Tensor:
    """Sum of squared correlations, one factor from this batch and one the mean of batches before.

    A batch's own squares would sum to their number over B even for independent latents, more than a leak of one
    direction does; the mean over batches before has little noise, and independent noise in the two factors cancels in
    expectation.
    """
    return (correlation * before).sum()


def evidence_matching_loss(evidence_gen: Tensor, evidence_real: Tensor, energy: Tensor | None = None) -> Tensor:
    """Mean squared difference of a recogniser's class activation maps `(B, K, h, w)`, relative to the real maps'
    `energy`: their mean square, which may be that of a larger batch.

    The finding is what a medical network sees and where it sees it, not one bit of label. The maps, not the features
    under them (feature matching, Salimans et al. 2016): those hold anatomy too, and tied the person to the image.
    """
    energy = evidence_real.square().mean() if energy is None else energy
    return (evidence_gen - evidence_real).square().mean() / energy.clamp_min(1e-6)
