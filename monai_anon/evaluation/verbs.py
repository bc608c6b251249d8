"""The verbs that measure. What they do lives in the modules that they import when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

NO_VERDICT = 3
CHEST = Path("bundles/chest")

BundleOption = Annotated[Path, typer.Option(help="Folder of the bundle whose evaluate.json is used.")]
BundlesOption = Annotated[
    Optional[list[Path]],  # noqa: UP045 - typer reads this at run time, on Python 3.10 too
    typer.Option(
        help="Folder of the bundle whose evaluate.json is used. May be repeated: each bundle's own model and data, one "
        "after the other, into RUN/NAME.  [default: bundles/chest]"
    ),
]
ManifestOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="A manifest or its folder.  [default: the generated cohort, made when absent]"),
]
ModelOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE", help="Weights of the anonymizer.  [default: the bundle's models/model.pt]"),
]
OverlayOption = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        metavar="FILE",
        help="Config that the model was trained with beside the bundle's own and that changes its networks, such as "
        "size_128.json. May be repeated.",
    ),
]
PolicyOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="What of an image passes into its copy: code (the number of a medical prototype), residual (the medical "
        "latent) or latents (the paper: all but the identity).  [default: the bundle's, code]"
    ),
]
PrototypesOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        metavar="K",
        help="2, 4, 8 ... 256 medical prototypes: on average a copy says at most log2 K bits of its original. Fewer "
        "say less and show less of the finding.  [default: the bundle's, 8]",
    ),
]
EpsilonOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="Pass a wrong code now and then, so that copies are locally differentially private. The finding is then "
        "wrong now and then, too.  [default: the code as it is]"
    ),
]
PicturesOption = Annotated[
    bool, typer.Option("--pictures", help="Draw test images of real people, too. RUN must then not be shared.")
]
JudgesOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="DIR",
        help="Where judges, decoded images and every measurement are kept for the next time; with real images not "
        "to be shared.  [default: BUNDLE/output/judges]",
    ),
]


def judges(bundle: BundleOption = CHEST, manifest: ManifestOption = None, judges_dir: JudgesOption = None) -> None:
    """Train the independent verifier and medical judge of a manifest, and print their own quality on its test part.

    Judges already trained on the same images with the same settings are read, not trained again. Exit code 3: the
    verifier knows too little for any verdict on privacy.

    \b
    Example:
      monai-anon judges --manifest data/nih
    """  # noqa: D301
    from monai_anon.evaluation.evaluation import bundle_evaluation
    from monai_anon.evaluation.judges import quality, verdict

    _log_to_stderr()
    overrides: dict[str, object] = {"manifest": _text(manifest), "judges_dir": _text(judges_dir)}
    evaluation = bundle_evaluation(bundle, overrides)
    measured = quality(evaluation.train_judges(), evaluation.cohort("test"))
    if evaluation.manifest.closed_set:
        typer.echo("a closed set: the judges were trained on other images of the test people")
    for name, interval in measured.items():
        typer.echo(f"{name:24} {interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f}), n = {interval.n}")
    _end_without(verdict(measured.get("verification_auc")))


def evaluate(
    bundle: BundlesOption = None,
    manifest: ManifestOption = None,
    model: ModelOption = None,
    anonymizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="PACKAGE.MODULE:CLASS",
            help="Measure this class in place of the bundle's model: made without arguments, it maps images "
            "(B, C, H, W) in [-1, 1] to images of the same shape and range. A function will do, too. A method "
            "fit(images, patients) is called with the training part first.",
        ),
    ] = None,
    policy: PolicyOption = None,
    prototypes: PrototypesOption = None,
    epsilon: EpsilonOption = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="RUN", help="Gets everything that is measured.  [default: BUNDLE/output/evaluation]"),
    ] = None,
    judges_dir: JudgesOption = None,
    attacks: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="NAME[,NAME...]",
            help="static, adaptive, linkage, inversion, membership, repeated, attributes, probes, codes, "
            "identification (of closed sets); or `no` for none. May be repeated.  [default: all]",
        ),
    ] = None,
    content: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="NAME[,NAME...]",
            help="content, realism, retrieval, counterfactual, factors, blocks, channel; or `no`. Likewise.  "
            "[default: all]",
        ),
    ] = None,
    budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Batches for every attacker and all else trained to measure.  [default: 400]"),
    ] = None,
    bootstrap: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Draws of patients behind every interval.  [default: 1000]"),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Of releases, attackers and draws.  [default: 0]"),
    ] = None,
    pictures: PicturesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, and do none of it.")] = False,
) -> None:
    """Measure an anonymizer on a manifest's test part: the paper's Tables 2 and 3, attacks P1 to P10, content, realism.

    The judges' own quality comes first: where the verifier is too weak, no privacy figure is given and the exit code is
    3. Everything is measured on the image itself as well (`none`), for comparison. What is done is kept: the same
    command goes on where a stopped one was. `monai-anon report RUN` makes a page of it.

    \b
    Example:
      monai-anon evaluate --bundle bundles/chest --output runs/shipped
      monai-anon evaluate --anonymizer monai_anon.baselines:Blur --attacks static,adaptive --output runs/blur
      monai-anon evaluate --bundle bundles/chest --bundle bundles/iris --bundle bundles/face --attacks no --content no
    """  # noqa: D301
    from monai_anon.evaluation.evaluation import bundle_evaluation, planned

    _log_to_stderr()
    overrides: dict[str, object] = {
        "manifest": _text(manifest),
        "model_file": _text(model),
        "anonymizer": anonymizer,
        "policy": policy,
        "prototypes": prototypes,
        "epsilon": epsilon,
        "output_dir": _text(output),
        "judges_dir": _text(judges_dir),
        "bootstrap": bootstrap,
        "attacks": _names(attacks, "--attacks"),
        "content": _names(content, "--content"),
        "attack_steps": budget,
        "seed": seed,
        "pictures": pictures or None,
    }
    plans = _by_bundle(bundle or [CHEST], overrides)
    if dry_run:
        for one, settings in plans:
            for line in planned(one, settings):
                typer.echo(line if len(plans) == 1 else f"{one}: {line}")
        return
    verdicts = []
    for one, settings in plans:
        rows = bundle_evaluation(one, settings).run()
        verdicts += [f"{one}: {row.note}" for row in rows if row.note.startswith("no verdict")][:1]
    _end_without("\n".join(verdicts))


def _by_bundle(bundles: list[Path], overrides: dict[str, object]) -> list[tuple[Path, dict[str, object]]]:
    """Each bundle with its own settings; of several each writes into a folder of its own name.

    Raises:
        ValueError: one manifest or model for several bundles, or two folders of one name.
    """
    if len(bundles) == 1:
        return [(bundles[0], overrides)]
    for option, entry in (("--manifest", "manifest"), ("--model", "model_file")):
        if overrides[entry] is not None:
            raise ValueError(f"{option} is one bundle's, and --bundle names {len(bundles)}; give one --bundle")
    names = [bundle.resolve().name for bundle in bundles]
    if len(set(names)) < len(names):
        raise ValueError(f"--bundle names folders called {names}; each needs a name of its own")
    output = overrides["output_dir"]
    return [
        (bundle, overrides | {"output_dir": str(Path(str(output)) / name) if output is not None else None})
        for bundle, name in zip(bundles, names, strict=True)
    ]


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `monai-anon evaluate` wrote.")],
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="The page.  [default: report.html in the first RUN]"),
    ] = None,
    pictures: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--pictures/--no-pictures",
            help="Show test images. Of real cohorts they are patients: the page must then not be shared.  "
            "[default: only where all images are generated]",
        ),
    ] = None,
) -> None:
    """One self-contained page of one or several runs: judges, privacy, utility, attacks, pictures, conclusions.

    Several runs stand side by side; those of one method on the same data with the same settings and images seen are
    training seeds, and the worst decides. Exit code 3: there is no verdict on privacy, and the page says why.

    \b
    Example:
      monai-anon report runs/shipped runs/blur --output report.html
    """  # noqa: D301
    from monai_anon.evaluation.reporting.report import write_report

    written = write_report(runs, output or runs[0] / "report.html", pictures=pictures)
    typer.echo(f"wrote {written.path}")
    _end_without(written.silence)


def ablation(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="realism (Table 4, Figure 8) or data (Table 5, Figure 9).")
    ],
    output: Annotated[Path, typer.Option(metavar="RUN", help="Gets every training, rows.jsonl, report.md, pictures.")],
    epochs: Annotated[
        int, typer.Option(min=1, help="Budget of each variant: passes over the whole training part.")
    ] = 30,
    seeds: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Of the trainings; each variant is trained once with each.")
    ] = "0",
    images: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Training images to compare, of whole patients (data only).")
    ] = "3000,6000",
    bundle: BundleOption = CHEST,
    manifest: ManifestOption = None,
    pictures: PicturesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run none.")] = False,
) -> None:
    """Train variants of stage 1 at an equal budget, measure them alike, and draw them: Tables 4 and 5 of the paper.

    The same command goes on where a stopped one was. One variant's failure does not lose the others: it is named at the
    end, and the exit code is 1. At 30 epochs expect an hour a variant on one CPU core.

    \b
    Example:
      monai-anon ablation realism --epochs 4 --output runs/realism
    """  # noqa: D301
    from monai_anon.evaluation.ablations.run import run_ablation

    _log_to_stderr()
    code = run_ablation(
        name,
        bundle,
        output,
        epochs=epochs,
        seeds=_numbers(seeds, "--seeds"),
        images=_numbers(images, "--images"),
        manifest=manifest,
        pictures=pictures,
        dry_run=dry_run,
        say=typer.echo,
    )
    if code:
        raise typer.Exit(code)


def _numbers(text: str, option: str) -> list[int]:
    """Whole numbers separated by commas.

    Raises:
        ValueError: names the option and what it was given.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}; it must be whole numbers, separated by commas") from error


def _end_without(verdict: str) -> None:
    """Exit code 3 where nothing may be said of privacy."""
    if verdict:
        typer.echo(verdict, err=True)
        raise typer.Exit(NO_VERDICT)


def _names(given: list[str] | None, option: str) -> list[str] | None:
    """Names that were repeated or separated by commas, none of them for `no`; None where the option was not given.

    Raises:
        ValueError: the option was given without a name.
    """
    if not given:
        return None
    names = [name.strip() for words in given for name in words.split(",") if name.strip()]
    if not names:
        raise ValueError(f"{option} names nothing; give names, or `no` for none")
    return [] if names == ["no"] else list(dict.fromkeys(names))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _log_to_stderr() -> None:
    """Show what long work is doing."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("monai_anon").setLevel(logging.INFO)
