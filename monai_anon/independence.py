"""What keeps the three latents apart: running estimates of the correlations that should not be there, over the batches
of all ranks.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.identity_objectives import Batch
from monai_anon.networks import Latents
from monai_anon.ranks import gathered

CORRELATIONS = ("patient_correlation", "finding_correlation")


class RunningCorrelation(nn.Module):
    """`losses.correlation_loss` with the memory that it needs, which belongs in a checkpoint.

    Args:
        rows, columns: of the correlations.
        memory: share of the running mean that a new batch leaves.
    """

    before: Tensor

    def __init__(self, rows: int, columns: int, memory: float = 0.95):
        super().__init__()
        self.memory = memory
        self.register_buffer("before", torch.zeros(rows, columns))

    def forward(self, correlation: Tensor) -> Tensor:
        """Correlations of a batch to a scalar, near 0 (none) to their number (all 1); 0 in the first batch."""
        before = self.before.to(correlation.device, copy=True)
        with torch.no_grad():
            self.before = before.lerp(correlation.detach(), 1 - self.memory)
        return losses.correlation_loss(correlation, before)


class Whitening(nn.Module):
    """`losses.whitened` by a running covariance, which belongs in a checkpoint.

    Args:
        noise: standard deviation of the noise on each dimension before decoding.
        memory: share of the running mean that a new batch leaves.
    """

    noise: Tensor
    covariance: Tensor
    share: Tensor

    def __init__(self, noise: Sequence[float], memory: float = 0.95):
        super().__init__()
        self.memory = memory
        self.register_buffer("noise", torch.tensor([*noise]), persistent=False)
        self.register_buffer("covariance", torch.zeros(len(self.noise), len(self.noise)))
        self.register_buffer("share", torch.zeros(()))  # how much of the mean is made of batches, and not of zeros

    def forward(self, z: Tensor) -> Tensor:
        """Latents `(B, D)` in whitened units; gradients pass through the latents, not through the covariance."""
        with torch.no_grad():
            centred = z - z.mean(0)
            found = centred.T @ centred / len(z)
            self.covariance = self.covariance.to(z.device).lerp(found, 1 - self.memory)
            self.share = self.share * self.memory + (1 - self.memory)
            covariance = self.covariance / self.share.to(z.device)
        return losses.whitened(z, covariance, self.noise.to(z.device))


class PatientCorrelation(nn.Module):
    """Ours: how much of who the patient is recurs in the medical and residual latents.

    The classes' means are removed first, so that a finding which never changes within a patient is no leak.

    Args:
        sizes: dimensions of the medical and residual latent.
        noise: standard deviation of the noise on each before decoding.
        memory: share of the running means that a new batch leaves.
    """

    def __init__(self, sizes: Sequence[int], noise: Sequence[float], memory: float = 0.95):
        super().__init__()
        self.whitening = Whitening([n for n, size in zip(noise, sizes, strict=True) for _ in range(size)], memory)
        self.correlation = RunningCorrelation(sum(sizes), sum(sizes), memory)

    def measure(self, z_ori: Latents, z_same: Latents, batch: Batch) -> Tensor:
        """Latents of two images of each patient to the unweighted term."""
        told = [torch.cat([z.medical, z.residual], dim=1).float() for z in (z_ori, z_same)]
        ori, same, *labels, has_same = gathered(*told, batch["finding_ori"], batch["finding_same"], batch["has_same"])
        centred = losses.class_centred(torch.cat([ori, same]), torch.cat(labels))
        ori, same = self.whitening(centred).chunk(2)
        return self.correlation(losses.patient_correlation(ori, same, has_same))


class FindingCorrelation(nn.Module):
    """Ours: how much of the finding the residual latent repeats, as a recogniser sees it on a coarse grid.

    Args:
        classes: of the finding.
        residual: dimensions of the residual latent.
        noise: standard deviation of the noise on it before decoding.
        memory: share of the running means that a new batch leaves.
    """

    GRID: ClassVar[int] = 4

    def __init__(self, classes: int, residual: int, noise: float, memory: float = 0.95):
        super().__init__()
        self.whitening = Whitening([noise] * residual, memory)
        self.correlation = RunningCorrelation(classes * self.GRID**2, residual, memory)

    def measure(self, evidence: Tensor, residual: Tensor) -> Tensor:
        """Class activation maps `(B, K, h, w)` and residual latents `(B, R)` of the same images to the unweighted
        term.
        """
        maps, told = gathered(F.adaptive_avg_pool2d(evidence, self.GRID), residual.float())
        return self.correlation(losses.finding_correlation(maps, self.whitening(told)))


class FindingExchange(nn.Module):
    """Ours: identity latents whose finding tells the decoder nothing, for findings that never change within a patient.

    Such a finding is as good a mark of the patient as any, so it stays in the identity latent, and goes when that is
    replaced. Here some identities are moved by the difference of two findings' running means before they are decoded.
    A linear reading of the finding fails then as often as it succeeds, and the decoder must take it from the medical
    latent. Where a finding changes within patients the means are alike, and next to nothing is moved.

    Args:
        classes: findings.
        size: of the identity latent.
        share: of the identities that are moved to a finding drawn at random, which may be their own.
        memory: share of the running means that a new batch leaves.
    """

    means: Tensor
    seen: Tensor

    def __init__(self, classes: int, size: int, share: float, memory: float = 0.95):
        super().__init__()
        self.share, self.memory = share, memory
        self.register_buffer("means", torch.zeros(classes, size))
        self.register_buffer("seen", torch.zeros(classes))  # of the means, how much is made of images

    def forward(self, identity: Tensor, finding: Tensor) -> Tensor:
        """Identities `(B, D)` of images with findings `(B,)`, moved, on the sphere on which they were."""
        with torch.no_grad():
            everyone, kinds = gathered(identity.detach().float(), finding)
            chosen = F.one_hot(kinds, len(self.means)).float()
            counts = chosen.sum(0)
            gain = (1 - self.memory) * (counts > 0)
            found = chosen.T @ everyone / counts.clamp_min(1)[:, None]
            self.means = self.means.to(identity.device).lerp(found, gain[:, None])
            self.seen = self.seen.to(identity.device).lerp(torch.ones_like(gain), gain)
            means = self.means / self.seen.clamp_min(1e-6)[:, None]
            drawn = torch.randint(len(self.means), finding.shape, device=finding.device)
            stays = (torch.rand(finding.shape, device=finding.device) >= self.share) | (self.seen[drawn] == 0)
            move = means[torch.where(stays, finding, drawn)] - means[finding]
        return F.normalize(identity + move, dim=1) * identity.detach().norm(dim=1, keepdim=True)


class Independence:
    """The correlation terms that have a weight, under the names of `CORRELATIONS`.

    Args:
        weighted: names of the terms with a weight.
        latent_sizes: dimensions of the three latents.
        noise: standard deviation of the noise on each latent before decoding.
        classes: of the finding, as the recogniser knows them.
    """

    def __init__(
        self, weighted: Collection[str], latent_sizes: Sequence[int], noise: Mapping[str, float], classes: int
    ):
        _, medical, residual = latent_sizes
        spread = [noise.get(name, 0.0) for name in Latents._fields[1:]]
        self.correlations: dict[str, PatientCorrelation | FindingCorrelation] = {}
        if "patient_correlation" in weighted:
            self.correlations["patient_correlation"] = PatientCorrelation([medical, residual], spread)
        if "finding_correlation" in weighted:
            self.correlations["finding_correlation"] = FindingCorrelation(classes, residual, spread[1])

    def terms(
        self, active: Collection[str], z_ori: Latents, z_same: Latents, batch: Batch, evidence: Tensor | None
    ) -> dict[str, Tensor]:
        """The active terms, unweighted; `evidence` is of I_ori and, where it is reconstructed, I_same."""
        terms = {}
        for name, correlation in self.correlations.items():
            if name not in active:
                continue
            if isinstance(correlation, PatientCorrelation):
                terms[name] = correlation.measure(z_ori, z_same, batch)
            else:
                assert evidence is not None
                residual = torch.cat([z_ori.residual, z_same.residual])[: len(evidence)]
                terms[name] = correlation.measure(evidence, residual)
        return terms
