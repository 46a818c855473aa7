"""
Is this outcome worth another try, and after how long? Pure: no clock, no sleep, no I/O.

Exponential back-off with jitter, and never sooner than the server asks (`Retry-After`).
Every request of ours is safe to repeat (submits carry a key and a submission id), so the
outcome alone decides.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to go on trying."""

    attempts: int = 6  #: tries in all, the first included
    seconds: float = 30.0  #: no try begins later than this after the first one failed, however slowly it did
    first_seconds: float = 0.5
    cap_seconds: float = 8.0
    trusts_address: bool = False  #: an engine was seen there: a 404 that is not ours is a proxy's, and passes


QUICK = Policy()  #: a caller waits for this one answer
PATIENT = Policy(attempts=1_000, seconds=300.0, trusts_address=True)  #: a wait of hours outlives an engine's restart


def pause(
    policy: Policy,
    attempt: int,
    elapsed_seconds: float,
    outcome: httpx.Response | httpx.TransportError,
    *,
    jitter: Callable[[], float] = random.random,
) -> float | None:
    """
    Return the seconds to sleep before the next try, or None to give up.

    Args:
        policy: how long to go on.
        attempt: tries made so far.
        elapsed_seconds: since the first try failed.
        outcome: what the last try gave.
        jitter: a number in [0, 1).
    """
    passes = is_transient(outcome) or (policy.trusts_address and _is_of_a_proxy(outcome))
    if attempt >= policy.attempts or not passes:
        return None
    asked = retry_after(outcome) if isinstance(outcome, httpx.Response) else None
    full = min(policy.cap_seconds, policy.first_seconds * 2.0 ** min(attempt - 1, 16))
    seconds = max(asked or 0.0, full * (0.5 + jitter() / 2))
    return seconds if elapsed_seconds + seconds <= policy.seconds else None


def is_transient(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Whether the same request may succeed later: no answer, 429 or 5xx; never 409, which states a fact."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code == 429 or outcome.status_code >= 500
    return not isinstance(outcome, httpx.UnsupportedProtocol | httpx.LocalProtocolError)


def _is_of_a_proxy(outcome: httpx.Response | httpx.TransportError) -> bool:
    """Whether a proxy says it knows no such service, as while an engine is rolled out; our own 404 is a problem."""
    if not isinstance(outcome, httpx.Response) or outcome.status_code != 404:
        return False
    return not outcome.headers.get("content-type", "").startswith("application/problem+json")


def retry_after(response: httpx.Response, *, now: datetime | None = None) -> float | None:
    """Read `Retry-After`, in seconds or as a date; None if it is absent or nonsense."""
    text = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds()) if at.tzinfo else None
