"""
States that only the engine knows, and the one table of a job's moves.
"""

from enum import StrEnum

from milkrun.status import JobStatus


class ChunkState(StrEnum):
    """Where a chunk stands."""

    ready = "ready"  #: waits for a lease; the dispatcher claims it
    leased = "leased"  #: a dispatcher works on it; the commit, or the rescuer when the lease ends, moves it on
    committed = "committed"  #: its result file is in the ledger and never changes
    dropped = "dropped"  #: its job was stopped first; its rows end with the job's own code


#: who may follow whom; every statement that moves a job names its allowed sources from here
MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.preparing: frozenset(set(JobStatus) - {JobStatus.preparing}),
    JobStatus.queued: frozenset(set(JobStatus) - {JobStatus.preparing, JobStatus.queued}),
    JobStatus.running: frozenset({JobStatus.succeeded, JobStatus.failed, JobStatus.cancelled, JobStatus.expired}),
    JobStatus.succeeded: frozenset(),
    JobStatus.failed: frozenset(),
    JobStatus.cancelled: frozenset(),
    JobStatus.expired: frozenset(),
}


def sources(target: JobStatus) -> list[JobStatus]:
    """The statuses from which a job may become `target`."""
    return [source for source, targets in MOVES.items() if target in targets]


LIVE = sources(JobStatus.cancelled)  #: the statuses of a job that is not over
