"""Try a site's privacy gate: what it lets pass, and what it catches of what is planted.

    python scripts/calibrate_gate.py --manifest data/mine --model runs/mine/model.pt --output SITE --rate 0.02 --trial

Makes SITE as `monai-anon calibrate` does, which needs no trial; only here it may be without judges.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Optional

import torch
import typer
from torch import Tensor

from monai_anon.bundles import BundleError, load_anonymizer
from monai_anon.cohort import Cohort
from monai_anon.datasets import training_manifest
from monai_anon.gate import Gate, read_gate
from monai_anon.gate_calibration import RATE, CalibrationError
from monai_anon.gated_release import TRIES, OriginalCheck, anonymise_through, default_check
from monai_anon.manifest import ManifestError
from monai_anon.networks import Latents
from monai_anon.readers import to_model_range, to_uint8
from monai_anon.site import BATCH, make_site, people_of

ROOT = Path(__file__).resolve().parents[1]


def main(
    output: Annotated[Path, typer.Option(help="Folder of the site's galleries and thresholds.")],
    manifest: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Whose training part the model saw.  [default: the generated cohort]"),
    ] = None,
    strangers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A manifest whose test part is held out, too."),
    ] = None,
    bundle: Annotated[Path, typer.Option(help="The bundle's folder.", show_default="bundles/chest")] = ROOT
    / "bundles/chest",
    model: Annotated[Optional[Path], typer.Option(help="[default: the bundle's]")] = None,  # noqa: UP045
    judges: Annotated[Optional[Path], typer.Option(help="The site's judges.")] = None,  # noqa: UP045
    rate: Annotated[float, typer.Option(help="Share of strangers that may be taken for the same person.")] = RATE,
    policy: Annotated[str, typer.Option(help="Of the trial: code, residual, latents.")] = "code",
    epsilon: Annotated[Optional[float], typer.Option(help="Of the trial.")] = None,  # noqa: UP045
    trial: Annotated[bool, typer.Option("--trial", help="Anonymise the people held out through the gate.")] = False,
    most: Annotated[int, typer.Option(min=1, help="Images of the trial.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the trial's noise.")] = 0,
) -> None:
    """Calibrate, write, and with --trial say what passes and what is caught."""
    torch.set_grad_enabled(False)
    try:
        network, settings = load_anonymizer(bundle, model, settings={"policy": policy, "epsilon": epsilon})
        file = training_manifest(manifest and str(manifest), str(bundle / "data"), settings.image_size)
        people = people_of(file, strangers and str(strangers), settings.image_size, settings.channels, progress=False)
        thresholds = make_site(output, network, settings.model_file, judges, people, rate, overwrite=True)
        report: dict[str, Any] = {
            name: {"original": vars(found.original), "training": vars(found.training)}
            for name, found in thresholds.items()
        }
    except (BundleError, CalibrationError, ManifestError, OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if trial:
        gate = read_gate(network, settings.model_file, output, judges)
        chosen = torch.randperm(len(people.images), generator=torch.Generator().manual_seed(seed))[:most]
        report["trial"] = passed(gate, network, people.images[chosen], seed)
        report["planted"] = planted(gate, network, people.images[chosen], people.training, seed)
    typer.echo(json.dumps(report, indent=2))


def passed(gate: Gate, network: Any, images: Tensor, seed: int) -> dict[str, Any]:
    """Shares of originals that are released at once, after some tries, or withheld and why."""
    result: dict[str, Any] = {}
    for check in OriginalCheck:
        generator, decisions = torch.Generator().manual_seed(seed), []
        for batch in images.split(BATCH):
            noise = lambda number, rows: torch.randn(len(rows), int(network.noise_size), generator=generator)  # noqa: E731, B023
            decisions += anonymise_through(gate, network, to_model_range(batch), noise, TRIES, check).decisions
        first = sum(decision.released and decision.tries == 1 for decision in decisions)
        result[check.value] = {
            "images": len(decisions),
            "default": check is default_check(network.channel),
            "released": sum(decision.released for decision in decisions) / len(decisions),
            "at the first draw": first / len(decisions),
            "tries": dict(sorted(Counter(decision.tries for decision in decisions).items())),
            "withheld": dict(Counter(reason.value for decision in decisions for reason in decision.reasons)),
        }
    return result


def planted(gate: Gate, network: Any, images: Tensor, training: Cohort, seed: int) -> dict[str, Any]:
    """What becomes of images that are drawn with the identity of a training patient, or of their own original; and
    what real images are to the same checks.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(training), (len(images),), generator=generator)
    z = latents_of(network, images)
    donors = latents_of(network, training.images[rows]).identity
    noise = torch.randn(len(images), int(network.noise_size), generator=generator)
    drawn = network.drawn(z, noise)
    meant = gate.findings(drawn.medical)
    cases = {
        "drawn": drawn,
        "training identity": drawn._replace(identity=donors),
        "own identity": drawn._replace(identity=z.identity),
    }
    result = {}
    for case, latents in cases.items():
        generated = torch.cat(
            [
                network.disentangler.decoder(Latents(*part)).cpu()
                for part in zip(*(x.split(BATCH) for x in latents), strict=True)
            ]
        )
        result[case] = told(gate, generated, meant, images)
    result["real strangers"] = told(gate, to_model_range(images), gate.findings(z.medical), images.roll(1, 0))
    result["another training image"] = told(gate, to_model_range(training.images[rows]), meant, images)
    return result


def told(gate: Gate, generated: Tensor, meant: Tensor, originals: Tensor) -> dict[str, Any]:
    """Shares with each reason, and what each comparator finds alone."""
    free = gate.inspect(generated, meant)
    compared = gate.compare(to_uint8(generated), list(to_model_range(originals)[:, None]))
    reasons = Counter(
        reason.value for pair in zip(free, compared, strict=True) for one in pair for reason in one.reasons
    )
    shares = {reason: count / len(free) for reason, count in reasons.items()}
    for comparator in gate.comparators:
        found = comparator.calibration
        assert found is not None
        for kind, decisions, threshold in (("training", free, found.training), ("original", compared, found.original)):
            seen = torch.tensor([getattr(decision, kind)[comparator.name] for decision in decisions])
            shares[f"{kind}, {comparator.name} alone"] = float((seen >= threshold.similarity).float().mean())
            shares[f"{kind}, {comparator.name}, mean similarity"] = float(seen.mean())
    return shares


def latents_of(network: Any, images: Tensor) -> Latents:
    """Latents of images uint8."""
    parts = [network.disentangler.encode(to_model_range(batch)) for batch in images.split(BATCH)]
    return Latents(*(torch.cat(column) for column in zip(*parts, strict=True)))


if __name__ == "__main__":
    typer.run(main)
