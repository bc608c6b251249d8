"""Our method with the budget and the widths of all compared systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.baselines.latent_swap import fit_identity_vae
from monai_anon.baselines.system import Setting, System
from monai_anon.channel import Channel
from monai_anon.channel_fitting import fit_channel
from monai_anon.engines import Step
from monai_anon.identities import encode_cohort, gallery_of_others
from monai_anon.identity_objectives import ContrastiveIdentity
from monai_anon.networks import Decoder, Disentangler, Encoder, IdentityVAE, LatentClassifier
from monai_anon.recipe import Recipe
from monai_anon.steps import DisentanglementStep

RECIPE = Recipe(
    weights={
        "medical": 0.5,
        "identity": 0.3,
        "ssim": 1.0,
        "pixel": 2.0,
        "texture": 1.5,
        "medical_rate": 0.01,
        "residual_rate": 0.002,
        "patient_correlation": 0.03,
    },
    noise={"medical": 0.2, "residual": 0.2},
    swaps_from=0.4,
    independence_from=0.15,
    vary=True,
    warp=0.04,
    veil=0.1,
)
"""That of `train.json`, where a config gives none: `our_recipe` of `compare.json`."""

VAE = {"reconstruction": 1.0, "kl": 0.01, "repulsion_original": 0.1, "repulsion_other": 0.1}
"""Stage 2's weights, those of `train_identity_vae.json`."""


class Ours(System):
    """What this project recommends (docs/method.md): a release says of its original the number of a medical prototype.

    Three latents, of which the decoder draws from identity and medical latent and the residual places what was drawn.
    Optimised as `train.json` does. Concluded as `train_identity_vae.json` does: prototypes of the medical latent, each
    shared by many training patients, priors from which identity and residual are drawn, and a VAE of identities, which
    the policy `latents` would draw from and `code` does not.

    Where it is not what the bundles train: widths, optimiser and budget are those of all compared systems, the
    decoder's maps grow by pixel shuffle from a side four times smaller, and the last weights' average is kept, not the
    best on the validation part.

    Args:
        size, channels, classes, encoder_widths, decoder_widths, latent_sizes: as of `latent_swap.LatentSwap`.
        recipe: what stage 1 optimises.
        policy, prototypes: of the channel (`channel.Channel`).
        patients_a_prototype: training patients that must share each prototype, at the least.
        vae_margin: of Eq. 7, a mean squared difference.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        classes: int = 2,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        latent_sizes: Sequence[int] = (96, 4, 8),
        recipe: Recipe = RECIPE,
        policy: str = "code",
        prototypes: int = 8,
        patients_a_prototype: int = 20,
        vae_weights: Mapping[str, float] = VAE,
        vae_margin: float = 1.0,
    ):
        super().__init__()
        self.recipe, self.classes, self.patients_a_prototype = recipe, classes, patients_a_prototype
        self.vae_weights, self.vae_margin = dict(vae_weights), vae_margin
        disentangler = Disentangler(
            Encoder(size, channels, encoder_widths, latent_sizes),
            Decoder(size, channels, decoder_widths, latent_sizes, canvas=1),
            LatentClassifier(latent_sizes[1], classes),
        )
        channel = Channel(latent_sizes, classes, policy, prototypes)
        self.networks = LatentSwapAnonymizer(disentangler, IdentityVAE(latent_sizes[0]), channel)

    def begin(self, setting: Setting) -> Step:
        return DisentanglementStep(self.networks.disentangler, self.recipe, setting.optimisation, ContrastiveIdentity())

    def conclude(self, setting: Setting) -> None:
        """Stage 2.

        Raises:
            ChannelError: the training part has too few patients for prototypes, and the policy needs them.
        """
        model, warp = self.networks.disentangler, self.recipe.warp
        encoded = encode_cohort(model, setting.cohort)
        gallery = gallery_of_others(model, setting.cohort, warp, seed=setting.seed) if warp else encoded.gallery()
        fit_identity_vae(self.networks.identity_vae, gallery, self.vae_weights, self.vae_margin, setting)
        found = fit_channel(
            encoded.latents,
            encoded.patient,
            encoded.finding,
            self.classes,
            self.patients_a_prototype,
            seed=setting.seed,
        )
        self.networks.channel.load_state_dict(found.state_dict())
        self.networks.channel.require_fitted()

    @property
    def proved(self) -> str:
        """What is proved of a release; nothing under another policy than `code`."""
        found = self.networks.channel.statement()
        return f"{found.bits:.1f} bits an image" if found else ""

    def forward(self, image: Tensor) -> Tensor:
        released: Tensor = self.networks(image)
        return released
