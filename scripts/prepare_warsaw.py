r"""Turn Warsaw-BioBase-Disease-Iris v2.1 into a manifest with a subset of the paper's sizes.

    python scripts/prepare_warsaw.py --root DATA/warsaw --table DATA/warsaw/annotations.csv --person-column ID \
        --eye-column Eye --diagnosis-column Diagnosis --output data/warsaw

The dataset is given out on request only, and nothing of it was at hand. Known from users' published programs: near
infrared images are in images-NIR and colour images in images-visible, in a folder a person, as BMP or JPEG files whose
names begin with person, eye and camera, such as 0060_l_IG... (IG, TC and CA are cameras). NOT verified: what follows in
a name, and the sheet of diagnoses: its name, its columns, and whether it has a row a person, an eye or an image. These
are options, and what does not fit is refused with what there is.

A patient is a person, as the paper counts 115; the eye and the camera are columns of the manifest. Images are near
infrared and gray by default. BMP files, which the training does not read, are converted without loss to images/*.png
beside the manifest; others are left where they are.

Closed-set (the default, the paper's): images are divided, and every person is in training. A network may then know the
finding by the person, so `--protocol disjoint` divides the persons.
"""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from PIL import Image
from preparation import command, picking, tables

from monai_anon.manifest import CLOSED_SET_KEY, PARTS, Manifest, ManifestError
from monai_anon.readers import has_image_suffix

PATTERN = r"(?P<person>\d+)_(?P<eye>[LRlr])[A-Za-z]*_(?P<camera>[A-Za-z]+)"
SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
# Lifts the manifest's check that no patient is in two parts; nothing else here knows of the key.
CLOSED_SET = {CLOSED_SET_KEY: True}


class Protocol(str, Enum):
    """Whether the parts share persons."""

    CLOSED_SET = "closed-set"
    DISJOINT = "disjoint"


def find_sheet(root: Path, folder: str, table: Path | None) -> Path:
    """The sheet of diagnoses: the given one, or the only one under the root.

    Raises:
        ManifestError: sheet or images are not there, or there are several sheets.
    """
    if root.is_dir() and table is None:
        sheets = sorted(path for suffix in ("csv", "xlsx", "xlsm") for path in root.glob(f"*.{suffix}"))
        if len(sheets) > 1:
            listed = ", ".join(path.name for path in sheets)
            raise ManifestError(
                f"--root {root} holds several sheets ({listed}); name the one of diagnoses with --table"
            )
        table = sheets[0] if sheets else None
    tables.refuse_other_layout(
        "Warsaw-BioBase-Disease-Iris",
        root,
        {
            f"{folder}/": ((root / folder).is_dir(), "the images, in a folder a person (--folder)"),
            str(table or "*.csv or *.xlsx"): (bool(table and table.is_file()), "the sheet of diagnoses (--table)"),
        },
    )
    assert table is not None  # or it was refused
    return table


def read_names(root: Path, folder: str, pattern: str) -> pd.DataFrame:
    """The images: "place" relative to the root, and what the pattern's groups say of each.

    Raises:
        ManifestError: no images, or names that the pattern does not fit.
    """
    places = sorted(path.relative_to(root) for path in (root / folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not places:
        raise ManifestError(f"{root / folder} holds no image ({', '.join(SUFFIXES)}), nor do its folders")
    found = [(place, re.match(pattern, place.name)) for place in places]
    if unlike := [tables.hide_numbers(place.name) for place, match in found if match is None]:
        raise ManifestError(
            f"{len(unlike)} of {len(places)} names do not fit --pattern {pattern}, which tells person and eye:",
            unlike[: tables.SHOWN],
        )
    return pd.DataFrame([{"place": place.as_posix(), **match.groupdict()} for place, match in found if match])


def read_findings(path: Path, columns: dict[str, str], positive: str) -> dict[tuple[str, ...], int]:
    """Whether a key (an image's name, or person and eye as far as there are columns for them) has the finding.

    Raises:
        ManifestError: missing columns, a key with two answers, or nobody has the finding.
    """
    sheet = tables.read_table(path)
    if problems := tables.column_problems(sheet, path, columns.values()):
        raise ManifestError(
            f"{path}: say with --person-column, --eye-column, --image-column and --diagnosis-column what is where:",
            problems,
        )
    findings: dict[tuple[str, ...], int] = {}
    unclear = []
    for line, row in zip(sheet.index + 2, sheet.to_dict("records"), strict=True):
        key = key_of({role: row[name] for role, name in columns.items() if role != "diagnosis"})
        finding = int(bool(re.search(positive, row[columns["diagnosis"]], re.IGNORECASE)))
        if findings.setdefault(key, finding) != finding:
            unclear.append(
                f"row {line}: another answer than a row before for the same {' and '.join(list(columns)[:-1])}"
            )
    if unclear:
        raise ManifestError(f"{path}: give a column that tells the rows apart (--eye-column, --image-column):", unclear)
    if not any(findings.values()):
        raise ManifestError(
            f"{path}: nothing in column '{columns['diagnosis']}' fits '{positive}'; say with --positive what it "
            "says where the finding is present"
        )
    return findings


def key_of(facts: dict[str, str]) -> tuple[str, ...]:
    """What joins an image and a row: 0060 is 60, left is l, and an image's suffix does not matter."""
    plain = {
        "image": lambda text: Path(text.replace("\\", "/")).stem.lower(),
        "person": lambda text: re.sub(r"\.0+$", "", text).lstrip("0"),
        "eye": lambda text: text[:1].lower(),
    }
    return tuple(plain[role](facts[role]) for role in plain if role in facts)


def read_entries(
    root: Path, names: pd.DataFrame, findings: dict[tuple[str, ...], int], roles: list[str], path: Path
) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """The entries, the images without a row in the sheet, and the files to convert by the entry's image."""
    entries, missing, convert = [], [], {}
    base = tables.relative_folder(root, path)
    for row in names.to_dict("records"):
        key = key_of({role: row["place"] if role == "image" else row[role] for role in roles})
        if key not in findings:
            missing.append(tables.hide_numbers(Path(row["place"]).name))
            continue
        image = os.path.normpath(f"{base}/{row['place']}")
        if not has_image_suffix(row["place"]):
            image = f"images/{row['place'].replace('/', '_').rpartition('.')[0]}.png"
            convert[image] = row["place"]
        facts = {name: row[name].upper() for name in row if name not in ("place", "person") and row[name]}
        entries.append({"image": image, "patient": row["person"], "finding": findings[key], **facts})
    return entries, missing, convert


def convert_images(root: Path, manifest: Manifest, convert: dict[str, str]) -> None:
    """Write the chosen images that are to be converted."""
    for entries in manifest.parts.values():
        for entry in entries:
            if entry["image"] in convert:
                target = manifest.image_path(entry)
                target.parent.mkdir(parents=True, exist_ok=True)
                with Image.open(root / convert[entry["image"]]) as picture:
                    picture.save(target)


def main(
    root: command.Root,
    output: command.Output,
    table: Annotated[
        Path | None, typer.Option(help="Sheet of diagnoses, CSV or .xlsx (default: the root's only).")
    ] = None,
    person_column: Annotated[str, typer.Option(help="Column of the sheet with the person.")] = "Person",
    eye_column: Annotated[str, typer.Option(help="Its column with the eye; '' if rows are persons.")] = "Eye",
    image_column: Annotated[str, typer.Option(help="Its column with the file, if rows are images.")] = "",
    diagnosis_column: Annotated[str, typer.Option(help="Its column with the diagnosis.")] = "Diagnosis",
    finding: Annotated[str, typer.Option(help="Name of the finding.")] = "glaucoma",
    positive: Annotated[
        str, typer.Option(help="Pattern in the diagnosis where it is present, e.g. '^1$' (default: its name).")
    ] = "",
    folder: Annotated[str, typer.Option(help="Folder of the images under the root.")] = "images-NIR",
    pattern: Annotated[str, typer.Option(help="Begin of a file's name; groups 'person', 'eye', others.")] = PATTERN,
    channels: Annotated[int, typer.Option(help="1: gray, colour is refused; 3: colour.", min=1, max=3)] = 1,
    protocol: Annotated[Protocol, typer.Option(help="Do parts share persons?")] = Protocol.CLOSED_SET,
    images: command.Images = "1165,270,360",
    patients: command.Patients = "75,17,23",
    share: command.Share = "own",
    seed: command.Seed = 0,
    take_all: command.TakeAll = False,
    skip_missing: command.SkipMissing = False,
    check: command.Check = True,
    dry_run: command.DryRun = False,
    overwrite: command.Overwrite = False,
) -> None:
    """Pick a subset of Warsaw-BioBase-Disease-Iris and write its manifest; closed-set needs the sum of --patients only.

    Example: python scripts/prepare_warsaw.py --root DATA/warsaw --person-column ID --output data/warsaw
    """
    with command.plain_errors():
        path = command.manifest_file(output, may_exist=overwrite or dry_run)
        subset = command.subset_of(images, patients, share, seed, take_all)
        sheet = find_sheet(root, folder, table)
        keys = {"image": image_column} if image_column else {"person": person_column, "eye": eye_column}
        columns = {role: name for role, name in (keys | {"diagnosis": diagnosis_column}).items() if name}
        findings = read_findings(sheet, columns, positive or re.escape(finding))
        names = read_names(root, folder, pattern)
        entries, missing, convert = read_entries(root, names, findings, list(columns)[:-1], path)
        account = [f"{len(names)} images in {root / folder}, {tables.present(entries)} with {finding}"]
        account += tables.refuse_missing(
            f"images have no row in {sheet.name}", missing, len(names), skip_missing, "see the columns and the pattern"
        )
        closed = protocol is Protocol.CLOSED_SET
        parts = picking.closed_set_parts(entries, subset) if closed else picking.pick_parts([(PARTS, entries)], subset)
        record = {"dataset": "Warsaw-BioBase-Disease-Iris", "finding": finding, "protocol": protocol.value}
        extra = {**(CLOSED_SET if closed else {}), "preparation": {**record, **command.record_of(subset)}}
        manifest = Manifest(path, ["absent", finding], parts, extra)
        command.deliver(
            manifest, account, channels=channels if check else None, dry_run=dry_run, overwrite=overwrite,
            make_files=(lambda: convert_images(root, manifest, convert)) if convert else None,
        )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
