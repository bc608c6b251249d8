"""Games of a generator with a critic: what each side makes small, and penalties on the critic's slope."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from monai_anon import losses


@dataclasses.dataclass(frozen=True)
class Game:
    """What a critic's logits `(B,)` mean to either side.

    Args:
        critic: logits of real and of generated images to the critic's loss.
        generator: logits of generated images to the generator's loss.
        penalty: weight of (|gradient| - 1)^2 of the critic between real and generated images (Gulrajani et al. 2017).
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    penalty: float = 0.0

    def critic_loss(self, critic: Callable[[Tensor], Tensor], real: Tensor, generated: Tensor) -> Tensor:
        """The critic's side over images `(B, C, S, S)`, as many real as generated."""
        loss = self.critic(*critic(torch.cat([real, generated])).chunk(2))
        return loss + self.penalty * gradient_penalty(critic, real, generated) if self.penalty else loss


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, generated: Tensor) -> Tensor:
    """Mean of (|gradient of the critic| - 1)^2 at a random place between each real and generated image."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = torch.lerp(real, generated.detach(), share).requires_grad_(True)
    slope = gradient_norms(critic(between), between).clamp_min(1e-12).sqrt()
    return (slope - 1).square().mean()


def gradient_norms(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norms `(B,)` of the gradients of logits `(B,)` by the images `(B, C, S, S)` that they are of."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3))


LOGISTIC = Game(losses.discriminator_loss, losses.adversarial_loss)
"""Goodfellow et al. 2014."""

LEAST_SQUARES = Game(
    lambda real, generated: 0.5 * ((real - 1).square().mean() + generated.square().mean()),
    lambda generated: 0.5 * (generated - 1).square().mean(),
)
"""LSGAN, Mao et al. 2017: real is 1, generated is 0."""

WASSERSTEIN = Game(
    lambda real, generated: generated.mean() - real.mean(), lambda generated: -generated.mean(), penalty=10.0
)
"""WGAN-GP, Gulrajani et al. 2017, with their penalty."""
