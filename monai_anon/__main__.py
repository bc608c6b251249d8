"""The `monai-anon` command: its verbs, what they take and what they print. What they do lives elsewhere.

Exit codes: 0 done; 1 done in part, each file that was not, withheld or refused, is named; 2 nothing done, with the
reason; 3 measured, but the verifier knows too little of these people for any verdict on privacy. Modules are imported
by the verb that needs them, so that `--help` is there at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from typer.core import TyperGroup

from monai_anon import __version__, release_verbs
from monai_anon.comparing import verbs as comparing
from monai_anon.evaluation import verbs
from monai_anon.evaluation.verbs import BundleOption, ModelOption, PolicyOption, PrototypesOption
from monai_anon.explaining import verbs as explaining
from monai_anon.phantoms import PHANTOMS, load_phantom

PARTLY, REFUSED = release_verbs.PARTLY, 2


class _Verbs(TyperGroup):
    """Tells what a person can mend as one message on stderr, without a traceback unless `--debug` asks for it."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:  # wherever it was typed, it is the command's, not the verb's
            args = ["--debug", *(word for word in args[:end] if word != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `| head` is no mistake
            raise
        except (ValueError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(REFUSED) from error


# Plain help and tracebacks: the decorated ones show local variables, and those hold images.
_PLAIN = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "no_args_is_help": True}
app = typer.Typer(cls=_Verbs, add_completion=False, **_PLAIN)  # type: ignore[arg-type]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"monai-anon {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Share a medical image with the person taken out and the finding kept.

    For research: an anonymised image is not proven anonymous. `monai-anon VERB --help` tells more, with an example.
    """


# ---- data ----


@app.command()
def phantom(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"What is on the images: {', '.join(PHANTOMS)}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; absent or empty.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same cohort everywhere.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the images in pixels, 32 to 512.")] = 64,
    images: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this at run time, on Python 3.10 too
        typer.Option(
            metavar="N[,N,N]",
            help="Images of training, validation and test; one number is the training part's, and the others keep "
            "their proportion to it.  [default: as in the paper, chest 6000,200,300, iris 1165,270,360, "
            "face 8210,268,371]",
        ),
    ] = None,
    patients: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N[,N,N]",
            help="Patients of the three parts; likewise. Left out, they keep their proportion to the images. "
            "A patient of a part has 2 to 11 chest, 1 to 40 iris or 2 to 30 face images.  [default: chest 1791,84,130, "
            "iris 115 (disjoint: 75,17,23), face 600,20,30]",
        ),
    ] = None,
    difficulty: Annotated[
        float, typer.Option(help="0 to 1: people more alike, poses and noise stronger, findings smaller.")
    ] = 0.0,
    protocol: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="How the cohort is made. iris: closed, everybody is in all parts, each time with other images, or "
            "disjoint, each in one part. face: masked, mid-gray behind the person, or scenes, with backgrounds. "
            "chest: disjoint.  [default: as in the paper, iris closed, face masked]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is a generated cohort.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
) -> None:
    """Generate a cohort of images of people who do not exist, with and without a finding, drawn from known factors.

    chest: radiographs with and without pleural effusion. iris: near-infrared images of the eye with and without a
    clouded cornea. face: colour portraits, neutral and smiling. Writes OUT/manifest.json, OUT/images/ and
    OUT/factors.csv, all of it or nothing.

    \b
    Example:
      monai-anon phantom chest data/chest --images 600 --size 64
      monai-anon phantom iris data/iris --protocol disjoint
      monai-anon phantom face data/face --protocol scenes
    """  # noqa: D301 - the backspace keeps the lines of an example apart
    from monai_anon.phantoms.rendering import check_size

    found = load_phantom(kind)
    counts, people = found.part_sizes(images, patients, protocol)
    who = f"the same {max(people)}" if found.protocol(protocol)[1].closed_set else str(sum(people))
    what = f"{sum(counts)} images ({size} x {size}) of {who} patients, as {counts} of {people}"
    if dry_run:
        check_size(size)
        found.factors(seed, counts, people, difficulty, protocol)
        typer.echo(f"would write {out / 'manifest.json'}, {out / 'images'}, {out / 'factors.csv'}: {what}")
        if out.exists():
            typer.echo(f"{out} exists; unless it is empty, only --overwrite replaces it, and only a generated cohort")
        return
    manifest = found.write_cohort(out, seed, size, counts, people, difficulty, overwrite, protocol=protocol)
    typer.echo(f"wrote {manifest}: {what} (training, validation, test)")


# ---- evaluation ----

app.command()(verbs.judges)
app.command()(verbs.evaluate)
app.command()(verbs.report)
app.command()(verbs.ablation)
app.command()(comparing.compare)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    bundle: BundleOption = verbs.CHEST,
    seed: Annotated[int, typer.Option(help="Of training and evaluation.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run none.")] = False,
) -> None:
    """The whole method on generated images in some fifteen minutes on two CPU cores: train, measure, anonymise.

    Runs the documented commands one after the other and prints each. A demo that was stopped goes on where it was.
    """
    from monai_anon.demo import DemoFailed, demo_stages, printed, run_demo

    if dry_run:
        for stage in demo_stages(bundle, output, seed):
            typer.echo(f"# {stage.title}\n{printed(stage.command)}")
        return
    try:
        run_demo(bundle, output, seed)
    except DemoFailed as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(PARTLY) from error


# ---- release ----


app.command()(release_verbs.anonymize)
app.command()(release_verbs.calibrate)


# ---- explanation ----

app.command()(explaining.explain)
app.command()(explaining.counterfactual)


@app.command()
def export(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle whose anonymizer is written.")] = Path(
        "bundles/chest"
    ),
    model: ModelOption = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of model.ts and model.onnx.  [default: the bundle's models]"),
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="torchscript, onnx or both.")] = "torchscript,onnx",
    policy: PolicyOption = None,
    prototypes: PrototypesOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
) -> None:
    """Write a bundle's anonymizer for programs without this package: TorchScript (MONAI, MONAI Deploy) and ONNX.

    Each file is compared with the network itself, and all are written or none. The synthetic identity is drawn in the
    graph, of noise: TorchScript draws its own or takes it as a second input, ONNX takes it. No gallery of real people
    is in them. docs/deploy.md tells how they are used.

    \b
    Example:
      monai-anon export --bundle bundles/chest
      monai-anon export --bundle bundles/chest --format torchscript --output exported
    """  # noqa: D301
    from monai_anon.export import export_bundle, export_targets, file_words

    targets = export_targets(bundle, output, formats, overwrite)
    settings = {"policy": policy, "prototypes": prototypes}
    if dry_run:
        from monai_anon.bundles import load_anonymizer

        _, found = load_anonymizer(bundle, model, settings=settings)
        typer.echo(f"would read {found.model_file} and write {', '.join(map(str, targets.values()))}")
        return
    for line in file_words(export_bundle(bundle, targets, model, settings, overwrite)):
        typer.echo(line)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
