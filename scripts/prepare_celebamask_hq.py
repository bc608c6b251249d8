r"""Turn CelebAMask-HQ, as its authors give it out, into a manifest with a subset of the paper's sizes.

    python scripts/prepare_celebamask_hq.py --root DATA/CelebAMask-HQ --identities DATA/identity_CelebA.txt \
        --output data/celebamask_hq

DATA/CelebAMask-HQ holds CelebA-HQ-img/0.jpg ..., CelebAMask-HQ-mask-anno/0 ... 14/00000_skin.png ...,
CelebA-HQ-to-CelebA-mapping.txt and CelebAMask-HQ-attribute-anno.txt. Who is in an image is not part of it: that is
identity_CelebA.txt of CelebA, which the CelebA team sends on request.

The masks of an image's parts (skin, hair, cloth, ...) are merged: masks/N.png is 255 where there is any part and 0 in
the background. images/N.png is the image at --size pixels with the background in mid-gray, or, with --keep-background,
the manifest names the original images. Entries have both: "image" and "mask". The files lie beside the manifest.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from preparation import command, picking, tables
from tqdm import tqdm

from monai_anon.image_cache import threads
from monai_anon.manifest import PARTS, Manifest, ManifestError

IMAGES, MASKS = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
MAPPING, ATTRIBUTES = "CelebA-HQ-to-CelebA-mapping.txt", "CelebAMask-HQ-attribute-anno.txt"
IDENTITIES = "identity_CelebA.txt"
PART = re.compile(r"0*(\d+)_\w+\.png")
GRAY = 128  # the middle of 0 ... 255: nearest to 0 in the networks' range


def find_identities(root: Path, given: Path | None, masked: bool) -> Path:
    """The file of identities.

    Raises:
        ManifestError: it, or a part of the dataset, is not there.
    """
    places = [given] if given else [root / IDENTITIES, root / "Anno" / IDENTITIES]
    identities = next((place for place in places if place.is_file()), places[0])
    use = "who is in an image; not in CelebAMask-HQ, the CelebA team sends it on request (--identities)"
    wanted = {
        f"{IMAGES}/": ((root / IMAGES).is_dir(), "the images"),
        MAPPING: ((root / MAPPING).is_file(), "each image's name in CelebA"),
        ATTRIBUTES: ((root / ATTRIBUTES).is_file(), "smiling, and 39 others"),
        str(identities if given else IDENTITIES): (identities.is_file(), use),
    }
    if masked:
        wanted[f"{MASKS}/0 ... 14/"] = ((root / MASKS).is_dir(), "masks, without which --keep-background is needed")
    tables.refuse_other_layout("CelebAMask-HQ", root, wanted)
    return identities


def read_words(path: Path, columns: int, skip: int = 0) -> list[list[str]]:
    """The lines of a text file as words.

    Raises:
        ManifestError: a line has another number of words, or there is none.
    """
    lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()[skip:] if line.strip()]
    wrong = [
        f"line {number}: {len(words)} words" for number, words in enumerate(lines, skip + 1) if len(words) != columns
    ]
    if wrong or not lines:
        raise ManifestError(
            f"{path}: every line must have {columns} words", wrong[: tables.SHOWN] or ["it has no line"]
        )
    return lines


def read_attributes(path: Path, finding: str) -> dict[str, dict[str, int]]:
    """The attribute asked for, and Male, of each image: 1 or -1.

    Raises:
        ManifestError: no such attribute, or an unreadable line.
    """
    head = path.read_text(encoding="utf-8-sig").splitlines()[:2]
    names = head[1].split() if len(head) > 1 else []
    if finding not in names:
        raise tables.no_such_finding("--finding", finding, names)
    wanted = [name for name in dict.fromkeys([finding, "Male"]) if name in names]
    rows = read_words(path, len(names) + 1, skip=2)
    values = {row[0]: {name: row[names.index(name) + 1] for name in wanted} for row in rows}
    wrong = [image for image, row in values.items() if not set(row.values()) <= {"1", "-1"}]
    if wrong:
        raise ManifestError(f"{path}: an attribute is 1 or -1, not so for:", wrong[: tables.SHOWN])
    return {image: {name: int(value) for name, value in row.items()} for image, row in values.items()}


def locate_masks(root: Path) -> dict[int, list[Path]]:
    """The masks of the parts of each image, by its number."""
    masks = defaultdict(list)
    for folder, _, names in os.walk(root / MASKS):
        for name in sorted(names):
            if match := PART.fullmatch(name):
                masks[int(match.group(1))].append(Path(folder, name))
    return masks


def read_entries(
    root: Path, identities: Path, finding: str, masks: dict[int, list[Path]] | None, base: str
) -> tuple[list[dict[str, Any]], list[str], int]:
    """An entry an image of the mapping, what is missing of the others, and how many there are.

    Args:
        masks: as from `locate_masks`; None where the background is kept and no masks are there.
    """
    person = dict(read_words(identities, 2))
    attributes = read_attributes(root / ATTRIBUTES, finding)
    mapping = read_words(root / MAPPING, 3, skip=1)
    here, entries, missing = set(os.listdir(root / IMAGES)), [], []
    for number, _, original in mapping:
        image = f"{number}.jpg"
        lacks = [
            reason
            for lacking, reason in (
                (image not in here, f"no such file in {IMAGES}"),
                (image not in attributes, f"not in {ATTRIBUTES}"),
                (original not in person, f"its original is not in {identities.name}"),
                (masks is not None and int(number) not in masks, f"no mask in {MASKS}"),
            )
            if lacking
        ]
        if lacks:
            missing.append(f"{image}: {', '.join(lacks)}")
            continue
        entry: dict[str, Any] = {"image": os.path.normpath(f"{base}/{IMAGES}/{image}"), "patient": person[original]}
        entry |= {"finding": int(attributes[image][finding] > 0), "number": int(number)}
        if "Male" in attributes[image]:
            entry["sex"] = "M" if attributes[image]["Male"] > 0 else "F"
        entries.append(entry)
    return entries, missing, len(mapping)


def merge(masks: list[Path]) -> Image.Image:
    """The union of masks as one: 255 where any of them is not 0.

    Raises:
        ManifestError: they have different sizes.
    """
    merged: np.ndarray | None = None
    for path in masks:
        with Image.open(path) as picture:
            part = np.asarray(picture.convert("L")) > 0
        if merged is not None and merged.shape != part.shape:
            raise ManifestError(
                f"{path.name} is {part.shape[1]} x {part.shape[0]} pixels, other masks of the image are not"
            )
        merged = part if merged is None else merged | part
    assert merged is not None  # images without masks have no entry
    return Image.fromarray(merged.astype(np.uint8) * 255)


def without_background(picture: Image.Image, mask: Image.Image, size: int) -> Image.Image:
    """The image at `size` pixels a side, mid-gray where the mask is 0; scaling makes the border soft."""
    scaled = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    kept = mask.resize((size, size), Image.Resampling.BOX if size < mask.width else Image.Resampling.BILINEAR)
    return Image.composite(scaled, Image.new("RGB", scaled.size, (GRAY, GRAY, GRAY)), kept)


def write_files(manifest: Manifest, masks: dict[int, list[Path]], sources: dict[int, Path], size: int | None) -> None:
    """Write the masks of a manifest's entries and, where a size is given, the images without background."""

    def write(entry: dict[str, Any]) -> None:
        number = entry["number"]
        mask = merge(masks[number])
        mask.save(manifest.folder / entry["mask"])
        if size:
            with Image.open(sources[number]) as picture:
                without_background(picture, mask, size).save(manifest.image_path(entry))

    entries = [entry for part in PARTS for entry in manifest.parts[part]]
    for folder in ("masks", *(["images"] if size else [])):
        (manifest.folder / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(threads()) as pool:
        for _ in tqdm(pool.map(write, entries), total=len(entries), desc="removing backgrounds", unit="image"):
            pass


def main(
    root: command.Root,
    output: command.Output,
    identities: Annotated[
        Path | None, typer.Option(help=f"File of identities (default: the root's {IDENTITIES}).")
    ] = None,
    finding: Annotated[str, typer.Option(help="An attribute.")] = "Smiling",
    keep_background: Annotated[bool, typer.Option("--keep-background", help="Name the original images.")] = False,
    size: Annotated[int, typer.Option(help="Side of the images without background, in pixels.", min=16)] = 256,
    images: command.Images = "8210,268,371",
    patients: command.Patients = "600,20,30",
    share: command.Share = "0.57",
    seed: command.Seed = 0,
    take_all: command.TakeAll = False,
    skip_missing: command.SkipMissing = False,
    check: command.Check = True,
    dry_run: command.DryRun = False,
    overwrite: command.Overwrite = False,
) -> None:
    """Pick a subset of CelebAMask-HQ, remove the backgrounds and write the manifest.

    Example: python scripts/prepare_celebamask_hq.py --root DATA/CelebAMask-HQ --output data/celebamask_hq
    """
    with command.plain_errors():
        path = command.manifest_file(output, may_exist=overwrite or dry_run)
        subset = command.subset_of(images, patients, share, seed, take_all)
        people = find_identities(root, identities, not keep_background)
        masks = locate_masks(root)
        entries, missing, total = read_entries(
            root, people, finding, masks if masks or not keep_background else None, tables.relative_folder(root, path)
        )
        account = [f"{total} images in {root}"]
        account += tables.refuse_missing(
            "images are not complete", missing, total, skip_missing, "unpack the whole archive"
        )
        parts = picking.pick_parts([(PARTS, entries)], subset)
        record = {"dataset": "CelebAMask-HQ", "finding": finding, "background": "kept" if keep_background else "gray"}
        manifest = Manifest(
            path.parent.resolve() / path.name, ["absent", finding.lower()], parts,
            {"preparation": {**record, **command.record_of(subset)}},
        )  # fmt: skip
        sources = {entry["number"]: manifest.image_path(entry) for entry in entries}
        for entry in (entry for part in parts.values() for entry in part):
            if masks:
                entry["mask"] = f"masks/{entry['number']}.png"
            if not keep_background:
                entry["image"] = f"images/{entry['number']}.png"
        make = (lambda: write_files(manifest, masks, sources, None if keep_background else size)) if masks else None
        command.deliver(
            manifest, account, channels=3 if check else None, dry_run=dry_run, overwrite=overwrite, make_files=make
        )


if __name__ == "__main__":
    typer.run(main)
