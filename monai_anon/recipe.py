"""What stage 1 optimises: the terms, their weights and switches."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from monai_anon.independence import CORRELATIONS
from monai_anon.networks import Latents

SWAP_TERMS = ("disentanglement", "swap_finding", "evidence_matching", "swap_adversarial")
RECOGNISED = ("finding_correlation", "swap_finding", "evidence_matching")
TERMS = (
    "medical",
    "identity",
    "adversarial",
    "ssim",
    "psnr",
    "pixel",
    "texture",
    "medical_rate",
    "residual_rate",
    *CORRELATIONS,
    *SWAP_TERMS,
)


@dataclass(frozen=True)
class Recipe:
    """Everything of stage 1 that a person tunes.

    Args:
        weights: a weight for each loss term used (`TERMS`); a term without a weight, or with 0, is not computed.
        noise: standard deviation of the Gaussian noise on each latent before decoding.
        swaps: the latents that are replaced (i in Eq. 1).
        every_swap: make every swap of every image (the paper); else each image takes one, in turn.
        swaps_from: share of the training after which the swap terms join.
        independence_from: share of the training after which the correlation terms join. Early latents all say the same,
            and pulling them apart before they say anything stops the training (measured).
        noisy_swaps: noise also on swapped latents (ours), or in the reconstruction only (the authors' code).
        identity_from_same: decode with the identity of another image of the same patient.
        finding_exchange: share of the identities that are moved to another finding's mean before decoding
            (`independence.FindingExchange`); for findings that never change within a patient.
        free_cycle: let Eq. 1 move its targets and the encoder on generated images (the paper), or only the decoder
            (ours).
        vary: shift, expose and contrast every image otherwise each time (`variation.other_captures`).
        warp: make every patient another person each time, by smooth displacements up to this share of the side and
            smooth shades (`variation.other_people`); 0 for the patients as they are.
        augment: flip, shift and expose images before the discriminator of reconstructions (Eq. 3; `losses.augment`).
        veil: noise on images before the recogniser looks at them, in units of [-1, 1].
        alpha: Eq. 3's PSNR normalisation, dB.
    """

    weights: Mapping[str, float]
    noise: Mapping[str, float] = field(default_factory=dict)
    swaps: tuple[str, ...] = Latents._fields
    every_swap: bool = False
    swaps_from: float = 0.0
    independence_from: float = 0.0
    noisy_swaps: bool = True
    identity_from_same: bool = True
    finding_exchange: float = 0.0
    free_cycle: bool = False
    vary: bool = False
    warp: float = 0.0
    augment: bool = True
    veil: float = 0.0
    alpha: float = 48.0

    def __post_init__(self) -> None:
        for name, given, known in (
            ("weights", self.weights, TERMS),
            ("noise", self.noise, Latents._fields),
            ("swaps", self.swaps, Latents._fields),
        ):
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise ValueError(f"recipe {name}: unknown {unknown}; known are {list(known)}")
            negative = [key for key in given if isinstance(given, Mapping) and given[key] < 0]
            if negative:
                raise ValueError(f"recipe {name}: {negative} are negative; they must be 0 or more")
        if not 0 <= self.finding_exchange <= 1:
            raise ValueError(f"recipe finding_exchange is {self.finding_exchange}; it must be a share, from 0 to 1")
        if not self.swaps and any(self.weights.get(term, 0) > 0 for term in SWAP_TERMS):
            raise ValueError(f"recipe swaps is empty; the terms {list(SWAP_TERMS)} need one of {list(Latents._fields)}")

    def active(self, progress: float) -> set[str]:
        """Names of the terms with a weight at this point of the training."""
        start = dict.fromkeys(SWAP_TERMS, self.swaps_from) | dict.fromkeys(CORRELATIONS, self.independence_from)
        return {term for term, weight in self.weights.items() if weight > 0 and progress >= start.get(term, 0.0)}
