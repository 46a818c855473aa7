"""
What a duty remembers of a disk that did not take its files or changes.
"""

import time

_RECENT_SECONDS = 8.0  # longer than any duty waits before it tries again


class Refusals:
    """Whether the disk refused lately; forgotten by itself once the tries go well."""

    def __init__(self) -> None:
        self._last = -_RECENT_SECONDS

    def note(self) -> None:
        """It refused just now."""
        self._last = time.monotonic()

    @property
    def are_recent(self) -> bool:
        """Whether work waits for room."""
        return time.monotonic() - self._last < _RECENT_SECONDS
