"""The options that the importers share, and the end of each: account, checks, manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_anon.image_store import image_problems
from monai_anon.manifest import MANIFEST_NAME, PARTS, Manifest, ManifestError, save_manifest
from preparation.picking import Subset
from preparation.tables import hide_numbers

Root = Annotated[Path, typer.Option(help="Folder that the dataset was unpacked into.")]
Output = Annotated[Path, typer.Option(help="Manifest to write: a .json file, or a folder for its manifest.json.")]
Images = Annotated[str, typer.Option(help="Images in training, validation, test.")]
Patients = Annotated[str, typer.Option(help="Patients in training, validation, test.")]
Share = Annotated[str, typer.Option(help="Share of images with the finding, 0 to 1, or 'own': the dataset's.")]
Seed = Annotated[int, typer.Option(help="Seed of the subset.", min=0)]
TakeAll = Annotated[bool, typer.Option("--all", help="Take every usable image; --patients is the proportion.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out what is listed but not there.")]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Decode all images; refuse unusable, duplicate ones.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and describe; write nothing.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Say what is wrong, and exit with 1, instead of a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def manifest_file(output: Path, *, may_exist: bool) -> Path:
    """The file that is to be written.

    Raises:
        ManifestError: it is there, and must not.
    """
    output = output if output.suffix == ".json" else output / MANIFEST_NAME
    if output.exists() and not may_exist:
        raise ManifestError(f"{output} exists already; use --overwrite to replace it")
    return output


def subset_of(images: str, patients: str, share: str, seed: int, take_all: bool) -> Subset:
    """The subset that the options ask for.

    Raises:
        ManifestError: listing the options that cannot be understood.
    """
    problems: list[str] = []
    numbers = {}
    for option, text in (("--images", images), ("--patients", patients)):
        items = [item.strip() for item in text.split(",")]
        if len(items) == len(PARTS) and all(item.isdigit() and int(item) for item in items):
            numbers[option] = tuple(map(int, items))
        else:
            problems.append(f"{option} {text}: give three whole numbers > 0 for {', '.join(PARTS)}, e.g. 600,20,30")
    if share != "own" and not (re.fullmatch(r"\d*\.?\d+", share) and 0 < float(share) < 1):
        problems.append(f"--share {share}: give a number between 0 and 1, e.g. 0.5, or own")
    if problems:
        raise ManifestError("options cannot be used:", problems)
    return Subset(numbers["--images"], numbers["--patients"], None if share == "own" else float(share), seed, take_all)


def record_of(subset: Subset) -> dict[str, Any]:
    """A subset as a manifest records it, so that it can be picked again."""
    return {"seed": subset.seed, "share": subset.share or "own", "all": subset.take_all}


def describe(parts: Mapping[str, Sequence[Mapping[str, Any]]], classes: Sequence[str]) -> str:
    """A line a part: images, patients, patients with two or more images, images of each class."""
    lines = []
    for part, entries in parts.items():
        images = Counter(entry["patient"] for entry in entries)
        findings = Counter(entry["finding"] for entry in entries)
        several = sum(count > 1 for count in images.values())
        shares = ", ".join(f"{name} {findings[number]}" for number, name in enumerate(classes))
        lines.append(
            f"{part:<10} {len(entries):>6} images of {len(images)} patients ({several} with two or more): {shares}"
        )
    return "\n".join(lines)


def deliver(
    manifest: Manifest,
    account: Sequence[str],
    *,
    channels: int | None,
    dry_run: bool,
    overwrite: bool,
    make_files: Callable[[], None] | None = None,
) -> None:
    """Say what was picked, check the images and write the manifest.

    Args:
        account: lines on what was used and left out.
        channels: 1 or 3; None does not decode the images.
        make_files: writes the images that the entries name; a dry run leaves it out, and so their check.

    Raises:
        ManifestError: images are refused, or the manifest is.
    """
    for line in account:
        typer.echo(line)
    typer.echo(describe(manifest.parts, manifest.classes))
    if make_files and not dry_run:
        make_files()
    if channels and not (make_files and dry_run):
        problems = image_problems(manifest, channels=channels)
        if problems:
            raise ManifestError(
                f"{len(problems)} image problem(s):", [_without_patients(p, manifest) for p in problems]
            )
    if dry_run:
        typer.echo(f"dry run: {manifest.path} not written")
        return
    save_manifest(manifest.path, manifest.parts, manifest.classes, extra=manifest.extra, overwrite=overwrite)
    typer.echo(f"wrote {manifest.path}")


def _without_patients(problem: str, manifest: Manifest) -> str:
    """A problem of images whose paths hold patients' numbers, without these."""
    for part, index in re.findall(rf"\b({'|'.join(PARTS)})\[(\d+)\]", problem):
        image = manifest.parts[part][int(index)]["image"]
        problem = problem.replace(image, hide_numbers(image))
    return problem
