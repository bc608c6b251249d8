"""Image files into images of nobody: read, anonymise, write; whatever cannot be checked is not written.

What is written holds pixels alone: no text, time, colour profile or any other chunk of the original. Its size, depth
and mode are the model's unless the original's are asked for: they may tell which scanner or crop an image is from, and
no bound on what the pixels say counts them. File names are kept.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from monai_anon.channel import RESPONSE
from monai_anon.jobs import Job, Refusal
from monai_anon.readers import (
    FULL_SCALES,
    ReadError,
    fit_square,
    read_image,
    restore_shape,
    to_model_range,
    to_stored,
    to_uint8,
)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_GRAY_TYPES = (0, 4)  # PNG colour types without colour: gray, gray with alpha
_RANGE_TOLERANCE = 1e-3
_MOST_FILES = 8  # at once, however many cores there are: a large one takes some 100 MB while it is decoded


class WithheldError(ValueError):
    """An image that was made but must not leave: the message says why."""


@dataclass(frozen=True)
class Original:
    """An image as the anonymizer takes it, and the form that its copy gets back.

    Args:
        pixels: uint8 (C, S, S).
        height, width: of the file, in pixels.
        gray: whether the file is gray; otherwise it has three channels.
        full_scale: the stored value of white: 255 at 8 bits; 255, 4095 or 65535 at 16.
        dtype: of the file's values, uint8 or uint16.
    """

    pixels: Tensor
    height: int
    width: int
    gray: bool
    full_scale: int
    dtype: type[np.unsignedinteger]


def read_original(path: str | Path, size: int, channels: int, to_gray: bool = False) -> Original:
    """Read a PNG or JPEG file for an anonymizer of images `(channels, size, size)`; `to_gray` as in `read_image`.

    Raises:
        ReadError: what `read_image` refuses; no PNG or JPEG inside, 16-bit colour, or all pixels the same.
    """
    path = Path(path)
    image = read_image(path, channels, to_gray)
    with path.open("rb") as file:
        header = file.read(26)
    png = path.suffix.lower() == ".png"
    if not header.startswith(_PNG_SIGNATURE if png else _JPEG_SIGNATURE):
        raise ReadError(path, f"is no {'PNG' if png else 'JPEG'} file, whatever its name says")
    if not png:
        with Image.open(path) as opened:
            depth, gray = 8, opened.mode == "L"
    else:
        depth, gray = header[24], header[25] in _GRAY_TYPES
        if depth == 16 and header[25] != 0:
            raise ReadError(path, "has 16-bit colour or transparency; supported are 8 bits, and 16 bits in gray")
    if float(image.max() - image.min()) < 1 / 255:
        raise ReadError(path, "is constant (all pixels have the same value)")
    full_scale = 255
    if depth == 16:
        with Image.open(path) as opened:
            brightest = int(np.asarray(opened).max())
        full_scale = next(scale for scale in FULL_SCALES if brightest <= scale)
    return Original(
        pixels=torch.from_numpy(to_stored(fit_square(image, size))),
        height=image.shape[1],
        width=image.shape[2],
        gray=gray,
        full_scale=full_scale,
        dtype=np.uint16 if depth == 16 else np.uint8,
    )


def image_noise(seed: int, name: str, length: int) -> Tensor:
    """Standard normal noise (length,) for the image called `name`: a function of seed and name alone."""
    digest = hashlib.sha256(f"{seed}/".encode() + os.fsencode(name)).digest()
    return torch.from_numpy(np.random.default_rng(list(digest)).standard_normal(length, dtype=np.float32))


def to_picture(generated: Tensor, original: Original, keep_form: bool) -> Image.Image:
    """A generated image (C, S, S) in [-1, 1], in its original's size, depth and mode or in the model's: S x S pixels of
    8 bits, gray or colour.

    Raises:
        WithheldError: values that are not finite or out of range, or the original itself.
    """
    if not torch.isfinite(generated).all():
        raise WithheldError("the model gave values that are NaN or infinite")
    if float(generated.abs().max()) > 1 + _RANGE_TOLERANCE:
        raise WithheldError("the model gave values outside of [-1, 1]")
    if torch.equal(to_uint8(generated), original.pixels):
        raise WithheldError("the model gave the original back")
    if not keep_form:
        levels = to_uint8(generated).numpy()
        return Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(np.moveaxis(levels, 0, -1)))
    unit = restore_shape((generated.float().numpy() + 1) / 2, original.height, original.width)
    stored = np.rint(np.clip(unit, 0, 1) * original.full_scale).astype(original.dtype)
    if original.gray:
        return Image.fromarray(stored[0] if len(stored) == 1 else np.rint(stored.mean(axis=0)).astype(original.dtype))
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(np.broadcast_to(stored, (3, *stored.shape[1:])), 0, -1)))


def write_png(picture: Image.Image, target: Path, overwrite: bool = False) -> None:
    """Write a picture, all of it or nothing; its folder is made where missing.

    Raises:
        FileExistsError: `target` is there and not to be overwritten, even if it has come only now.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with draft.open("xb") as file:
            picture.save(file, format="PNG")
        if not overwrite:
            try:
                os.link(draft, target)  # unlike a rename it fails where something stands
                return
            except FileExistsError:
                raise
            except OSError as error:  # a file system without hard links
                if os.path.lexists(target):
                    raise FileExistsError(error.errno, "exists already", str(target)) from error
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


class FileAnonymizer:
    """Anonymises files with a model that takes images `(B, C, S, S)` in [-1, 1] and noise `(B, noise_size)`.

    A file's synthetic identity depends on `seed` and the file's relative path only: not on the batch, nor on other
    files. (Sums in another order may move a pixel by one gray level of 255 when the batch size changes.) Without a seed
    a random one is drawn. It is never shown: who has seed and model can tell which name an image was made under. A
    randomised response does not follow from the seed: two copies with one response would tell what it hides.

    Args:
        size, channels: of the model's images.
        batch_size: images a step; files are read into memory so many at a time.
        keep_form: give copies their originals' size, depth and mode.
        to_gray: let a model of one channel take colour images as gray ones.
    """

    def __init__(
        self,
        model: nn.Module,
        size: int,
        channels: int = 1,
        seed: int | None = None,
        batch_size: int = 16,
        keep_form: bool = False,
        to_gray: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}; it must be 1 or more")
        self.model, self.size, self.channels, self.batch_size = model, size, channels, batch_size
        self.keep_form, self.to_gray = keep_form, to_gray
        self._seed = secrets.randbits(128) if seed is None else seed

    def run(
        self,
        jobs: Sequence[Job],
        overwrite: bool = False,
        progress: bool = True,
        note: Callable[[list[Job]], None] | None = None,
    ) -> list[Refusal]:
        """Anonymise every job's source to its target; returns the files for which nothing was written, and why.

        `note` is told, batch by batch, which copies were written.
        """
        refusals: list[Refusal] = []
        with (
            tqdm(total=len(jobs), desc="anonymising", unit="image", disable=None if progress else True) as bar,
            ThreadPoolExecutor(min(_MOST_FILES, joblib.cpu_count())) as pool,
        ):
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                refused = self._run_batch(batch, overwrite, pool)
                refusals += refused
                if note is not None:
                    sources = {refusal.path for refusal in refused}
                    note([job for job in batch if job.source not in sources])
                bar.update(len(batch))
        return refusals

    def _run_batch(self, jobs: Sequence[Job], overwrite: bool, pool: ThreadPoolExecutor) -> list[Refusal]:
        """Files are read, and copies written, side by side: of large files that is most of the time."""
        refusals, ready = [], []
        for job, original in zip(jobs, pool.map(self._read, jobs), strict=True):
            if isinstance(original, Refusal):
                refusals.append(original)
            else:
                ready.append((job, original))
        if not ready:
            return refusals
        try:
            generated = self.generate([original for _, original in ready], [job.name for job, _ in ready])
        except WithheldError as error:
            return refusals + [Refusal(job.source, str(error)) for job, _ in ready]
        write = partial(_write_copy, overwrite=overwrite, keep_form=self.keep_form)
        written = pool.map(write, *zip(*ready, strict=True), generated)
        return refusals + [refusal for refusal in written if refusal is not None]

    def _read(self, job: Job) -> Original | Refusal:
        try:
            return read_original(job.source, self.size, self.channels, self.to_gray)
        except ReadError as error:
            return Refusal(job.source, error.reason)
        except OSError as error:
            return Refusal(job.source, f"cannot be read ({error.strerror})")

    @torch.inference_mode()
    def generate(self, originals: Sequence[Original], names: Sequence[str]) -> Tensor:
        """The model's images `(B, C, S, S)` on the CPU.

        Raises:
            WithheldError: they have another shape.
        """
        images = to_model_range(torch.stack([original.pixels for original in originals]))
        noise = torch.stack([image_noise(self._seed, name, int(self.model.noise_size)) for name in names])  # type: ignore[arg-type]
        if getattr(getattr(self.model, "channel", None), "epsilon", 0.0):
            fresh = random.SystemRandom()
            noise[:, -RESPONSE:] = torch.tensor([[fresh.gauss(0, 1) for _ in range(RESPONSE)] for _ in names])
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        generated = self.model(images.to(device), noise.to(device)).float().cpu()
        if generated.shape != images.shape:
            shapes = f"{tuple(generated.shape[1:])}, not {tuple(images.shape[1:])}"
            raise WithheldError(f"the model gave an image of the shape {shapes}")
        return generated


def _write_copy(job: Job, original: Original, generated: Tensor, overwrite: bool, keep_form: bool) -> Refusal | None:
    """Write an image that passes the checks; else nothing, and why."""
    try:
        write_png(to_picture(generated, original, keep_form), job.target, overwrite)
    except WithheldError as error:
        return Refusal(job.source, str(error))
    except OSError as error:
        return Refusal(job.source, f"its copy cannot be written ({error.strerror})")
    return None
