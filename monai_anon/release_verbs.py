"""The verbs that release images, and the one that makes the gate they go through."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from monai_anon.evaluation.verbs import CHEST, EpsilonOption, ModelOption, OverlayOption, PolicyOption, PrototypesOption

if TYPE_CHECKING:
    from monai_anon.jobs import Refusal
    from monai_anon.releasing import Release

PARTLY = 1

BundleOption = Annotated[Path, typer.Option(help="Folder of the bundle whose anonymizer is used.")]
DeviceOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this at run time, on Python 3.10 too
    typer.Option(help="cpu, cuda, cuda:1, ...  [default: cuda where there is one, else cpu]"),
]
SiteOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="SITE", help="Folder of the privacy gate, which `monai-anon calibrate` makes; it stays on site."
    ),
]
JudgesOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE", help="The gate's judges, or a folder with one file of them.  [default: SITE's]"),
]


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
    bundle: BundleOption = CHEST,
    model: ModelOption = None,
    overlay: OverlayOption = None,
    site: SiteOption = None,
    judges: JudgesOption = None,
    no_gate: Annotated[
        bool, typer.Option("--no-gate", help="Release unchecked copies; the certificate says that no gate was there.")
    ] = False,
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
            help="File of a key, readable by you alone: with it each patient has one synthetic identity, and UIDs, "
            "pseudonyms, keyed names and draws are the same in every run. Whoever has it can link copies with "
            "originals.  [default: a new random one, never shown, and an identity an image]"
        ),
    ] = None,
    make_key: Annotated[bool, typer.Option("--make-key", help="Make the file of --key first; it must be new.")] = False,
    patients: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Whose image is whose: a CSV file with the columns image (relative to that file) and patient, a "
            "manifest or its folder, or the word folders: the first folder below INPUT. Needs --key.  [default: DICOM "
            "files by patient ID and issuer, others each its own]",
        ),
    ] = None,
    most_images_per_patient: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, metavar="N", help="Withhold further images of a patient than the first N: their bits add up."
        ),
    ] = None,
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
    site_record: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="FILE",
            help="Keep a line of JSON a file, readable by you alone, with all that the gate has found, also how like a "
            "copy is to its original. It stays on site.",
        ),
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option(
            "--continue",
            help="Go on with a run that was stopped: copies that OUTPUT/statements.jsonl lists stay, all others are "
            "made, also where a file stands that it does not list. Needs the same options and --key.",
        ),
    ] = False,
    to_gray: Annotated[
        bool, typer.Option("--to-gray", help="Read colour images as gray ones where the model has one channel.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 16,
    device: DeviceOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace copies that exist; never originals. They are taken away first.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read all, say what would be written and what not; write nothing.")
    ] = False,
) -> None:
    """Write copies of images with the person's identity exchanged for a synthetic one, as far as the privacy gate lets.

    A copy leaves only through the gate of --site: it must be unlike every training patient and its own original's, and
    show the finding that it was drawn with. What does not pass is drawn again, and at last withheld: nothing is written
    for it, it is named and counted, and the exit code is 1. Without --site nothing is released, unless you say
    --no-gate. docs/gate.md says what is checked and what is not.

    Folders are searched recursively (hidden files left out); DICOM is found under any name; the folder of a manifest is
    taken like any other, and its manifest.json, which names patients, is not copied. Copies of pictures are PNG files
    of pixels only, those of NIfTI are NIfTI with an empty header, those of DICOM are DICOM with a new one:
    docs/dicom.md. Each copy is written whole or not at all; an image that cannot be read, checked or anonymised is not
    written but reported at the end, and the exit code is then 1.

    What each copy may say of its original stands in OUTPUT/statements.jsonl; OUTPUT/certificate.json and .html, written
    last, say it of the release. Several copies of one person say more than one: their bits add up.

    Pictures keep their names and folders: rename files whose names tell who it is, or take --names keyed. Messages give
    DICOM and NIfTI files their numbers in the order of their paths; --paths shows the paths.

    Several processes: torchrun --nproc_per_node N -m monai_anon anonymize ..., with a --key that is there already.

    \b
    Example:
      monai-anon anonymize archive out --site SITE --key ~/.monai-anon.key --make-key
      monai-anon anonymize data/chest/images out --no-gate
    """  # noqa: D301
    from monai_anon.jobs import FORMATS, shown
    from monai_anon.releasing import Processes, Release, Request, run
    from monai_anon.statements import in_words

    processes = Processes.joined()
    request = Request(
        inputs=inputs, output=output, bundle=bundle, model=model, overlays=overlay or (),
        site=site, judges=judges, no_gate=no_gate, seed=seed,
        policy=policy, prototypes=prototypes, epsilon=epsilon, keep_form=keep_form, header=header, names=names, key=key,
        make_key=make_key, patients=patients, most_images=most_images_per_patient, no_text=no_burned_in_text,
        paths=paths, site_record=site_record, go_on=go_on, to_gray=to_gray, batch_size=batch_size, device=device,
        overwrite=overwrite,
    )  # fmt: skip
    release = Release(request, processes)
    if dry_run:
        if processes.rank:
            return
        refusals = _rehearse(release)
    else:
        result = run(release, typer.echo)
        if result is None:
            return
        refusals, plan = result.refusals, release.plan
        said = "their names were kept" if not plan.keyed else f"{plan.keyed} of them have keyed names"
        already = f" ({release.already} were there already)" if release.already else ""
        written = release.everything - len(refusals) - release.already
        typer.echo(f"wrote {written} of {release.everything} images to {shown(output)}{already}; {said}")
        for reason, count in sorted(result.tally.reasons.items()):
            typer.echo(f"withheld for this reason: {count}: {reason}")
        if release.folder is not None:
            typer.echo(f"certificate: {shown(release.folder / 'certificate.html')}, and .json")
    typer.echo(in_words(release.statement))
    if release.plan.left_out:
        typer.echo(f"left out: {release.plan.left_out} file(s) of other formats; supported are {FORMATS}", err=True)
    for refusal in refusals:
        typer.echo(f"not anonymised: {release.plan.told(refusal.path)}: {refusal.reason}", err=True)
    if refusals and release.plan.by_number:
        typer.echo("numbers are those of all files in the order of their paths; --paths shows paths", err=True)
    if refusals:
        raise typer.Exit(PARTLY)


def _rehearse(release: Release) -> list[Refusal]:
    """Say what would be read and written; the files that would be refused. What the gate will withhold is not known."""
    from monai_anon.jobs import shown

    plan = release.plan
    typer.echo(f"would read {shown(release.settings.model_file)}")
    refusals = plan.refusals + release.anonymizer().check(plan.jobs)
    unusable = {refusal.path for refusal in refusals}
    for job in plan.jobs:
        if job.source not in unusable:
            typer.echo(f"would read {plan.told(job.source)} and write {shown(job.target)}")
    typer.echo(
        f"{plan.kinds()}; {len(refusals)} of {release.everything} images would be refused, {release.already} are there "
        "already"
    )
    return refusals


def calibrate(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="Folder to make; it stays on site.")],
    judges: Annotated[
        Path, typer.Option(metavar="FILE", help="What `monai-anon judges` has trained, or its folder with one of them.")
    ],
    bundle: BundleOption = CHEST,
    model: ModelOption = None,
    overlay: OverlayOption = None,
    manifest: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Manifest whose training part the model and the judges saw; people of its other parts are held out.  "
            "[default: the generated cohort, made when absent]"
        ),
    ] = None,
    strangers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="MANIFEST", help="Another manifest, whose test part is held out, too."),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Share of strangers that may be taken for the same person: .01 takes 299 held out.")
    ] = 0.01,
    device: DeviceOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what SITE holds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
) -> None:
    """Make the privacy gate of a model: SITE with galleries of its training patients, thresholds, and judges.

    The galleries are biometric data: readable by you alone, they stay on site, and whether the disk is encrypted is
    yours to decide. Thresholds are found on real people whom no training has seen; docs/gate.md says how.

    \b
    Example:
      monai-anon calibrate SITE --manifest data/mine --model runs/mine/model.pt --judges runs/mine/judges --rate 0.02
    """  # noqa: D301
    from monai_anon.bundles import chosen_device, load_anonymizer
    from monai_anon.datasets import training_manifest
    from monai_anon.demo import cohort_kind
    from monai_anon.gate_calibration import refuse_rate
    from monai_anon.site import JUDGES, held_out_parts, judges_file, make_site, people_of, refuse_site, site_files, told

    refuse_rate(rate)
    refuse_site(site, overwrite or dry_run)
    network, settings = load_anonymizer(bundle, model, chosen_device(device), {"policy": "latents"}, overlay or ())
    own, others = (None if path is None else str(path) for path in (manifest, strangers))
    chosen = judges_file(judges)
    if dry_run:
        for path in site_files(site):
            typer.echo(f"would write {path}{', which is there' if os.path.lexists(path) else ''}")
        if own is None:
            typer.echo("of the generated cohort, made where absent")
        else:
            for part in held_out_parts(own, others):
                typer.echo(f"held out: {part.name} of {part.manifest}")
        return
    kind = "chest" if own is not None else cohort_kind(bundle)
    data = training_manifest(own, str(bundle / "data"), settings.image_size, kind)
    people = people_of(data, others, settings.image_size, settings.channels)
    found = make_site(site, network, settings.model_file, chosen, people, rate, overwrite)  # type: ignore[arg-type]
    typer.echo(f"wrote {site}: galleries of {len(people.training.patient.unique())} training patients, {JUDGES}")
    typer.echo("\n".join(told(found)))
    typer.echo("The galleries are biometric data: keep the folder on site, and to yourself.")
