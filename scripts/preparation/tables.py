"""Tables and folders of a dataset as its owner gives it out, or the reasons why they are not that."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from monai_anon.manifest import ManifestError

_PANDAS_ERRORS = (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError)
SHOWN = 10  # missing files that are named; a dataset of which a part was downloaded lacks many thousands


def read_table(path: Path) -> pd.DataFrame:
    """A table with every value as stripped text, empty where missing: CSV (comma, semicolon, tab) or a sheet (.xlsx).

    Raises:
        ManifestError: it cannot be read, or has no rows.
    """
    try:
        table = _read_sheet(path) if path.suffix.lower() in (".xlsx", ".xlsm") else _read_csv(path)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, *_PANDAS_ERRORS, csv.Error) as error:
        raise ManifestError(f"{path} is no CSV table in UTF-8: {error}") from error
    if table.empty:
        raise ManifestError(f"{path} has no rows")
    return table.apply(lambda column: column.str.strip()).rename(columns=lambda name: str(name).strip())


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV file whose separator is the one that its header has most of."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    separator = max(",;\t", key=header.count)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # index_col: rows longer than the header would otherwise move every column by one; so they are refused
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)


def _read_sheet(path: Path) -> pd.DataFrame:
    """The first sheet of a workbook."""
    try:
        return pd.read_excel(path, dtype=str, keep_default_na=False).astype(str)
    except ImportError as error:
        raise ManifestError(f"{path}: reading a sheet needs openpyxl; install it, or save the sheet as CSV") from error
    except ValueError as error:
        raise ManifestError(f"{path} is no sheet: {error}") from error


def column_problems(table: pd.DataFrame, path: Path, wanted: Iterable[str]) -> list[str]:
    """Columns that a table lacks; "a|b" is either of two."""
    missing = [name.replace("|", "' or '") for name in wanted if not set(name.split("|")) & set(table.columns)]
    return [f"{path.name} has no column '{name}'; it has {', '.join(table.columns)}" for name in missing]


def one_of(table: pd.DataFrame, names: str) -> str:
    """The first of the columns "a|b" that a table has."""
    return next(name for name in names.split("|") if name in table.columns)


def refuse_other_layout(dataset: str, root: Path, wanted: Mapping[str, tuple[bool, str]]) -> None:
    """Raise with everything that is expected under a folder where some of it is not there.

    Args:
        wanted: what stands where, to (is it there, what it is for).

    Raises:
        ManifestError: listing all of it, and what the folder holds instead.
    """
    if not root.is_dir():
        raise ManifestError(f"--root {root}: no such folder; it must be the one that {dataset} was unpacked into")
    if all(there for there, _ in wanted.values()):
        return
    held = sorted(name for name in os.listdir(root) if not name.startswith("."))
    listed = ", ".join(dict.fromkeys(map(hide_numbers, held))) or "nothing"
    raise ManifestError(
        f"--root {root} is not {dataset} as it is distributed. Expected in it:",
        [f"{place}: {use} - {'found' if there else 'NOT FOUND'}" for place, (there, use) in wanted.items()]
        + [f"the folder holds {listed[:300]}"],
    )


def refuse_missing(what: str, missing: Sequence[str], total: int, skip: bool, remedy: str) -> list[str]:
    """A line for the account on what is left out, or the refusal where that was not asked for.

    Args:
        what: e.g. "images of train.csv are not there".
        missing: their names, without any that tells a patient.

    Raises:
        ManifestError: something is missing, and not `skip`.
    """
    if not missing:
        return []
    if skip:
        return [f"left out: {len(missing)} of {total} {what}"]
    more = [f"... and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
    raise ManifestError(
        f"{len(missing)} of {total} {what}; {remedy}, or leave them out with --skip-missing:",
        [*missing[:SHOWN], *more],
    )


def no_such_finding(option: str, finding: str, known: Iterable[str]) -> ManifestError:
    """The refusal of a finding that the dataset has not."""
    return ManifestError(f"{option} '{finding}' is none of the dataset's; it has {', '.join(known)}")


def hide_numbers(text: str) -> str:
    """A name as a message may show it: in these datasets numbers of three or more digits name patients."""
    return re.sub(r"\d{3,}", "…", text)


def relative_folder(folder: Path, manifest: Path) -> str:
    """A folder as the entries of a manifest file name it."""
    # Both ends are resolved: ".." of a linked folder is not what its spelling says.
    return Path(os.path.relpath(folder.resolve(), manifest.parent.resolve())).as_posix()


def present(entries: Iterable[Mapping[str, Any]]) -> int:
    """How many of the entries have the finding."""
    return sum(entry["finding"] > 0 for entry in entries)
