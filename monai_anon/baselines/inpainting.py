"""What the systems share that never see a person: an image is blanked but for the evidence of its finding, and the rest
is drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon import losses
from monai_anon.baselines.saliency import evidence_of_predicted
from monai_anon.baselines.system import Setting, System
from monai_anon.networks import Discriminator, PreActivationBlock, Recogniser, check_size, normalisation
from monai_anon.optimisation import Updater, frozen
from monai_anon.recognition import Batch

STEM = 4  # pixels a side that the first map folds into channels


class Window(nn.Module):
    """What of an image stays visible: where its predicted finding is seen.

    A share `kept` of the pixels, those with the most evidence (class activation maps, enlarged), is dilated by
    `dilation`. A share and not a threshold: however flat the maps are, no more than that is shown.

    Args:
        kept: share of the pixels before they are dilated, in (0, 1).
        dilation: by how much the window grows on each side, as a share of the image's side.
    """

    def __init__(self, finding: Recogniser, kept: float, dilation: float):
        super().__init__()
        if not 0 < kept < 1:
            raise ValueError(f"kept is {kept}; it must be a share of the pixels above 0 and below 1")
        if not 0 <= dilation < 0.5:
            raise ValueError(f"dilation is {dilation}; it must be a share of the side from 0 to below 0.5")
        self.finding, self.kept, self.dilation = finding, kept, dilation

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Masks `(B, 1, S, S)` of images `(B, C, S, S)`: 1 where the image stays visible, else 0."""
        evidence = evidence_of_predicted(self.finding, self.finding.features(image))
        evidence = F.interpolate(evidence, size=image.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
        most = evidence.topk(max(1, round(self.kept * evidence.shape[1])), dim=1).indices
        mask = torch.zeros_like(evidence).scatter_(1, most, 1.0).reshape(-1, 1, *image.shape[-2:])
        reach = round(self.dilation * image.shape[-1])
        return F.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach)


class InpaintingNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) that draws an image `(B, C, S, S)` in [-1, 1] from what is shown of one and
    from noise.

    Args:
        widths: channels of the stem and of each halving after it; the way up mirrors them.
        noise_maps: channels of noise beside the smallest map; 0 for none.
        style: length of a vector that scales and shifts every block on the way up; 0 for none.
    """

    def __init__(self, size: int, channels: int, widths: Sequence[int], noise_maps: int = 0, style: int = 0):
        super().__init__()
        check_size(size, STEM * 2 ** (len(widths) - 1), "inpainting")
        self.noise_maps = noise_maps
        inputs = (channels + 1) * STEM**2
        self.stem = nn.Sequential(nn.PixelUnshuffle(STEM), nn.Conv2d(inputs, widths[0], 3, padding=1))
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList([PreActivationBlock(a, b, "group", "down") for a, b in pairs])
        self.middle = PreActivationBlock(widths[-1] + noise_maps, widths[-1], "group", condition=style)
        self.up = nn.ModuleList([PreActivationBlock(b, a, "group", "up", style) for a, b in reversed(pairs)])
        self.join = nn.ModuleList([PreActivationBlock(2 * a, a, "group", condition=style) for a, _ in reversed(pairs)])
        self.norm = normalisation("group", widths[0])
        self.head = nn.Sequential(
            nn.Conv2d(widths[0], channels * STEM**2, 3, padding=1), nn.PixelShuffle(STEM), nn.Tanh()
        )

    def forward(self, shown: Tensor, mask: Tensor, style: Tensor | None = None) -> Tensor:
        """Shown `(B, C, S, S)`, with the rest blank, its mask `(B, 1, S, S)` and style `(B, Z)`."""
        h = self.stem(torch.cat([shown, mask], dim=1))
        passed = []
        for block in self.down:
            passed.append(h)
            h = block(h)
        if self.noise_maps:
            h = torch.cat([h, torch.randn(len(h), self.noise_maps, *h.shape[2:], device=h.device)], dim=1)
        h = self.middle(h, style)
        for up, join in zip(self.up, self.join, strict=True):
            h = join(torch.cat([up(h, style), passed.pop()], dim=1), style)
        return self.head(F.leaky_relu(self.norm(h), 0.2)).float()


class InpaintingStep:
    """One step of a critic, one of the generator, on I_ori and I_tar.

    The critic looks at whole images, real ones and filled ones, beside the mask, of which both have the same.
    Subclasses say what the two play for.
    """

    def __init__(self, system: Inpainter, setting: Setting):
        self.system = system
        self.critic = Discriminator(system.size, system.channels + 1, system.widths).to(setting.device)
        self.updater = Updater([system.generator], setting.optimisation_of_games, averaged=system.generator)
        self.critic_updater = Updater([self.critic], setting.optimisation_of_games)

    def critic_terms(self, real: Tensor, filled: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the critic makes small; `filled` has no gradient."""
        raise NotImplementedError

    def adversarial_loss(self, logit: Tensor) -> Tensor:
        """What the generator makes small, from the critic's logits `(B,)` of its images."""
        raise NotImplementedError

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms."""
        self.system.generator.train()
        i_real = torch.cat([batch["i_ori"], batch["i_tar"]])
        mask = self.system.window(i_real)
        i_gen = self.system.fill(i_real, mask)

        # The critic moves first.
        moved = self.critic_terms(i_real, i_gen.detach(), mask)
        self.critic_updater.update(losses.weighted_sum(moved, self.system.weights), progress)

        # Then the generator.
        with frozen(self.critic) as critic:
            terms = {"adversarial": self.adversarial_loss(critic(torch.cat([i_gen, mask], dim=1)))}
        self.updater.update(losses.weighted_sum(terms, self.system.weights), progress)
        return {name: value.detach() for name, value in (terms | moved).items()}

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        return {
            "generator": self.system.generator,
            "critic": self.critic,
            "updater": self.updater,
            "critic_updater": self.critic_updater,
        }


class Inpainter(System):
    """An anonymizer that keeps the pixels of a window and draws the others from these and from noise alone.

    Subclasses say which generator draws, and how it is trained.

    What of the original passes: the pixels inside the window as they are, and the window's place and shape, which a
    network finds in the whole image. Nothing else does: two images with the same window and the same pixels in it give
    the same release under the same noise.

    Args:
        generator: called with what is shown, its mask and noise.
        widths: of the critic.
        weights: of the terms `adversarial`, `critic` and `penalty`.
    """

    TERMS = ("adversarial", "critic", "penalty")

    def __init__(
        self,
        size: int,
        channels: int,
        generator: nn.Module,
        window: Window,
        widths: Sequence[int],
        weights: Mapping[str, float],
    ):
        super().__init__()
        if sorted(weights) != sorted(self.TERMS):
            raise ValueError(f"weights are of {sorted(weights)}; they must be of {list(self.TERMS)}")
        self.size, self.channels, self.widths, self.weights = size, channels, tuple(widths), dict(weights)
        self.generator = generator
        self.window = window.requires_grad_(False)

    def watch(self, setting: Setting) -> None:
        """Take the guide's network that finds the finding; it is frozen."""
        self.window.finding.load_state_dict(setting.guides.finding.state_dict())
        self.window.eval().requires_grad_(False)

    def fill(self, image: Tensor, mask: Tensor) -> Tensor:
        """Images `(B, C, S, S)` with what the mask `(B, 1, S, S)` does not keep drawn anew."""
        visible = mask > 0.5
        shown = torch.where(visible, image, torch.zeros_like(image))  # not a product: a NaN would pass through it
        return torch.where(visible, image, self.generator(shown, mask))

    def forward(self, image: Tensor) -> Tensor:
        return self.fill(image, self.window(image))
