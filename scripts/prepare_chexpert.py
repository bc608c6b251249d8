"""Turn CheXpert, as Stanford gives it out, into a manifest with a subset of the paper's sizes.

    python scripts/prepare_chexpert.py --root DATA/chexpert --output data/chexpert

DATA/chexpert is CheXpert-v1.0, CheXpert-v1.0-small, the folder that holds one of them, or the folder that the four
"CheXpert-v1.0 batch ..." archives of the full release were unpacked into (its tables name paths without the batches).

Frontal images only. A finding is 1 (present), 0 (absent), -1 (the report is uncertain) or blank in the tables. Blank
means that the report does not mention it, and counts as absent; --uncertain says what -1 counts as. Absent is absent of
this finding, others may be there. Only train.csv is used by default: the 200 patients of valid.csv have one study each,
and were labelled by radiologists instead of from reports. Images are neither copied nor changed.
"""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from preparation import command, picking, tables

from monai_anon.manifest import PARTS, Manifest, ManifestError

NAMES = ("CheXpert-v1.0", "CheXpert-v1.0-small")
TABLES_BATCH = "CheXpert-v1.0 batch 1 (validate & csv)"
FACTS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")  # every further column is a finding


VALUES = {"1.0": 1, "1": 1, "0.0": 0, "0": 0, "": 0, "-1.0": -1, "-1": -1}


class Uncertain(str, Enum):
    """What an uncertain finding counts as."""

    DROP = "drop"
    POSITIVE = "positive"
    NEGATIVE = "negative"


def find_tables(root: Path, names: list[str]) -> Path:
    """The folder with the tables.

    Raises:
        ManifestError: there is none, or two.
    """
    homes = [root, *(root / name for name in (*NAMES, TABLES_BATCH))]
    homes = [home for home in homes if any((home / name).is_file() for name in names)]
    if len(homes) > 1:
        raise ManifestError(
            f"--root {root} holds {' and '.join(home.name for home in homes)}; give the one to use as --root"
        )
    home = homes[0] if homes else root
    wanted = {name: ((home / name).is_file(), "paths and findings") for name in names}
    wanted |= {f"{Path(name).stem}/patient.../study.../": (_images(home, name), "its images") for name in names}
    tables.refuse_other_layout(" or ".join(NAMES), root, wanted)
    return home


def _images(home: Path, table: str) -> bool:
    """Whether there is a folder that a table's images may be in."""
    return (home / Path(table).stem).is_dir() or any(batches(home))


def batches(home: Path) -> list[Path]:
    """The unpacked archives of the full release, inside the tables' folder or beside it."""
    places = {
        place for folder in (home, home.parent) for place in folder.glob("CheXpert-v1.0 batch *") if place.is_dir()
    }
    return sorted(places)


def locate(path: str, home: Path, archives: list[Path]) -> str | None:
    """Where an image of a table lies, relative to the tables' folder: in its own folder or in an archive's."""
    inside = re.sub(r"^CheXpert[^/]*/", "", path)
    places = [home / inside]
    for archive in archives:
        places += [archive / inside, archive / inside.partition("/")[2]]
    place = next((place for place in places if os.path.isfile(place)), None)
    return Path(os.path.relpath(place, home)).as_posix() if place else None


def read_rows(home: Path, names: list[str], finding: str) -> pd.DataFrame:
    """The frontal rows of the tables, with their place as column "row".

    Raises:
        ManifestError: missing columns, a finding that is none of the tables', a value that is none of a finding's.
    """
    read = []
    for name in names:
        table = tables.read_table(home / name)
        if problems := tables.column_problems(table, home / name, FACTS):
            raise ManifestError(f"{home / name} is no table of CheXpert:", problems)
        findings = [column for column in table.columns if column not in FACTS and not column.startswith("Unnamed")]
        if finding not in findings:
            raise tables.no_such_finding("--finding", finding, findings)
        unknown = sorted(set(table[finding]) - set(VALUES))
        if unknown:
            raise ManifestError(
                f"{home / name}: column '{finding}' says {', '.join(unknown[:10])}; it may say 1, 0, -1 or nothing"
            )
        table["row"] = [f"{name} row {line}" for line in table.index + 2]
        read.append(table[table["Frontal/Lateral"].str.lower() == "frontal"])
    return pd.concat(read)


def read_entries(
    home: Path, rows: pd.DataFrame, finding: str, uncertain: Uncertain, base: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """An entry a row whose image is there, and the rows whose image is not, without their patients."""
    policy = {Uncertain.POSITIVE: 1, Uncertain.NEGATIVE: 0, Uncertain.DROP: None}[uncertain]
    entries, missing, archives = [], [], batches(home)
    for row in rows.to_dict("records"):
        said = VALUES[row[finding]]
        label = policy if said < 0 else said
        if label is None:
            continue
        patient = re.search(r"(patient\d+)/", row["Path"])
        place = locate(row["Path"], home, archives) if patient else None
        if patient is None or place is None:
            missing.append(f"{row['row']}: {tables.hide_numbers(row['Path'])}")
            continue
        facts = {"sex": row["Sex"], "age": row["Age"], "view": row["AP/PA"]}
        image = os.path.normpath(f"{base}/{place}")
        entries.append({"image": image, "patient": patient.group(1), "finding": label, **facts})
    return entries, missing


def main(
    root: command.Root,
    output: command.Output,
    finding: Annotated[str, typer.Option(help="A column of the tables.")] = "Pleural Effusion",
    uncertain: Annotated[
        Uncertain, typer.Option(help="What -1 counts as; blank is not mentioned and counts as absent.")
    ] = Uncertain.DROP,
    use: Annotated[str, typer.Option("--tables", help="Tables to use, comma-separated.")] = "train.csv",
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
    """Pick a subset of CheXpert and write its manifest.

    Example: python scripts/prepare_chexpert.py --root DATA/chexpert --output data/chexpert
    """
    with command.plain_errors():
        path = command.manifest_file(output, may_exist=overwrite or dry_run)
        subset = command.subset_of(images, patients, share, seed, take_all)
        names = [name.strip() for name in use.split(",")]
        home = find_tables(root, names)
        rows = read_rows(home, names, finding)
        entries, missing = read_entries(home, rows, finding, uncertain, tables.relative_folder(home, path))
        account = [f"{len(rows)} frontal images of {' and '.join(names)} in {home}"]
        account += tables.refuse_missing(
            "images are not there", missing, len(rows), skip_missing, "unpack every archive of the release"
        )
        account.append(
            f"{len(entries)} usable, {tables.present(entries)} with {finding} (uncertain: {uncertain.value})"
        )
        parts = picking.pick_parts([(PARTS, entries)], subset)
        record = {"dataset": home.name, "finding": finding, "uncertain": uncertain.value, **command.record_of(subset)}
        manifest = Manifest(path, ["absent", finding.lower()], parts, {"preparation": record})
        command.deliver(manifest, account, channels=1 if check else None, dry_run=dry_run, overwrite=overwrite)


if __name__ == "__main__":
    typer.run(main)
