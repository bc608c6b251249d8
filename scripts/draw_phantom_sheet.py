"""Draw a sheet of phantoms: one person a row, three images without and three with the finding, of growing severity.

python scripts/draw_phantom_sheet.py docs/phantom_chest.png --size 128 --people 6 --seed 0
python scripts/draw_phantom_sheet.py docs/phantom_face.png --kind face --size 128 --people 7 --seed 0
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from monai_anon.phantoms import chest, face

COLUMNS = 6
SEVERITIES = (0.0, 0.0, 0.0, 0.3, 0.6, 0.95)


def sheet(size: int, people: int, seed: int) -> np.ndarray:
    """The picture `(people * size, 6 * size)`, uint8; each image has its own pose and exposure."""
    factors = chest.sample_factors(seed, images=(people * COLUMNS, 0, 0), patients=(people, 0, 0))
    first = factors.drop_duplicates("patient").index.repeat(COLUMNS)
    identity = [name for name in factors.columns if name.startswith("id_")]
    factors[identity] = factors.loc[first, identity].to_numpy()
    severity = np.tile(SEVERITIES, people)
    factors["med_severity"] = severity
    factors["med_present"] = (severity > 0).astype(int)
    factors["med_side"] = np.where(severity > 0, np.where(np.arange(len(factors)) % 2, 1, -1), 0)
    images = chest.render(factors, size).reshape(people, COLUMNS, size, size)
    return images.transpose(0, 2, 1, 3).reshape(people * size, COLUMNS * size)


def face_sheet(size: int, people: int, seed: int, background: bool = True) -> np.ndarray:
    """The picture `(people * size, 6 * size, 3)`, uint8; each image has its own pose, light and background."""
    factors = face.sample_factors(seed, images=(people * COLUMNS, 0, 0), patients=(people, 0, 0))
    first = factors.drop_duplicates("patient").index.repeat(COLUMNS)
    identity = [name for name in factors.columns if name.startswith("id_")]
    factors[identity] = factors.loc[first, identity].to_numpy()
    severity = np.tile(SEVERITIES, people)
    factors = factors.assign(med_severity=severity, med_present=(severity > 0).astype(int))
    images = face.render(factors, size, background=background).reshape(people, COLUMNS, size, size, 3)
    return images.transpose(0, 2, 1, 3, 4).reshape(people * size, COLUMNS * size, 3)


def main(
    out: Annotated[Path, typer.Argument(help="PNG file to write.")],
    size: Annotated[int, typer.Option(help="Side of each image in pixels.")] = 128,
    people: Annotated[int, typer.Option(help="Rows.")] = 6,
    seed: Annotated[int, typer.Option(help="Of all factors.")] = 0,
    kind: Annotated[str, typer.Option(help="chest or face.")] = "chest",
    background: Annotated[bool, typer.Option(help="Of faces; without, mid-gray.")] = True,
) -> None:
    """Draw the sheet."""
    if kind not in ("chest", "face"):
        raise typer.BadParameter(f"--kind {kind!r}; known are chest, face")
    picture = sheet(size, people, seed) if kind == "chest" else face_sheet(size, people, seed, background)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(out, optimize=True)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
