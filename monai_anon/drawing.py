"""Images of nobody for a batch of originals: the numbers that they are drawn with, and the gate that they go through.

The noise of an image is a function of seed, name and the number of the draw. With a key, images of one patient share
the numbers of their *identity*, which are a function of key and patient; pose and exposure stay each image's own.

**A pseudonym through the gate.** One identity for all images of a patient must be drawn for all of them at once, and
which draw is taken must not tell what the images show: if the first one that suits *these images* were taken, the
number of the draw would be a function of all their codes. So each pseudonym's identity is tried before any of its
images is looked at, shown with the commonest code of every finding, against the training patients (`fitting_draws`),
and the first draw that passes stands. It depends on key and patient alone. Each image then draws its own pose and
exposure until it passes (`gated_release`), or is withheld. Given all noise, key included, an image is thus one of K
pictures or withheld, whatever the patient's other images are: n of them say at most n log2(K + 1) bits under `veto`, n
log2 K under `off`; with randomised response n epsilon. A patient none of whose draws suit has the first one, and his
images are withheld where they fail.

A randomised response hangs on the key, the pixels and `context` (which model, codes and epsilon), so that one image
has one response however often it is released, and two images two that know nothing of each other. Without a key it is
drawn from the system, whatever the seed.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import RESPONSE
from monai_anon.gate import Decision, Gate
from monai_anon.gated_release import TRIES, anonymise_through, fitting_draws
from monai_anon.jobs import Job
from monai_anon.keys import Key
from monai_anon.readers import to_model_range

_REMEMBERED = 100_000  # pseudonyms whose draw is not sought again; some 15 MB


class Drawn(NamedTuple):
    """Finished images `(B, C, S, S)` in [-1, 1] on the CPU, and what the gate says of each; None without a gate."""

    images: Tensor
    decisions: list[Decision] | None


def image_noise(seed: int, name: str, length: int, number: int = 0) -> Tensor:
    """Standard normal noise (length,) of the draw `number` for the image called `name`: a function of these alone."""
    start = f"{seed}/" if number == 0 else f"{seed}:{number}/"
    return _normal(hashlib.sha256(start.encode() + os.fsencode(name)).digest(), length)


def _normal(digest: bytes, length: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(list(digest)).standard_normal(length, dtype=np.float32))


class Drawing:
    """Draws images with a model that takes images `(B, C, S, S)` in [-1, 1] and noise `(B, noise_size)`.

    An image depends on its original, seed, name and key only: not on its batch, nor on other files. (Sums in another
    order may move a pixel by one gray level of 255 when the batch size changes, and a likeness by as little.) Without a
    seed a random one is drawn. It is never shown: who has seed and model can tell which name an image was made under.

    Args:
        key: makes the identities of pseudonyms and randomised responses; None for an identity an image, whatever a
            job's `identity` is.
        gate: that images go through; None writes them as they come.
        context: all that the meaning of a code hangs on.
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int | None = None,
        key: Key | None = None,
        gate: Gate | None = None,
        context: str = "",
        tries: int = TRIES,
    ) -> None:
        self.model, self.gate, self.tries = model, gate, tries
        self._seed, self._key, self._context = secrets.randbits(128) if seed is None else seed, key, context
        self._length = int(model.noise_size)  # type: ignore[arg-type]
        channel = getattr(model, "channel", None)
        self._identity = int(getattr(model, "identity_noise", 0)) + int(getattr(channel, "identity_size", 0))
        self._responds = bool(getattr(channel, "epsilon", 0.0))
        self._taken: dict[str, int] = {}

    @torch.inference_mode()
    def __call__(self, jobs: Sequence[Job], pixels: Tensor) -> Drawn:
        """Images for originals uint8 `(B, C, S, S)`."""
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        self._choose(jobs)
        responses = self._responses(pixels)

        def noise(number: int, rows: Tensor) -> Tensor:
            found = torch.stack([self._noise(jobs[row], number) for row in rows.tolist()])
            if responses is not None:
                found[:, -RESPONSE:] = responses[rows]
            return found

        images = to_model_range(pixels)
        if self.gate is None:
            generated = self.model(images.to(device), noise(0, torch.arange(len(jobs))).to(device))
            return Drawn(generated.float().cpu(), None)
        assert isinstance(self.model, LatentSwapAnonymizer)
        batch = anonymise_through(self.gate, self.model, images, noise, self.tries)
        return Drawn(to_model_range(batch.pixels), batch.decisions)

    def noise(self, job: Job) -> Tensor:
        """The numbers `(noise_size,)` that an image's first draw is made with, for a program that draws it itself; they
        do not decide randomised responses.
        """
        self._choose([job])
        return self._noise(job, 0)

    def _noise(self, job: Job, number: int) -> Tensor:
        found = image_noise(self._seed, job.name, self._length, number)
        if self._key is not None and job.identity:
            found[: self._identity] = self._identity_noise(job.identity, self._taken.get(job.identity, 0))
        return found

    def _identity_noise(self, identity: str, number: int) -> Tensor:
        assert self._key is not None
        return _normal(self._key.digest("identity", identity, str(number)), self._identity)

    def _choose(self, jobs: Sequence[Job]) -> None:
        """See to it that each pseudonym of the batch has its draw."""
        if self.gate is None or self._key is None:
            return
        assert isinstance(self.model, LatentSwapAnonymizer)
        if len(self._taken) > _REMEMBERED:
            self._taken.clear()
        new = list(dict.fromkeys(job.identity for job in jobs if job.identity and job.identity not in self._taken))

        def noise(number: int, rows: Tensor) -> Tensor:
            found = []
            for row in rows.tolist():
                own = _normal(self._key.digest("trial", new[row], str(number)), self._length)  # type: ignore[union-attr]
                own[: self._identity] = self._identity_noise(new[row], number)
                found.append(own)
            return torch.stack(found)

        self._taken |= dict(zip(new, fitting_draws(self.gate, self.model, noise, len(new), self.tries), strict=True))

    def _responses(self, pixels: Tensor) -> Tensor | None:
        """Numbers `(B, RESPONSE)` that decide randomised responses; None where there are none."""
        if not self._responds:
            return None
        if self._key is None:
            fresh = random.SystemRandom()
            return torch.tensor([[fresh.gauss(0, 1) for _ in range(RESPONSE)] for _ in pixels])
        seen = (hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in pixels)
        return torch.stack([_normal(self._key.digest("response", self._context, one), RESPONSE) for one in seen])
