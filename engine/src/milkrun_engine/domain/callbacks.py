"""
A callback about to be delivered, what one attempt came to, and when the next one is due.
"""

import random
from dataclasses import dataclass, field
from enum import StrEnum

from milkrun.status import CallbackKind, JobStatus

_MINUTE, _HOUR = 60.0, 3_600.0
#: of a generic one: ten attempts over about 75 hours, as Standard Webhooks advises
_STEPS = (
    5.0, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR,
)  # fmt: skip
#: of a resume that was not answered; the last one repeats. Prefect's SQLite says 500 under load, and a flow waits
_RESUME_STEPS = (1.0, 2.0, 5.0, 10.0, 30.0, _MINUTE, 2 * _MINUTE, 5 * _MINUTE)
#: of a resume that came before the flow had suspended; the last one repeats
_SUSPENDING_STEPS = (1.0, 2.0, 2.0, 3.0, 5.0, 5.0, 10.0, 10.0, 30.0, _MINUTE)
_RESUME_SPAN = 75 * _HOUR
_JITTER = 0.1


class CallbackState(StrEnum):
    """Where a callback stands."""

    pending = "pending"  #: the callback duty sends it when it is due
    delivered = "delivered"  #: the receiver took it
    given_up = "given_up"  #: the receiver wants none, or did not take it for too long


class Attempt(StrEnum):
    """What one attempt came to."""

    delivered = "delivered"
    unwanted = "unwanted"  #: the receiver is gone for good, or the flow run is over: never again
    too_early = "too_early"  #: the flow run has not suspended yet
    failed = "failed"  #: no answer, or not the right one


@dataclass(frozen=True, slots=True, kw_only=True)
class DueCallback:
    """A callback to send now; its repr holds no secret, and no URL, since people put tokens there."""

    id: str  #: the `webhook-id`, the same on every attempt
    job_id: str
    receiver: str  #: scheme, host and port of the URL
    attempts: int  #: made before this one
    age_seconds: float  #: since the job's end
    kind: CallbackKind
    url: str = field(repr=False)
    secret: str | None = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    status: JobStatus  #: how the job ended; the rest are facts of that end
    finished_at: float
    labels: dict[str, str]
    rows_total: int | None
    rows_succeeded: int
    rows_failed: int


def next_delay(due: DueCallback, attempt: Attempt) -> float | None:
    """Seconds until the next attempt, with jitter; None when there is none."""
    steps: tuple[float, ...] = _STEPS
    made = due.attempts  # steps[0] follows the first attempt
    if due.kind is CallbackKind.prefect_resume:
        if due.age_seconds > _RESUME_SPAN:
            return None
        steps = _SUSPENDING_STEPS if attempt is Attempt.too_early else _RESUME_STEPS
        made = min(made, len(steps) - 1)
    if attempt in {Attempt.delivered, Attempt.unwanted} or made >= len(steps):
        return None
    return steps[made] * random.uniform(1 - _JITTER, 1 + _JITTER)
