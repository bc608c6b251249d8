"""The `monai-anon` command: its verbs, what they take and what they print. What they do lives elsewhere.

Exit codes: 0 done; 1 done in part, each file that was not is named; 2 nothing done, with the reason; 3 measured, but
the verifier knows too little of these people for any verdict on privacy. Modules are imported by the verb that needs
them, so that `--help` is there at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer.core import TyperGroup

from monai_anon import __version__
from monai_anon.evaluation import verbs
from monai_anon.evaluation.verbs import BundleOption, EpsilonOption, ModelOption, PolicyOption, PrototypesOption
from monai_anon.phantoms import PHANTOMS, load_phantom

PARTLY, REFUSED = 1, 2


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


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    bundle: BundleOption = verbs.CHEST,
    seed: Annotated[int, typer.Option(help="Of training and evaluation.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run none.")] = False,
) -> None:
    """The whole method on generated images in about ten minutes on two CPU cores: train, measure, anonymise.

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


@app.command()
def anonymize(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="PNG, JPEG, TIFF, NIfTI and DICOM files, and folders of them.")
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT",
            help="Folder for the copies; for one input file also a name ending in .png, .nii.gz or .dcm.",
        ),
    ],
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle whose anonymizer is used.")] = Path(
        "bundles/chest"
    ),
    model: ModelOption = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Makes the copies repeatable. Keep it to yourself: with it and the model anybody can tell which name "
            "an image was made under.  [default: a new random one, never shown]"
        ),
    ] = None,
    policy: PolicyOption = None,
    prototypes: PrototypesOption = None,
    epsilon: EpsilonOption = None,
    keep_form: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--keep-form/--model-form",
            help="Give copies their originals' size, depth and mode, which no bound counts, or the model's.  [default: "
            "the model's under the policy code, else the originals']",
        ),
    ] = None,
    header: Annotated[
        str,
        typer.Option(
            help="What passes of a DICOM file's header: none; groups, which copies are of one patient, study and "
            "series; view, that and modality, body part and view position."
        ),
    ] = "groups",
    names: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="kept: copies have their originals' names and folders; keyed: names that say nothing, in one folder.  "
            "[default: kept for pictures, keyed for DICOM and NIfTI]"
        ),
    ] = None,
    key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File of a key, readable by you alone: with it UIDs, pseudonyms, keyed names and draws are the same "
            "in every run. Whoever has it can link copies with originals.  [default: a new random one, never shown]"
        ),
    ] = None,
    make_key: Annotated[bool, typer.Option("--make-key", help="Make the file of --key first; it must be new.")] = False,
    no_burned_in_text: Annotated[
        bool,
        typer.Option(
            "--no-burned-in-text",
            help="You have looked: no DICOM image has text in its pixels. Asked for where the policy has no bound, for "
            "kinds of images that often have some.",
        ),
    ] = False,
    paths: Annotated[
        bool, typer.Option("--paths", help="Show paths in messages also where names may tell who it is.")
    ] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Go on with a run that was stopped: copies that OUTPUT/statements.jsonl lists stay, all others are "
            "made, also where a file stands that it does not list.",
        ),
    ] = False,
    to_gray: Annotated[
        bool, typer.Option("--to-gray", help="Read colour images as gray ones where the model has one channel.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 16,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu, cuda, cuda:1, ...  [default: cuda where there is one, else cpu]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace copies that exist; never originals.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read all, say what would be written and what not; write nothing.")
    ] = False,
) -> None:
    """Write copies of images with the person's identity exchanged for a synthetic one.

    Folders are searched recursively (hidden files left out); DICOM is found under any name; the folder of a manifest is
    taken like any other, and its manifest.json, which names patients, is not copied. Copies of pictures are PNG files
    of pixels only, those of NIfTI are NIfTI with an empty header, those of DICOM are DICOM with a new one:
    docs/dicom.md. Each copy is written whole or not at all; an image that cannot be read, checked or anonymised is not
    written but reported at the end, and the exit code is then 1.

    What each copy may say of its original stands in OUTPUT/statements.jsonl. Several copies of one person say more
    than one: their bits add up.

    Pictures keep their names and folders: rename files whose names tell who it is, or take --names keyed. Messages give
    DICOM and NIfTI files their numbers in the order of their paths; --paths shows the paths.

    \b
    Example:
      monai-anon anonymize data/chest/images out --bundle bundles/chest
      monai-anon anonymize archive out --key ~/.monai-anon.key --make-key
    """  # noqa: D301
    from monai_anon.bundles import chosen_device, load_anonymizer
    from monai_anon.dicom import DicomSettings
    from monai_anon.jobs import Job, Naming, plan_files, shown
    from monai_anon.keys import chosen_key, write_key
    from monai_anon.release import FileAnonymizer
    from monai_anon.statements import append_statements, in_words, stated, statement_of

    # what is to be done, and with what
    secret = chosen_key(key, make_key, output)
    dicom = DicomSettings(secret, header, no_text=no_burned_in_text)
    plan = plan_files(inputs, output, overwrite or go_on, Naming(secret, names, paths))
    if go_on and (plan.folder is None or (plan.keyed and key is None)):
        raise ValueError("--continue needs a folder as OUTPUT and, for copies with keyed names, the run's --key")
    channel = {"policy": policy, "prototypes": prototypes, "epsilon": epsilon}
    network, settings = load_anonymizer(bundle, model, chosen_device(device), channel)
    kept = statement_of(network, settings.model_file, False)["bits"] is None if keep_form is None else keep_form
    passed = header if any(job.target.suffix == ".dcm" for job in plan.jobs) else "none"
    statement = statement_of(network, settings.model_file, kept, passed)
    dicom = replace(dicom, bits=statement["bits"], policy=statement["policy"] or "unknown")
    seed = secret.seed() if seed is None and key is not None else seed
    anonymizer = FileAnonymizer(network, settings.image_size, settings.channels, seed, batch_size, kept, dicom, to_gray)
    everything, refusals = len(plan.jobs) + len(plan.refusals), list(plan.refusals)
    there = plan.leave(stated(output, statement)) if go_on else 0

    if dry_run:
        typer.echo(f"would read {shown(settings.model_file)}")
        refusals += anonymizer.check(plan.jobs)
        unusable = {refusal.path for refusal in refusals}
        for job in plan.jobs:
            if job.source not in unusable:
                typer.echo(f"would read {plan.told(job.source)} and write {shown(job.target)}")
        typer.echo(
            f"{plan.kinds()}; {len(refusals)} of {everything} images would be refused, {there} are there already"
        )
    else:

        def note(written: list[Job]) -> None:
            if plan.folder is not None:
                append_statements(plan.folder, [str(job.target.relative_to(plan.folder)) for job in written], statement)

        if make_key and key is not None:
            write_key(secret, key)
            typer.echo(f"made the key {shown(key)}: keep it, and keep it to yourself")
        refusals += anonymizer.run(plan.jobs, overwrite or go_on, note=note)
        said = "their names were kept" if not plan.keyed else f"{plan.keyed} of them have keyed names"
        already = f" ({there} were there already)" if there else ""
        typer.echo(
            f"wrote {everything - len(refusals) - there} of {everything} images to {shown(output)}{already}; {said}"
        )
    typer.echo(in_words(statement))
    if plan.left_out:
        typer.echo(f"left out: {plan.left_out} file(s) that are no images", err=True)
    for refusal in refusals:
        typer.echo(f"not anonymised: {plan.told(refusal.path)}: {refusal.reason}", err=True)
    if refusals:
        raise typer.Exit(PARTLY)


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
