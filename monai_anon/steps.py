"""Stage 1's iteration, written as the algorithm is: networks and a batch in, named unweighted loss terms out.

A step knows no files, no logging and no epochs. `progress` in [0, 1] is the share of the training done: schedules are
functions of it and an iteration's randomness is seeded by the trainer, so a resumed run repeats the uninterrupted one.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from monai_anon import losses
from monai_anon.compute import PLAIN, Compute
from monai_anon.identity_objectives import Batch, IdentityObjective
from monai_anon.independence import FindingExchange, Independence
from monai_anon.networks import Discriminator, Disentangler, Latents, Recogniser
from monai_anon.optimisation import Optimisation, Updater, frozen
from monai_anon.ranks import average_over_ranks
from monai_anon.recipe import RECOGNISED, SWAP_TERMS, Recipe
from monai_anon.texture import texture_loss
from monai_anon.variation import other_captures, other_people

Segment = tuple[str, slice, slice]
"""One kind of swap: the swapped latent's name, its rows in the batch, its rows among the generated images."""


class DisentanglementStep:
    """Eq. 1-4 and 6: one discriminator step (where its term has a weight), one encoder-decoder step.

    Args:
        model: the networks under training.
        recipe: terms, weights and switches.
        optimisation: the discriminators move by Adam, with the same settings.
        identity_objective: Siamese, contrastive or multi-class.
        discriminator: needed when `adversarial` has a weight.
        swap_discriminator: needed when `swap_adversarial` has a weight; tells swapped images from reconstructions.
        recogniser: needed when one of `RECOGNISED` has a weight; fitted before, frozen here.
        compute: precision, layout and compilation of the networks.
    """

    def __init__(
        self,
        model: Disentangler,
        recipe: Recipe,
        optimisation: Optimisation,
        identity_objective: IdentityObjective,
        discriminator: Discriminator | None = None,
        swap_discriminator: Discriminator | None = None,
        recogniser: Recogniser | None = None,
        compute: Compute = PLAIN,
    ):
        weighted = {t for t, w in recipe.weights.items() if w > 0}
        critics = {"adversarial": discriminator, "swap_adversarial": swap_discriminator}
        for term, network in critics.items():
            if term in weighted and network is None:
                raise ValueError(f"the term '{term}' has a weight but no discriminator is given")
        if weighted & set(RECOGNISED) and recogniser is None:
            raise ValueError(f"the terms {list(RECOGNISED)} need a recogniser, or weight 0")
        if recipe.warp > 0 and identity_objective.knows_people:
            raise ValueError(
                f"warp is {recipe.warp}: it makes every patient another person, for whom the identity classifier has "
                "no class; give warp 0, or an objective without classes (ContrastiveIdentity, SiameseIdentity)"
            )
        self.model, self.recipe, self.identity_objective = model, recipe, identity_objective
        self.critics = {term: n for term, n in critics.items() if term in weighted and n is not None}
        self.recogniser = recogniser.eval().requires_grad_(False) if recogniser is not None else None
        classes = recogniser.head.out_features if recogniser is not None else 0
        self.independence = Independence(weighted, model.encoder.latent_sizes, recipe.noise, classes)
        sizes = model.medical_classifier.classes, model.encoder.latent_sizes[0]
        self.exchange = FindingExchange(*sizes, recipe.finding_exchange) if recipe.finding_exchange > 0 else None
        guides = [recogniser] if recogniser is not None else []
        exchange = {} if self.exchange is None else {"finding_exchange": self.exchange}
        self.memories = self.independence.correlations | exchange
        for other in (*self.critics.values(), *self.memories.values(), *guides):
            other.to(next(model.parameters()).device)
        self.compute = compute
        compute.prepare(model.encoder, model.decoder, *self.critics.values(), *(guide.body for guide in guides))
        self.updater = Updater([model], optimisation, averaged=model)
        by_adam = dataclasses.replace(optimisation, muon=False)
        self.critic_updaters = {term: Updater([network], by_adam) for term, network in self.critics.items()}

    def __call__(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Named unweighted terms (detached scalars) and statistics of the latents (`latent/...`)."""
        self.compute.begin_step()
        self.model.train()
        batch = other_people(batch, self.recipe.warp) if self.recipe.warp else batch
        batch = other_captures(batch) if self.recipe.vary else batch
        active = self.recipe.active(progress)
        swapping = bool(active & set(SWAP_TERMS))

        # Encode the images of every pair, decode reconstructions and swaps together.
        i_real, z_ori, z_same, z_tar = self.encode_pairs(
            batch, with_target=swapping or self.identity_objective.needs_target
        )
        source = self.exchanged(self.sources(z_ori, z_same), batch)
        swapped, segments = self.swap(source, z_tar) if swapping and z_tar is not None else (None, [])
        i_rec, i_gen = self.decode(source, swapped)

        # The discriminator moves first: its update in place would spoil a graph that already runs through it.
        moved, shown = {}, i_rec  # augmented once for both of its sides
        if "adversarial" in self.critics:
            images = self.augmented(torch.cat([i_real, i_rec]))
            shown = images[len(i_real) :]
            moved["discriminator"] = self.discriminator_step("adversarial", images.detach(), progress)
        if "swap_adversarial" in self.critics and segments:
            pairs = min(len(i_rec), len(i_gen))
            images = torch.cat([i_rec[:pairs], i_gen[:pairs]]).detach()
            moved["swap_discriminator"] = self.discriminator_step("swap_adversarial", images, progress)

        # Eq. 2 or 6 and Eq. 3 on the reconstructions.
        terms = self.classification_terms(active, z_ori, z_same, z_tar, batch)
        terms |= self.realism_terms(active, i_real, i_rec, shown)

        # Ours: what the latents must not share.
        features = self.look_at_real(active, [i_real, batch["i_tar"]] if segments else [i_real])
        evidence = None
        if self.recogniser is not None and "finding_correlation" in active:
            evidence = self.recogniser.evidence(features[: len(i_real)])
        terms |= self.independence.terms(active, z_ori, z_same, batch, evidence)

        # Eq. 1 and our swap terms on the swapped images.
        if z_tar is not None and segments:
            terms |= self.swap_terms(active, (i_rec, i_gen), z_ori, z_tar, segments, batch, features)

        statistics = latent_statistics(z_ori, z_same, batch["patient_ori"], batch["has_same"])
        self.updater.update(losses.weighted_sum(terms, self.recipe.weights), progress)
        return {name: value.detach() for name, value in (terms | moved | statistics).items()}

    def encode_pairs(self, batch: Batch, with_target: bool) -> tuple[Tensor, Latents, Latents, Latents | None]:
        """The images to reconstruct, and the latents of I_ori, I_same and, where needed, I_tar by one encoder call."""
        images = [batch["i_ori"], batch["i_same"]] + ([batch["i_tar"]] if with_target else [])
        z = self.compute.run(self.model.encoder, torch.cat(images))
        parts = [Latents(*rows) for rows in zip(*(latent.chunk(len(images)) for latent in z), strict=True)]
        i_real = torch.cat(images[:2]) if self.recipe.identity_from_same else images[0]
        return i_real, parts[0], parts[1], parts[2] if with_target else None

    def sources(self, z_ori: Latents, z_same: Latents) -> Latents:
        """What is decoded to reconstruct: I_ori and I_same, each with the other's identity (ours), or I_ori as it is
        (the paper).
        """
        if not self.recipe.identity_from_same:
            return z_ori
        crossed = z_ori._replace(identity=z_same.identity), z_same._replace(identity=z_ori.identity)
        return Latents(*(torch.cat(pair) for pair in zip(*crossed, strict=True)))

    def exchanged(self, source: Latents, batch: Batch) -> Latents:
        """`sources` with the finding taken out of their identities, where the recipe says so."""
        if self.exchange is None:
            return source
        finding = batch["finding_ori"]
        if self.recipe.identity_from_same:
            finding = torch.cat([batch["finding_same"], finding])
        return source._replace(identity=self.exchange(source.identity, finding))

    def noisy(self, z: Latents) -> Latents:
        return Latents(
            *(
                latent + self.recipe.noise.get(name, 0.0) * torch.randn_like(latent)
                if self.recipe.noise.get(name, 0.0) > 0
                else latent
                for name, latent in z._asdict().items()
            )
        )

    def swap(self, source: Latents, z_tar: Latents) -> tuple[Latents, list[Segment]]:
        """Replace one latent of each image by the target's; `every_swap`, or each image one swap in turn."""
        size = len(z_tar.identity)
        source = take(source, slice(0, size))
        if self.recipe.every_swap:
            rows = [slice(0, size)] * len(self.recipe.swaps)
        else:
            edges = torch.linspace(0, size, len(self.recipe.swaps) + 1).round().int().tolist()
            rows = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        parts, segments, start = [], [], 0
        for name, r in zip(self.recipe.swaps, rows, strict=True):
            if r.start == r.stop:  # fewer images than swaps: the mean over no image is NaN
                continue
            mixed = source._replace(**{name: getattr(z_tar, name)})
            parts.append(Latents(*(latent[r] for latent in mixed)))
            segments.append((name, r, slice(start, start + r.stop - r.start)))
            start += r.stop - r.start
        return Latents(*(torch.cat(latent) for latent in zip(*parts, strict=True))), segments

    def decode(self, source: Latents, swapped: Latents | None) -> tuple[Tensor, Tensor]:
        """Reconstructions `(B, ...)` and swapped images `(G, ...)` by one decoder call."""
        z = self.noisy(source)
        if swapped is not None:
            extra = self.noisy(swapped) if self.recipe.noisy_swaps else swapped
            z = Latents(*(torch.cat(pair) for pair in zip(z, extra, strict=True)))
        images = self.compute.run(self.model.decoder, z)
        return images[: len(source.identity)], images[len(source.identity) :]

    def classification_terms(
        self, active: set[str], z_ori: Latents, z_same: Latents, z_tar: Latents | None, batch: Batch
    ) -> dict[str, Tensor]:
        encoded = [(z_ori, "ori"), (z_same, "same")] + ([(z_tar, "tar")] if z_tar is not None else [])
        terms = {}
        if "medical" in active:
            logits = self.model.medical_classifier(torch.cat([z.medical for z, _ in encoded]))
            label = torch.cat([batch[f"finding_{which}"] for _, which in encoded])
            terms["medical"] = losses.classification_loss(logits, label)
        if "identity" in active:
            terms["identity"] = self.identity_objective(z_ori, z_same, z_tar, batch)
        for name in ("medical", "residual"):
            if f"{name}_rate" in active:
                latent = torch.cat([getattr(z, name) for z, _ in encoded])
                terms[f"{name}_rate"] = losses.rate_loss(latent, self.recipe.noise.get(name, 0.0))
        return terms

    def realism_terms(self, active: set[str], i_ori: Tensor, i_rec: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """`shown`: the reconstructions as the discriminator sees them."""
        terms = {}
        if "ssim" in active:
            terms["ssim"] = losses.ssim_loss(i_ori, i_rec)
        if "psnr" in active:
            terms["psnr"] = losses.psnr_loss(i_ori, i_rec, self.recipe.alpha)
        if "pixel" in active:
            terms["pixel"] = losses.pixel_loss(i_ori, i_rec)
        if "texture" in active:
            terms["texture"] = texture_loss(i_ori, i_rec)
        if "adversarial" in active:
            with frozen(self.critics["adversarial"]) as discriminator:
                terms["adversarial"] = losses.adversarial_loss(self.compute.run(discriminator, shown))
        return terms

    def augmented(self, images: Tensor) -> Tensor:
        """What the discriminator of reconstructions is shown of images."""
        return losses.augment(images) if self.recipe.augment else images

    def discriminator_step(self, term: str, images: Tensor, progress: float) -> Tensor:
        """The discriminator's side of Eq. 3: the first half of `images` is real to it, the second generated."""
        real, generated = self.compute.run(self.critics[term], images).chunk(2)
        loss = losses.discriminator_loss(real, generated)
        self.critic_updaters[term].update(loss, progress)
        return loss

    def swap_terms(
        self,
        active: set[str],
        generated: tuple[Tensor, Tensor],
        z_ori: Latents,
        z_tar: Latents,
        segments: list[Segment],
        batch: Batch,
        features: Tensor,
    ) -> dict[str, Tensor]:
        """`generated`: reconstructions and swaps; `features`: the recogniser's, of the reconstructed and the target
        images.
        """
        terms: dict[str, Tensor] = {}
        i_rec, i_gen = generated
        if "disentanglement" in active:
            terms["disentanglement"] = self.cycle(i_gen, z_ori, z_tar, segments)
        if "swap_adversarial" in active:
            with frozen(self.critics["swap_adversarial"]) as discriminator:
                terms["swap_adversarial"] = losses.adversarial_loss(self.compute.run(discriminator, i_gen))
        if active & {"swap_finding", "evidence_matching"}:
            terms |= self.finding_terms(active, i_rec, i_gen, segments, batch, features)
        return terms

    def cycle(self, i_gen: Tensor, z_ori: Latents, z_tar: Latents, segments: list[Segment]) -> Tensor:
        """Eq. 1 over the swaps; the encoder is a fixed function of generated images unless `free_cycle`."""
        if self.recipe.free_cycle:
            z_gen = self.compute.run(self.model.encoder, i_gen)
        else:
            with frozen(self.model.encoder) as encoder:
                z_gen = self.compute.run(encoder, i_gen)
            z_ori, z_tar = (Latents(*(latent.detach() for latent in z)) for z in (z_ori, z_tar))
        return torch.stack(
            [
                losses.disentanglement_loss(take(z_ori, rows), take(z_tar, rows), take(z_gen, made), name)
                for name, rows, made in segments
            ]
        ).sum()

    def look(self, images: Tensor) -> Tensor:
        """The recogniser's features through noise: without it the decoder paints faint patterns that only the
        recogniser takes for fluid.
        """
        assert self.recogniser is not None
        veiled = images + self.recipe.veil * torch.randn_like(images) if self.recipe.veil > 0 else images
        return self.compute.run(self.recogniser.features, veiled).float()

    @torch.no_grad()
    def look_at_real(self, active: set[str], images: list[Tensor]) -> Tensor:
        """Features of real images, or no rows where no term asks for them."""
        return self.look(torch.cat(images)) if active & set(RECOGNISED) else images[0].new_empty(0)

    def finding_terms(
        self, active: set[str], i_rec: Tensor, i_gen: Tensor, segments: list[Segment], batch: Batch, features: Tensor
    ) -> dict[str, Tensor]:
        """The recogniser must see in a generated image what it sees in the image whose medical latent was decoded."""
        assert self.recogniser is not None
        ori, tar = features.split([len(i_rec), len(features) - len(i_rec)])
        wanted = torch.cat([ori] + [(tar if name == "medical" else ori)[rows] for name, rows, _ in segments])
        label = torch.cat(
            [batch["finding_tar" if name == "medical" else "finding_ori"][rows] for name, rows, _ in segments]
        )
        seen = self.look(torch.cat([i_rec, i_gen]))
        terms = {}
        if "evidence_matching" in active:
            real = self.recogniser.evidence(wanted)
            energy = average_over_ranks(real.square().mean())
            terms["evidence_matching"] = losses.evidence_matching_loss(self.recogniser.evidence(seen), real, energy)
        if "swap_finding" in active:
            terms["swap_finding"] = losses.classification_loss(self.recogniser.classify(seen[len(i_rec) :]), label)
        return terms

    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint must hold."""
        parts: dict[str, Any] = {"model": self.model, "updater": self.updater, **self.memories}
        for term, network in self.critics.items():
            parts |= {f"{term}_discriminator": network, f"{term}_updater": self.critic_updaters[term]}
        return parts


def take(z: Latents, rows: slice) -> Latents:
    """The rows of every latent."""
    return Latents(*(latent[rows] for latent in z))


def latent_statistics(
    z_ori: Latents, z_same: Latents, patient: Tensor, has_same: Tensor, threshold: float = 0.05
) -> dict[str, Tensor]:
    """Standard deviation of each latent over the batch (mean over dimensions; left out where the batch is one image),
    and the paper's two hit rates at its threshold.

    A collapse shows here and not in the hit rate of the same patient alone: everything matches everything. The other
    patient is the next one in the batch.
    """
    with torch.no_grad():
        spread = z_ori._asdict() if len(patient) > 1 else {}
        statistics = {f"latent/{name}_std": latent.std(0).mean() for name, latent in spread.items()}
        same = losses.latent_distance(z_ori.identity, z_same.identity)
        other = losses.latent_distance(z_ori.identity, z_ori.identity.roll(1, 0))
        differs = patient != patient.roll(1, 0)
        for name, distance, counted in (("same", same, has_same), ("other", other, differs)):
            count = counted.sum().clamp_min(1)
            statistics[f"latent/{name}_hit"] = ((distance < threshold) & counted).sum() / count
            statistics[f"latent/{name}_distance"] = (distance * counted).sum() / count
        return statistics
