"""Image files into images of nobody: read, anonymise, write; whatever cannot be checked is not written.

What is written holds pixels alone: no text, time, colour profile or any other chunk of the original. Its size, depth
and mode are the model's unless the original's are asked for: they may tell which scanner or crop an image is from, and
no bound on what the pixels say counts them. `jobs.py` says what a copy is called, `dicom.py` what its header holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import joblib
import torch
from torch import Tensor
from tqdm import tqdm

from monai_anon.copies import WithheldError, copy_bytes
from monai_anon.dicom import DicomSettings
from monai_anon.drawing import Drawing, Drawn
from monai_anon.gate import Decision
from monai_anon.jobs import Job, Refusal
from monai_anon.originals import Original, quiet_decoders, read_original
from monai_anon.readers import ReadError
from monai_anon.whole_files import write_bytes

NOT_RELEASABLE = "no image that may leave"
"""Why an image without a gate is withheld, in fixed words: not finite, out of range, its original, of another shape."""
_MOST_FILES = 8  # at once, however many cores there are: a large one takes some 100 MB while it is decoded


class Outcome(NamedTuple):
    """What became of one file: `refusal` says why nothing was written; `decision` is the gate's, where it had one."""

    job: Job
    refusal: Refusal | None = None
    decision: Decision | None = None


class FileAnonymizer:
    """Anonymises files with images that `drawing` makes of theirs.

    Args:
        size, channels: of the model's images.
        batch_size: images a step; files are read into memory so many at a time, and no more are kept.
        keep_form: give copies their originals' size, depth and mode.
        dicom: how copies of DICOM files are made; left out, with a key of this object and without any claim on pixels.
        to_gray: let a model of one channel take colour images as gray ones.
    """

    def __init__(
        self,
        drawing: Drawing,
        size: int,
        channels: int = 1,
        batch_size: int = 16,
        keep_form: bool = False,
        dicom: DicomSettings | None = None,
        to_gray: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}; it must be 1 or more")
        self.drawing, self.size, self.channels, self.batch_size = drawing, size, channels, batch_size
        self.keep_form, self.dicom, self.to_gray = keep_form, dicom or DicomSettings(), to_gray

    def run(
        self,
        jobs: Sequence[Job],
        overwrite: bool = False,
        progress: bool = True,
        note: Callable[[list[Outcome]], None] | None = None,
    ) -> list[Refusal]:
        """Anonymise every job's source to its target; returns the files for which nothing was written, and why.

        `note` is told, batch by batch, what became of each.
        """
        refusals: list[Refusal] = []
        with self._batches(jobs, "anonymising", progress) as (batches, pool):
            for batch in batches:
                outcomes = self._run_batch(batch, overwrite, pool)
                refusals += [outcome.refusal for outcome in outcomes if outcome.refusal is not None]
                if note is not None:
                    note(outcomes)
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
        """Batches of jobs under a progress bar, and threads for them."""
        with (
            tqdm(total=len(jobs), desc=what, unit="image", disable=None if progress else True) as bar,
            ThreadPoolExecutor(min(_MOST_FILES, joblib.cpu_count())) as pool,
            quiet_decoders(),
        ):

            def batches() -> Iterator[Sequence[Job]]:
                for start in range(0, len(jobs), self.batch_size):
                    batch = jobs[start : start + self.batch_size]
                    yield batch
                    bar.update(len(batch))

            yield batches(), pool

    def _run_batch(self, jobs: Sequence[Job], overwrite: bool, pool: ThreadPoolExecutor) -> list[Outcome]:
        """Files are read, and copies written, side by side: of large files that is most of the time."""
        outcomes, ready = [], []
        for job, original in zip(jobs, pool.map(self._read, jobs), strict=True):
            if isinstance(original, Refusal):
                outcomes.append(Outcome(job, original))
            else:
                ready.append((job, original))
        if not ready:
            return outcomes
        try:
            images, decisions = self.draw(*zip(*ready, strict=True))
        except WithheldError as error:
            return outcomes + [Outcome(job, _withheld(job, str(error))) for job, _ in ready]
        write = partial(_write_copy, overwrite=overwrite, keep_form=self.keep_form, dicom=self.dicom)
        found: Sequence[Decision | None] = decisions or [None] * len(ready)
        written = pool.map(write, *zip(*ready, strict=True), images, found)
        return outcomes + [
            Outcome(job, refusal, decision) for (job, _), refusal, decision in zip(ready, written, found, strict=True)
        ]

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

    def draw(self, jobs: Sequence[Job], originals: Sequence[Original]) -> Drawn:
        """The model's images `(B, C, S, S)`, and what the gate says of them.

        Raises:
            WithheldError: they have another shape.
        """
        pixels = torch.stack([original.pixels for original in originals])
        drawn = self.drawing(jobs, pixels)
        if drawn.images.shape != pixels.shape:
            shapes = f"{tuple(drawn.images.shape[1:])}, not {tuple(pixels.shape[1:])}"
            raise WithheldError(f"the model gave an image of the shape {shapes}")
        return drawn


def _withheld(job: Job, reason: str) -> Refusal:
    return Refusal(job.source, reason, (NOT_RELEASABLE,))


def _write_copy(
    job: Job,
    original: Original,
    generated: Tensor,
    decision: Decision | None,
    overwrite: bool,
    keep_form: bool,
    dicom: DicomSettings,
) -> Refusal | None:
    """Write an image that passes the checks; else nothing, and why."""
    if decision is not None and not decision.released:
        reasons = tuple(reason.value for reason in decision.reasons)
        return Refusal(job.source, f"withheld: {', '.join(reasons)}", reasons)
    try:
        write_bytes(job.target, copy_bytes(generated, original, keep_form, dicom), overwrite)
    except WithheldError as error:
        return _withheld(job, str(error))
    except OSError as error:
        return Refusal(job.source, f"its copy cannot be written ({error.strerror})")
    return None
