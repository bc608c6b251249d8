"""Image files into images of nobody: read, anonymise, write; whatever cannot be checked is not written.

What is written holds pixels alone: no text, time, colour profile or any other chunk of the original. Its size, depth
and mode are the model's unless the original's are asked for: they may tell which scanner or crop an image is from, and
no bound on what the pixels say counts them. `jobs.py` says what a copy is called, `dicom.py` what its header holds.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import joblib
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from monai_anon.channel import RESPONSE
from monai_anon.copies import WithheldError, copy_bytes, write_whole
from monai_anon.dicom import DicomSettings
from monai_anon.jobs import Job, Refusal
from monai_anon.originals import Original, read_original
from monai_anon.readers import ReadError, to_model_range

_MOST_FILES = 8  # at once, however many cores there are: a large one takes some 100 MB while it is decoded


def image_noise(seed: int, name: str, length: int) -> Tensor:
    """Standard normal noise (length,) for the image called `name`: a function of seed and name alone."""
    digest = hashlib.sha256(f"{seed}/".encode() + os.fsencode(name)).digest()
    return torch.from_numpy(np.random.default_rng(list(digest)).standard_normal(length, dtype=np.float32))


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
        dicom: how copies of DICOM files are made; left out, with a key of this object and without any claim on pixels.
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
        dicom: DicomSettings | None = None,
        to_gray: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}; it must be 1 or more")
        self.model, self.size, self.channels, self.batch_size = model, size, channels, batch_size
        self.keep_form, self.dicom, self.to_gray = keep_form, dicom or DicomSettings(), to_gray
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
        with self._batches(jobs, "anonymising", progress) as (batches, pool):
            for batch in batches:
                refused = self._run_batch(batch, overwrite, pool)
                refusals += refused
                if note is not None:
                    sources = {refusal.path for refusal in refused}
                    note([job for job in batch if job.source not in sources])
        return refusals

    def check(self, jobs: Sequence[Job], progress: bool = True) -> list[Refusal]:
        """Read every job's source and write nothing; returns the files that cannot be used, and why."""
        refusals: list[Refusal] = []
        with self._batches(jobs, "checking", progress) as (batches, pool):
            for batch in batches:
                refusals += [found for found in pool.map(self._read, batch) if isinstance(found, Refusal)]
        return refusals

    @contextmanager
    def _batches(
        self, jobs: Sequence[Job], what: str, progress: bool
    ) -> Iterator[tuple[Iterator[Sequence[Job]], ThreadPoolExecutor]]:
        """Batches of jobs under a progress bar, and threads for them; the libraries' warnings, which may quote headers,
        are not shown meanwhile.
        """
        log = logging.getLogger("pydicom")
        before = log.level
        with (
            tqdm(total=len(jobs), desc=what, unit="image", disable=None if progress else True) as bar,
            ThreadPoolExecutor(min(_MOST_FILES, joblib.cpu_count())) as pool,
            warnings.catch_warnings(),
        ):

            def batches() -> Iterator[Sequence[Job]]:
                for start in range(0, len(jobs), self.batch_size):
                    batch = jobs[start : start + self.batch_size]
                    yield batch
                    bar.update(len(batch))

            warnings.simplefilter("ignore")
            log.setLevel(logging.CRITICAL + 1)
            try:
                yield batches(), pool
            finally:
                log.setLevel(before)

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
        write = partial(_write_copy, overwrite=overwrite, keep_form=self.keep_form, dicom=self.dicom)
        written = pool.map(write, *zip(*ready, strict=True), generated)
        return refusals + [refusal for refusal in written if refusal is not None]

    def _read(self, job: Job) -> Original | Refusal:
        try:
            original = read_original(job.source, self.size, self.channels, job.name, self.to_gray)
        except ReadError as error:
            return Refusal(job.source, error.reason)
        except OSError as error:
            return Refusal(job.source, f"cannot be read ({error.strerror})")
        except MemoryError:
            return Refusal(job.source, "needs more memory than there is")
        unbounded = self.dicom.bits is None and not self.dicom.no_text
        if unbounded and original.header is not None and original.header.text_risk is not None:
            return Refusal(
                job.source, f"{original.header.text_risk}; look, and if there is none say --no-burned-in-text"
            )
        return original

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


def _write_copy(
    job: Job, original: Original, generated: Tensor, overwrite: bool, keep_form: bool, dicom: DicomSettings
) -> Refusal | None:
    """Write an image that passes the checks; else nothing, and why."""
    try:
        write_whole(copy_bytes(generated, original, keep_form, dicom), job.target, overwrite)
    except WithheldError as error:
        return Refusal(job.source, str(error))
    except OSError as error:
        return Refusal(job.source, f"its copy cannot be written ({error.strerror})")
    return None
