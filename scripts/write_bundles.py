"""Write the configs of the other bundles from chest's: a bundle has to be whole, and three copies would drift apart.

    python scripts/write_bundles.py           # after a change of bundles/chest/configs or of scripts/bundles/*.json
    python scripts/write_bundles.py --check   # names what is out of date, and fails

`scripts/bundles/NAME.json` is what bundle NAME has of its own:

    {"configs": {"train.json": {"max_epochs": 120, "manifest_path#kind": "iris"}}, "left_out": [], "added": {}}

`configs` maps a config of chest to the entries that differ, named as in an overlay (`a#b` is b of a) and given whole;
one that chest does not have comes last. `left_out` names configs of chest that the bundle lacks, `added` holds configs
that chest lacks. Everywhere `bundles/chest` becomes `bundles/NAME`. The licence and logging.conf are chest's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from monai_anon.whole_files import write_text

ROOT = Path(__file__).resolve().parent.parent
MODEL = "chest"
SAME = ("LICENSE", "configs/logging.conf")
PARTS = ("configs", "left_out", "added")
SEPARATOR = "#"


class DifferenceError(ValueError):
    """A file of differences that does not fit chest's configs; names the file and the entry."""


def written(name: str, root: Path = ROOT) -> dict[Path, str]:
    """The text of every file of bundle `name` that is made from chest's, by path.

    Raises:
        DifferenceError: unknown parts, configs that chest does not have, entries whose place it does not have.
    """
    source = root / "scripts" / "bundles" / f"{name}.json"
    difference, (model, bundle) = json.loads(source.read_text(encoding="utf-8")), _folders(name, root)
    if unknown := sorted(set(difference) - set(PARTS)):
        raise DifferenceError(f"{source}: unknown {unknown}; known are {list(PARTS)}")
    configs = {f.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted(model.glob("configs/*.json"))}
    own, left_out, added = (difference.get(part) or {} for part in PARTS)
    if unknown := sorted({*own, *left_out} - set(configs)) + sorted(set(added) & set(configs)):
        raise DifferenceError(f"{source}: {unknown}; `configs` and `left_out` name configs of {MODEL}, `added` others")
    for file, entries in own.items():
        for id_, value in entries.items():
            if not set_entry(configs[file], id_, value):
                raise DifferenceError(f"{source}: {file} has no place for '{id_}'")
    made = {file: content for file, content in configs.items() if file not in left_out} | added
    texts = {bundle / "configs" / file: as_text(content, name) for file, content in made.items()}
    return texts | {bundle / file: (model / file).read_text(encoding="utf-8") for file in SAME}


def set_entry(config: dict[str, Any], id_: str, value: Any) -> bool:
    """Give an entry of a config its value; False where nothing could hold it.

    Keys of an overlay have separators in themselves, so the longest key that the id begins with is followed.
    """
    parts = id_.split(SEPARATOR)
    for length in range(len(parts), 0, -1):
        key, rest = SEPARATOR.join(parts[:length]), SEPARATOR.join(parts[length:])
        if key in config:
            if not rest:
                config[key] = value
                return True
            return _set_inside(config[key], rest, value)
    if SEPARATOR in id_ and not any(SEPARATOR in key for key in config):
        return False  # a misspelt entry of a config that is no overlay
    config[id_] = value
    return True


def _set_inside(node: Any, id_: str, value: Any) -> bool:
    """`set_entry` of what a key holds: a dict, or a list, whose entries have numbers."""
    if isinstance(node, dict):
        return set_entry(node, id_, value)
    first, _, rest = id_.partition(SEPARATOR)
    if not isinstance(node, list) or not first.isdecimal() or int(first) >= len(node):
        return False
    if rest:
        return _set_inside(node[int(first)], rest, value)
    node[int(first)] = value
    return True


def as_text(config: dict[str, Any], name: str) -> str:
    """A config in the form that chest's have."""
    text = json.dumps(config, indent=4, ensure_ascii=False) + "\n"
    return text.replace(f"bundles/{MODEL}", f"bundles/{name}")


def out_of_date(name: str, root: Path = ROOT) -> list[str]:
    """Why the files of a bundle are not what its differences make, one reason a file; empty where they are."""
    expected, (_, bundle) = written(name, root), _folders(name, root)
    reasons = []
    for path, text in expected.items():
        if not path.is_file():
            reasons.append(f"{path.relative_to(root)} is missing")
        elif path.read_text(encoding="utf-8") != text:
            reasons.append(f"{path.relative_to(root)} is out of date")
    others = sorted(path for path in bundle.glob("configs/*") if path not in expected)
    return reasons + [f"{path.relative_to(root)} is made from nothing" for path in others]


def names(root: Path = ROOT) -> list[str]:
    """The bundles that are written so."""
    return sorted(file.stem for file in (root / "scripts" / "bundles").glob("*.json"))


def _folders(name: str, root: Path) -> tuple[Path, Path]:
    return root / "bundles" / MODEL, root / "bundles" / name


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; name what is out of date, and fail.")] = False,
    root: Annotated[Path, typer.Option(help="The repository.", show_default="this one")] = ROOT,
) -> None:
    """Write the configs of bundles/iris and bundles/face from those of bundles/chest and scripts/bundles/*.json.

    \b
    Example:
      python scripts/write_bundles.py --check
    """  # noqa: D301 - the backspace keeps the lines of an example apart
    try:
        if check:
            reasons = [reason for name in names(root) for reason in out_of_date(name, root)]
            for reason in reasons:
                typer.echo(reason, err=True)
            if reasons:
                typer.echo("python scripts/write_bundles.py writes them", err=True)
                raise typer.Exit(1)
            return
        for name in names(root):
            for path, text in written(name, root).items():
                write_text(path, text)
            typer.echo(f"wrote bundles/{name}")
    except (DifferenceError, json.JSONDecodeError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
