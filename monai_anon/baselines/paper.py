"""The paper's autoencoder, with each of the identities that Table 3 compares: averages, a VAE, one with privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from monai_anon.baselines.latent_swap import LatentSwap, averages_of, fit_identity_vae, one_of
from monai_anon.baselines.system import Setting
from monai_anon.engines import Step
from monai_anon.identities import Gallery, build_gallery
from monai_anon.identity_objectives import ClassifiedIdentity, IdentityObjective, SiameseIdentity
from monai_anon.networks import Discriminator, IdentityVAE, LatentClassifier
from monai_anon.recipe import Recipe
from monai_anon.steps import DisentanglementStep

RECIPE = Recipe(
    weights={"medical": 5.0, "identity": 5.0, "ssim": 1.0, "psnr": 1.0, "adversarial": 1.0, "disentanglement": 5.0},
    noise={"identity": 0.1, "medical": 0.1, "residual": 0.1},
    every_swap=True,
    noisy_swaps=False,
    identity_from_same=False,
    free_cycle=True,
)
"""The paper's, where a config gives none: `paper_recipe` of `compare.json`."""

PLAIN = {"reconstruction": 1.0, "kl": 0.002}
WITH_HINGES = PLAIN | {"repulsion_original": 0.1, "repulsion_other": 0.1}
WITH_ENTROPY = PLAIN | {"entropy": 1.0}


class PaperAutoencoder(LatentSwap):
    """The disentangling autoencoder of Montenegro and Cardoso ("Anonymizing medical case-based explanations through
    disentanglement", sections 3.1 and 3.3), trained once for all systems that replace its identities in another way.

    Three latents; classifiers make the identity hold the patient and the medical latent the finding (Eq. 2 or 6), SSIM,
    PSNR and a discriminator make the images real (Eq. 3), and whatever latent is exchanged between two images, the
    encoder must find the exchanged one and no other changed (Eq. 1). All are optimised together (Eq. 4).

    Where it is not the paper's:

    - Networks, lengths of the latents, optimiser and budget are those of all compared systems; the paper trains larger
      ones for 1551 epochs on chest images. No dropout in encoder and decoder, group for batch normalisation.
    - Identities lie on a sphere of radius sqrt(D). Without it they shrink under Eq. 6 and a short budget until all
      match; it favours the paper's method.
    - An average over the last weights is kept, where the paper keeps the best on the validation part.
    - Noise of 0.1 on the latents of reconstructions is the authors' code's; lambda_r is on all of Eq. 3.

    Args:
        recipe: what is optimised.
        multi_class: the classifier of training patients (Eq. 2), in place of pairs (Eq. 6, with its margin of 0.1). It
            has a row for each patient, and is in the training's checkpoint, never in a system's file.
    """

    shares: ClassVar[str] = "paper-autoencoder"

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        classes: int = 2,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        latent_sizes: Sequence[int] = (96, 4, 8),
        recipe: Recipe = RECIPE,
        multi_class: bool = False,
    ):
        super().__init__(size, channels, classes, encoder_widths, decoder_widths, latent_sizes)
        self.size, self.channels, self.widths = size, channels, tuple(encoder_widths)
        self.recipe, self.multi_class = recipe, multi_class

    def begin(self, setting: Setting) -> Step:
        objective: IdentityObjective = SiameseIdentity()
        if self.multi_class:
            people = int(setting.cohort.patient.max()) + 1
            classifier = LatentClassifier(self.latent_sizes[0], people).to(setting.device)
            self.disentangler.identity_classifier, objective = classifier, ClassifiedIdentity(classifier)
        wanted = self.recipe.weights.get("adversarial", 0) > 0
        critic = Discriminator(self.size, self.channels, self.widths) if wanted else None
        optimisation = setting.optimisation_of_games if wanted else setting.optimisation
        return DisentanglementStep(self.disentangler, self.recipe, optimisation, objective, critic)

    def conclude(self, setting: Setting) -> None:
        classifier, self.disentangler.identity_classifier = self.disentangler.identity_classifier, None
        self.find_identities(build_gallery(self.disentangler, setting.cohort), setting, classifier)

    def find_identities(self, gallery: Gallery, setting: Setting, classifier: LatentClassifier | None) -> None:
        """Fit what new identities come from; `classifier` is the one of patients where there is one."""
        raise NotImplementedError


class AveragesOf6(PaperAutoencoder):
    """The mean of 6 training patients' identities, drawn at random (Table 3, "Averaging 6 identities").

    Where it is not the paper's, besides what `PaperAutoencoder` says: a fixed number of such averages is drawn once,
    with the setting's seed, and is all that is kept; a release takes one of them. Drawn anew for each release they
    would need the gallery of all training patients beside the model. The original patient cannot be left out: people
    who are released are not in the gallery. Each patient counts once, with the mean of the own images; averages are put
    back on the sphere.

    An average promises its training patients nothing: what of them shows is for the tables to say.

    Args:
        kept: averages in the system's file.
    """

    k: ClassVar[int | None] = 6
    averages: Tensor
    """Identities `(A, D)`; none before `conclude`."""

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        classes: int = 2,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        latent_sizes: Sequence[int] = (96, 4, 8),
        recipe: Recipe = RECIPE,
        multi_class: bool = False,
        kept: int = 256,
    ):
        super().__init__(size, channels, classes, encoder_widths, decoder_widths, latent_sizes, recipe, multi_class)
        if kept < 1:
            raise ValueError(f"kept is {kept}; it must be at least 1 average of identities")
        self.kept = kept
        self.register_buffer("averages", torch.empty(0, self.latent_sizes[0]))

    def find_identities(self, gallery: Gallery, setting: Setting, classifier: LatentClassifier | None) -> None:
        self.averages = averages_of(gallery, self.k, self.kept, setting.seed).to(setting.device)

    def another(self, identity: Tensor) -> Tensor:
        return one_of(self.averages, len(identity))


class AveragesOf12(AveragesOf6):
    """The mean of 12 training patients' identities (Table 3, "Averaging 12 identities"); otherwise as `AveragesOf6`."""

    k = 12


class AverageOfAll(AveragesOf6):
    """The mean of all training patients' identities, the same for every release (Table 3, "Averaging all identities").

    Otherwise as `AveragesOf6`; there is one average, whatever `kept` says.
    """

    k = None


class PlainVAE(PaperAutoencoder):
    """Identities that a VAE draws, without a privacy loss (Table 3, "VAE (without maximum entropy)").

    Reconstruction and KL (the first two terms of Eq. 5) on the training images' identities; a release is decoded from
    what the VAE's decoder makes of noise (Figure 3).

    Where it is not the paper's, besides what `PaperAutoencoder` says: a hidden layer of 128, batches of 256 latents, as
    many of them as batches of stage 1. The weight of the KL term is the authors' code's.

    Args:
        vae_weights: of the terms of Eq. 5 and 7 (`identity_vae_step.VAE_TERMS`); None: `usual_weights`.
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
        multi_class: bool = False,
        vae_weights: Mapping[str, float] | None = None,
        vae_margin: float = 0.1,
    ):
        super().__init__(size, channels, classes, encoder_widths, decoder_widths, latent_sizes, recipe, multi_class)
        self.vae_weights = dict(self.usual_weights() if vae_weights is None else vae_weights)
        self.vae_margin = vae_margin
        self.identity_vae = IdentityVAE(self.latent_sizes[0])

    def usual_weights(self) -> Mapping[str, float]:
        """Weights where none are given."""
        return PLAIN

    def find_identities(self, gallery: Gallery, setting: Setting, classifier: LatentClassifier | None) -> None:
        fit_identity_vae(self.identity_vae, gallery, self.vae_weights, self.vae_margin, setting, classifier)

    def another(self, identity: Tensor) -> Tensor:
        noise = torch.randn(len(identity), self.identity_vae.latent_size, device=identity.device)
        return self.identity_vae.decode(noise)


class PrivateVAE(PlainVAE):
    """The paper's method: drawn identities keep away from the original's and from another patient's (Eq. 7), or confuse
    the classifier of training patients where there is one (Eq. 5). Otherwise as `PlainVAE`.

    Where it is not the paper's: what is said there. The weights of the hinges are the authors' code's, that of the
    entropy is Eq. 5's, 1. The margin is the paper's 0.1, in units of a sphere that the paper has not.
    """

    def usual_weights(self) -> Mapping[str, float]:
        return WITH_ENTROPY if self.multi_class else WITH_HINGES
