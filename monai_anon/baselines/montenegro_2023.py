"""Montenegro 2023: probes are fooled, so that the identity latent has no finding and the medical latent nobody."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.baselines.latent_swap import LatentSwap, fit_identity_vae
from monai_anon.baselines.system import Setting
from monai_anon.engines import Step
from monai_anon.identities import build_gallery
from monai_anon.networks import IdentityVAE, LatentClassifier
from monai_anon.optimisation import Updater, frozen
from monai_anon.recognition import Batch

WEIGHTS = {
    "pixel": 5.0,
    "ssim": 1.0,
    "medical": 1.0,
    "identity": 1.0,
    "finding_invariance": 1.0,
    "patient_invariance": 1.0,
}
VAE = {"reconstruction": 1.0, "kl": 0.002}


class Montenegro2023(LatentSwap):
    """The disentanglement of Montenegro, Silva, Cardoso ("Disentangled representation learning for privacy-preserving
    case-based explanations", MAD workshop at MICCAI 2022, published 2023).

    Two latents, of which images are rebuilt: the identity, by which a classifier knows the training patients, and the
    medical latent, by which another knows the finding. Probes are trained to find the finding in the identity and the
    patient in the medical latent; the encoder is trained against both, until the identity says nothing of the finding
    and the medical latent nothing of the patient. A release takes a VAE's identity.

    Optimises pixel error and SSIM, cross-entropy of patient and finding on their latents, and how far each probe is
    from knowing nothing.

    Where it is not the paper's, as far as its text was known to us:

    - The encoder is trained towards a uniform answer of the probes (in nats), which ends where they know nothing; minus
      their cross-entropy would not. Probes see latents in units of their spread, so that shrinking hides nothing.
    - No discriminator of real images; all weights are ours. The VAE's KL has the weight of the later paper's code.
    - The medical latent is as long as medical and residual latent of other systems together: there is no third one.
    - The identity lies on a sphere. Light networks, images of 64 pixels, all systems' budget.

    Classifier of patients and probes are used up by the training: none is in the system's file.

    Args:
        size, channels, classes, encoder_widths, decoder_widths: as of `latent_swap.LatentSwap`.
        latent_sizes: of identity, medical and residual latent; the last two are made one.
        weights: of `pixel`, `ssim`, `medical`, `identity`, `finding_invariance`, `patient_invariance`.
        vae_weights: of `reconstruction` and `kl` of the identity VAE.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        classes: int = 2,
        encoder_widths: Sequence[int] = (32, 64, 96),
        decoder_widths: Sequence[int] = (96, 64, 32),
        latent_sizes: Sequence[int] = (96, 4, 8),
        weights: Mapping[str, float] = WEIGHTS,
        vae_weights: Mapping[str, float] = VAE,
    ):
        identity, medical, residual = latent_sizes
        super().__init__(size, channels, classes, encoder_widths, decoder_widths, (identity, medical + residual, 0))
        self.classes, self.weights, self.vae_weights = classes, dict(weights), dict(vae_weights)
        self.identity_vae = IdentityVAE(identity)

    def begin(self, setting: Setting) -> Step:
        return Montenegro2023Step(self, setting)

    def conclude(self, setting: Setting) -> None:
        gallery = build_gallery(self.disentangler, setting.cohort)
        fit_identity_vae(self.identity_vae, gallery, self.vae_weights, 0.0, setting)

    def another(self, identity: Tensor) -> Tensor:
        noise = torch.randn(len(identity), self.identity_vae.latent_size, device=identity.device)
        return self.identity_vae.decode(noise)


class Montenegro2023Step:
    """One step of the probes, one of the networks."""

    def __init__(self, system: Montenegro2023, setting: Setting):
        self.system, self.model = system, system.disentangler
        identity, medical, _ = system.latent_sizes
        people = int(setting.cohort.patient.max()) + 1
        self.classifier = LatentClassifier(identity, people).to(setting.device)
        self.finding_probe = Probe(identity, system.classes).to(setting.device)
        self.patient_probe = Probe(medical, people).to(setting.device)
        self.updater = Updater([self.model, self.classifier], setting.optimisation, averaged=self.model)
        self.probe_updater = Updater([self.finding_probe, self.patient_probe], setting.optimisation)

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms; `finding_probe` and `patient_probe` are the probes' own cross-entropies."""
        self.model.train()
        image = torch.cat([batch["i_ori"], batch["i_tar"]])
        finding = torch.cat([batch["finding_ori"], batch["finding_tar"]])
        patient = torch.cat([batch["patient_ori"], batch["patient_tar"]])
        z = self.model.encode(image)

        # The probes learn first, of latents as they are.
        probes = {
            "finding_probe": losses.classification_loss(self.finding_probe(z.identity.detach()), finding),
            "patient_probe": losses.classification_loss(self.patient_probe(z.medical.detach()), patient),
        }
        self.probe_updater.update(torch.stack(list(probes.values())).sum(), progress)

        # Then encoder, decoder and classifiers, against the probes.
        decoded = self.model.decode(z)
        terms = {
            "pixel": losses.pixel_loss(image, decoded),
            "ssim": losses.ssim_loss(image, decoded),
            "medical": losses.classification_loss(self.model.classify(z.medical), finding),
            "identity": losses.classification_loss(self.classifier(z.identity), patient),
            "finding_invariance": knowledge(self.finding_probe, z.identity),
            "patient_invariance": knowledge(self.patient_probe, z.medical),
        }
        self.updater.update(losses.weighted_sum(terms, self.system.weights), progress)
        return {name: value.detach() for name, value in (terms | probes).items()}

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {
            "model": self.model,
            "updater": self.updater,
            "classifier": self.classifier,
            "finding_probe": self.finding_probe,
            "patient_probe": self.patient_probe,
            "probe_updater": self.probe_updater,
        }


class Probe(nn.Sequential):
    """Logits `(B, K)` of latents `(B, D)` in units of their spread in the batch: smaller ones do not hide anything."""

    def __init__(self, latent_size: int, classes: int):
        super().__init__(nn.BatchNorm1d(latent_size, affine=False), LatentClassifier(latent_size, classes, dropout=0.0))
        self.classes = classes


def knowledge(probe: Probe, latent: Tensor) -> Tensor:
    """How far a frozen probe is from a uniform answer to latents `(B, D)`, in nats: log K less its answer's entropy."""
    with frozen(probe) as fixed:
        return losses.negative_entropy_loss(fixed(latent)) + math.log(probe.classes)
