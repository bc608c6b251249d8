"""What the ablations of Tables 4 and 5 train: commands that differ in one thing and see as many images.

`realism` (section 5.3, Table 4) leaves terms of Eq. 3 out of the recommended recipe. So that the named terms stand
alone, `realism.json` takes out what that recipe has beside them: the L1 `pixel` term, the `texture` term and the
discriminator of swapped images, which no variant has then; SSIM and PSNR weigh 1, the adversarial term 0.1. The
fine-tuned variant sees as many images as the others: half of them in its first training. The paper fine-tunes a
finished one, which sees more.

`data` (Table 5) draws fewer training patients and trains as many *iterations*: more epochs of fewer images. The paper
does not say whether it does; with as many epochs, fewer images would also mean less training.

As in the paper, the weights with the best score on the validation part are those measured.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_anon.manifest import MANIFEST_NAME, Manifest, save_manifest

WEIGHTS = "disentangler.pt"


@dataclasses.dataclass(frozen=True)
class Job:
    """An ablation as its commands need it.

    Args:
        data: how a training is told its images: `--manifest PATH`, or `--dataset_dir DIR` of the generated cohort.
        training: the entries of its training part; None where the cohort is not made yet.
        total: training images there.
        counts: numbers of training images to compare (`data` only).
        batch_size, recogniser_epochs: of the bundle's train.json.
        joins: entry -> share of the training after which its terms join, of the bundle's train.json.
        given: the arguments that a person typed, to print the command.
    """

    bundle: Path
    output: Path
    epochs: int
    data: tuple[str, str]
    training: Sequence[Mapping[str, Any]] | None
    total: int
    counts: tuple[int, ...]
    batch_size: int
    recogniser_epochs: int
    joins: Mapping[str, float]
    given: tuple[str, ...]

    def command(
        self, folder: Path, seed: int, options: Mapping[str, object], overlay: str = "", data: Sequence[str] = ()
    ) -> list[str]:
        """Stage 1's command with its overrides of train.json, into a folder."""
        configs = [str(self.bundle / "configs" / name) for name in ("train.json", overlay) if name]
        command = [sys.executable, "-m", "monai.bundle", "run", "training"]
        command += ["--config_file", configs[0] if len(configs) == 1 else str(configs), *(data or self.data)]
        command += ["--output_dir", str(folder), "--cache_dir", str(self.output / "cache"), "--seed", str(seed)]
        return command + [word for name, value in options.items() for word in (f"--{name}", str(value))]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line of the table: commands whose last writes `folder / WEIGHTS`.

    Args:
        title: the rows' method.
        subset: number of training images drawn for a manifest of its own in `folder`; None for all.
    """

    title: str
    folder: Path
    seed: int
    commands: Sequence[list[str]]
    subset: int | None = None


NO_CRITIC: dict[str, object] = {"weights#adversarial": 0.0}
REALISM: dict[str, tuple[str, dict[str, object]]] = {
    "only SSIM": ("only_ssim", NO_CRITIC | {"weights#psnr": 0.0}),
    "only PSNR": ("only_psnr", NO_CRITIC | {"weights#ssim": 0.0}),
    "SSIM and PSNR": ("ssim_and_psnr", NO_CRITIC),
    "GAN with SSIM and PSNR": ("gan", {"train#recipe#augment": False}),
    "fine-tuned augmented GAN": ("fine_tuned", {}),
    "augmented GAN (final)": ("augmented_gan", {}),
}


def realism_variants(job: Job, seed: int) -> list[Variant]:
    """Table 4's six.

    Raises:
        ValueError: fewer than 2 epochs, which cannot be halved for the fine-tuned one.
    """
    if job.epochs < 2:
        raise ValueError(f"--epochs {job.epochs}: give at least 2; the fine-tuned variant spends half before its GAN")
    variants = []
    for title, (name, terms) in REALISM.items():
        folder = job.output / name / f"seed_{seed}"
        if name == "fine_tuned":
            first, start = job.epochs // 2, folder / "start"
            # Terms join at the same share of the whole as in the other variants, or with the second half.
            share = first / job.epochs
            waiting = {name: min(1.0, round(value / share, 4)) for name, value in job.joins.items()}
            options: dict[str, object] = {"initial_weights": start / WEIGHTS} | dict.fromkeys(job.joins, 0.0)
            commands = [
                job.command(start, seed, NO_CRITIC | waiting | {"max_epochs": first}, "realism.json"),
                job.command(folder, seed, options | {"max_epochs": job.epochs - first}, "realism.json"),
            ]
        else:
            commands = [job.command(folder, seed, terms | {"max_epochs": job.epochs}, "realism.json")]
        variants.append(Variant(title, folder, seed, commands))
    return variants


def data_variants(job: Job, seed: int) -> list[Variant]:
    """Table 5's: as many iterations for every number of training images, as near as whole epochs come, and as many
    validations.

    Raises:
        ValueError: more images than the training part has.
    """
    if too_many := [count for count in job.counts if not 0 < count <= job.total]:
        raise ValueError(f"--images {too_many}: the training part has {job.total} images; give numbers from 1 to that")
    variants = []
    for count in job.counts:
        folder = job.output / f"images_{count}" / f"seed_{seed}"
        drawn = count if job.training is None else len(draw_training(job.training, count, seed))
        longer = max(job.total // job.batch_size, 1) / max(drawn // job.batch_size, 1)
        options: dict[str, object] = {
            "max_epochs": max(round(job.epochs * longer), 1),
            "validate_every": max(round(longer), 1),
        }
        if job.recogniser_epochs:
            options["recogniser_epochs"] = max(round(job.recogniser_epochs * longer), 1)
        data = () if count == job.total else ("--manifest", str(folder / MANIFEST_NAME))
        command = job.command(folder, seed, options, data=data)
        subset = None if count == job.total else count
        variants.append(Variant(f"{count:,} images", folder, seed, [command], subset))
    return variants


ABLATIONS: dict[str, Callable[[Job, int], list[Variant]]] = {"realism": realism_variants, "data": data_variants}


def draw_training(entries: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """Entries of whole patients, who are drawn by seed until their images are as near to `count` as they come.

    Smaller draws of one seed are parts of larger ones; the entries' order is kept.
    """
    images = Counter(entry["patient"] for entry in entries)
    order = np.random.default_rng(seed).permutation(np.asarray(sorted(images), dtype=object))
    nearest = int(np.argmin(np.abs(np.cumsum([images[patient] for patient in order]) - count)))
    chosen = set(order[: nearest + 1])
    return [entry for entry in entries if entry["patient"] in chosen]


def write_subset(manifest: Manifest, count: int, seed: int, path: Path) -> Path:
    """A manifest of some training patients (`draw_training`) and of all validation and test images; image files stay
    where they are.
    """
    training = manifest.parts["training"]
    parts: dict[str, Sequence[Mapping[str, Any]]] = dict(manifest.parts)
    parts["training"] = draw_training(training, count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    home = path.parent.resolve()
    moved = {
        part: [{**entry, "image": os.path.relpath(manifest.image_path(entry).resolve(), home)} for entry in parts[part]]
        for part in parts
    }
    extra = {"subset": {"images": count, "of": len(training), "seed": seed}}
    return save_manifest(path, moved, manifest.classes, extra=extra, overwrite=True)
