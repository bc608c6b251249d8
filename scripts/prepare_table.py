"""Turn a table of labels (CSV) and a folder of images into a manifest.

    python scripts/prepare_table.py --table labels.csv --patient-column patient_id --finding-column effusion \
        --split-column split --output data/effusion

writes data/effusion/manifest.json with the images' paths relative to it; images are neither copied nor changed. Rows
are used when they pass every --where and their finding is among --classes. All problems of table and images are listed
at once, and nothing is written then.

Parts share no patient, unless --closed-set divides each patient's images over them: for people who are known and are to
be recognised again, such as the iris bundle's. Images may be of any size and shape, gray or colour (--channels 3; or
--to-gray for a network of one channel).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from preparation.command import DryRun, Output, Overwrite, describe, manifest_file, plain_errors
from preparation.tables import read_table, relative_folder

from monai_anon.image_store import image_problems
from monai_anon.manifest import (
    CLOSED_SET_KEY,
    LEAST_TO_DIVIDE,
    PARTS,
    TO_GRAY_KEY,
    Manifest,
    ManifestError,
    entry_problems,
    save_manifest,
    split_images,
    split_patients,
)

PART_NAMES = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
RESERVED = ("image", "patient", "finding")


@dataclass
class Columns:
    """Which column of the table holds what."""

    image: str
    patient: str
    finding: str
    split: str | None = None
    keep: tuple[str, ...] = ()

    def problems(self, table: pd.DataFrame, path: Path) -> list[str]:
        """Columns that the table does not have, or that cannot be kept."""
        wanted = {"image": self.image, "patient": self.patient, "finding": self.finding, "split": self.split}
        options = [(f"--{role}-column", name) for role, name in wanted.items() if name]
        options += [("--keep-columns", name) for name in self.keep]
        missing = [
            f"{option}: {path.name} has no column '{name}'; it has {', '.join(table.columns)}"
            for option, name in options
            if name not in table.columns
        ]
        clashes = [name for name in self.keep if name in RESERVED and name != getattr(self, name)]
        return missing + [f"--keep-columns: '{name}' is a name of the manifest itself; rename it" for name in clashes]


def filter_rows(table: pd.DataFrame, conditions: list[str]) -> pd.DataFrame:
    """The rows where every "column=value" holds (numbers compare as numbers: 1 is 1.0)."""
    for condition in conditions:
        column, equals, value = (text.strip() for text in condition.partition("="))
        if not equals or column not in table.columns:
            raise ManifestError(f'--where "{condition}": write column=value, column one of {", ".join(table.columns)}')
        chosen = table[column].map(_plain) == _plain(value)
        if not chosen.any():
            found = ", ".join(sorted(set(table[column]))[:10])
            raise ManifestError(f'--where "{condition}" leaves no row; values of {column} are {found}')
        table = table[chosen]
    return table


def name_classes(values: pd.Series, column: str, asked: list[str]) -> tuple[list[str], dict[str, int]]:
    """The classes' names, and each value's class number.

    Without `asked`: numbers 0 and 1 are "absent" and the column's name, anything else the sorted values themselves.
    With it, in its order: `value`, or `value=name`; names none of which is a value stand for 0, 1, 2, ... where the
    column holds whole numbers.

    Raises:
        ManifestError: a class without rows, fewer than two classes, a name or value given twice.
    """
    found = sorted(
        {_plain(value) for value in values} - {""}, key=lambda value: (not value.isdigit(), len(value), value)
    )
    whole = bool(found) and all(value.isdigit() for value in found)
    if not asked:
        if set(found) == {"0", "1"}:
            asked = ["0=absent", f"1={column}"]
        else:
            asked = [f"{value}={value}" for value in (found if whole else sorted(found))]
    elif whole and not any("=" in item or _plain(item) in found for item in asked):
        asked = [f"{number}={name.strip()}" for number, name in enumerate(asked)]
    pairs = [(_plain(value), (name or value).strip()) for value, _, name in (item.partition("=") for item in asked)]
    names, numbers = [name for _, name in pairs], {value: number for number, (value, _) in enumerate(pairs)}
    problems = [
        f"class '{value}' is in no row; values are {', '.join(found[:20])}" for value in numbers if value not in found
    ]
    if len(numbers) < len(pairs) or len(set(names)) < len(names):
        problems.append(f"a class is given twice: {', '.join(asked)}")
    if len(pairs) < 2:
        problems.append(f"column '{column}' gives {len(pairs)} class(es): {', '.join(names)}; pairs need two or more")
    if problems:
        raise ManifestError(f"finding column '{column}':", problems)
    return names, numbers


def table_entries(
    table: pd.DataFrame, columns: Columns, numbers: dict[str, int], images: Path, manifest: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """One entry a row, its image path relative to the file `manifest`, and what is wrong with rows."""
    entries, problems = [], []
    base = relative_folder(images, manifest)
    for line, row in zip(table.index + 2, table.to_dict("records"), strict=True):
        image, patient = row[columns.image], row[columns.patient]
        if not image:
            problems.append(f"row {line}: column '{columns.image}' is empty")
        if not patient:
            problems.append(f"row {line} {image}: column '{columns.patient}' is empty")
        path = image if os.path.isabs(image) else os.path.normpath(os.path.join(base, image))
        kept = {name: row[name] for name in columns.keep if name not in RESERVED}
        finding = numbers[_plain(row[columns.finding])]
        entries.append({"image": Path(path).as_posix(), "patient": patient, "finding": finding, **kept})
    return entries, problems


def label_problems(table: pd.DataFrame, columns: Columns, numbers: dict[str, int]) -> list[str]:
    """The rows whose finding is no class."""
    rows = table[~table[columns.finding].map(_plain).isin(list(numbers))]
    return [
        f"row {line} {image}: finding '{finding}' is out of range; it must be one of {', '.join(numbers)} (drop "
        "such rows "
        "with --where, or name the values to use with --classes)"
        for line, image, finding in zip(rows.index + 2, rows[columns.image], rows[columns.finding], strict=True)
    ]


def parts_from_column(
    entries: list[dict[str, Any]], values: list[str], column: str
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Entries in the parts that a column of the table names, and what is wrong with it."""
    said = Counter(values)
    problems = [
        f"split column '{column}' says '{value}' in {count} row(s); it may say {', '.join(PART_NAMES)}"
        for value, count in said.items()
        if value.lower() not in PART_NAMES
    ]
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for entry, value in zip(entries, values, strict=True):
        if value.lower() in PART_NAMES:
            parts[PART_NAMES[value.lower()]].append(entry)
    empty = [part for part in PARTS if not parts[part]]
    if empty:
        problems.append(
            f"split column '{column}' gives no image to {' and '.join(empty)} (it says "
            f"{', '.join(f'{value}: {count}' for value, count in said.items())}). Use --resplit to split all rows "
            "anew by "
            "patient with --seed and --fractions (leaving out --split-column does the same)"
        )
    return parts, problems


def parts_by_seed(
    entries: list[dict[str, Any]], fractions: tuple[float, ...], seed: int, closed_set: bool = False
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Entries split by patient, or in a closed set each patient's images, and whether a part stays empty."""
    parts = (split_images if closed_set else split_patients)(entries, fractions, seed)
    empty = [part for part, share in zip(PARTS, fractions, strict=True) if share and not parts[part]]
    patients = Counter(entry["patient"] for entry in entries)
    shares = ",".join(f"{share:g}" for share in fractions)
    few = f"{len(patients)} patients are too few"
    if closed_set:
        enough = sum(count >= LEAST_TO_DIVIDE for count in patients.values())
        few = f"{enough} of {len(patients)} patients have {LEAST_TO_DIVIDE} images or more, too few"
    return parts, [f"{few} for --fractions {shares}: {part} stays empty" for part in empty]


def closed_set_problems(parts: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Where somebody of a closed set is not in training; by entry, since patients are not named."""
    known = {entry["patient"] for entry in parts[PARTS[0]]}
    return [
        f"{part}[{index}] {entry['image']}: its patient has no image in training, where everybody of a closed set is"
        for part in PARTS[1:]
        for index, entry in enumerate(parts[part])
        if entry["patient"] not in known
    ]


def prepare(
    table_path: Path,
    images: Path | None,
    columns: Columns,
    output: Path,
    *,
    classes: list[str],
    where: list[str],
    resplit: bool = False,
    seed: int = 0,
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    channels: int | None = 1,
    marks: Mapping[str, bool] | None = None,
) -> tuple[Manifest, str]:
    """The manifest of a table, checked but not written, and an account of the rows used.

    Args:
        images: the folder that image names are relative to; the table's "images" folder, or its own, where not given.
        output: the manifest's file.
        classes: as in `name_classes`.
        where: as in `filter_rows`.
        resplit: split by patient even where a split column is named.
        channels: 1 or 3; None does not decode the images.
        marks: what the manifest says of itself, `closed_set` or `to_gray`, where it is true.

    Raises:
        ManifestError: listing what is wrong.
    """
    extra = {name: True for name, said in (marks or {}).items() if said}
    closed_set = CLOSED_SET_KEY in extra
    table = read_table(table_path)
    problems = columns.problems(table, table_path)
    images = images or (table_path.parent / "images" if (table_path.parent / "images").is_dir() else table_path.parent)
    if not images.is_dir():
        problems.append(f"--images {images}: no such folder")
    if problems:
        raise ManifestError(f"{table_path} cannot be used:", problems)
    chosen = filter_rows(table, where)
    names, numbers = name_classes(chosen[columns.finding], columns.finding, classes)
    used = chosen[chosen[columns.finding].map(_plain).isin(list(numbers))]
    selected = bool(classes) and not _by_number(classes, numbers)
    problems = [] if selected else label_problems(chosen, columns, numbers)
    entries, more = table_entries(used, columns, numbers, images, output)
    problems += more
    if columns.split and not resplit:
        parts, more = parts_from_column(entries, list(used[columns.split]), columns.split)
    else:
        parts, more = parts_by_seed(entries, fractions, seed, closed_set)
    manifest = Manifest(output.parent.resolve() / output.name, names, parts, extra)
    problems += more + entry_problems(parts, names, manifest.folder, closed_set)
    problems += closed_set_problems(parts) if closed_set else []
    if channels:
        told = {problem.split()[0].rstrip(":") for problem in problems}
        problems += [
            problem for problem in image_problems(manifest, channels=channels) if problem.split()[0] not in told
        ]
    if problems:
        raise ManifestError(f"{table_path}: {len(problems)} problem(s):", problems)
    account = f"{len(used)} of {len(table)} rows used"
    if len(used) < len(table):
        account += f" ({len(table) - len(chosen)} left out by --where, {len(chosen) - len(used)} by --classes)"
    if closed_set:
        account += f"; a closed set: {trained_alone(parts)} patients are in training only"
    return manifest, account


def trained_alone(parts: dict[str, list[dict[str, Any]]]) -> int:
    """How many patients are in training and in no other part."""
    training, *others = ({entry["patient"] for entry in parts[part]} for part in PARTS)
    return len(training.difference(*others))


def _by_number(classes: list[str], numbers: dict[str, int]) -> bool:
    """Whether --classes only names the numbers 0, 1, ...; a further number is then a mistake, not a choice."""
    return not any("=" in item or _plain(item) in numbers for item in classes)


def _plain(value: str) -> str:
    """A value as it is compared: stripped, and 1.0 as 1."""
    return re.sub(r"^(\d+)\.0+$", r"\1", value.strip())


def _listed(text: str | None) -> list[str]:
    """The items of a comma-separated option."""
    return [item.strip() for item in (text or "").split(",") if item.strip()]


def main(
    table: Annotated[Path, typer.Option(help="CSV file with one row an image.")],
    patient_column: Annotated[str, typer.Option(help="Column that names the patient.")],
    finding_column: Annotated[str, typer.Option(help="Column with the finding.")],
    output: Output,
    image_column: Annotated[str, typer.Option(help="Column with the image's file name.")] = "image",
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images (default: 'images' beside the table, else the table's)")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column that says train, val or test; without it patients are split by --seed.")
    ] = None,
    resplit: Annotated[
        bool, typer.Option("--resplit", help="Split by --seed although --split-column is given.")
    ] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Values to use, in the order of their numbers, e.g. 'normal,bacteria,virus' or '0=absent,1=effusion'; "
            "other rows are left out (default: all values; 0 and 1 become 'absent' and the column's name)"
        ),
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="Use rows with column=value only; may be repeated.")] = None,
    keep_columns: Annotated[str | None, typer.Option(help="Columns to keep in the entries, comma-separated.")] = None,
    closed_set: Annotated[
        bool,
        typer.Option(
            "--closed-set",
            help=f"Divide the images of each patient over the parts; with fewer than {LEAST_TO_DIVIDE} all are in "
            "training. With --split-column parts are what it says, and may share patients.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split.", min=0)] = 0,
    fractions: Annotated[
        str, typer.Option(help="Patients (--closed-set: images) in training, validation, test.")
    ] = "0.7,0.1,0.2",
    channels: Annotated[int, typer.Option(help="1: gray images (colour is refused); 3: colour.", min=1, max=3)] = 1,
    to_gray: Annotated[bool, typer.Option("--to-gray", help="Have colour images read as gray ones.")] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Decode all images; refuse unusable and duplicate ones.")
    ] = True,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn a table of labels and a folder of images into a manifest, split by patient or as a closed set."""
    columns = Columns(image_column, patient_column, finding_column, split_column, tuple(_listed(keep_columns)))
    with plain_errors():
        output = manifest_file(output, may_exist=overwrite or dry_run)
        try:
            shares = tuple(float(share) for share in fractions.split(","))
        except ValueError as error:
            raise ManifestError(f"--fractions {fractions}: give three numbers, e.g. 0.7,0.1,0.2") from error
        if to_gray and channels == 3:
            raise ManifestError("--to-gray is for networks of one channel; leave it out, or leave out --channels 3")
        manifest, account = prepare(
            table, images, columns, output,
            classes=_listed(classes), where=where or [], resplit=resplit, seed=seed, fractions=shares,
            channels=channels if check else None, marks={CLOSED_SET_KEY: closed_set, TO_GRAY_KEY: to_gray},
        )  # fmt: skip
        typer.echo(f"{account}; classes {', '.join(manifest.classes)}\n{describe(manifest.parts, manifest.classes)}")
        if dry_run:
            typer.echo(f"dry run: {output} not written")
            return
        save_manifest(manifest.path, manifest.parts, manifest.classes, extra=manifest.extra, overwrite=overwrite)
        typer.echo(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
