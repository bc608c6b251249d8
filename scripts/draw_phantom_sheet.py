"""Draw a sheet of phantoms: one person a row, three images without and three with the finding, of growing severity.

python scripts/draw_phantom_sheet.py chest docs/phantom_chest.png --size 128 --people 6 --seed 0
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from monai_anon.phantoms import PHANTOMS, load_phantom

SEVERITIES = (0.0, 0.0, 0.0, 0.3, 0.6, 0.95)
COLUMNS = len(SEVERITIES)


def sheet(kind: str, size: int, people: int, seed: int) -> np.ndarray:
    """The picture `(people * size, 6 * size)`, or `(..., 3)` in colour, uint8; each image has its own residual."""
    phantom = load_phantom(kind)
    factors = phantom.factors(seed, images=(people * COLUMNS, 0, 0), patients=(people, 0, 0))
    first = factors.drop_duplicates("patient").index.repeat(COLUMNS)
    identity = [name for name in factors.columns if name.startswith("id_")]
    factors[identity] = factors.loc[first, identity].to_numpy()
    # What else the finding has (a place, a shape) comes from images that have one.
    medical = [name for name in factors.columns if name.startswith("med_")]
    others = phantom.factors(seed + 1, images=(people * 44, 0, 0), patients=(people * 4, 0, 0)).query("finding == 1")
    factors[medical] = others[medical].head(len(factors)).to_numpy()
    severity = np.tile(SEVERITIES, people)
    factors["med_severity"] = severity
    factors["med_present"] = (severity > 0).astype(int)
    if phantom.sides:
        factors["med_side"] = np.where(severity > 0, np.where(np.arange(len(factors)) % 2, 1, -1), 0)
    images = phantom.render(factors, size)
    grid = images.reshape(people, COLUMNS, size, size, -1).swapaxes(1, 2)
    return grid.reshape(people * size, COLUMNS * size, *images.shape[3:])


def main(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"What is drawn: {', '.join(PHANTOMS)}.")],
    out: Annotated[Path, typer.Argument(help="PNG file to write.")],
    size: Annotated[int, typer.Option(help="Side of each image in pixels.")] = 128,
    people: Annotated[int, typer.Option(help="Rows.")] = 6,
    seed: Annotated[int, typer.Option(help="Of all factors.")] = 0,
) -> None:
    """Draw the sheet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(kind, size, people, seed)).save(out, optimize=True)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
