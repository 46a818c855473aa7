"""
Waiting for many jobs through one connection: what it costs while nothing happens, and how soon an end is known.

One slow job holds the replica while the others wait behind it. When it is cancelled they end one
after the other.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from measure.report import figures, median, percentile, say, table
from stories.server import KEY, Server, wait_for

import milkrun as mr

QUIET_SECONDS = 5.0
BLOCKER_SECONDS = 900
SUBMITTERS = 8


class Counted(httpx.HTTPTransport):
    """One connection at most; remembers when each request was sent."""

    def __init__(self) -> None:
        super().__init__(limits=httpx.Limits(max_connections=1))
        self.sent: list[float] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(time.monotonic())
        return super().handle_request(request)


def main() -> int:
    """Measure and report; 1 when a job's end was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between two ends")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="milkrun-waiters-") as folder:
        return _measure(Path(folder), options.jobs, options.idle_seconds, options.pace)


def _measure(folder: Path, jobs: int, idle_seconds: float, pace: float) -> int:
    server = Server(folder, pace=pace, engine_args={"window_rows": 1, "handout_rows": 1})
    transport = Counted()
    with server, server.client() as client, mr.Milkrun(server.url, KEY, transport=transport) as waiter:
        blocker = client.infer([f"slow:{BLOCKER_SECONDS}"], job_priority=0)
        wait_for(lambda: client.job(blocker).status is mr.JobStatus.running, what="the blocker")
        began = time.monotonic()
        with ThreadPoolExecutor(SUBMITTERS) as threads:
            job_ids = list(threads.map(lambda number: client.infer([f"job {number}"]), range(jobs)))
        submitted = time.monotonic() - began
        say(f"{jobs} jobs submitted in {submitted:.1f} s")
        # Wait until all are prepared: what follows is nothing but waiting.
        wait_for(lambda: not client.jobs(limit=1, status=mr.JobStatus.preparing), seconds=120, what="preparation")
        idle = _Idle(psutil.Process(server.pid), transport, idle_seconds, lambda: client.cancel(blocker))
        late: list[float] = []
        for job in waiter.as_ended(job_ids, timeout=BLOCKER_SECONDS):
            assert job.finished_at is not None
            late.append(time.time() - job.finished_at.timestamp())
        idle.thread.join()
        requests = len(transport.sent)
    columns = ("jobs", "idle s", "requests/min", "server CPU %", "end to waiter, median s", "p99 s", "requests")
    facts = (
        jobs, idle.seconds, idle.requests_a_minute, idle.cpu_percent, median(late), percentile(late, 0.99), requests,
    )  # fmt: skip
    table(columns, [facts])
    names = (
        "jobs", "idle_seconds", "requests_a_minute", "server_cpu_percent", "end_to_waiter_median_s",
        "end_to_waiter_p99_s", "requests",
    )  # fmt: skip
    figures("waiters", {**dict(zip(names, facts, strict=True)), "ended": len(late), "submit_s": round(submitted, 1)})
    return 0 if len(late) == jobs else 1


class _Idle:
    """Measures the time in which nothing happens, then ends it."""

    def __init__(self, process: psutil.Process, transport: Counted, seconds: float, end: Callable[[], object]) -> None:
        self.seconds = seconds
        self.requests_a_minute = self.cpu_percent = 0.0
        self._process = process
        self._transport = transport
        self._end = end
        self.thread = threading.Thread(target=self._measure, daemon=True)
        self.thread.start()

    def _measure(self) -> None:
        time.sleep(QUIET_SECONDS)  # the waiter subscribes and reads its jobs
        say(f"nothing happens for {self.seconds:.0f} s")
        cpu, began = self._cpu_seconds(), time.monotonic()
        time.sleep(self.seconds)
        self.cpu_percent = round((self._cpu_seconds() - cpu) / self.seconds * 100, 2)
        self.requests_a_minute = round(sum(at >= began for at in self._transport.sent) / self.seconds * 60, 1)
        say("the jobs end now")
        self._end()

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
