"""
The load breaker of a pool: back-off between failures, and when to give up.

Deaths in quarantine are the rows' fault and do not count. The first finished row resets it.
"""

import time
from dataclasses import dataclass, field

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


@dataclass(slots=True)
class Breaker:
    """
    Counts failures to load a model or to keep it alive.

    Args:
        give_up_seconds: after the first failure, with no row finished since.
    """

    give_up_seconds: float
    failures: int = 0
    reason: str = ""
    _first_at: float = field(default=0.0)

    def failed(self, reason: str) -> None:
        """Count one failure."""
        if self.failures == 0:
            self._first_at = time.monotonic()
        self.failures += 1
        self.reason = reason

    def worked(self) -> None:
        """The model ran for a while, or one row ended it: what fails from now on is a new series in time."""
        self._first_at = time.monotonic()

    def reset(self) -> None:
        """Forget the failures: the model works, or a new series begins."""
        self.failures = 0
        self.reason = ""

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next try: not at all after a single failure."""
        if self.failures <= 1:
            return 0.0
        return min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** (self.failures - 2))

    @property
    def gave_up(self) -> bool:
        """Whether the pool's rows are to end as `model_unavailable`."""
        return self.failures > 0 and time.monotonic() - self._first_at >= self.give_up_seconds
