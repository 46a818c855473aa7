"""
A callback about to be delivered, what one attempt came to, and when the next one is due.
"""

import random
from dataclasses import dataclass, field
from enum import StrEnum

from milkrun.status import CallbackKind, CallbackState, JobStatus

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
_RESUME_ATTEMPTS = 50  # at least, over some hours: one may be sent again much later
_JITTER = 0.1
MAX_SECRETS = 3


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
    secrets: tuple[str, ...] = field(repr=False)  #: each signs
    headers: dict[str, str] = field(repr=False)
    status: JobStatus  #: how the job ended; the rest are facts of that end
    finished_at: float
    labels: dict[str, str]
    rows_total: int | None
    rows_succeeded: int
    rows_failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackRecord:
    """A callback as a person sees it: nothing of it is secret. Times in seconds on the database's clock."""

    id: str
    job_id: str
    kind: CallbackKind | None  #: forgotten with its delivery
    receiver: str
    state: CallbackState
    attempts: int
    created_at: float
    due_at: float
    last_error: str | None


def secrets_of(given: str | list[str] | None) -> tuple[str, ...]:
    """The secrets of a callback, in whichever form it was submitted."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def rotated(secrets: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    """The secrets that sign from now on: the new one first, the old one beside it, at most `MAX_SECRETS`."""
    if old not in secrets or new in secrets:
        return secrets
    others = [secret for secret in secrets if secret != old]
    return (new, old, *others)[:MAX_SECRETS]


def next_delay(due: DueCallback, attempt: Attempt) -> float | None:
    """Seconds until the next attempt, with jitter; None when there is none."""
    steps: tuple[float, ...] = _STEPS
    made = due.attempts  # steps[0] follows the first attempt
    if due.kind is CallbackKind.prefect_resume:
        steps = _SUSPENDING_STEPS if attempt is Attempt.too_early else _RESUME_STEPS
        if due.age_seconds > _RESUME_SPAN and made >= _RESUME_ATTEMPTS:
            return None
        made = min(made, len(steps) - 1)
    if attempt in {Attempt.delivered, Attempt.unwanted} or made >= len(steps):
        return None
    return steps[made] * random.uniform(1 - _JITTER, 1 + _JITTER)
