"""A batch of images in the background: one at a time, counted, and stopped when asked to.

MONAI Label would start another process, whose command, log and answer quote every image's name.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from monai_anon.integrations.label_requests import RequestError

logger = logging.getLogger("monai_anon")

RUNNING, DONE, STOPPED, FAILED = "RUNNING", "DONE", "STOPPED", "ERROR"


class Batch:
    """What became of the images of the last batch, in counts."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._total, self._status = 0, ""
        self._stop, self._busy = threading.Event(), threading.Lock()

    def start(self, work: Callable[[], Any], wait: bool = False) -> dict[str, Any]:
        """Do `work`, which calls `run`, in the background or, with `wait`, now; returns the status.

        Raises:
            RequestError: a batch is running; with `wait` also what `work` raises.
        """
        if not self._busy.acquire(blocking=False):
            raise RequestError("a batch is running already; GET /batch/infer tells how far it is", 429)
        self._counts, self._total, self._status = Counter(), 0, RUNNING
        self._stop.clear()

        def guarded() -> None:
            try:
                work()
                self._status = STOPPED if self._stop.is_set() else DONE
            except BaseException as error:
                self._status = FAILED
                if wait:
                    raise
                logger.error("a batch ended with %s", type(error).__name__)
            finally:
                self._busy.release()

        if wait:
            guarded()
        else:
            threading.Thread(target=guarded, name="batch", daemon=True).start()
        return self.status()

    def run(self, images: Sequence[str], answer: Callable[[str], Any]) -> dict[str, Any]:
        """Ask for each image; one that is refused or fails is counted, and does not end the batch."""
        self._total = len(images)
        for image in tqdm(images, desc="anonymising", unit="image", disable=None):
            if self._stop.is_set():
                break
            self._counts[_outcome(answer, image)] += 1
        return self.status()

    def status(self) -> dict[str, Any]:
        """Status and counts, without names.

        Raises:
            RequestError: there was no batch.
        """
        if not self._status:
            raise RequestError("there was no batch since the server started", 404)
        return {"status": self._status, "images": self._total, **self._counts}

    def stop(self) -> dict[str, Any]:
        """End the batch after the image that it is at."""
        self._stop.set()
        return self.status()


def _outcome(answer: Callable[[str], Any], image: str) -> str:
    try:
        answer(image)
    except RequestError as error:
        return error.outcome
    except Exception as error:  # whatever it is: the other images go on
        logger.error("an image failed: %s", type(error).__name__)
        return "failed"
    return "released"
