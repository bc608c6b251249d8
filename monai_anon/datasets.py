"""Which images a run works on: the user's manifest, or the generated cohort when none is given."""

import hashlib
import logging
from pathlib import Path
from typing import Any

from monai_anon.manifest import load_manifest
from monai_anon.phantoms import load_phantom

logger = logging.getLogger("monai_anon")


def training_manifest(
    manifest: str | None,
    dataset_dir: str,
    image_size: int,
    kind: str = "chest",
    images: tuple[int, int, int] | None = None,
    patients: tuple[int, int, int] | None = None,
    seed: int = 0,
    protocol: str | None = None,
) -> str:
    """Path of the manifest to use. Without one, the generated cohort `kind` of the paper's sizes is made in
    `dataset_dir`, once.

    Args:
        manifest: a manifest or the folder that holds `manifest.json`; None for the generated cohort.
        dataset_dir: where the generated cohort is kept, one folder a kind, protocol and size.
        image_size: side in pixels of the generated images.
        kind: of the generated cohort, one of `monai_anon.phantoms.PHANTOMS`.
        images, patients: images and patients of the three parts; None for the paper's.
        seed: of the generated cohort.
        protocol: how the generated cohort is made, where its kind has a choice: who is in which part, what is behind
            them; None for the usual one.

    Raises:
        ManifestError: the manifest is missing or bad, with the entries and reasons.
        ValueError: an unknown kind or protocol, or `dataset_dir` holds a cohort of other settings.
    """
    if manifest:
        path = load_manifest(manifest).path
        logger.info("training data: %s", path)
        return str(path)
    phantom = load_phantom(kind)
    logger.info(
        "no manifest given: using the GENERATED cohort (phantom images, no patients); --manifest PATH takes yours"
    )
    given = {"images": images, "patients": patients}
    sizes: dict[str, Any] = {name: tuple(value) for name, value in given.items() if value is not None}
    name = kind if protocol is None else f"{kind}_{protocol}"
    out = Path(dataset_dir) / f"{name}_{image_size}"
    return str(phantom.ensure_cohort(out, seed=seed, size=image_size, protocol=protocol, **sizes))


def file_digest(path: str) -> str:
    """First 16 hex digits of a file's SHA-256, or `missing`: names the weights that a result was made with."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.exists() else "missing"
