"""Turn NIH ChestX-ray14, as the NIH Clinical Center gives it out, into a manifest with a subset of the paper's sizes.

    python scripts/prepare_nih_chestxray14.py --root DATA/nih --output data/nih

DATA/nih holds Data_Entry_2017_v2020.csv (or the first release's Data_Entry_2017.csv), train_val_list.txt, test_list.txt
and the images, in images_001/images ... images_012/images, images_001 ..., or one images folder. The test part is
picked from test_list.txt, training and validation from train_val_list.txt, so it agrees with published figures' splits.

A label that an image does not carry counts as absent; other labels may be there. The labels were extracted from reports
by a program. All images are frontal, AP or PA (the column "view"). Images are neither copied nor changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from preparation import command, picking, tables

from monai_anon.manifest import PARTS, Manifest, ManifestError

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = ("train_val_list.txt", "test_list.txt")
SEX = "Patient Gender|Patient Sex"  # the name differs between the releases
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", SEX, "View Position")
NOTHING = "No Finding"


def find_table(root: Path) -> Path:
    """The table of labels.

    Raises:
        ManifestError: it, a list or the images are not there.
    """
    table = next((root / name for name in TABLES if (root / name).is_file()), root / TABLES[0])
    images = root.is_dir() and any(folders(root))
    tables.refuse_other_layout(
        "NIH ChestX-ray14",
        root,
        {
            " or ".join(TABLES): (table.is_file(), "patients and labels"),
            LISTS[0]: ((root / LISTS[0]).is_file(), "the images of training and validation"),
            LISTS[1]: ((root / LISTS[1]).is_file(), "the images of the test part"),
            "images_001/images/ ... images_012/images/, or images/": (images, "the images"),
        },
    )
    return table


def folders(root: Path) -> Iterator[str]:
    """The folders that may hold images, relative to the root."""
    for place in sorted(root.glob("images*")):
        if place.is_dir():
            yield from (name for name in (place.name, f"{place.name}/images") if (root / name).is_dir())


def locate_images(root: Path) -> dict[str, str]:
    """Each image's place relative to the root, by its name."""
    return {name: f"{folder}/{name}" for folder in folders(root) for name in os.listdir(root / folder)}


def read_labels(path: Path, finding: str) -> pd.DataFrame:
    """The table of labels.

    Raises:
        ManifestError: missing columns, or a finding that no image has.
    """
    table = tables.read_table(path)
    if problems := tables.column_problems(table, path, COLUMNS):
        raise ManifestError(f"{path} is no table of NIH ChestX-ray14:", problems)
    known = sorted({label for labels in set(table["Finding Labels"]) for label in labels.split("|")} - {NOTHING, ""})
    if finding not in known:
        raise tables.no_such_finding("--finding", finding, known)
    return table


def read_list(path: Path) -> set[str]:
    """The names of a list of images."""
    return set(path.read_text(encoding="utf-8-sig").split())


def read_pools(
    root: Path, table: pd.DataFrame, finding: str, base: str
) -> tuple[list[picking.Pool], list[str], list[str]]:
    """The entries for training and validation and those for the test, rows without image, a note on rows in no list.

    Raises:
        ManifestError: the lists share a patient.
    """
    places, missing = locate_images(root), []
    pools: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
    list_of = {image: name for name in LISTS for image in read_list(root / name)}
    sex = tables.one_of(table, SEX)
    unlisted = 0
    for line, row in zip(table.index + 2, table.to_dict("records"), strict=True):
        image = row["Image Index"]
        if image not in list_of:
            unlisted += 1
        elif image not in places:
            missing.append(f"row {line}: {tables.hide_numbers(image)}")
        else:
            facts = {"sex": row[sex], "age": row["Patient Age"].rstrip("Y").lstrip("0"), "view": row["View Position"]}
            entry = {"image": os.path.normpath(f"{base}/{places[image]}"), "patient": row["Patient ID"]}
            label = int(finding in row["Finding Labels"].split("|"))
            pools[list_of[image]].append({**entry, "finding": label, **facts})
    training, test = pools.values()
    shared = {entry["patient"] for entry in training} & {entry["patient"] for entry in test}
    if shared:
        raise ManifestError(
            f"{' and '.join(LISTS)} share {len(shared)} patient(s); the NIH's share none, download them again"
        )
    notes = [f"left out: {unlisted} of {len(table)} images are in neither list"] if unlisted else []
    return [(PARTS[:2], training), (PARTS[2:], test)], missing, notes


def main(
    root: command.Root,
    output: command.Output,
    finding: Annotated[str, typer.Option(help="One of the table's labels.")] = "Effusion",
    images: command.Images = "6000,200,300",
    patients: command.Patients = "1791,84,130",
    share: command.Share = "0.5",
    seed: command.Seed = 0,
    take_all: command.TakeAll = False,
    skip_missing: command.SkipMissing = False,
    check: command.Check = True,
    dry_run: command.DryRun = False,
    overwrite: command.Overwrite = False,
) -> None:
    """Pick a subset of NIH ChestX-ray14 and write its manifest.

    Example: python scripts/prepare_nih_chestxray14.py --root DATA/nih --output data/nih
    """
    with command.plain_errors():
        path = command.manifest_file(output, may_exist=overwrite or dry_run)
        subset = command.subset_of(images, patients, share, seed, take_all)
        labels = find_table(root)
        table = read_labels(labels, finding)
        pools, missing, notes = read_pools(root, table, finding, tables.relative_folder(root, path))
        account = [f"{len(table)} images of {labels}", *notes]
        account += tables.refuse_missing(
            f"images of {labels.name} are not there",
            missing,
            len(table),
            skip_missing,
            "unpack every archive of images",
        )
        parts = picking.pick_parts(pools, subset)
        record = {"dataset": "NIH ChestX-ray14", "finding": finding, **command.record_of(subset)}
        manifest = Manifest(path, ["absent", finding.lower()], parts, {"preparation": record})
        command.deliver(manifest, account, channels=1 if check else None, dry_run=dry_run, overwrite=overwrite)


if __name__ == "__main__":
    typer.run(main)
