"""What of an original may pass into its release, and the bound that follows.

A released image is decoded from an identity, a medical and a residual latent. The paper takes the last two from the
original, and both carry the patient. Another way: instead of the medical latent pass the number of a prototype, its
code, and draw the residual as well as the identity.

| policy | medical latent | residual latent | bound |
|---|---|---|---|
| `latents` (the paper) | the original's | the original's | none |
| `residual` | the original's | drawn | none |
| `code` | a prototype's | drawn | log2 K bits; with an epsilon, local differential privacy |

**The bound.** The release's pixels are then g(j, u): j in {1, ..., K} is the number of a prototype that the original is
given, u is noise drawn without looking at the original, g is fixed. Original -> j -> release is then a Markov chain,
and by the data-processing inequality I(original; release) <= H(j) <= log2 K bits, whatever g is and whoever looks. A
guess of who the original is, among N equally likely people with one image each, is right with a probability of at most
K / N. If at least k training patients have each prototype, a release does not tell those k apart. With K-ary randomised
response (Kairouz et al. 2016) j is kept with probability e^eps / (e^eps + K - 1), else another one is drawn; the
release is then eps-locally differentially private in the image.

It is an average over originals: a release with a rare code says -log2 of that code's share, which may be more than
log2 K. It does not cover what g remembers of training patients, nor several releases of one person: their bits add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monai_anon.networks import Latents

POLICIES = ("latents", "residual", "code")
LEVELS = (2, 4, 8, 16, 32, 64, 128, 256)
FINEST = LEVELS[-1]
LARGEST_EPSILON = 15.0
"""Above it a code is all but always kept, and single precision does not tell how seldom not."""
RESPONSE = 2
"""How many of the noise's numbers, the last ones, decide the randomised response."""


def round_up(bits: float, decimals: int = 3) -> float:
    """A bound, rounded for a reader, that is not below it."""
    return math.ceil(bits * 10**decimals - 1e-9) / 10**decimals


class ChannelError(ValueError):
    """A channel that is asked for what it cannot do, or was never fitted."""


@dataclass(frozen=True)
class Statement:
    """What a code may say of its original: for a row, a certificate, a person.

    Args:
        bits: the bound, log2 of the number of prototypes.
        patients: the fewest training patients that share a prototype.
        epsilon: of the randomised response; None where the code is passed as it is.
    """

    bits: float
    patients: int
    epsilon: float | None = None


class Codebook(nn.Module):
    """Nested medical prototypes. A latent's finest one decides which coarser ones it has, so that a coarser code is a
    function of a finer one and says less.

    Tables have room for `FINEST` prototypes; `patients` is 0 where there is none.

    Args:
        size: dimensions of the medical latent.
        classes: findings, each with coordinates of its own.
    """

    axes: Tensor
    points: Tensor
    finding: Tensor
    members: Tensor
    prototypes: Tensor
    patients: Tensor

    def __init__(self, size: int, classes: int = 2):
        super().__init__()
        levels = len(LEVELS)
        self.register_buffer("axes", torch.eye(size).repeat(classes, 1, 1))
        self.register_buffer("points", torch.zeros(FINEST, size))
        self.register_buffer("finding", torch.full((FINEST,), -1))
        self.register_buffer("members", torch.zeros(levels, FINEST, dtype=torch.long))
        self.register_buffer("prototypes", torch.zeros(levels, FINEST, size))
        self.register_buffer("patients", torch.zeros(levels, FINEST, dtype=torch.long))

    def forward(self, medical: Tensor, finding: Tensor, level: int) -> Tensor:
        """The code `(B,)` at a level (an index into `LEVELS`) of medical latents `(B, D)` with predicted findings
        `(B,)`: the nearest of the finding's finest points, and what it belongs to.
        """
        distance = (self.places(medical, finding)[:, None] - self.points).square().sum(2)
        distance = distance.masked_fill(finding[:, None] != self.finding, math.inf)
        return self.members[level, distance.argmin(1)]

    def places(self, medical: Tensor, finding: Tensor) -> Tensor:
        """Medical latents `(B, D)` in the coordinates of their findings, `(B, D)`."""
        return torch.einsum("bi,bij->bj", medical, self.axes[finding])

    def latent(self, code: Tensor, level: int) -> Tensor:
        """The medical latents `(B, D)` of codes `(B,)`."""
        return self.prototypes[level, code]

    def kind(self, code: Tensor, level: int) -> Tensor:
        """The findings `(B,)` of codes `(B,)`."""
        kinds = torch.full_like(self.finding, -1).scatter_reduce(0, self.members[level], self.finding, "amax")
        return kinds[code].clamp_min(0)

    def count(self, level: int) -> int:
        """How many prototypes a level has: at most as many as its entry of `LEVELS`, or one a finding where there are
        more findings than that; 0 before they are fitted.
        """
        return int((self.patients[level] > 0).sum())

    def statement(self, level: int, epsilon: float | None = None) -> Statement:
        """The bound at a level."""
        shared = self.patients[level][self.patients[level] > 0]
        return Statement(math.log2(len(shared)), int(shared.min()), epsilon)


def respond(code: Tensor, count: int, epsilon: float, chance: Tensor, other: Tensor) -> Tensor:
    """K-ary randomised response (Kairouz et al. 2016): the code `(B,)`, or another of the `count`, uniformly.

    Args:
        epsilon: of the local differential privacy, above 0.
        chance, other: uniform in [0, 1), `(B,)`: whether to keep the code, and which other to take.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0 (leave it out for the code as it is)")
    keep = 1 / (1 + (count - 1) * math.exp(-epsilon))
    shift = 1 + (other * (count - 1)).long().clamp_max(count - 2)
    return torch.where(chance < keep, code, (code + shift) % count)


# ---- Latents of nobody ----


class Mixture(nn.Module):
    """A mixture of Gaussians of training images' latents, from which a release draws its own.

    Args:
        size: dimensions of the latent.
        components: of the mixture.
    """

    shares: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, size: int, components: int = 16):
        super().__init__()
        self.register_buffer("shares", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("factors", torch.eye(size).repeat(components, 1, 1))

    def forward(self, chance: Tensor, noise: Tensor) -> Tensor:
        """Latents `(B, D)` of uniform numbers in [0, 1) `(B,)`, which choose the component, and standard normal noise
        `(B, D)`: nothing of an original goes in.
        """
        edges = self.shares.cumsum(0)
        component = (chance[:, None] >= edges).sum(1)  # as searchsorted, which ONNX has not
        last = (torch.arange(len(edges), device=edges.device) * (self.shares > 0)).amax(0)
        return self.of(torch.minimum(component, last), noise)  # behind it is room that no component fills

    def of(self, component: Tensor, noise: Tensor) -> Tensor:
        """Latents `(B, D)` of given components `(B,)` and standard normal noise `(B, D)`."""
        return self.means[component] + torch.einsum("bij,bj->bi", self.factors[component], noise)


# ---- Both together ----


class Channel(nn.Module):
    """What a release is decoded from under the policies `residual` and `code`: `Latents` of an original to others.

    Before it is fitted (`channel_fitting.fit_channel`) nothing passes under `code`: all originals have one prototype.

    Args:
        latent_sizes: of identity, medical and residual latent.
        classes: findings that the medical classifier tells apart.
        policy: one of `POLICIES`; under `latents` this module is not asked.
        prototypes: K, one of `LEVELS`; a level may have fewer, never more.
        epsilon: of the randomised response; None passes the code as it is.
        components: of the residual's prior; the identity's has one a finding.

    Raises:
        ChannelError: an unknown policy, a K that is no level, an epsilon that is not above 0 or without `code`.
    """

    def __init__(
        self,
        latent_sizes: Sequence[int],
        classes: int = 2,
        policy: str = "code",
        prototypes: int = 8,
        epsilon: float | None = None,
        components: int = 16,
    ):
        super().__init__()
        if policy not in POLICIES:
            raise ChannelError(f"policy is {policy!r}; it must be one of {', '.join(POLICIES)}")
        if prototypes not in LEVELS:
            raise ChannelError(f"prototypes is {prototypes}; it must be one of {', '.join(map(str, LEVELS))}")
        if epsilon is not None and (policy != "code" or not 0 < epsilon <= LARGEST_EPSILON):
            raise ChannelError(
                f"epsilon is {epsilon}; it must be a number above 0 and at most {LARGEST_EPSILON:g}, and goes with the "
                "policy code only"
            )
        self.policy, self.level = policy, LEVELS.index(prototypes)
        self.epsilon: float = 0.0 if epsilon is None else float(epsilon)
        self.identity_size, medical_size, self.residual_size = latent_sizes
        self.noise_size = self.identity_size + self.residual_size + 3
        self.codebook = Codebook(medical_size, classes)
        self.identity, self.residual = Mixture(self.identity_size, classes), Mixture(self.residual_size, components)

    def forward(self, z: Latents, finding: Tensor, noise: Tensor) -> Latents:
        """The latents to decode; the identity may have to be put on the encoder's sphere.

        The identity is nobody's who has the finding: of the code under `code`, so that it says no more than that does,
        and the predicted one under `residual`.

        Args:
            finding: predicted, `(B,)`.
            noise: standard normal `(B, noise_size)`: for the identity, the residual, the residual's component, whether
                to keep the code, and which other to take.
        """
        size = self.identity_size + self.residual_size
        chance = 0.5 * (1 + torch.erf(noise[:, size:] / math.sqrt(2.0)))  # normal to uniform
        residual = self.residual(chance[:, 0], noise[:, self.identity_size : size])
        if self.policy == "residual":
            return Latents(self.identity.of(finding, noise[:, : self.identity_size]), z.medical, residual)
        code = self.codebook(z.medical, finding, self.level)
        if self.epsilon > 0:
            count = self.codebook.count(self.level)
            if count > 1:
                code = respond(code, count, self.epsilon, chance[:, 1], chance[:, 2])
        identity = self.identity.of(self.codebook.kind(code, self.level), noise[:, : self.identity_size])
        return Latents(identity, self.codebook.latent(code, self.level), residual)

    def fitted(self) -> bool:
        """Whether there are prototypes."""
        return self.codebook.count(self.level) > 0

    def require_fitted(self) -> None:
        """Raises:
        ChannelError: the policy needs prototypes or a prior, and there are none.
        """
        if self.policy != "latents" and not self.fitted():
            raise ChannelError(
                f"this model has no prototypes, which the policy {self.policy} needs: its training part has too few "
                "patients (stage 2 says so), or it is older than they are (run stage 2 again). The policy latents "
                "passes on whatever the latents hold, without a bound"
            )

    def statement(self) -> Statement | None:
        """What a release says of its original at most; None where nothing bounds it."""
        if self.policy != "code":
            return None
        self.require_fitted()
        return self.codebook.statement(self.level, self.epsilon or None)

    def extra_repr(self) -> str:
        """Settings, which tell two channels with the same tables apart."""
        return f"policy={self.policy}, prototypes={LEVELS[self.level]}, epsilon={self.epsilon or None}"
