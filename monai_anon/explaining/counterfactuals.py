"""An image with another finding, and where the two differ, without showing whose image it is.

**Why the person must be drawn, too.** The usual counterfactual keeps identity and residual: D(z.identity, m',
z.residual) beside the reconstruction D(z.identity, m, z.residual). Both are images of the person; a gate would refuse
them, and rightly. Their difference is no way out: D is not linear, so what another medical latent changes depends on
whose chest it is drawn into (the fluid ends where *this* diaphragm and *this* chest wall are), and the map shows that
anatomy as an outline. So nothing here is computed from the original's own identity; a page or picture gets

    I = D(i, m, r),    I' = D(i, m', r),    evidence = I - I'

with an identity i and a residual r of nobody, the same in both, drawn as for a release, and with m what a release would
be given of the original: under the policy `code` a prototype. m' is a function of m (`other_finding`). So m', I, I'
and the map are all functions of the one code j and of noise, and what `channel` proves of one image holds of the set:
log2 K bits, however many pictures are made of that one j and whatever is computed from their pixels.

**Through the gate.** All images of a series must pass what `gate.Gate.inspect` asks, each for the medical latent it was
drawn from, or another i and r are drawn for all. That depends on j and noise only. Then the original may veto, as in
`gated_release`: if any image is near its patient, or the first does not show its finding, *nothing* is given, not even
the code. That is one outcome more: log2(K + 1) bits. (Whoever asks again after a veto may, like `redraw`, have as many
outcomes as K a try.) A counterfactual is not asked to keep the original's finding, and the steps between two findings
are not asked to show either; their ends are.

`own_series` keeps the person: for who may see the original anyway.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import RESPONSE
from monai_anon.copies import WithheldError
from monai_anon.gate import Decision, Gate, Reason, written
from monai_anon.gated_release import TRIES, Noise, OriginalCheck
from monai_anon.networks import Latents
from monai_anon.release import image_noise

MOST_STEPS = 16
_PEOPLE = 4  # of nobody, on whom the change of a picture is looked at


class UncheckedGate(Gate):
    """A gate without a gallery, for `--no-gate`: asks for a finite image that is not constant and shows the finding it
    was drawn with, and compares it with nobody.
    """

    def __init__(self, network: LatentSwapAnonymizer):
        super().__init__(network, [])
        self.faults = ()


class Series(NamedTuple):
    """Images of one nobody (or, of `own_series`, of the original's person) with medical latents from one to another.

    Args:
        pixels: uint8 `(M, C, S, S)`, on the CPU.
        medical: latents `(M, D)` that they are drawn from.
        probabilities: of the findings, `(M, K)`, as the model's classifier reads these latents.
        tries: draws made.
    """

    pixels: Tensor
    medical: Tensor
    probabilities: Tensor
    tries: int = 1


@dataclass(frozen=True)
class Draws:
    """Noise for whom somebody nobody knows the seed of: a function of seed, name and number of the draw, but for the
    numbers that decide a randomised response, which follow from no seed (`monai_anon.release`).

    Args:
        seed: secret.
        size: the anonymizer's `noise_size`.
    """

    seed: int
    size: int

    def of(self, names: Sequence[str], response: Tensor) -> Noise:
        """Noise of a batch, by the names of its rows; `response` `(B, RESPONSE)` goes to each row's every draw."""

        def noise(number: int, rows: Tensor) -> Tensor:
            drawn = [image_noise(self.seed, f"{names[row]}, draw {number}", self.size) for row in rows.tolist()]
            found = torch.stack(drawn) if drawn else torch.zeros(0, self.size)
            found[:, -RESPONSE:] = response[rows]
            return found

        return noise


def responses(network: LatentSwapAnonymizer, count: int) -> Tensor:
    """The numbers `(count, RESPONSE)` that decide randomised responses; zeros where the code passes as it is."""
    if not network.channel.epsilon:
        return torch.zeros(count, RESPONSE)
    fresh = random.SystemRandom()
    return torch.tensor([[fresh.gauss(0, 1) for _ in range(RESPONSE)] for _ in range(count)]).reshape(count, RESPONSE)


@torch.inference_mode()
def passing(network: LatentSwapAnonymizer, z: Latents, response: Tensor) -> Tensor:
    """What passes of the medical latents: `(B, D)`, under the policy `code` those of their prototypes."""
    noise = torch.zeros(len(z.medical), network.noise_size, device=z.medical.device)
    noise[:, -RESPONSE:] = response.to(noise)
    return network.drawn(z, noise).medical.float()


def finding_count(network: LatentSwapAnonymizer) -> int:
    """How many findings the model tells apart."""
    return int(network.channel.codebook.axes.shape[0])


@torch.inference_mode()
def other_finding(
    network: LatentSwapAnonymizer, z: Latents, medical: Tensor, response: Tensor, to: int | None = None
) -> Tensor:
    """The medical latent `(1, D)` of another finding (`to`, or any) that changes the picture least: the prototype for
    which the same people, of nobody, look most like those with `medical`, by the mean difference of their pixels.

    Not the nearest latent, since distances between findings mean little (the shipped model's nearest to "absent" is a
    large effusion), nor the mean of the other finding, which is none of the ways it looks: docs/explain.md has all
    three, measured. A function of what passes and of fixed draws, as everything here.

    Args:
        z: of the original, one row.
        medical: what passes of it, `(1, D)`.
        response: `(1, RESPONSE)`, by which that was decided.

    Raises:
        ValueError: no such finding, the image's own one, or the model has no prototype of it.
    """
    disentangler = network.disentangler
    latents = _prototypes(network, int(disentangler.classify(medical).argmax(1)), to)
    drawn = torch.randn(_PEOPLE, network.noise_size, generator=torch.Generator().manual_seed(0))
    drawn[:, -RESPONSE:] = response
    people = network.drawn(Latents(*(latent.expand(_PEOPLE, -1) for latent in z)), drawn.to(medical.device))

    def pictured(rows: Tensor) -> Tensor:  # (R, D) to (R, people, C, S, S)
        identity, residual = (latent.repeat(len(rows), 1) for latent in (people.identity, people.residual))
        latents = Latents(identity, rows.repeat_interleave(_PEOPLE, 0), residual)
        return disentangler.decoder(latents).float().unflatten(0, (len(rows), _PEOPLE))

    before = pictured(medical)
    change = torch.cat([(pictured(rows) - before).abs().flatten(1).mean(1) for rows in latents.split(16)])
    return latents[change.argmin()][None]


def _prototypes(network: LatentSwapAnonymizer, finding: int, to: int | None) -> Tensor:
    """The medical latents of all prototypes of another finding than `finding`: of `to`, if that is given."""
    channel, count = network.channel, finding_count(network)
    if to is not None and not 0 <= to < count:
        raise ValueError(f"--to is {to}; the model's findings are 0 to {count - 1}")
    if to == finding:
        raise ValueError(f"--to is {to}, which is the finding that the image has already; name another one")
    if not channel.fitted():
        raise ValueError("this model has no prototypes, and so no other finding to draw; stage 2 fits them")
    codes = torch.arange(channel.codebook.count(channel.level), device=channel.codebook.axes.device)
    kinds = channel.codebook.kind(codes, channel.level)
    codes = codes[(kinds != finding) if to is None else (kinds == to)]
    if not len(codes):
        wanted = f"finding {to}" if to is not None else f"another finding than {finding}"
        raise ValueError(f"the model has no prototype of {wanted} to draw; it was trained on too few such patients")
    return channel.codebook.latent(codes, channel.level).float()


def between(first: Tensor, last: Tensor, steps: int) -> Tensor:
    """Medical latents `(steps, D)` on the straight line from one `(1, D)` to another, both included.

    Raises:
        ValueError: fewer steps than two, or more than `MOST_STEPS`.
    """
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"--steps is {steps}; it must be from 2, image and counterfactual, to {MOST_STEPS}")
    return torch.lerp(first, last, torch.linspace(0, 1, steps, device=first.device)[:, None])


@torch.inference_mode()
def series_through(
    gate: Gate,
    network: LatentSwapAnonymizer,
    image: Tensor,
    noise: Noise,
    to: int | None = None,
    steps: int = 2,
    tries: int = TRIES,
    check: OriginalCheck = OriginalCheck.VETO,
) -> Series:
    """An image of nobody with what passes of the original's finding, the same nobody with another finding, and steps
    between; all of them through the gate, or none.

    Args:
        image: the original, `(1, C, S, S)` in [-1, 1].
        noise: of one row.
        to: the other finding; None for the one that changes the picture least.
        check: what the comparison with the original decides.

    Raises:
        WithheldError: the gate let no draw pass, with its reasons in fixed words.
        ValueError: as `other_finding` and `between`; fewer tries than one.
    """
    if tries < 1:
        raise ValueError(f"tries is {tries}; it must be 1 or more")
    if gate.faults:
        raise _withheld(gate.faults)
    disentangler, row = network.disentangler, torch.zeros(1, dtype=torch.long)
    z = disentangler.encoder(image.to(next(network.parameters()).device))
    response = noise(0, row)[:, -RESPONSE:].clone()
    medical = passing(network, z, response)
    path = between(medical, other_finding(network, z, medical, response, to), steps)
    meant, found = gate.findings(path), Decision()
    for number in range(tries):
        drawn = noise(number, row).clone()
        drawn[:, -RESPONSE:] = response
        nobody = network.drawn(z, drawn.to(path.device))
        latents = Latents(nobody.identity.expand(steps, -1), path, nobody.residual.expand(steps, -1))
        generated = disentangler.decoder(latents).float().cpu()
        pixels, found = written(generated), _inspected(gate, generated, meant)
        if found.released and check is not OriginalCheck.OFF:
            found = _compared(gate, pixels, image.cpu())
            if not found.released and check is OriginalCheck.VETO:
                break
        if found.released:
            return Series(pixels, path.cpu(), meant, number + 1)
    raise _withheld(found.reasons)


@torch.inference_mode()
def own_series(network: LatentSwapAnonymizer, image: Tensor, to: int | None = None, steps: int = 2) -> Series:
    """The reconstruction of an image and its counterfactuals, with the person's own identity, residual and medical
    latent: for who may see the original. Nothing bounds what it says.

    Raises:
        ValueError: as `other_finding` and `between`.
    """
    disentangler = network.disentangler
    z = disentangler.encoder(image.to(next(network.parameters()).device))
    medical = z.medical.float()
    path = between(medical, other_finding(network, z, medical, responses(network, 1), to), steps)
    latents = Latents(z.identity.expand(steps, -1), path, z.residual.expand(steps, -1))
    probabilities = disentangler.classify(path).float().softmax(1).cpu()
    return Series(written(disentangler.decoder(latents).float()), path.cpu(), probabilities)


def evidence(series: Series) -> Tensor:
    """What the first image has that the last has not, `(S, S)` in gray levels of 255: above 0 where it is brighter.

    The mean over channels of their finished pixels; nothing else is looked at.
    """
    return (series.pixels[0].float() - series.pixels[-1].float()).mean(0)


def _inspected(gate: Gate, generated: Tensor, meant: Tensor) -> Decision:
    """All images of a series, without the original: the ends must show their findings."""
    found, last = Decision(), len(generated) - 1
    for step, decision in enumerate(gate.inspect(generated, meant)):
        found = found.joined(decision if step in (0, last) else _without(decision, Reason.NOT_AS_DRAWN))
    return found


def _compared(gate: Gate, pixels: Tensor, image: Tensor) -> Decision:
    """All images of a series against the original: the first must keep its finding."""
    found = Decision()
    for step, decision in enumerate(gate.compare(pixels, [image] * len(pixels))):
        found = found.joined(decision if step == 0 else _without(decision, Reason.NOT_KEPT))
    return found


def _without(decision: Decision, reason: Reason) -> Decision:
    return replace(decision, reasons=tuple(other for other in decision.reasons if other is not reason))


def _withheld(reasons: Sequence[Reason]) -> WithheldError:
    why = ", ".join(reason.value for reason in reasons)
    return WithheldError(f"the gate withholds the query's images ({why}); nothing was written")
