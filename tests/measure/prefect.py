"""
Flows that wait: what they hold meanwhile, and what becomes of them when something dies, on a real Prefect.

A server, a worker of four flow runs at once and a resumer, beside an engine over echo that does one row at a time:
a slow job holds it while the others wait behind it, and when that one is cancelled they end.
"""

import argparse
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from hosts.prefect import Prefect, until
from measure.report import figures, median, percentile, say, table
from stories.server import KEY, Server

import milkrun as mr

FLOWS = Path(__file__).resolve().parent.parent / "prefect_integration" / "measured.py"
WORKER_LIMIT = 4
PACE = 0.05  # seconds a row
ROWS = 5
LONG = "slow:3600 x"
LOOK_SECONDS = 12.0  # how long the processes of suspended flows are looked for
DOWN_SECONDS = 15.0
GRACE_SECONDS = 20.0  # the resumer's, for runs that crashed
CANCEL_SECONDS = 10.0  # the promise
QUIET_SECONDS = 10.0
PATIENCE = 1_800.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One scenario's line."""

    name: str
    runs: int
    kept: bool  #: whether the promise was
    seconds: float  #: what `of` says
    of: str
    jobs: int
    processes: int | str = "-"  #: of flows, the most that were seen while jobs ran
    more: Mapping[str, Any] = field(default_factory=dict)


class Stage:
    """One Prefect and one engine, and what is asked of both."""

    def __init__(self, prefect: Prefect, engine: Server, client: mr.Milkrun, flows: dict[str, str]) -> None:
        self.prefect = prefect
        self.engine = engine
        self.client = client
        self.flows = flows

    def jobs(self, run_id: str) -> list[mr.Job]:
        """The jobs of a flow run."""
        return self.client.jobs(labels={"prefect_flow_run_id": run_id})

    def job(self, run_id: str) -> mr.Job:
        """The one job of a flow run, as soon as there is one."""
        jobs = until(lambda: self.jobs(run_id), "the submit", logs=self.prefect.logs)
        assert len(jobs) == 1, f"flow run {run_id} has {len(jobs)} jobs"
        return jobs[0]

    def running(self, run_id: str) -> mr.Job:
        """The same, as soon as it runs."""
        return until(
            lambda: next((job for job in self.jobs(run_id) if job.status is mr.JobStatus.running), None),
            "a running job",
            logs=self.prefect.logs,
        )

    def blocker(self) -> str:
        """A job that holds the engine."""
        job_id = self.client.infer([LONG], job_priority=0)
        until(lambda: self.client.job(job_id).status is mr.JobStatus.running, "the blocker")
        return job_id

    def cancelled_after(self, job: mr.Job, seconds: float) -> float:
        """Seconds from now until the job is cancelled."""
        began = time.monotonic()
        until(
            lambda: self.client.job(job.id).status is mr.JobStatus.cancelled,
            f"the end of job {job.id}",
            seconds,
            self.prefect.logs,
        )
        return time.monotonic() - began


End = Callable[[Stage, Sequence[str]], str | None]  #: what happens when the jobs end; since when to measure then


def main() -> int:
    """Measure and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--few-runs", type=int, default=8, help="where something is down when the jobs end")
    parser.add_argument("--waiters", type=int, default=1_000)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--only", default=",".join(SCENARIOS), help="some of the default, with commas")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left of what was started, then too
    lines: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="milkrun-prefect-") as folder, _stage(Path(folder)) as stage:
        for name in options.only.split(","):
            say(f"{name} …")
            try:
                lines.append(SCENARIOS[name](stage, options))
            except AssertionError as error:
                say(str(error))
                lines.append(Seen(name, 0, kept=False, seconds=0.0, of="until it was given up", jobs=0))
                break  # what it left behind would disturb the others
            say(f"  {lines[-1].seconds:.1f} s {lines[-1].of}")
    columns = ("scenario", "kept", "runs", "jobs", "flow processes", "seconds", "of")
    table(columns, [(s.name, "yes" if s.kept else "no", s.runs, s.jobs, s.processes, s.seconds, s.of) for s in lines])
    figures(
        "prefect", {s.name: {"kept": s.kept, "runs": s.runs, "seconds": round(s.seconds, 2), **s.more} for s in lines}
    )
    return 0 if all(line.kept for line in lines) else 1


@contextmanager
def _stage(folder: Path) -> Iterator[Stage]:
    (home := folder / "prefect").mkdir()
    engine = Server(folder, pace=PACE, engine_args={"window_rows": 1, "handout_rows": 1})
    environ = {"MILKRUN_URL": engine.url, "MILKRUN_API_KEY": KEY}
    with engine, engine.client() as client, Prefect(home, environ) as prefect:
        prefect.work(WORKER_LIMIT)
        flows = {name: prefect.deploy(FLOWS, name) for name in ("classify", "hooked", "hangs")}
        yield Stage(prefect, engine, client, flows)


@contextmanager
def _resumer(stage: Stage) -> Iterator[None]:
    stage.prefect.resume("--grace-seconds", str(GRACE_SECONDS))
    try:
        yield
    finally:
        stage.prefect.stop("resumer")


def _suspended(stage: Stage, name: str, runs: int, end: End = lambda *_: None, **parameters: Any) -> Seen:
    """Suspend runs, count their processes, end their jobs, and wait for all runs; `end` makes that harder."""
    blocker = stage.blocker()
    run_ids = [
        stage.prefect.trigger(stage.flows["classify"], rows=[f"row {number}"] * ROWS, **parameters)
        for number in range(runs)
    ]
    stage.prefect.await_states(run_ids, "Suspended", seconds=PATIENCE)
    until(lambda: not stage.prefect.flow_processes(), "the processes' end", logs=stage.prefect.logs)
    most, look_until = 0, time.monotonic() + LOOK_SECONDS
    while time.monotonic() < look_until:
        most = max(most, len(stage.prefect.flow_processes()))
        time.sleep(0.5)
    unended = all(not stage.job(run_id).is_terminal for run_id in run_ids)
    say(f"  {runs} runs suspended, {most} flow processes; the jobs end now")
    stage.client.cancel(blocker)
    since = end(stage, run_ids) or "the jobs' end"
    began = time.monotonic()
    stage.prefect.await_states(run_ids, "Completed", seconds=PATIENCE)
    seconds = time.monotonic() - began
    jobs = [job for run_id in run_ids for job in stage.jobs(run_id)]
    succeeded = len(jobs) == runs and all(job.status is mr.JobStatus.succeeded for job in jobs)
    of = f"from {since} until all have completed"
    return Seen(name, runs, succeeded and unended and most == 0, seconds, of, len(jobs), most)


def suspended(stage: Stage, options: argparse.Namespace) -> Seen:
    """Many runs through a worker of few, resumed by the engine's callbacks."""
    return _suspended(stage, "suspended", options.runs)


def server_down(stage: Stage, options: argparse.Namespace) -> Seen:
    """Nobody hears the callbacks' first try."""
    return _suspended(stage, "server_down", options.few_runs, _server_is_down)


def server_down_resumer(stage: Stage, options: argparse.Namespace) -> Seen:
    """The same, and the engine never calls."""
    with _resumer(stage):
        return _suspended(stage, "server_down_resumer", options.few_runs, _server_is_down, called=False)


def engine_down(stage: Stage, options: argparse.Namespace) -> Seen:
    """The engine dies between the first job's end and the last one's."""
    return _suspended(stage, "engine_down", options.few_runs, _engine_dies)


def engine_down_resumer(stage: Stage, options: argparse.Namespace) -> Seen:
    """The same, and the engine never calls."""
    with _resumer(stage):
        return _suspended(stage, "engine_down_resumer", options.few_runs, _engine_dies, called=False)


def _server_is_down(stage: Stage, _run_ids: Sequence[str]) -> str:
    stage.prefect.kill("server")
    time.sleep(DOWN_SECONDS)
    waiting = stage.client.jobs(limit=None, status=mr.JobStatus.queued)
    assert not waiting, "the jobs should have ended while the server was down"
    stage.prefect.start("server")
    stage.prefect.await_server()
    return "the server's return"


def _engine_dies(stage: Stage, run_ids: Sequence[str]) -> str:
    until(lambda: any(stage.job(run_id).is_terminal for run_id in run_ids), "the first job's end")
    say(f"  killed when {sum(stage.job(run_id).is_terminal for run_id in run_ids)} of {len(run_ids)} jobs had ended")
    stage.engine.kill()
    time.sleep(DOWN_SECONDS / 3)
    stage.engine.start()
    return "the engine's return"


def killed_in_submit(stage: Stage, _options: argparse.Namespace) -> Seen:
    """Worker and flow process die when the engine has accepted and the flow has not heard of it."""
    accepted = stage.prefect.folder / "accepted"
    run_id = stage.prefect.trigger(stage.flows["hangs"], rows=["slow:2 x"], accepted=str(accepted))
    until(accepted.exists, "the submit", logs=stage.prefect.logs)
    return _killed_and_retried(stage, "killed_in_submit", run_id)


def killed_in_wait(stage: Stage, _options: argparse.Namespace) -> Seen:
    """Worker and flow process die while the flow waits in place."""
    run_id = stage.prefect.trigger(stage.flows["classify"], rows=["slow:30 x"], defer="block")
    stage.running(run_id)
    return _killed_and_retried(stage, "killed_in_wait", run_id)


def _killed_and_retried(stage: Stage, name: str, run_id: str) -> Seen:
    """Nothing says on its own that the run is dead: a user marks it as crashed, and retries it."""
    with _resumer(stage):
        _kill_worker(stage, run_id)
        began = time.monotonic()
        stage.prefect.set_state(run_id, "CRASHED")
        stage.prefect.start("worker")
        stage.prefect.set_state(run_id, "SCHEDULED", "AwaitingRetry")
        stage.prefect.await_state(run_id, "Completed")
    jobs = stage.jobs(run_id)
    kept = [mr.JobStatus.succeeded] == [job.status for job in jobs]
    return Seen(name, 1, kept, time.monotonic() - began, "from the retry until it has completed", len(jobs))


def abandoned(stage: Stage, _options: argparse.Namespace) -> Seen:
    """Worker and flow process die; the run is marked as crashed, and nobody comes back to it."""
    return _lost(stage, "abandoned", "CRASHED", GRACE_SECONDS)


def cancelled_without_worker(stage: Stage, _options: argparse.Namespace) -> Seen:
    """Worker and flow process die; the run is cancelled, and nobody is there to do it."""
    return _lost(stage, "cancelled_without_worker", "CANCELLING", 0.0)


def _lost(stage: Stage, name: str, state: str, grace: float) -> Seen:
    run_id = stage.prefect.trigger(stage.flows["classify"], rows=[LONG], defer="block")
    job = stage.running(run_id)
    with _resumer(stage):
        _kill_worker(stage, run_id)
        stage.prefect.set_state(run_id, state)
        seconds = stage.cancelled_after(job, 120)
        stage.prefect.start("worker")
    of = f"from then until its job is cancelled; grace: {grace:.0f} s"
    return Seen(name, 1, seconds <= grace + CANCEL_SECONDS, seconds, of, len(stage.jobs(run_id)))


def _kill_worker(stage: Stage, run_id: str) -> None:
    stage.prefect.kill("worker")
    stage.prefect.kill_flow(run_id)  # an orphan, if it was none of the worker's children


def cancelled_suspended(stage: Stage, _options: argparse.Namespace) -> Seen:
    """A suspended run is cancelled."""
    run_id = stage.prefect.trigger(stage.flows["classify"], rows=[LONG])
    stage.prefect.await_state(run_id, "Suspended")
    with _resumer(stage):
        return _cancel(stage, "cancelled_suspended", run_id)


def cancelled_blocking(stage: Stage, _options: argparse.Namespace) -> Seen:
    """A run that waits in place is cancelled, and has no hook."""
    run_id = stage.prefect.trigger(stage.flows["classify"], rows=[LONG], defer="block")
    stage.running(run_id)
    with _resumer(stage):
        return _cancel(stage, "cancelled_blocking", run_id)


def cancelled_hooked(stage: Stage, _options: argparse.Namespace) -> Seen:
    """A run that waits in place is cancelled; there is no resumer, but the flow has `cancels_jobs`."""
    run_id = stage.prefect.trigger(stage.flows["hooked"], rows=[LONG])
    stage.running(run_id)
    return _cancel(stage, "cancelled_hooked", run_id)


def _cancel(stage: Stage, name: str, run_id: str) -> Seen:
    job = stage.job(run_id)
    stage.prefect.set_state(run_id, "CANCELLING")
    seconds = stage.cancelled_after(job, 60)
    stage.prefect.await_state(run_id, "Cancelled")
    of = "from the click until the job is cancelled"
    return Seen(name, 1, seconds <= CANCEL_SECONDS, seconds, of, len(stage.jobs(run_id)))


def waiters(stage: Stage, options: argparse.Namespace) -> Seen:
    """Many waiting tasks in one process: its connections to the engine and its requests while nothing happens."""
    count = options.waiters
    blocker = stage.blocker()
    with ThreadPoolExecutor(WORKER_LIMIT) as threads:
        job_ids = list(threads.map(lambda number: stage.client.infer([f"job {number}"]), range(count)))
    asked, answered = stage.prefect.folder / "job_ids", stage.prefect.folder / "waits"
    asked.write_text("\n".join(job_ids))
    stage.prefect.start("waits", FLOWS, asked, answered)
    process = psutil.Process(stage.prefect.pid("waits"))
    waiting = {"task_runs": {"name": {"like_": "milkrun-wait"}, "state": {"type": {"any_": ["RUNNING"]}}}}
    until(lambda: stage.prefect.call("POST", "/task_runs/count", waiting) == count, "all waits", PATIENCE)
    time.sleep(QUIET_SECONDS)  # the watcher reads the jobs that are new to it
    say(f"  {count} tasks wait; nothing happens for {options.idle_seconds:.0f} s")
    began, connections = time.time(), []
    while time.time() < began + options.idle_seconds:
        connections.append(_connections(process, stage.engine.url))
        time.sleep(1.0)
    ended = time.time()
    stage.client.cancel(blocker)
    until(answered.exists, "the last waiter", PATIENCE, stage.prefect.logs)
    found = json.loads(answered.read_text())
    requests = sum(began <= at < ended for at in found["requests"]) / (ended - began) * 60
    jobs = stage.client.jobs(limit=None, ids=job_ids)
    kept = len(found["late"]) == count == sum(job.status is mr.JobStatus.succeeded for job in jobs)
    more = {
        "connections": connections[-1],
        "connections_at_most": max(connections),  # one more, for a while, by which new jobs were read
        "requests_a_minute": round(requests, 1),
        "late_median_s": median(found["late"]),
        "late_p99_s": percentile(found["late"], 0.99),
    }
    of = f"from a job's end to its last task; connections: {connections[-1]}, requests a minute: {requests:.1f}"
    kept = kept and connections[-1] == 1 and max(connections) <= 2
    return Seen("waiters", 1, kept, max(found["late"]), of, len(jobs), more=more)


def _connections(process: psutil.Process, url: str) -> int:
    port = int(url.rpartition(":")[2])
    return sum(each.raddr.port == port for each in process.net_connections() if each.raddr)


SCENARIOS: dict[str, Callable[[Stage, argparse.Namespace], Seen]] = {
    scenario.__name__: scenario
    for scenario in (
        suspended,
        server_down,
        server_down_resumer,
        engine_down,
        engine_down_resumer,
        killed_in_submit,
        killed_in_wait,
        abandoned,
        cancelled_suspended,
        cancelled_blocking,
        cancelled_hooked,
        cancelled_without_worker,
        waiters,
    )
}
