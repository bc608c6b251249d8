"""How well `monai-anon explain` answers on a cohort whose findings are known: every test image as a query.

    python scripts/measure_explanations.py --manifest data/chest

Cases are of the training part; the gate is left out, since it decides who is withheld and not who is near.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from monai_anon.bundles import load_anonymizer
from monai_anon.explaining.cases import Archive, encode_archive, read_cohorts, retrieve
from monai_anon.explaining.counterfactuals import UncheckedGate, other_finding, passing, responses
from monai_anon.manifest import load_manifest
from monai_anon.networks import Latents
from monai_anon.readers import to_model_range

ROOT = Path(__file__).resolve().parents[1]


def main(
    manifest: Annotated[Path, typer.Option(help="A generated cohort, or any with recorded findings.")],
    bundle: Annotated[Path, typer.Option(help="The bundle's folder.", show_default="bundles/chest")] = ROOT
    / "bundles/chest",
    model: Annotated[Optional[Path], typer.Option(help="[default: the bundle's]")] = None,  # noqa: UP045
    k: Annotated[int, typer.Option("-k", min=1, help="Cases of each list.")] = 5,
    most: Annotated[int, typer.Option(min=1, help="Queries.")] = 300,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
) -> None:
    """Print shares over all queries as JSON."""
    torch.set_grad_enabled(False)
    network, said = load_anonymizer(bundle, model)
    data = load_manifest(manifest)
    cases, _ = encode_archive(network, data, read_cohorts(data, "training", said.image_size, said.channels, None))
    (tests,) = read_cohorts(data, "test", said.image_size, said.channels, None)
    gate, chance = UncheckedGate(network), np.random.default_rng(seed)
    true = torch.cat([cohort.finding for cohort in cases.cohorts]).numpy()
    severity = np.array([float(entry.get("severity", "nan")) for cohort in cases.cohorts for entry in cohort.entries])
    side = np.array([entry.get("side", "") for cohort in cases.cohorts for entry in cohort.entries])
    exact = _exact(network, cases)
    found: dict[str, list[float]] = {}

    def note(name: str, value: Any) -> None:
        found.setdefault(name, []).append(float(value))

    memo: dict[bytes, Tensor] = {}  # what passes is one of a few prototypes, and decides the counterfactual
    rows = np.arange(len(true))
    for row in tqdm(range(min(most, len(tests))), desc="queries", disable=None):
        image, entry, truth = tests[row]["image"][None], tests.entries[row], int(tests.finding[row])
        z, response = network.disentangler.encoder(image), responses(network, 1)
        medical = passing(network, z, response)
        name = medical.numpy().tobytes()
        if name not in memo:
            memo[name] = other_finding(network, z, medical, response)
        target, finding = memo[name], int(gate.findings(medical).argmax(1))
        note("predicted as recorded", finding == truth)
        similar, other = retrieve(cases, medical, target, finding, chance, rows)
        by_latent = retrieve(exact, z.medical, target, finding, chance, rows)[0]
        for name, found_rows in (("by prototype", similar[:k]), ("by latent", by_latent[:k])):
            note(f"similar, {name}: recorded class as the query's", (true[found_rows] == truth).mean())
            if truth and "severity" in entry:
                note(f"similar, {name}: same side", (side[found_rows] == entry["side"]).mean())
                note(f"similar, {name}: severity apart", np.abs(severity[found_rows] - float(entry["severity"])).mean())
        note("other finding: recorded class not the query's", (true[other[:k]] != truth).mean())
        who = f"query {cases.cohorts[0].classes[finding]}"
        for name, latent in _targets(network, medical, target, finding).items():
            pair = _pair(network, z, medical, latent, seed + row)
            reads = gate.findings(network.disentangler.encoder(pair).medical).argmax(1)
            note(f"counterfactual by {name}, {who}: another finding is read", int(reads[0]) != int(reads[1]))
            note(f"counterfactual by {name}, {who}: mean change, gray levels", (pair[0] - pair[1]).abs().mean() * 127.5)
    typer.echo(json.dumps({name: _mean(values) for name, values in sorted(found.items())}, indent=2))


def _exact(network: Any, cases: Archive) -> Archive:
    """The same cases by their own medical latents, as no page has them."""
    latents = [
        network.disentangler.encoder(to_model_range(cohort.images[rows])).medical
        for cohort in cases.cohorts
        for rows in torch.arange(len(cohort)).split(256)
    ]
    return Archive(cases.cohorts, cases.paths, cases.patient, torch.cat(latents), cases.probabilities, cases.response)


def _targets(network: Any, medical: Tensor, chosen: Tensor, finding: int) -> dict[str, Tensor]:
    """Other medical latents of another finding: that of the picture, the nearest prototype, and the finding's mean."""
    book, level = network.channel.codebook, network.channel.level
    codes = torch.arange(book.count(level))
    others = codes[book.kind(codes, level) != finding]
    latents = book.latent(others, level)
    nearest = latents[(latents - medical).square().sum(1).argmin()][None]
    share = book.patients[level][others].float()
    mean = (latents * share[:, None]).sum(0, keepdim=True) / share.sum()
    return {"least change": chosen, "nearest latent": nearest, "mean": mean}


def _pair(network: Any, z: Latents, medical: Tensor, target: Tensor, seed: int) -> Tensor:
    noise = torch.randn(1, network.noise_size, generator=torch.Generator().manual_seed(seed))
    nobody = network.drawn(z, noise)
    both = Latents(nobody.identity.expand(2, -1), torch.cat([medical, target]), nobody.residual.expand(2, -1))
    return network.disentangler.decoder(both)


def _mean(values: list[float]) -> dict[str, float]:
    array = np.array(values)
    return {"mean": round(float(np.nanmean(array)), 4), "n": int(np.isfinite(array).sum())}


if __name__ == "__main__":
    typer.run(main)
