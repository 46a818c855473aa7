"""
How fast a pool has been of late.
"""

import time
from collections import deque

_SPAN_SECONDS = 120.0  # some chunks' worth: one takes about 20 s


class Rate:
    """Rows a second over the last two minutes of work."""

    def __init__(self) -> None:
        self._since: float | None = None  # when the pool last began to have work
        self._done: deque[tuple[float, int]] = deque()

    def work(self) -> None:
        """There is work from now on."""
        if self._since is None:
            self._since = time.monotonic()

    def idle(self) -> None:
        """There is none: the time until there is some again does not count."""
        self._since = None
        self._done.clear()

    def add(self, rows: int) -> None:
        """Count rows that were answered."""
        self._done.append((time.monotonic(), rows))

    @property
    def rows_per_second(self) -> float | None:
        """None until something was answered."""
        now = time.monotonic()
        while self._done and self._done[0][0] < now - _SPAN_SECONDS:
            self._done.popleft()
        if self._since is None or not self._done:
            return None
        return sum(rows for _, rows in self._done) / max(0.001, min(_SPAN_SECONDS, now - self._since))
