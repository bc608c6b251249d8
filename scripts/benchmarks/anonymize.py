"""Files into images of nobody: the released path, its parts, and the bundle's inference.json run by MONAI."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from PIL import Image

from benchmarks import timing
from monai_anon.bundles import load_anonymizer
from monai_anon.copies import copy_bytes, write_whole
from monai_anon.jobs import Job, plan_files
from monai_anon.phantoms import chest
from monai_anon.phantoms.rendering import MAX_SIZE
from monai_anon.release import FileAnonymizer, read_original

BUNDLE = timing.ROOT / "bundles/chest"
MODEL_BATCHES = (1, 16, 64)


def measure(
    images: int = 200,
    size: int = 64,
    batch_size: int = 16,
    rounds: int = 5,
    device: str = "cpu",
    bundle: str | Path = BUNDLE,
) -> dict[str, Any]:
    """Images a second of `FileAnonymizer` on generated PNG files, in alternation with the bundle's inference.json under
    MONAI's evaluator; what reading, model and writing take of it one after the other; the model alone.

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
        ours = FileAnonymizer(network, settings.image_size, settings.channels, 0, batch_size, keep_form=True)
        theirs = evaluator(bundle, place, size, batch_size, device)

        def released() -> None:
            refusals = ours.run(jobs, overwrite=True, progress=False)
            if refusals:
                raise ValueError(f"{len(refusals)} files were refused, the first as: {refusals[0].reason}")

        timings = timing.alternate({"ours": released, "monai": theirs.run}, rounds, device)
        result = _figures(timings, images) | {"serial_ms_per_image": parts(ours, jobs, rounds, device)}
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
    other.
    """
    originals = [read_original(job.source, anonymizer.size, anonymizer.channels) for job in jobs]
    step = anonymizer.batch_size

    def generate() -> torch.Tensor:
        starts = range(0, len(jobs), step)
        names = [job.name for job in jobs]
        return torch.cat([anonymizer.generate(originals[i : i + step], names[i : i + step]) for i in starts])

    def read() -> None:
        for job in jobs:
            read_original(job.source, anonymizer.size, anonymizer.channels)

    generated = generate()

    def write() -> None:
        for image, original, job in zip(generated, originals, jobs, strict=True):
            write_whole(copy_bytes(image, original, keep_form=True), job.target, overwrite=True)

    timings = timing.alternate({"reading": read, "model": generate, "writing": write}, rounds, device, warm_up=0)
    return {name: 1e3 * timings.median(name) / len(jobs) for name in timings.seconds}


def model_rates(anonymizer: FileAnonymizer, rounds: int, device: str) -> dict[str, float]:
    """Images a second of the model alone, `MODEL_BATCHES` at once."""
    most = max(MODEL_BATCHES)
    images = torch.rand(most, anonymizer.channels, anonymizer.size, anonymizer.size, device=device) * 2 - 1
    noise = torch.randn(most, int(anonymizer.model.noise_size), device=device)  # type: ignore[arg-type]

    @torch.inference_mode()
    def run(count: int) -> None:
        for batch in zip(images.split(count), noise.split(count), strict=True):
            anonymizer.model(*batch)

    timings = timing.alternate({str(count): partial(run, count) for count in MODEL_BATCHES}, rounds, device)
    return {name: most / timings.median(name) for name in timings.seconds}
