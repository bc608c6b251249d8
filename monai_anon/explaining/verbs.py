"""The verbs `explain` and `counterfactual`: what they take and what they print."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from monai_anon.evaluation.verbs import CHEST, EpsilonOption, ModelOption, OverlayOption, PolicyOption, PrototypesOption
from monai_anon.explaining.preparing import prepared, read_query, require_gate
from monai_anon.release_verbs import BundleOption, DeviceOption, JudgesOption, SiteOption
from monai_anon.whole_files import require_writable, write_bytes

if TYPE_CHECKING:
    from monai_anon.explaining.explanation import Passes

NoGateOption = Annotated[
    bool,
    typer.Option("--no-gate", help="Compare with no real person. What is made must then stay where its originals are."),
]
ToOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        metavar="FINDING", help="Number of the other finding, from 0.  [default: whichever changes the picture least]"
    ),
]
SeedOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Makes all draws repeatable. Keep it to yourself.  [default: a new random one, never shown]"),
]
NoTextOption = Annotated[
    bool,
    typer.Option(
        "--no-burned-in-text",
        help="You have looked: no DICOM image has text in its pixels. Asked for where the policy has no bound, or the "
        "query's own pixels are shown.",
    ),
]
ToGrayOption = Annotated[bool, typer.Option("--to-gray", help="Read a colour query as a gray one.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything that can be; write nothing.")]

PAGE, RECORD = "explanation.html", "explanation.json"
OWN_WARNING = "THE PATIENT'S OWN IMAGES - NOT TO BE SHARED"


def explain(
    query: Annotated[Path, typer.Argument(metavar="QUERY", help="A PNG, JPEG, TIFF, NIfTI or DICOM file.")],
    cases: Annotated[Path, typer.Option(metavar="MANIFEST", help="Manifest, or its folder, of the cases.")],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help=f"Gets {PAGE} and {RECORD}; absent or empty without --overwrite.")
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="Cases of the query's finding, and as many of another one.")] = 5,
    part: Annotated[
        str, typer.Option(help="Where cases are taken from: training, validation, test or all of them.")
    ] = "all",
    site: SiteOption = None,
    judges: JudgesOption = None,
    no_gate: NoGateOption = False,
    include_query: Annotated[
        bool,
        typer.Option(
            "--include-query",
            help="Show the query, its own reconstruction and counterfactual as well. The page then shows its person, "
            "is for who may see the query, and is readable by you alone.",
        ),
    ] = False,
    to: ToOption = None,
    bundle: BundleOption = CHEST,
    model: ModelOption = None,
    overlay: OverlayOption = None,
    policy: PolicyOption = None,
    prototypes: PrototypesOption = None,
    epsilon: EpsilonOption = None,
    seed: SeedOption = None,
    to_gray: ToGrayOption = False,
    no_burned_in_text: NoTextOption = False,
    cache_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where decoded cases are kept for the next time; for large archives. They are originals."),
    ] = None,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Show cases similar to an image, and some with another finding, without showing who they are.

    Cases are chosen by what their anonymised images pass of the medical latent, one image a patient, anonymised and
    checked by the gate. The query's finding is drawn for a synthetic person, with and without it, and where the two
    differ. FOLDER gets one page that needs nothing else, and the same as JSON; neither has names, paths or originals.

    Patients of the query itself are left out where its file, or its very pixels, are in MANIFEST.

    \b
    Example:
      monai-anon explain data/new/0001.png --cases data/mine --site SITE --output runs/explanation
    """  # noqa: D301
    from monai_anon.datasets import file_digest
    from monai_anon.explaining.cases import encode_archive, read_cohorts
    from monai_anon.explaining.explanation import explain as explained
    from monai_anon.explaining.explanation import in_words, what_passes
    from monai_anon.explaining.pictures import page
    from monai_anon.jobs import shown
    from monai_anon.manifest import load_manifest
    from monai_anon.originals import quiet_decoders

    _refuse_target(output, overwrite)
    require_gate(site, judges, no_gate)
    settings = {"policy": policy, "prototypes": prototypes, "epsilon": epsilon}
    network, gate, said = prepared(bundle, model, overlay or (), device, settings, site, judges)
    with quiet_decoders():
        text = not no_burned_in_text and what_passes(network, gate).bits is None
        original = read_query(query, said, to_gray, text or (include_query and not no_burned_in_text))
        manifest = load_manifest(cases)
        cohorts = read_cohorts(manifest, part, said.image_size, said.channels, cache_dir)
        archive, own = encode_archive(network, manifest, cohorts, original, query)
        secret = secrets.randbits(128) if seed is None else seed
        found = explained(
            gate,
            network,
            original.pixels,
            archive,
            own,
            manifest.classes,
            k,
            secret,
            to=to,
            include_query=include_query,
            refuse_text=text,
            model=file_digest(str(said.model_file)),
        )
    files = {PAGE: page(found), RECORD: json.dumps(found.record(), indent=2) + "\n"}
    if dry_run:
        typer.echo(f"would write {', '.join(shown(output / name) for name in files)}: {2 * k} cases")
    else:
        _write_together(output, files, 0o600 if include_query else 0o666)
        typer.echo(f"wrote {', '.join(shown(output / name) for name in files)}: {2 * k} cases")
    typer.echo(f"withheld by the gate, others shown in their place: {found.withheld}")
    if len(own):
        typer.echo("the query is one of these cases' images: its patient was left out")
    _say(found.passes, in_words(found.passes, "case" if include_query else "original"))
    if include_query:
        typer.echo("the page shows the query's own person: do not hand it over", err=True)


def counterfactual(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG, TIFF, NIfTI or DICOM file.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The picture, a name that ends in .png.")],
    to: ToOption = None,
    steps: Annotated[
        int, typer.Option(metavar="N", help="Images from the one finding to the other, both included; 2 to 16.")
    ] = 2,
    site: SiteOption = None,
    judges: JudgesOption = None,
    no_gate: NoGateOption = False,
    keep_identity: Annotated[
        bool,
        typer.Option(
            "--keep-identity",
            help="Show the image's own person, for who may see the image. No gate lets that pass: the picture is "
            "marked, readable by you alone, and must not be shared.",
        ),
    ] = False,
    bundle: BundleOption = CHEST,
    model: ModelOption = None,
    overlay: OverlayOption = None,
    policy: PolicyOption = None,
    prototypes: PrototypesOption = None,
    epsilon: EpsilonOption = None,
    seed: SeedOption = None,
    to_gray: ToGrayOption = False,
    no_burned_in_text: NoTextOption = False,
    device: DeviceOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Draw an image's finding, the same with another finding, and where the two differ, for a synthetic person.

    Of the image passes what an anonymised copy gets: under the policy code the prototype of its finding. All images go
    through the gate together, or none is written.

    \b
    Example:
      monai-anon counterfactual data/new/0001.png --site SITE --output runs/counterfactual.png
      monai-anon counterfactual data/new/0001.png --site SITE --steps 6 --output runs/series.png
    """  # noqa: D301
    from monai_anon.explaining.counterfactuals import Draws, own_series, responses, series_through
    from monai_anon.explaining.explanation import in_words, what_passes
    from monai_anon.explaining.pictures import strip
    from monai_anon.gated_release import OriginalCheck
    from monai_anon.jobs import shown
    from monai_anon.originals import quiet_decoders
    from monai_anon.readers import to_model_range

    if output.suffix.lower() != ".png" or output.is_dir():
        raise ValueError(f"--output is {shown(output)}; it must be a file name that ends in .png")
    if os.path.lexists(output) and (not overwrite or output.resolve() == image.resolve()):
        raise ValueError(f"{shown(output)} exists already; --overwrite replaces it, unless it is IMAGE")
    require_writable(output.parent, "--output")
    if keep_identity and (site is not None or judges is not None):
        raise ValueError(
            "--keep-identity shows the image's own person, which the gate of --site is there to refuse; leave one out"
        )
    if not keep_identity:
        require_gate(site, judges, no_gate)
    settings = {"policy": policy, "prototypes": prototypes, "epsilon": epsilon}
    network, gate, said = prepared(bundle, model, overlay or (), device, settings, site, judges)
    passes = what_passes(network, gate)
    with quiet_decoders():
        asked = not no_burned_in_text and (keep_identity or passes.bits is None)
        pixels = to_model_range(read_query(image, said, to_gray, asked).pixels)[None]
    if keep_identity:
        series = own_series(network, pixels, to, steps)
    else:
        secret = secrets.randbits(128) if seed is None else seed
        noise = Draws(secret, network.noise_size).of(["query"], responses(network, 1))
        series = series_through(gate, network, pixels, noise, to, steps, check=OriginalCheck(passes.check))
    content = strip(series, OWN_WARNING if keep_identity else "" if passes.gate else "NO GATE - NOT TO BE SHARED")
    if not dry_run:
        write_bytes(output, content, overwrite, 0o600 if keep_identity else 0o666)
    ends = [int(series.probabilities[step].argmax()) for step in (0, -1)]
    verb = "would write" if dry_run else "wrote"
    typer.echo(f"{verb} {shown(output)}: finding {ends[0]}, counterfactual finding {ends[1]}, {steps} images")
    if keep_identity:
        typer.echo("the picture shows the image's own person, nothing bounds what it says: do not share it", err=True)
    else:
        _say(passes, in_words(passes))


# ---- What is written and said ----


def _say(passes: Passes, words: list[str]) -> None:
    for word in words:
        typer.echo(word, err=not passes.gate and word.startswith("NO GATE"))


def _refuse_target(output: Path, overwrite: bool) -> None:
    from monai_anon.jobs import shown

    if os.path.lexists(output) and not output.is_dir():
        raise ValueError(f"--output is {shown(output)}, a file; it must be a folder")
    there = {file.name for file in output.iterdir()} if output.is_dir() else set()
    if there - ({PAGE, RECORD} if overwrite else set()):
        hint = "it holds other files than an explanation's" if overwrite else "--overwrite replaces an explanation"
        raise ValueError(f"{shown(output)} is not empty ({hint}); choose another --output")
    require_writable(output, "--output")
    require_writable(output.parent, "--output")


def _write_together(output: Path, files: dict[str, str], mode: int) -> None:
    """All files or none: a new folder appears with all of them in it; in an old one each is replaced whole."""
    import shutil

    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{secrets.token_hex(8)}.part")
    try:
        for name, text in files.items():
            write_bytes(draft / name, text.encode("utf-8"), mode=mode)
        if output.is_dir() and any(output.iterdir()):
            for name in files:
                (draft / name).replace(output / name)
        else:
            draft.replace(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
