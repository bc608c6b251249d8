"""Runs the ablations of Tables 4 and 5 (Figures 8 and 9): trains each variant, measures all alike, writes a report.

Variants are documented commands (`plans`), run one after the other; the same call goes on where a stopped one
was. The folder is a RUN as `monai-anon report` reads it: `rows.jsonl` with every training seed's rows, and `pictures/`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from monai_anon.datasets import file_digest
from monai_anon.demo import cohort_kind, printed
from monai_anon.evaluation import metrics
from monai_anon.evaluation.ablations.plans import ABLATIONS, WEIGHTS, Job, Variant, write_subset
from monai_anon.evaluation.ablations.tables import CAPTIONS, report, table_4, table_5
from monai_anon.evaluation.figures import Column, Picture, choose_people, draw_columns, write_pictures_json
from monai_anon.evaluation.protocol import OwnBench, Settings
from monai_anon.evaluation.record import is_generated, machine, revision
from monai_anon.evaluation.tables import Row, read_rows, write_rows
from monai_anon.identities import load_disentangler
from monai_anon.manifest import MANIFEST_NAME, Manifest, load_manifest
from monai_anon.model_files import read_record
from monai_anon.phantoms import load_phantom
from monai_anon.readers import to_model_range
from monai_anon.whole_files import write_text

Runner = Callable[[list[str]], int]
"""Runs a command and returns its exit code."""
TABLES = {"realism": (table_4, "table_4.csv"), "data": (table_5, "table_5.csv")}
IDENTITY = ("own_original_accuracy", "own_original_accuracy_eer")


class TrainingFailed(RuntimeError):
    """A variant's command ended with an error; gives its exit code."""


class Reconstructions(OwnBench):
    """What a model's own networks say of untouched images, and how it reconstructs them."""

    def rows(self) -> list[Row]:
        """SSIM, the own classifier's accuracy, and the own encoder's balanced accuracy over pairs, at the paper's
        threshold and at the distance where its two errors are equal; what cannot be measured is a row that says why.
        """
        found = self.mean_row("", "ssim_original", metrics.ssim(self.decode(self.latents), self.images))
        found += self.own_finding_rows("", self.latents, None)
        if self.equal_error_distance is None:
            why = "not measured: pairs of one patient and of two are needed"
            return found + [Row("", self.cohort.name, metric, None, note=why) for metric in IDENTITY]
        for metric, threshold in zip(IDENTITY, (self.settings.hit_threshold, self.equal_error_distance), strict=True):
            other = copy.copy(self)
            other.settings = dataclasses.replace(self.settings, hit_threshold=threshold)
            baseline = other.baseline_rows(self.everyone)
            found += [dataclasses.replace(row, metric=metric) for row in baseline if row.metric == IDENTITY[0]]
        return found


class Workshop:
    """Trains and measures variants of one bundle on one manifest."""

    def __init__(self, bundle: Path, manifest: Manifest, output: Path, run: Runner) -> None:
        from monai_anon.cohort import Cohort

        train, evaluate = (ConfigParser(_content(bundle, name)) for name in ("train.json", "evaluate.json"))
        self.manifest, self.run = manifest, run
        self.network, self.device = train.get_parsed_content("network_def"), train.get_parsed_content("device")
        size, channels = (int(train.get_parsed_content(name)) for name in ("image_size", "channels"))
        threshold, draws = (evaluate.get_parsed_content(name) for name in ("hit_threshold", "bootstrap"))
        self.settings = Settings(hit_threshold=float(threshold), n_bootstrap=int(draws))
        self.test = Cohort.from_manifest(manifest, "test", size, channels, cache_dir=output / "cache")

    def rows(self, variant: Variant, say: Callable[[str], None]) -> list[Row]:
        """A variant's rows: read where it is finished, else trained for and measured.

        Raises:
            TrainingFailed: a command of it failed.
        """
        done = variant.folder / "rows.jsonl"
        if done.is_file():
            say(f"finished before: {done}")
            return read_rows(done)
        manifest = self.manifest
        if variant.subset is not None:
            path = variant.folder / MANIFEST_NAME
            manifest = load_manifest(write_subset(manifest, variant.subset, variant.seed, path))
        for command in variant.commands:
            say(f"$ {printed(command)}")
            if code := self.run(command):
                raise TrainingFailed(f"a training ended with exit code {code}; run the command above to see more")
        rows = self.measured(variant, len(manifest.parts["training"]))
        write_rows(rows, done)
        return rows

    def measured(self, variant: Variant, training_images: int) -> list[Row]:
        """What a trained variant is worth, and what its training cost by its own record."""
        settings = dataclasses.replace(self.settings, seed=variant.seed)
        rows = Reconstructions(self.load(variant), self.test, settings).rows()
        file = variant.folder / WEIGHTS
        record = read_record(file)
        cost = {
            "training_images": training_images,
            "training_iterations": record.get("iterations"),
            "training_minutes": record["seconds"] / 60 if "seconds" in record else None,
        }
        why = "not recorded: the training wrote no record beside its weights"
        rows += [
            Row("", self.test.name, metric, value, note="" if value is not None else why)
            for metric, value in cost.items()
        ]
        seen = int(record.get("images_seen", 0))
        stamp: dict[str, Any] = {
            "weights": file_digest(str(file)),
            "revision": revision(),
            "seed": variant.seed,
            "images_seen": seen,
        }
        return [dataclasses.replace(row, method=variant.title, **stamp) for row in rows]

    def load(self, variant: Variant) -> Any:
        """The variant's networks, in evaluation mode."""
        network = self.network.to(self.device)
        return load_disentangler(network, str(variant.folder / WEIGHTS), printed(variant.commands[-1]))

    def columns(self, variants: Sequence[Variant], seed: int = 0) -> list[Column]:
        """Figure 8 or 9: originals and what each variant makes of them."""
        people = choose_people(self.test.patient.numpy(), self.test.finding.numpy(), seed=seed)
        images = to_model_range(self.test.images[torch.from_numpy(people)])
        columns = [Column("original", images)]
        for variant in variants:
            with torch.no_grad():
                made = self.load(variant)(images.to(self.device)).float().clamp(-1, 1).cpu()
            columns.append(Column(variant.title, made))
        return columns


def run_ablation(
    name: str,
    bundle: Path,
    output: Path,
    *,
    epochs: int,
    seeds: Sequence[int] = (0,),
    manifest: Path | None = None,
    images: Sequence[int] = (3000, 6000),
    pictures: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    run: Runner | None = None,
) -> int:
    """Trains and measures every variant of an ablation, and writes rows, table, picture and report to `output`.

    Args:
        name: of `ABLATIONS`.
        epochs: budget of each variant and seed, in epochs of the whole training part.
        seeds: of the trainings; of the patients drawn, too.
        images: numbers of training images to compare (`data` only).
        pictures: draw test images of real people, too; those of generated cohorts always are.
        dry_run: say the commands and write nothing.
        run: what runs a command and returns its exit code; None for a process.

    Returns:
        0, or 1 where a variant failed; the others are reported all the same.

    Raises:
        ValueError: an unknown ablation, a budget or number of images that does not do, or a folder that holds
            something else.
    """
    if name not in ABLATIONS:
        raise ValueError(f"ablation {name!r}; known are {list(ABLATIONS)}")
    path = None if dry_run else _manifest_path(bundle, manifest)
    job = _job(name, bundle, output, epochs, seeds, manifest, images)
    variants = [variant for seed in seeds for variant in ABLATIONS[name](job, seed)]
    if path is None:
        for variant in variants:
            say("\n".join([f"# {variant.title}, seed {variant.seed}", *map(printed, variant.commands)]))
        return 0
    _claim(job, name)
    workshop = Workshop(bundle, load_manifest(path), output, run or _run)
    rows, finished, failed = _each(workshop, variants, say)
    if finished:
        drawn = pictures or is_generated(workshop.manifest)
        chosen = [variant for variant in finished if variant.seed == finished[0].seed] if drawn else []
        _write(job, name, rows, workshop.columns(chosen) if drawn else [], failed)
        about = {"command": shlex.join(job.given), "revision": revision(), "machine": machine()}
        cohort = {"name": workshop.test.name.removesuffix("/test"), "generated": is_generated(workshop.manifest)}
        write_text(output / "run.json", json.dumps(about | {"cohort": cohort}, indent=2) + "\n")
        say(f"\nwrote {output / 'report.md'}")
    for line in failed:
        say(f"not measured: {line}")
    return 1 if failed else 0


def _each(
    workshop: Workshop, variants: Sequence[Variant], say: Callable[[str], None]
) -> tuple[list[Row], list[Variant], list[str]]:
    """Rows of all variants that could be trained, these variants, and a line for each that could not."""
    rows: list[Row] = []
    finished: list[Variant] = []
    failed: list[str] = []
    for number, variant in enumerate(variants, start=1):
        say(f"\n[{number}/{len(variants)}] {variant.title}, seed {variant.seed}")
        try:
            rows += workshop.rows(variant, say)
            finished.append(variant)
        except (TrainingFailed, ValueError) as error:
            failed.append(f"{variant.title}, seed {variant.seed}: {error}")
            say(f"failed: {error}")
    return rows, finished, failed


def _write(job: Job, name: str, rows: list[Row], columns: list[Column], failed: list[str]) -> None:
    """Everything that the ablation leaves beside its trainings."""
    number, title, caption = CAPTIONS[name]
    titles, command = [column.title for column in columns], shlex.join(job.given)
    picture = Picture(f"figure_{number}.png", title, titles, f"Reconstructions. {caption}", command)
    if columns:
        draw_columns(columns, job.output / "pictures" / picture.file)
        write_pictures_json([picture], job.output / "pictures")
    table_of, file = TABLES[name]
    table = table_of(rows)
    table.to_csv(job.output / file, index=False)
    write_rows(rows, job.output / "rows.jsonl")
    write_text(job.output / "report.md", report(name, table, rows, picture, failed))


def _run(command: list[str]) -> int:
    """A command as a process whose output is seen, without MONAI's warning that configs are code: these are ours."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore:parsing config_file"}
    return subprocess.run(command, check=False, env=environment).returncode


def _content(bundle: Path, name: str) -> dict[str, Any]:
    """A config of the bundle as it stands, told where the bundle is.

    Raises:
        ValueError: it is not there.
    """
    path = bundle / "configs" / name
    if not path.is_file():
        raise ValueError(f"{path} is missing; --bundle takes a bundle's folder, such as bundles/chest")
    content: dict[str, Any] = ConfigParser.load_config_file(path)
    return content | {"bundle_root": str(bundle)}


def _manifest_path(bundle: Path, manifest: Path | None) -> str:
    """The manifest given, or that of the bundle's generated cohort, which is made where it is absent."""
    given = {} if manifest is None else {"manifest": str(manifest)}
    return str(ConfigParser(_content(bundle, "train.json") | given).get_parsed_content("manifest_path"))


def _job(
    name: str,
    bundle: Path,
    output: Path,
    epochs: int,
    seeds: Sequence[int],
    manifest: Path | None,
    images: Sequence[int],
) -> Job:
    """What the commands need, read without making anything: a generated cohort that is not there yet has its usual
    size.
    """
    if epochs < 1 or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"epochs {epochs}, seeds {list(seeds)}: give at least one epoch, and seeds that all differ")
    train = ConfigParser(_content(bundle, "train.json"))
    batch_size, first, size = (
        int(train.get_parsed_content(key)) for key in ("batch_size", "recogniser_epochs", "image_size")
    )
    joins = {name: float(train.get_parsed_content(name)) for name in ("swaps_from", "independence_from")}
    folder = str(train.get_parsed_content("dataset_dir"))
    kind = cohort_kind(bundle)
    known = Path(manifest) if manifest else Path(folder) / f"{kind}_{size}" / MANIFEST_NAME
    training = load_manifest(known).parts["training"] if manifest or known.is_file() else None
    total = load_phantom(kind).protocol()[1].images[0] if training is None else len(training)
    data = ("--manifest", str(manifest)) if manifest else ("--dataset_dir", folder)
    given = ["monai-anon", "ablation", name, "--bundle", str(bundle), "--output", str(output), "--epochs", str(epochs)]
    given += ["--seeds", ",".join(map(str, seeds))] + (["--manifest", str(manifest)] if manifest else [])
    given += ["--images", ",".join(map(str, images))] if name == "data" else []
    return Job(bundle, output, epochs, data, training, total, tuple(images), batch_size, first, joins, tuple(given))


def _claim(job: Job, name: str) -> None:
    """Note in the folder what it is for; go on only where it is for the same.

    Raises:
        ValueError: it holds another ablation, or something else; says what differs.
    """
    path = job.output / "ablation.json"
    configs = {file: file_digest(str(job.bundle / "configs" / file)) for file in ("train.json", "realism.json")}
    wanted = {"ablation": name, "epochs": job.epochs, "data": list(job.data), "training images": job.total} | configs
    if path.is_file():
        held = json.loads(path.read_text(encoding="utf-8"))
        if other := [key for key in wanted if held.get(key) != wanted[key]]:
            differences = "; ".join(f"{key} is {held.get(key)}, not {wanted[key]}" for key in other)
            raise ValueError(f"{job.output} holds another ablation: {differences}. Choose another --output")
        return
    if job.output.is_dir() and any(job.output.iterdir()):
        raise ValueError(f"{job.output} is not empty and holds no ablation; choose another --output")
    job.output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
