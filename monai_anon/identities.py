"""Where a new identity latent comes from.

An identity source maps real identity latents `(B, D)`, patient codes `(B,)` (-1 for a patient outside the gallery) and
a generator to new identity latents `(B, D)`. Only the sources built on a VAE leave with a model; the averages need the
gallery, which stays on site.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon.cohort import Cohort
from monai_anon.model_files import read_tensors
from monai_anon.networks import Disentangler, IdentityVAE, Latents
from monai_anon.variation import as_others, person_fields

IdentitySource = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Gallery:
    """Identity latents `(N, D)` of real images and their patients' codes `(N,)`: biometric data, never exported, logged
    or shown.
    """

    identity: Tensor
    patient: Tensor

    def __repr__(self) -> str:
        return f"Gallery({len(self.identity)} images of {len(self.patient.unique())} patients)"

    def patient_means(self) -> tuple[Tensor, Tensor]:
        """One mean latent `(P, D)` and its code `(P,)` per patient."""
        codes, index = self.patient.unique(return_inverse=True)
        sums = torch.zeros(len(codes), self.identity.shape[1]).index_add_(0, index, self.identity)
        return sums / index.bincount(minlength=len(codes))[:, None], codes


@dataclass(frozen=True)
class EncodedCohort:
    """Latents of every image of a cohort, on the CPU, with patients' codes and predicted findings `(N,)`.

    Biometric data, as a gallery is.
    """

    latents: Latents
    patient: Tensor
    finding: Tensor

    def __repr__(self) -> str:
        return f"EncodedCohort({len(self.patient)} images of {len(self.patient.unique())} patients)"

    def gallery(self) -> Gallery:
        """The identity latents."""
        return Gallery(self.latents.identity, self.patient)


@torch.no_grad()
def encode_cohort(
    model: Disentangler,
    cohort: Cohort,
    batch_size: int = 256,
    changed: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> EncodedCohort:
    """Latents of every image of a cohort, in memory only.

    Args:
        changed: makes of images `(B, C, S, S)` and their rows in the cohort `(B,)` what is encoded in their place.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    parts, findings = [], []
    for rows in torch.arange(len(cohort)).split(batch_size):
        images = cohort.batch(rows)["image"].to(device)
        z = model.encode(images if changed is None else changed(images, rows))
        findings.append(model.classify(z.medical).argmax(1).cpu())
        parts.append([latent.float().cpu() for latent in z])
    model.train(training)
    latents = Latents(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return EncodedCohort(latents, torch.as_tensor(cohort.patient), torch.cat(findings))


def build_gallery(model: Disentangler, cohort: Cohort, batch_size: int = 256) -> Gallery:
    """Identity latents of every image of a cohort, in memory only."""
    return encode_cohort(model, cohort, batch_size).gallery()


def gallery_of_others(
    model: Disentangler, cohort: Cohort, warp: float, times: int = 4, seed: int = 0, batch_size: int = 256
) -> Gallery:
    """Identity latents of people who do not exist: of every image of a cohort after each patient was made another
    person (`variation.as_others`), so many times over. A VAE that is fitted to them cannot know the patients by heart.

    Args:
        warp: 0 is refused; it would be the patients themselves.
    """
    if not (warp > 0 and times > 0):
        raise ValueError(f"warp is {warp} and times {times}; both must be above 0, or the people are the patients")
    codes, index = cohort.patient.unique(return_inverse=True)
    device, drawn = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    found = []
    for _ in range(times):
        fields = person_fields(len(codes), generator=drawn)

        def disguised(images: Tensor, rows: Tensor, fields: Tensor = fields) -> Tensor:
            return as_others(images, fields[index[rows]].to(device), warp)

        found.append(encode_cohort(model, cohort, batch_size, disguised).latents.identity)
    return Gallery(torch.cat(found), torch.cat([index + number * len(codes) for number in range(times)]))


@dataclass(frozen=True)
class SampledIdentities:
    """The paper's source: the VAE's decoder on N(0, 1) codes (section 3.2). Plain or with privacy loss is a matter of
    its training.
    """

    vae: IdentityVAE

    @torch.no_grad()
    def __call__(self, identity: Tensor, patient: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(len(identity), self.vae.latent_size, generator=generator)
        return self.vae.eval().decode(z.to(identity.device))


@dataclass(frozen=True)
class AveragedIdentities:
    """Mean of `k` random training patients' identities, the original patient's excluded (Table 3); `k=None` averages
    all of them.
    """

    gallery: Gallery
    k: int | None = None
    unit: bool = True

    def __call__(self, identity: Tensor, patient: Tensor, generator: torch.Generator) -> Tensor:
        means, codes = self.gallery.patient_means()
        if self.k is not None and not 1 <= self.k < len(codes):
            raise ValueError(
                f"averaging {self.k} identities: it must be from 1 to {len(codes) - 1}, the patients less one"
            )
        others = patient.cpu()[:, None] != codes
        if self.k is not None:
            chance = torch.rand(others.shape, generator=generator).masked_fill(~others, -1.0)
            others = torch.zeros_like(others).scatter_(1, chance.topk(self.k, dim=1).indices, True)
        share = others.float() / others.sum(1, keepdim=True)
        mean = (share @ means).to(identity.device)
        return F.normalize(mean, dim=1) * math.sqrt(mean.shape[1]) if self.unit else mean


@dataclass(frozen=True)
class GaussianIdentities:
    """Independent normal directions on the encoder's sphere: no model of real identities at all."""

    def __call__(self, identity: Tensor, patient: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(identity.shape, generator=generator).to(identity.device)
        return F.normalize(drawn, dim=1) * math.sqrt(drawn.shape[1])


class IdentityPairs:
    """Batches for stage 2: `identity` `(B, D)` of random images and `other` `(B, D)` of random other patients, from a
    gallery.

    Batch `i` is a pure function of the seed and `i`, so that a resumed training goes on exactly; `start` is the next
    iteration. The batches of all ranks together are the batch of one process with `world_size` times the size.

    Args:
        gallery: of the training part.
        batch_size: latents of one rank's batch.
        batches: of an epoch; None: as many as hold as many latents as the gallery, over all ranks.
        seed, rank, world_size: ranks draw disjoint shares of the same batch.
    """

    def __init__(
        self,
        gallery: Gallery,
        batch_size: int = 256,
        batches: int | None = 50,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(gallery.patient.unique()) < 2:
            raise ValueError("the identity VAE needs at least two patients")
        self.gallery, self.seed, self.rank, self.world_size, self.start = gallery, seed, rank, world_size, 0
        self.drawn = batch_size * world_size
        self.batches = max(1, len(gallery.identity) // self.drawn) if batches is None else batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            generator = torch.Generator().manual_seed((self.seed * 10_000_019 + self.start) % 2**63)
            self.start += 1
            rows = torch.randint(len(self.gallery.identity), (self.drawn,), generator=generator)
            other = torch.randint(len(self.gallery.identity), (self.drawn,), generator=generator)
            # Another patient: step on through a fixed order until the code differs.
            while bool((clash := self.gallery.patient[rows] == self.gallery.patient[other]).any()):
                other = torch.where(clash, (other + 1) % len(self.gallery.identity), other)
            own = slice(self.rank, None, self.world_size)
            yield {"identity": self.gallery.identity[rows[own]], "other": self.gallery.identity[other[own]]}


class FrozenEncoderError(ValueError):
    """Stage 2 was started without stage 1's networks, or with other ones."""


def load_disentangler(model: Disentangler, path: str, command: str) -> nn.Module:
    """Stage 1's weights into `model`; a missing file names the command that makes it."""
    try:
        state = read_tensors(path)
    except FileNotFoundError as error:
        raise FrozenEncoderError(
            f"{path} is missing: stage 2 needs the networks of stage 1. Run first: {command}"
        ) from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FrozenEncoderError(
            f"{path} does not fit these networks; give the sizes and latent lengths it was trained with: {error}"
        ) from error
    return model.eval().requires_grad_(False)
