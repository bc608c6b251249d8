"""Images through the gate: what fails is drawn again, and withheld where no draw passes; and what that tells.

**What another draw may depend on.** Under the policy `code` an image is g(j, u): the code j of the original, and noise.
Given the noise of all draws, the outcome is one of as many as there are different results, and log2 of their number
bounds what it says of the original (and how well anybody is guessed: that number / N; compare `channel`).

| what is compared with the original | outcomes | bits, K = 8, 8 tries |
|---|---|---|
| `off`: nothing | K images; "withheld" may stand for some of them | log2 K = 3 |
| `veto`: the draw that passed all else; if it fails it is withheld | K images, "withheld" | log2(K + 1) = 3.17 |
| `redraw`: each draw; if it fails there is another | K images for each try, "withheld" | log2(8 K + 1) = 6.02 |

Checks against training patients, and of the finding that the code stands for, see j and u only. What they choose among
is still a function of j and u, so they may draw as often as they like, for nothing, with a randomised response, too (as
long as the response is not drawn again: then each draw would say epsilon more).

A check against the original is another matter: an image that it let pass says "the original is not as near to me as
that". Let a(x) be the share of draws of an original x that pass. Redrawing makes no image likelier than 1 / a(x) times
what it was, so on average over originals, and for who does not know the noise, it adds at most E[-log2 a(X)] bits (.015
at a = .99) and the entropy of "withheld or not". But a(x) is a property of each original, which nobody has proved to be
near 1, and for who knows the noise each failed try is a statement of its own. A veto makes no image likelier than it
was, and needs neither: hence the default. What it costs, .17 bits, is the outcome "withheld", which says that the
original is near to one draw, which is not shown, or that its finding is not that of its code.

Under epsilon even that is too much. An image that an original may not be given at all tells that original from all
others: no epsilon is left, only an (epsilon, delta) with a delta of about the share of vetoes. So it is `off` there by
default, and the gate then asks for the finding of the *response*, which may not be the original's.

`latents` and `residual` pass the original's latents on; nothing is bounded there that a check could spoil, and they
are checked by `redraw`.

A `Decision`'s reasons and distances to the original are further outcomes. Tell a recipient what `Decision.shareable`
has, or counts over many images; keep the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import RESPONSE, Channel
from monai_anon.gate import Decision, Gate, Reason, written
from monai_anon.networks import Latents

TRIES = 8
Noise = Callable[[int, Tensor], Tensor]
"""Number of the draw, from 0, and rows `(R,)` of the batch to standard normal noise `(R, noise_size)`."""


class OriginalCheck(str, Enum):
    """What a comparison with the original decides."""

    OFF = "off"
    VETO = "veto"
    REDRAW = "redraw"


class GatedBatch(NamedTuple):
    """Finished images, uint8 `(B, C, S, S)` on the CPU, black where withheld, and a decision about each."""

    pixels: Tensor
    decisions: list[Decision]


def default_check(channel: Channel) -> OriginalCheck:
    """The strictest check that leaves the policy's bound as it is, but for the outcome "withheld"."""
    if channel.policy != "code":
        return OriginalCheck.REDRAW
    return OriginalCheck.OFF if channel.epsilon > 0 else OriginalCheck.VETO


def bits(prototypes: int, check: OriginalCheck, tries: int = TRIES) -> float:
    """What one gated release under the policy `code` says of its original at most."""
    outcomes = {OriginalCheck.OFF: prototypes, OriginalCheck.VETO: prototypes + 1}
    return math.log2(outcomes.get(check, prototypes * tries + 1))


@torch.inference_mode()
def anonymise_through(
    gate: Gate,
    network: LatentSwapAnonymizer,
    images: Tensor,
    noise: Noise,
    tries: int = TRIES,
    check: OriginalCheck | None = None,
    known: Sequence[Tensor] | None = None,
) -> GatedBatch:
    """Images that the gate lets pass: what fails gets another identity and residual, up to `tries` draws in all.

    The numbers of the noise that decide the randomised response are those of draw 0 in every draw, whatever `noise`
    gives.

    Args:
        images: originals `(B, C, S, S)` in [-1, 1].
        check: what a comparison with the original decides; None for `default_check`.
        known: of each original further images of its patient, `(M, C, S, S)`, which must be far as well.

    Raises:
        ValueError: fewer tries than one, or not as many `known` as images.
    """
    if tries < 1:
        raise ValueError(f"tries is {tries}; it must be 1 or more")
    if known is not None and len(known) != len(images):
        raise ValueError(f"known images of {len(known)} patients, for {len(images)} originals")
    check = default_check(network.channel) if check is None else check
    device, pending = next(network.parameters()).device, torch.arange(len(images))
    result = GatedBatch(torch.zeros(images.shape, dtype=torch.uint8), [Decision(gate.faults)] * len(images))
    if gate.faults or not len(images):
        return result
    z = network.disentangler.encoder(images.to(device))
    response = noise(0, pending)[:, -RESPONSE:].clone()
    for number in range(tries):
        drawn = noise(number, pending).clone()
        drawn[:, -RESPONSE:] = response[pending]
        rows = pending.to(device)
        latents = network.drawn(Latents(*(latent[rows] for latent in z)), drawn.to(device))
        generated = network.disentangler.decoder(latents).float().cpu()
        pixels, found = _looked_at(gate, generated, gate.findings(latents.medical), images.shape)
        passed = torch.tensor([decision.released for decision in found])
        if check is not OriginalCheck.OFF:
            at = passed.nonzero().flatten().tolist()
            originals = [_all_known(images, known, int(pending[row])) for row in at]
            for row, decision in zip(at, gate.compare(pixels[at], originals), strict=True):
                found[row] = found[row].joined(decision)
        final = passed if check is OriginalCheck.VETO else torch.tensor([decision.released for decision in found])
        for row, place in enumerate(pending.tolist()):
            result.decisions[place] = replace(found[row], tries=number + 1)
            if found[row].released:
                result.pixels[place] = pixels[row]
        pending = pending[~final]
        if not len(pending):
            break
    return result


@torch.inference_mode()
def fitting_draws(gate: Gate, network: LatentSwapAnonymizer, noise: Noise, count: int, tries: int = TRIES) -> list[int]:
    """Which draw of its identity each of `count` pseudonyms takes: the first that the gate lets pass when it is shown
    with the commonest code of every finding; 0 where none does.

    No original is looked at. The gate still decides about every image; this spares a patient whose identity happens to
    be near a training patient from having nothing released.

    Args:
        noise: as of `anonymise_through`, its rows those of pseudonyms.
    """
    taken, pending, device = [0] * count, torch.arange(count), next(network.parameters()).device
    shown = _commonest(network.channel)
    if gate.faults or not len(shown):
        return taken
    for number in range(tries):
        if not len(pending):
            break
        drawn = noise(number, pending).repeat_interleave(len(shown), 0)
        drawn[:, -RESPONSE:] = -10.0  # a response that keeps the code
        drawn, medical = drawn.to(device), shown.repeat(len(pending), 1)
        size = network.identity_noise + network.channel.identity_size
        chance = torch.full((len(drawn),), 0.5, device=device)
        residual = network.channel.residual(chance, drawn[:, size : size + network.channel.residual_size])
        nobody = torch.zeros(len(drawn), network.channel.identity_size, device=device)
        latents = network.drawn(Latents(nobody, medical, residual), drawn)
        generated = network.disentangler.decoder(latents).float().cpu()
        found = gate.inspect(generated, gate.findings(latents.medical))
        passed = torch.tensor([decision.released for decision in found]).view(-1, len(shown)).all(1)
        for pseudonym in pending[passed].tolist():
            taken[pseudonym] = number
        pending = pending[~passed]
    return taken


def _commonest(channel: Channel) -> Tensor:
    """The medical latents `(F, D)` of the code of each finding that most training patients share; none before there
    are codes.
    """
    codebook, level = channel.codebook, channel.level
    code = torch.arange(channel.codebook.count(level), device=codebook.patients.device)
    kind = codebook.kind(code, level) if len(code) else code
    patients = codebook.patients[level][: len(code)]
    chosen = [code[kind == one][patients[kind == one].argmax()] for one in kind.unique()]
    return codebook.latent(torch.stack(chosen), level) if chosen else codebook.points[:0]


def _looked_at(gate: Gate, generated: Tensor, drawn: Tensor, shape: torch.Size) -> tuple[Tensor, list[Decision]]:
    """The pixels of a draw, and what can be said of them without their originals."""
    if generated.shape[1:] != shape[1:]:
        nothing = torch.zeros(len(generated), *shape[1:], dtype=torch.uint8)
        return nothing, [Decision((Reason.CHECK_FAILED,)) for _ in generated]
    return written(generated), gate.inspect(generated, drawn)


def _all_known(images: Tensor, known: Sequence[Tensor] | None, place: int) -> Tensor:
    """An original, and after it what else is known of its patient."""
    own = images[place : place + 1]
    return own if known is None else torch.cat([own, known[place]])
