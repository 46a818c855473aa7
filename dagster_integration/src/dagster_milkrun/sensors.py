"""
Two sensors a code location: one follows the engine's change feed, the other tells it of terminated runs.

A tick of the first is one request, however many jobs there are.

Both are safe to repeat: what was done is written in the runs' tags, and a run key starts one run only.
"""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta

import dagster as dg

import milkrun as mr
from dagster_milkrun import _host, runs
from dagster_milkrun.resources import MilkrunResource, opened
from dagster_milkrun.runs import State
from milkrun import outcome

INTERVAL_SECONDS = 2  # the sensor daemon looks every five seconds; at five, every second look would come too early
TICK_SECONDS = 30.0  # Dagster gives a tick 60
LAUNCHES_A_TICK = 200
READ_AGAIN_SECONDS = 600.0  # all unfinished jobs by id: heals what no event will tell any more
SHOW_SECONDS = 60.0  # between two looks at how far the jobs of held runs are
REMEMBERED = timedelta(days=7)  # how long a submitted job may go without a second run
_CANCELS_A_TICK = 200


@dataclass(slots=True)
class _Cursor:
    """Where a tick begins."""

    feed: str | None = None
    read_at: float = 0.0  #: when jobs were last read by id
    shown_at: float = 0.0  #: when held runs were last told how far their jobs are

    @classmethod
    def read(cls, text: str | None) -> "_Cursor":
        return cls(**json.loads(text)) if text else cls()

    def write(self) -> str:
        return json.dumps(asdict(self))


@dataclass(slots=True)
class _Tick:
    """One look at the engine."""

    context: dg.SensorEvaluationContext
    resource: MilkrunResource
    cursor: _Cursor
    requests: list[dg.RunRequest] = field(default_factory=list)
    released: int = 0

    def work(self) -> None:
        """Follow the feed; where it is new or has lost us, and now and then, read the jobs by id."""
        deadline = time.monotonic() + TICK_SECONDS
        location = _host.location_of_sensor(self.context)
        labels = {
            "milkrun/deployment": self.resource.deployment_of(self.context.instance),
            "milkrun/code_location": location,
            "milkrun/mode": "deferred",
        }
        client = self.resource.client
        # The same request either way: progress brings the changes of status too.
        shows = time.time() - self.cursor.shown_at > SHOW_SECONDS
        on = mr.FeedEvents.progress if shows else mr.FeedEvents.status
        more = True
        while more and time.monotonic() < deadline and len(self.requests) < LAUNCHES_A_TICK:
            after = self.cursor.feed
            try:
                news = client.changes(after=after, on=on, labels=labels, limit=LAUNCHES_A_TICK)
            except mr.ResponseError as error:
                if error.code != "cursor_lost" or after is None:
                    raise
                self.cursor = _Cursor()
                continue
            self.follow(news.jobs, shows=shows)
            self.release_deleted(news.deleted)
            self.cursor.feed, more = news.cursor, news.more
            if shows:
                self.cursor.shown_at = time.time()
            if time.time() - self.cursor.read_at > READ_AGAIN_SECONDS:
                self.read_again(location)

    def read_again(self, location: str) -> None:
        """Read the jobs that runs of this instance wait for, or submitted of late."""
        instance = self.context.instance
        since = datetime.now(UTC) - REMEMBERED
        held = instance.get_runs(
            dg.RunsFilter(tags={runs.STATE: State.waiting.value}, statuses=[dg.DagsterRunStatus.QUEUED])
        )
        first = instance.get_runs(dg.RunsFilter(tags={runs.STATE: State.submitted.value}, created_after=since))
        mine = [run for run in (*held, *first) if _host.location_of_run(run) == location]
        named = {job_id for run in mine for job_id, _ in runs.jobs_of(run)}
        ids = {job_id for job_id, some in runs.carrying(instance, named).items() if not runs.had_its_run(some)}
        found = self.resource.client.jobs(ids=sorted(ids))
        self.follow(job for job in found if job.labels.get("milkrun/mode") == "deferred")
        self.release_deleted(ids - {job.id for job in found})
        self.cursor.read_at = time.time()

    def follow(self, jobs: Iterable[mr.Job], *, shows: bool = False) -> None:
        """Give each job the run that it needs, or let its run go; `shows`: say on held runs how far the jobs are."""
        by_id = {job.id: job for job in jobs}
        instance = self.context.instance
        carrying = runs.carrying(instance, by_id)
        steps = {job_id: runs.decide(is_over=by_id[job_id].is_terminal, runs=carrying[job_id]) for job_id in by_id}
        new = {job_id: step.launch for job_id, step in steps.items() if step.launch is not None}
        submitters = {by_id[job_id].labels["milkrun/run_id"] for job_id in new}
        found = instance.get_runs(dg.RunsFilter(run_ids=sorted(submitters))) if submitters else []
        firsts = {run.run_id: run for run in found}
        for job_id, state in new.items():
            self.launch(by_id[job_id], firsts.get(by_id[job_id].labels["milkrun/run_id"]), state)
        for job_id, step in steps.items():
            if shows or step.release:
                runs.show_progress(instance, carrying[job_id], outcome.progress(by_id[job_id]))
            self.release(step.release)

    def launch(self, job: mr.Job, first: dg.DagsterRun | None, state: State) -> None:
        """Ask for the second run: the asset and what the first run was to make after it."""
        if first is None:
            self.context.log.warning("The run that submitted job %s was deleted: its results are left alone.", job.id)
            return
        if job.status is mr.JobStatus.cancelled and (runs.is_stopped(first) or self._was_replaced(job)):
            return
        repository = self.context.repository_def
        assert repository is not None
        asset = dg.AssetKey.from_user_string(job.labels["milkrun/asset"])
        try:
            onward = dg.AssetSelection.assets(asset).downstream().resolve(repository.asset_graph)
            selected = sorted(onward & _host.selected_keys(repository, first))
        except dg.DagsterError as error:  # of this job alone: the others' runs must not wait for ever
            message = (
                "The asset %s or the job of its run is not in this code location any more: job %s is left alone (%s)."
            )
            self.context.log.warning(message, asset.to_user_string(), job.id, error)
            return
        self.requests.append(
            dg.RunRequest(
                run_key=f"{job.id}:{state}",
                asset_selection=selected,
                run_config=first.run_config,
                tags=runs.tags_of_second(first, job_id=job.id, asset=asset.to_user_string(), state=state),
            )
        )

    def release(self, run_ids: Iterable[str]) -> None:
        """Let the queue start these held runs."""
        for run_id in run_ids:
            runs.mark(self.context.instance, run_id, State.ready)
            self.released += 1

    def release_deleted(self, job_ids: Iterable[str]) -> None:
        """Let the runs of deleted jobs go: they say so and fail."""
        for held in runs.carrying(self.context.instance, job_ids).values():
            self.release(runs.decide(is_over=True, runs=held).release)

    def _was_replaced(self, job: mr.Job) -> bool:
        return bool(self.context.instance.get_runs(dg.RunsFilter(tags={runs.REPLACED: job.id}), limit=1))


def build_completion_sensor(
    *,
    resource_key: str = "milkrun",
    name: str = "milkrun_completion",
    minimum_interval_seconds: int = INTERVAL_SECONDS,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """
    Return the sensor that starts the second runs of deferred assets, and lets them go when their jobs have ended.

    An engine that does not answer is a skipped tick; the next one goes on from the same cursor.
    """

    @dg.sensor(
        name=name,
        asset_selection=dg.AssetSelection.all(),
        required_resource_keys={resource_key},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Materializes deferred Milkrun assets when their jobs have ended.",
    )
    def completion(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        tick = _Tick(context, opened(context.resources, resource_key), _Cursor.read(context.cursor))
        try:
            tick.work()
        except mr.MilkrunError as error:
            # What was decided so far stands; the cursor is where the last answer ended.
            context.log.warning("%s", error)
            if not tick.requests:
                return dg.SensorResult(skip_reason=str(error), cursor=tick.cursor.write())
        reason = None if tick.requests else dg.SkipReason(f"{tick.released} held runs were let go")
        return dg.SensorResult(run_requests=tick.requests, skip_reason=reason, cursor=tick.cursor.write())

    return completion


def build_cancellation_sensor(
    *,
    resource_key: str = "milkrun",
    name: str = "milkrun_cancellation",
    minimum_interval_seconds: int = INTERVAL_SECONDS,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """
    Return the sensor that cancels the jobs of terminated runs, held ones too.

    It asks for runs that are terminated and whose jobs were not told yet, where a run status sensor would go on
    after an error: an engine that is down at that moment would never hear of it.
    """

    @dg.sensor(
        name=name,
        asset_selection=dg.AssetSelection.all(),
        required_resource_keys={resource_key},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description="Cancels the Milkrun jobs of terminated runs.",
    )
    def cancellation(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        location = _host.location_of_sensor(context)
        untold = [state.value for state in State if state is not State.cancelled]
        stopped = context.instance.get_runs(
            dg.RunsFilter(tags={runs.STATE: untold}, statuses=[dg.DagsterRunStatus.CANCELED]), limit=_CANCELS_A_TICK
        )
        mine = [run for run in stopped if _host.location_of_run(run) == location]
        if not mine:
            return dg.SkipReason("no terminated run")
        client = opened(context.resources, resource_key).client
        try:
            for run in mine:
                _cancel_jobs(client, run)
                runs.mark(context.instance, run.run_id, State.cancelled)
        except mr.MilkrunError as error:
            return dg.SkipReason(f"the next tick tries again: {error}")
        return dg.SkipReason(f"told the engine of {len(mine)} terminated runs")

    return cancellation


def _cancel_jobs(client: mr.Milkrun, run: dg.DagsterRun) -> None:
    for job_id, claim in runs.jobs_of(run):
        with suppress(mr.Conflict, mr.NotFound):  # a newer attempt has it, or it is gone
            client.cancel(job_id, claim)
