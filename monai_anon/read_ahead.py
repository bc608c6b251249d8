"""Results of a function of whole numbers that a thread makes before they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class ReadAhead(Generic[Made]):
    """`function(n)` under the same name; having been asked for n, a thread makes those of n + 1 to n + `count`.

    Asking in order is fast and any order is right. What the function raises is raised where its result is asked for.

    Args:
        function: depends on its argument alone.
        count: results made ahead; 0 for none, and then there is no thread.
    """

    def __init__(self, function: Callable[[int], Made], count: int) -> None:
        if count < 0:
            raise ValueError(f"{count} to be made ahead; it must be 0 or more")
        self.function, self.count = function, count
        self._made: dict[int, Future[Made]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def __call__(self, number: int) -> Made:
        if not self.count:
            return self.function(number)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        wanted = range(number, number + 1 + self.count)
        for other in [other for other in self._made if other not in wanted]:
            self._made.pop(other).cancel()
        for other in wanted:
            if other not in self._made:
                self._made[other] = self._thread.submit(self.function, other)
        return self._made.pop(number).result()
