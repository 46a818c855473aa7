"""
The resumer: a small process that wakes suspended flow runs and stops the jobs of runs that were given up.

    python -m prefect_milkrun.resumer --block prod

It needs no route from the engine to Prefect and keeps no state: the change feed only says when to look,
and each look compares what Prefect and the engine say. So it may be restarted, or run twice, at any time.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import httpx
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import PrefectException
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from prefect.settings import get_current_settings

import milkrun as mr
from prefect_milkrun import artifacts
from prefect_milkrun._run import AWAITS, ORCHESTRATOR, RUN_LABEL, TAG, cancel_jobs_of, prefect
from prefect_milkrun.credentials import MilkrunCredentials
from prefect_milkrun.tasks import Credentials

T = TypeVar("T")
_PAGE = 200
_PAUSE_SECONDS = 1.0  # between two looks, however much news there is
_MINDED_SECONDS = 4.0  # a run that is being cancelled is its worker's first, if that still lives
_LIVE = (mr.JobStatus.preparing, mr.JobStatus.queued, mr.JobStatus.running)
_GIVEN_UP = [StateType.CANCELLED, StateType.CANCELLING, StateType.FAILED, StateType.CRASHED]
_TROUBLE = (mr.MilkrunError, PrefectException, httpx.HTTPError)
log = get_logger("milkrun.resumer")


class Resumer:
    """
    Compares flow runs and jobs, again and again.

    Args:
        credentials: the engine.
        look_seconds: how long it rests without news: a run that was cancelled, or suspended only after its job
            had ended, is found then.
        grace_seconds: how long a failed or crashed run may still be retried before its jobs are stopped; those of
            a cancelled run are stopped at once, and of one that is being cancelled after seconds.
        progress_seconds: how often progress moves on the pages of runs.
    """

    def __init__(
        self,
        credentials: Credentials = None,
        *,
        look_seconds: float = 2.0,
        grace_seconds: float = 60.0,
        progress_seconds: float = 10.0,
    ) -> None:
        self._credentials = MilkrunCredentials.of(credentials)
        self._look_seconds = look_seconds
        self._grace_seconds = grace_seconds
        self._progress_seconds = progress_seconds
        self._shown: dict[str, float] = {}
        self._shown_at = -progress_seconds

    def run(self, seconds: float | None = None) -> None:
        """Work until the time is up, or for ever; an engine or a Prefect that is away is waited for."""
        until = None if seconds is None else time.monotonic() + seconds
        cursor: str | None = None
        log.info("looking at %s", self._credentials.url or "the engine of MILKRUN_URL")
        with self._credentials.get_client() as engine, prefect() as server:
            while until is None or time.monotonic() < until:
                began = time.monotonic()
                try:
                    self.look(engine, server)
                    cursor = self._news(engine, cursor)
                except _TROUBLE as error:
                    log.warning("could not look: %s", error)
                    time.sleep(self._look_seconds)
                time.sleep(max(0.0, began + _PAUSE_SECONDS - time.monotonic()))

    def look(self, engine: mr.Milkrun, server: SyncPrefectClient) -> None:
        """Compare once, and act."""
        self._wake(engine, server)
        live = [job for status in _LIVE for job in engine.jobs(limit=None, status=status, labels=ORCHESTRATOR)]
        self._stop(engine, server, live)
        if time.monotonic() - self._shown_at >= self._progress_seconds:
            self._shown_at = time.monotonic()
            self._show(server, live)

    def _news(self, engine: mr.Milkrun, cursor: str | None) -> str | None:
        """Rest until a job ends, or for a while."""
        try:
            wait = self._look_seconds if cursor else 0.0
            return engine.changes(cursor, wait=wait, on=mr.FeedEvents.end, labels=ORCHESTRATOR).cursor
        except mr.ResponseError as error:
            if error.code == "cursor_lost":
                return None
            raise

    def _wake(self, engine: mr.Milkrun, server: SyncPrefectClient) -> None:
        """Resume the runs whose job has ended, or is gone."""
        suspended = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[TAG]),
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"])),
        )
        awaited = {run.id: job_id for run in _runs(server, suspended) if (job_id := _awaited(run))}
        going = {job.id for job in engine.jobs(ids=set(awaited.values())) if not job.is_terminal} if awaited else set()
        for run_id, job_id in awaited.items():
            if job_id not in going:
                try:
                    answer = server.resume_flow_run(run_id)
                except _TROUBLE as error:  # of this run alone
                    log.warning("could not resume flow run %s: %s", run_id, error)
                    continue
                if answer.status == SetStateStatus.ACCEPT:  # otherwise somebody else was faster
                    log.info("resumed flow run %s: job %s has ended", run_id, job_id)

    def _stop(self, engine: mr.Milkrun, server: SyncPrefectClient, live: Sequence[mr.Job]) -> None:
        """Stop the jobs of runs that nobody will come back to."""
        run_ids = {run_id for job in live if (run_id := _run_id(job))}
        for some in _pieces(sorted(run_ids), _PAGE):
            given_up = FlowRunFilter(
                id=FlowRunFilterId(any_=list(some)),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_GIVEN_UP)),
            )
            for run in _runs(server, given_up):
                if self._is_over(run):
                    stopped = cancel_jobs_of(engine, str(run.id))
                    log.info("stopped %d jobs: flow run %s is %s", len(stopped), run.id, run.state_name)

    def _is_over(self, run: FlowRun) -> bool:
        if run.state is None or run.state.is_cancelled():
            return run.state is not None
        grace = _MINDED_SECONDS if run.state.is_cancelling() else self._grace_seconds
        return (datetime.now(UTC) - run.state.timestamp).total_seconds() >= grace

    def _show(self, server: SyncPrefectClient, live: Sequence[mr.Job]) -> None:
        """Move the progress of the jobs that got further."""
        further = {artifacts.key(job.id, "progress"): job for job in live}
        further = {key: job for key, job in further.items() if self._shown.get(key) != artifacts.percent(job)}
        for keys in _pieces(list(further), _PAGE):
            found = server.read_artifacts(artifact_filter=artifacts.by_keys(keys), limit=_PAGE)
            for artifact in found:
                if artifact.key is not None:
                    server.update_artifact(artifact.id, artifacts.moved(further[artifact.key]))
        self._shown = {artifacts.key(job.id, "progress"): artifacts.percent(job) for job in live}


@flow(name="milkrun-resumer")
def resume_flows(block: str | None = None, seconds: float | None = None) -> None:
    """Run the resumer as a flow of its own: serve it, or deploy it with a schedule and a time limit."""
    Resumer(block).run(seconds)


def _runs(server: SyncPrefectClient, wanted: FlowRunFilter) -> Iterator[FlowRun]:
    found: list[FlowRun] = []  # all of them first: what is done to one may move it out of the next page
    while page := server.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(found)):
        found += page
    return iter(found)


def _awaited(run: FlowRun) -> str | None:
    return next((tag.removeprefix(AWAITS) for tag in run.tags if tag.startswith(AWAITS)), None)


def _run_id(job: mr.Job) -> UUID | None:
    with contextlib.suppress(ValueError):
        return UUID(job.labels.get(RUN_LABEL, ""))
    return None


def _pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the resumer as a plain process."""
    parser = argparse.ArgumentParser(prog="python -m prefect_milkrun.resumer", description=__doc__)
    parser.add_argument("--block", help="the MilkrunCredentials block; MILKRUN_URL and MILKRUN_API_KEY when absent")
    parser.add_argument("--look-seconds", type=float, default=2.0)
    parser.add_argument("--grace-seconds", type=float, default=60.0)
    chosen = parser.parse_args(arguments)
    if get_current_settings().api.url is None:
        parser.error("PREFECT_API_URL is not set: which Prefect server shall be looked at?")
    setup_logging()
    with contextlib.suppress(KeyboardInterrupt):
        Resumer(chosen.block, look_seconds=chosen.look_seconds, grace_seconds=chosen.grace_seconds).run()


if __name__ == "__main__":
    main()
