"""
What the trigger tells the task: a small wake-up word, never data. The task reads the job itself.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class Reason(StrEnum):
    """Why the task is woken."""

    ended = "ended"  #: the job is terminal, however it ended
    timeout = "timeout"  #: the deadline passed; the job goes on
    unsure = "unsure"  #: the trigger could not go on waiting; the task looks at the job, and may defer again


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """
    A trigger's one event. It is stored between two processes that may be of two versions: fields are only added.
    """

    job_id: str
    reason: Reason
    message: str | None = None  #: for the log

    def payload(self) -> dict[str, str | None]:
        """Return the event as Airflow stores it."""
        return {name: None if value is None else str(value) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, payload: Any) -> Self:
        """
        Read an event; fields and reasons of a newer trigger are no error.

        Raises:
            ValueError: it is no event of ours.
        """
        if not isinstance(payload, dict) or not isinstance(payload.get("job_id"), str) or not payload["job_id"]:
            raise ValueError(f"the trigger's event is not one of MilkrunJobTrigger: {payload!r:.200}")
        known = payload.get("reason") in set(Reason)
        message = payload.get("message")
        return cls(
            job_id=payload["job_id"],
            reason=Reason(payload["reason"]) if known else Reason.unsure,
            message=str(message) if message is not None else None,
        )
