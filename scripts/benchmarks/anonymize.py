"""Files into images of nobody: the released path, its parts, and the bundle's inference.json run by MONAI."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from PIL import Image

from benchmarks import timing
from monai_anon.bundles import load_anonymizer
from monai_anon.copies import copy_bytes
from monai_anon.drawing import Drawing
from monai_anon.evaluation.judge_networks import MedicalJudge, Verifier
from monai_anon.evaluation.judges import Judges, JudgeSchedule
from monai_anon.gallery_search import SearchableGallery
from monai_anon.gate import Comparator, Decision, Gate, embedding
from monai_anon.gate_calibration import Calibration, Threshold
from monai_anon.identities import Gallery as Identities
from monai_anon.jobs import Job, plan_files
from monai_anon.phantoms import chest
from monai_anon.phantoms.rendering import MAX_SIZE
from monai_anon.release import FileAnonymizer, read_original
from monai_anon.whole_files import write_bytes

BUNDLE = timing.ROOT / "bundles/chest"
MODEL_BATCHES = (1, 16, 64)
GALLERY = 1791  # patients of the chest cohort


def measure(
    images: int = 200,
    size: int = 64,
    batch_size: int = 16,
    rounds: int = 5,
    device: str = "cpu",
    bundle: str | Path = BUNDLE,
) -> dict[str, Any]:
    """Images a second of `FileAnonymizer` on generated PNG files, in alternation with the bundle's inference.json under
    MONAI's evaluator; what reading, model, a gate and writing take one after the other; the model alone.

    Both give back 8-bit gray PNG files of the originals' size. MONAI's does no more: neither other formats, nor the
    check of each result, nor noise of its own for each name.

    Args:
        images: number of files.
        size: side of the files in pixels; above 512 they are enlarged pictures of 512. Another than the model's is
            brought there and back by both.
        batch_size: images a step, of both.
        rounds: turns of each candidate.
        device: of the model.
        bundle: whose anonymizer, with its own model file.

    Raises:
        ValueError: no image, or a file that was refused.
        BundleError: no bundle there, or none with a model.
    """
    if images < 1 or batch_size < 1:
        raise ValueError(f"images is {images}, batch_size is {batch_size}; both must be at least 1")
    network, settings = load_anonymizer(bundle, device=device)
    with tempfile.TemporaryDirectory() as folder, quiet_readers():
        place = Path(folder)
        draw(place / "in", images, size)
        jobs = plan_files([place / "in"], place / "out").jobs
        ours = FileAnonymizer(Drawing(network, 0), settings.image_size, settings.channels, batch_size, keep_form=True)
        theirs = evaluator(bundle, place, size, batch_size, device)

        def released() -> None:
            refusals = ours.run(jobs, overwrite=True, progress=False)
            if refusals:
                raise ValueError(f"{len(refusals)} files were refused, the first as: {refusals[0].reason}")

        timings = timing.alternate({"ours": released, "monai": theirs.run}, rounds, device)
        serial = parts(ours, jobs, rounds, device)
        shares = {name: value / sum(serial.values()) for name, value in serial.items()}
        result = _figures(timings, images) | {"serial_ms_per_image": serial, "share_of_serial_time": shares}
    about = {"images": images, "size": size, "batch_size": batch_size, "rounds": rounds}
    return about | result | {"model_images_per_s": model_rates(ours, rounds, device)}


def _figures(timings: timing.Timings, images: int) -> dict[str, Any]:
    speed_up = timings.speed_up("ours", "monai")
    return {
        "ratio": speed_up.median,
        "ratio_range": [speed_up.least, speed_up.largest],
        "images_per_s": images / timings.median("ours"),
        "monai_images_per_s": images / timings.median("monai"),
    }


def draw(folder: Path, images: int, size: int) -> None:
    """Generated 8-bit gray PNG files."""
    folder.mkdir(parents=True)
    factors = chest.sample_factors(0, (max(images, 2), 2, 2), (max(images // 4, 1), 1, 1)).iloc[:images]
    for index, pixels in enumerate(chest.render(factors, min(size, MAX_SIZE))):
        Image.fromarray(pixels).resize((size, size)).save(folder / f"{index}.png")


def evaluator(bundle: str | Path, place: Path, size: int, batch_size: int, device: str) -> Any:
    """MONAI's evaluator of the bundle's inference.json from `place`/in to `place`/monai, ready to run again and again.

    Its copies have the model's size, so that resampling to `size` is added where that is another.
    """
    config = ConfigParser.load_config_file(Path(bundle) / "configs/inference.json")
    config |= {"bundle_root": str(bundle), "dataset_dir": str(place / "in"), "output_dir": str(place / "monai")}
    config |= {"batch_size": batch_size, "device": f"$torch.device('{device}')", "handlers": []}
    if size != config["image_size"]:
        back = {"_target_": "monai.transforms.Resized", "keys": "pred", "spatial_size": [size, size]}
        config["postprocessing"]["transforms"].insert(0, back)
    parser = ConfigParser(config)
    parser.get_parsed_content("load")()
    return parser.get_parsed_content("evaluator")


@contextmanager
def quiet_readers() -> Iterator[None]:
    """Without MONAI's warnings of decoders for formats that are not used here."""
    logger = logging.getLogger("monai.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(before)


def parts(anonymizer: FileAnonymizer, jobs: Sequence[Job], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds an image that reading, model and writing take on one thread of the program's own, one after the
    other; `gate` is what a privacy gate with a toy's gallery and judges of the bundle's size adds.
    """
    originals = [read_original(job.source, anonymizer.size, anonymizer.channels) for job in jobs]
    step, pixels = anonymizer.batch_size, torch.stack([original.pixels for original in originals])

    def drawing(with_drawing: Drawing) -> Callable[[], torch.Tensor]:
        def draw() -> torch.Tensor:
            starts = range(0, len(jobs), step)
            return torch.cat([with_drawing(jobs[i : i + step], pixels[i : i + step]).images for i in starts])

        return draw

    def read() -> None:
        for job in jobs:
            read_original(job.source, anonymizer.size, anonymizer.channels)

    plain = anonymizer.drawing
    generated = drawing(plain)()

    def write() -> None:
        for image, original, job in zip(generated, originals, jobs, strict=True):
            write_bytes(job.target, copy_bytes(image, original, keep_form=True))

    gated = Drawing(plain.model, 0, gate=standing_gate(plain.model, anonymizer.channels))
    ways = {"reading": read, "model": drawing(plain), "model_and_gate": drawing(gated), "writing": write}
    timings = timing.alternate(ways, rounds, device, warm_up=0)
    found = {name: 1e3 * timings.median(name) / len(jobs) for name in ways}
    found["gate"] = max(found.pop("model_and_gate") - found["model"], 0.0)
    return found


def standing_gate(network: Any, channels: int) -> Gate:
    """A gate with all its checks, whose gallery of `GALLERY` random people and judges before any training let all
    pass at the first draw: what an image costs that is released at once.
    """
    schedule, classes = JudgeSchedule(), network.channel.codebook.axes.shape[0]
    names = [str(number) for number in range(classes)]
    verifier, medical = Verifier(channels, schedule.planes), MedicalJudge(channels, schedule.planes, classes, 0)
    judges = Judges(verifier, medical, names, []).to(next(network.parameters()).device)
    threshold = Threshold(1.0, 0.5, 0.0, 0.0, 0.0, 1, 1)
    comparators = []
    for name, source, length in (("model", network, network.channel.identity_size), ("verifier", judges, 128)):
        people = torch.randn(GALLERY, length, generator=torch.Generator().manual_seed(0))
        gallery = SearchableGallery.of(Identities(people, torch.arange(GALLERY)), name)
        calibration = Calibration(name, gallery.digest(), threshold, threshold)
        comparators.append(Comparator(name, name, embedding(source), gallery, calibration))
    return Passing(network, comparators, judges)


class Passing(Gate):
    """Makes every check, and lets all pass."""

    def inspect(self, generated: torch.Tensor, drawn: torch.Tensor) -> list[Decision]:
        return [replace(decision, reasons=()) for decision in super().inspect(generated, drawn)]

    def compare(self, pixels: torch.Tensor, originals: Sequence[torch.Tensor]) -> list[Decision]:
        return [replace(decision, reasons=()) for decision in super().compare(pixels, originals)]


def model_rates(anonymizer: FileAnonymizer, rounds: int, device: str) -> dict[str, float]:
    """Images a second of the model alone, `MODEL_BATCHES` at once."""
    most = max(MODEL_BATCHES)
    images = torch.rand(most, anonymizer.channels, anonymizer.size, anonymizer.size, device=device) * 2 - 1
    noise = torch.randn(most, int(anonymizer.drawing.model.noise_size), device=device)  # type: ignore[arg-type]

    @torch.inference_mode()
    def run(count: int) -> None:
        for batch in zip(images.split(count), noise.split(count), strict=True):
            anonymizer.drawing.model(*batch)

    timings = timing.alternate({str(count): partial(run, count) for count in MODEL_BATCHES}, rounds, device)
    return {name: most / timings.median(name) for name in timings.seconds}
