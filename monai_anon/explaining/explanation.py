"""Everything an explanation says, before it is written: the query's finding and counterfactual, and cases.

Nothing in it names a file, an entry or a person; what it says of whom is worked out in `counterfactuals` and `cases`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import monai_anon
from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import Statement, round_up
from monai_anon.explaining.cases import Archive, release_cases, require, retrieve
from monai_anon.explaining.counterfactuals import (
    Draws,
    Series,
    UncheckedGate,
    evidence,
    own_series,
    responses,
    series_through,
)
from monai_anon.gate import Gate
from monai_anon.gated_release import TRIES, OriginalCheck, bits, default_check
from monai_anon.readers import to_model_range

FORMAT = "monai-anon explanation 1"


@dataclass(frozen=True)
class Passes:
    """What is said at most of a query, or of a patient whose case is shown.

    Args:
        policy: of the channel.
        bits: at most, "nothing is written" or "withheld" among the outcomes; None where nothing bounds it.
        patients: training patients that share each prototype, at least.
        epsilon: of the randomised response.
        gate: whether images were compared with real people.
        judges: whether the site's judges looked at them, too.
        check: what a comparison with the original decided: off, veto, redraw.
    """

    policy: str
    bits: float | None
    patients: int | None
    epsilon: float | None
    gate: bool
    judges: bool
    check: str


class Case(NamedTuple):
    """A case as it is shown, `pixels` uint8 `(C, S, S)`; `distance` is that of the latents that pass, from the query's
    if it is similar and else from the counterfactual's.
    """

    id: str
    similar: bool
    finding: int
    probabilities: list[float]
    distance: float
    pixels: Tensor


@dataclass(frozen=True)
class Explanation:
    """One query's explanation.

    Args:
        classes: names of the findings.
        model: digest of the anonymizer's weights.
        series: image and counterfactual, of nobody; the evidence is their difference.
        cases: similar ones, then those of another finding, each list from the nearest on.
        withheld: cases that would have been shown, had the gate let them.
        own: the query's reconstruction and counterfactual, where it is included, and `query`, its pixels.
    """

    classes: list[str]
    model: str
    passes: Passes
    series: Series
    cases: list[Case]
    withheld: int
    query: Tensor | None = None
    own: Series | None = None

    def record(self) -> dict[str, Any]:
        """What the JSON file holds (docs/explain.md)."""
        said = self.passes
        bounded = {"bits_of_a_case": _rounded(said.bits), "bits_of_the_query": _rounded(said.bits)}
        if self.query is not None:
            bounded["bits_of_the_query"] = None
        return {
            "format": FORMAT,
            "software": monai_anon.__version__,
            "model": self.model,
            "policy": said.policy,
            **bounded,
            "patients_of_a_prototype": said.patients,
            "epsilon": said.epsilon,
            "gate": {"used": said.gate, "judges": said.judges, "original": said.check},
            "classes": self.classes,
            "query": self._query(),
            "cases": [
                {
                    "id": case.id,
                    "list": "similar" if case.similar else "other finding",
                    "finding": case.finding,
                    "probabilities": case.probabilities,
                    "distance": case.distance,
                }
                for case in self.cases
            ],
            "withheld": self.withheld,
        }

    def _query(self) -> dict[str, Any]:
        found: dict[str, Any] = {"included": self.query is not None, **_told(self.series)}
        if self.own is not None:
            found["own"] = _told(self.own)
        return found


def explain(
    gate: Gate,
    network: LatentSwapAnonymizer,
    query: Tensor,
    archive: Archive,
    but: Tensor,
    classes: list[str],
    count: int,
    seed: int,
    *,
    to: int | None = None,
    include_query: bool = False,
    refuse_text: bool = False,
    model: str = "",
    tries: int = TRIES,
) -> Explanation:
    """The explanation of a query by cases of an archive.

    Args:
        query: its pixels, uint8 `(C, S, S)`.
        but: codes of patients who are not shown: the query's own.
        count: cases of each list.
        seed: of all draws; secret.
        to: the counterfactual's finding; None for the one that changes the picture least.
        model: digest of the weights.

    Raises:
        CasesError: too few cases, or too few that pass the gate.
        WithheldError: the gate lets no counterfactual pass.
        ValueError: as `series_through`.
    """
    if count < 1:
        raise ValueError(f"-k is {count}; it must be 1 or more")
    said = what_passes(network, gate, tries)
    check, draws = OriginalCheck(said.check), Draws(seed, network.noise_size)
    image = to_model_range(query)[None]
    noise = draws.of(["query"], responses(network, 1))
    series = series_through(gate, network, image, noise, to, tries=tries, check=check)
    own = own_series(network, image, to) if include_query else None
    finding = int(series.probabilities[0].argmax())
    ends, rows = (series.medical[:1], series.medical[-1:]), archive.without(but)
    lists = retrieve(archive, *ends, finding, _chance(seed), rows, one_image=network.channel.epsilon > 0)
    kinds = (classes[finding], f"another finding than {classes[finding]}")
    for ordered, what in zip(lists, kinds, strict=True):
        require(ordered, count, what)
    cases: list[Case] = []
    withheld = 0
    for ordered, name, end in zip(lists, ("similar", "other"), ends, strict=True):
        shown = release_cases(gate, network, archive, ordered, count, draws, tries, check, refuse_text)
        withheld += shown.withheld
        for number, (row, pixels) in enumerate(zip(shown.rows, shown.pixels, strict=True), 1):
            read = archive.probabilities[row]
            far = round(float((archive.medical[row] - end[0]).square().sum().sqrt()), 3)
            identifier = f"{name}-{number}"
            cases.append(Case(identifier, name == "similar", int(read.argmax()), _listed(read), far, pixels))
    return Explanation(classes, model, said, series, cases, withheld, query if include_query else None, own)


def what_passes(network: LatentSwapAnonymizer, gate: Gate, tries: int = TRIES) -> Passes:
    """What a page or a picture made through this gate says at most; without a gate originals decide nothing."""
    channel, guarded = network.channel, not isinstance(gate, UncheckedGate)
    check = default_check(channel) if guarded else OriginalCheck.OFF
    found: Statement | None = channel.statement()
    at_most = None if found is None else bits(channel.codebook.count(channel.level), check, tries)
    patients, epsilon = (None, None) if found is None else (found.patients, found.epsilon)
    return Passes(channel.policy, at_most, patients, epsilon, guarded, gate.judges is not None, check.value)


def in_words(said: Passes, whom: str = "original") -> list[str]:
    """The same for a person: what passes, of each of whom, and what was compared."""
    if said.bits is None:
        first = f"Policy {said.policy}: nothing bounds what an image says of its original."
    else:
        first = (
            f"Policy {said.policy}: on average over originals this says at most {round_up(said.bits, 2):.2f} bits of "
            f"each {whom}: which prototype its finding is nearest to, of which each is shared by {said.patients} or "
            "more training patients"
            + (", or that its image was withheld." if said.check == OriginalCheck.VETO.value else ".")
        )
        if said.epsilon is not None:
            first += f" The prototype is a randomised response, epsilon {said.epsilon:g}: it may be another one."
    if not said.gate:
        return [first, "NO GATE: no image was compared with any real person. Do not hand this over."]
    judges = " and the site's judges" if said.judges else ""
    every = "Every image" if whom == "original" else "Every image but the query's own"
    return [first, f"{every} passed the site's privacy gate (the model's encoder{judges})."]


def _told(series: Series) -> dict[str, Any]:
    change = evidence(series)
    return {
        "finding": int(series.probabilities[0].argmax()),
        "probabilities": _listed(series.probabilities[0]),
        "counterfactual": {
            "finding": int(series.probabilities[-1].argmax()),
            "probabilities": _listed(series.probabilities[-1]),
        },
        "evidence": {
            "darkest": round(float(change.min()), 1),
            "brightest": round(float(change.max()), 1),
            "unit": "gray levels of 255, image less counterfactual",
        },
    }


def _listed(probabilities: Tensor) -> list[float]:
    return [round(float(value), 3) for value in probabilities]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round_up(value)


def _chance(seed: int) -> np.random.Generator:
    """What no image decides: who is a candidate for which list, and the order of equals."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed}/order".encode()).digest()))


def as_image(pixels: Tensor) -> np.ndarray:
    """uint8 `(C, S, S)` as Pillow takes it, `(S, S)` or `(S, S, 3)`."""
    array = pixels.to(torch.uint8).numpy()
    return array[0] if len(array) == 1 else np.ascontiguousarray(np.moveaxis(array, 0, -1))
