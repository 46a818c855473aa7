"""
What runs say about jobs, in their tags; Dagster's run storage is the only memory that this package has.

A deferred asset takes two runs. The first submits, notes the job on itself and ends without output. The
second one carries the job's id, is held in the queue while the job runs, and materializes. Tags:

    milkrun/state              submitted | blocking | waiting | ready | passed | done | cancelled
    milkrun/submitted/<op>     on the first run: job and claim of each asset
    milkrun/job_id, asset, claim    on the second run: what it was started for
    milkrun/progress           on the second run, while it is held: how far the job is
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import dagster as dg

STATE = "milkrun/state"
JOB = "milkrun/job_id"
ASSET = "milkrun/asset"
CLAIM = "milkrun/claim"
MODE = "milkrun/mode"
PROGRESS = "milkrun/progress"
REPLACED = "milkrun/replaced"
_SUBMITTED = "milkrun/submitted/"
_ASK_AT_ONCE = 500  # values in one SQL statement

#: what the second run shares with the first; the rest of Dagster's own tags tell how a run came about
_KEPT = ("dagster/partition", "dagster/asset_partition_range_", "dagster/backfill", "dagster/priority")
_LIVE = frozenset(
    {
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.MANAGED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
    }
)
_UNSTARTED = frozenset({dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED})
_STOPPED = frozenset({dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED})


class State(StrEnum):
    """How far a run is with its job."""

    submitted = "submitted"  #: it submitted and ended; a second run takes over
    blocking = "blocking"  #: it submitted and waits in its own process
    waiting = "waiting"  #: its job runs: the queue holds it where the instance limits this tag to 0
    ready = "ready"  #: its job has ended
    passed = "passed"  #: it started while its job ran, where nothing held it, and ended without output
    done = "done"  #: it has seen its job's end and materializes, or fails
    cancelled = "cancelled"  #: it was terminated, and its job was told


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about a job, given the runs that carry it."""

    launch: State | None = None  #: start a run in this state
    release: tuple[str, ...] = ()  #: let these held runs go


def decide(*, is_over: bool, runs: Sequence[dg.DagsterRun]) -> Step:
    """Decide what a job needs: a run that is held, its release, or a run at once."""
    if not is_over:
        return Step() if runs else Step(launch=State.waiting)
    live = [run for run in runs if run.status in _LIVE and run.tags.get(STATE) != State.passed]
    if live:
        return Step(release=tuple(run.run_id for run in live if run.tags.get(STATE) == State.waiting))
    return Step() if had_its_run(runs) else Step(launch=State.ready)


def is_stopped(run: dg.DagsterRun) -> bool:
    """Whether somebody terminated the run."""
    return run.status in _STOPPED


def carrying(instance: dg.DagsterInstance, job_ids: Iterable[str]) -> dict[str, list[dg.DagsterRun]]:
    """Return the runs that were started for these jobs, by job."""
    found: dict[str, list[dg.DagsterRun]] = {job_id: [] for job_id in job_ids}
    asked = list(found)
    for start in range(0, len(asked), _ASK_AT_ONCE):
        for run in instance.get_runs(dg.RunsFilter(tags={JOB: asked[start : start + _ASK_AT_ONCE]})):
            found[run.tags[JOB]].append(run)
    return found


def had_its_run(carrying_runs: Iterable[dg.DagsterRun]) -> bool:
    """Whether a job's second run was let go, came to its end, or was terminated."""
    # One that went on to submit for a further asset says that in its state, which told of its own job before.
    seen = {State.ready, State.done, State.submitted, State.blocking}
    return any(is_stopped(run) or run.tags.get(STATE) in seen for run in carrying_runs)


def mark(instance: dg.DagsterInstance, run_id: str, state: State) -> None:
    """Write a run's state; tags are plain texts, Dagster stores no enums of ours."""
    instance.add_run_tags(run_id, {STATE: state.value})


def show_progress(instance: dg.DagsterInstance, carrying_runs: Iterable[dg.DagsterRun], progress: str) -> None:
    """Write on a job's held runs how far it is; a run that has started says that itself."""
    for run in carrying_runs:
        is_held = run.status in _UNSTARTED and run.tags.get(STATE) == State.waiting
        if is_held and run.tags.get(PROGRESS) != progress:
            instance.add_run_tags(run.run_id, {PROGRESS: progress})


def note_submitted(
    instance: dg.DagsterInstance, run_id: str, op: str, *, job_id: str, claim: int, replaced: str | None, state: State
) -> None:
    """
    Note a run's job on the run, and its newer claim on the run that is held for the job.

    A held run whose job was replaced is held for the new one from then on.
    """
    tags = {STATE: state.value, f"{_SUBMITTED}{op}": f"{job_id} {claim}"}
    if replaced is not None:
        tags[REPLACED] = replaced
    instance.add_run_tags(run_id, tags)
    for old, runs in carrying(instance, {job_id, replaced or job_id}).items():
        for run in runs:
            if run.status in _LIVE and (old == job_id or run.status in _UNSTARTED):
                instance.add_run_tags(run.run_id, {JOB: job_id, CLAIM: str(claim)})


def jobs_of(run: dg.DagsterRun) -> Iterator[tuple[str, int | None]]:
    """Yield the jobs that a run submitted or was started for, with the claims that it has on them."""
    if JOB in run.tags:
        yield run.tags[JOB], int(run.tags[CLAIM]) if CLAIM in run.tags else None
    for name, value in run.tags.items():
        if name.startswith(_SUBMITTED):
            job_id, _, claim = value.partition(" ")
            yield job_id, int(claim)


def tags_of_second(first: dg.DagsterRun, *, job_id: str, asset: str, state: State) -> dict[str, str]:
    """Return the tags of the run that takes over from the one that submitted: the user's own, partitions, backfill."""
    kept: Mapping[str, str] = {
        name: value
        for name, value in first.tags.items()
        if name.startswith(_KEPT) or name == MODE or not name.startswith(("dagster/", ".dagster/", "milkrun/"))
    }
    claims = {job: claim for job, claim in jobs_of(first) if claim is not None}
    claim = {CLAIM: str(claims[job_id])} if job_id in claims else {}
    return {**kept, JOB: job_id, ASSET: asset, STATE: state.value, **claim}
