"""Stage 2's iteration: synthetic identities, Eq. 5 and Eq. 7."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from monai_anon import losses
from monai_anon.networks import IdentityVAE, LatentClassifier
from monai_anon.optimisation import Optimisation, Updater, frozen

Batch = Mapping[str, Tensor]

VAE_TERMS = ("reconstruction", "kl", "entropy", "repulsion_original", "repulsion_other")


class IdentityVAEStep:
    """Eq. 5 (with `entropy`, which needs the identity classifier) or Eq. 7 (with the two repulsions) on fixed identity
    latents.

    A batch holds `identity` and `other` `(B, D)`: latents of real images and of random other patients. They are
    biometric data and are only ever held in memory.
    """

    def __init__(
        self,
        vae: IdentityVAE,
        weights: Mapping[str, float],
        optimisation: Optimisation,
        margin: float = 0.1,
        identity_classifier: LatentClassifier | None = None,
    ):
        unknown = sorted(set(weights) - set(VAE_TERMS))
        if unknown:
            raise ValueError(f"weights of the identity VAE: unknown {unknown}; known are {list(VAE_TERMS)}")
        if weights.get("entropy", 0) > 0 and identity_classifier is None:
            raise ValueError("the term 'entropy' (Eq. 5) needs the multi-class identity classifier of stage 1")
        self.vae, self.weights, self.margin = vae, weights, margin
        self.identity_classifier = identity_classifier
        self.updater = Updater([vae], optimisation, averaged=vae)

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms."""
        self.vae.train()
        identity, other = batch["identity"], batch["other"]
        reconstruction, mean, log_variance = self.vae(identity)
        sampled = self.vae.decode(torch.randn_like(mean))
        makers: dict[str, Callable[[], Tensor]] = {
            "reconstruction": lambda: losses.identity_reconstruction_loss(identity, reconstruction),
            "kl": lambda: losses.kl_loss(mean, log_variance),
            "entropy": lambda: losses.negative_entropy_loss(self.identity_logits(sampled)),
            "repulsion_original": lambda: losses.repulsion_loss(identity, sampled, self.margin),
            "repulsion_other": lambda: losses.repulsion_loss(other, sampled, self.margin),
        }
        terms = {name: makers[name]() for name, weight in self.weights.items() if weight > 0}
        self.updater.update(losses.weighted_sum(terms, self.weights), progress)
        found = {name: value.detach() for name, value in terms.items()}
        if len(sampled) > 1:  # one identity has no spread
            found["latent/sampled_std"] = sampled.detach().std(0).mean()
        return found

    def identity_logits(self, identity: Tensor) -> Tensor:
        if self.identity_classifier is None:
            raise ValueError("the term 'entropy' (Eq. 5) needs the multi-class identity classifier of stage 1")
        with frozen(self.identity_classifier) as classifier:
            return classifier(identity)

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {"vae": self.vae, "updater": self.updater}
