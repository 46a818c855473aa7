"""
The watchdog of a replica: says when one that still runs is to be taken for dead.

Two things are watched. The replica answers a beat, however long its rows take: one that is frozen does not. And rows
finish, with much more patience, because a row may be long: an engine that lives and moves nothing is dead, too.
"""

import statistics
from collections import deque

_STUCK_SILENCES = 30  # a row may take hours
_STUCK_MEDIANS = 20
_ROWS = 100  # the latest, whose median counts


class Watchdog:
    """
    Counts the time in which nothing was heard, as far as this process itself ran.

    Args:
        silence_seconds: how long a beat may go unanswered.
    """

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._silent = 0.0
        self._stuck = 0.0
        self._row_seconds: deque[float] = deque(maxlen=_ROWS)

    def heard(self) -> None:
        """A beat was answered."""
        self._silent = 0.0

    def finished(self, rows: int, seconds: float) -> None:
        """Rows came back, so long after they were sent."""
        self._silent = self._stuck = 0.0
        self._row_seconds.extend([seconds] * rows)

    def passed(self, seconds: float, *, rows_in_flight: int) -> str | None:
        """Let time pass; returns why the replica is dead, None as long as it may live."""
        self._silent += seconds
        self._stuck = self._stuck + seconds if rows_in_flight else 0.0
        if self._silent > self._silence_seconds:
            return f"it gave no sign of life for {self._silent:.0f} s"
        median = statistics.median(self._row_seconds) if self._row_seconds else 0.0
        if self._stuck > max(_STUCK_SILENCES * self._silence_seconds, _STUCK_MEDIANS * median):
            return f"it finished none of its rows for {self._stuck:.0f} s"
        return None
