"""
Waiting for many jobs through one connection: what it costs while nothing happens, and how soon an end is known.

One slow row holds the replica while the jobs wait behind it; then they end one after the other.
"""

import argparse
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from measure.report import figures, median, percentile, say, table
from stories.server import KEY, Server

import milkrun as mr

QUIET_SECONDS = 5.0


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
        began = time.monotonic()
        # The blocker must outlast the submits, which take a while, and the idle time after them.
        blocker = client.infer([f"slow:{idle_seconds + 3 * QUIET_SECONDS + jobs * 0.03}"], job_priority=0)
        while client.job(blocker).status is not mr.JobStatus.running:
            time.sleep(0.05)
        job_ids = [client.infer([f"job {number}"]) for number in range(jobs)]
        say(f"{jobs} jobs submitted in {time.monotonic() - began:.1f} s")
        process = psutil.Process(server.pid)
        reader = waiter.as_ended([blocker, *job_ids], timeout=600)
        idle = _Idle(process, transport, idle_seconds)
        late: list[float] = []
        for job in reader:
            idle.end_of(job.id == blocker)
            assert job.finished_at is not None
            if job.id != blocker:
                late.append(time.time() - job.finished_at.timestamp())
        requests = len(transport.sent)
    delays = median(late), percentile(late, 0.99)
    table(
        ("jobs", "idle s", "requests/min", "server CPU %", "end to waiter, median s", "p99 s", "requests"),
        [
            (
                jobs,
                idle.seconds,
                idle.requests_a_minute,
                idle.cpu_percent,
                median(late),
                percentile(late, 0.99),
                requests,
            )
        ],
    )
    figures("waiters", {
        "jobs": jobs, "ended": len(late), "idle_seconds": idle.seconds, "requests_a_minute": idle.requests_a_minute,
        "server_cpu_percent_idle": idle.cpu_percent, "end_to_waiter_median_s": delays[0],
        "end_to_waiter_p99_s": delays[1], "requests": requests,
    })  # fmt: skip
    return 0 if len(late) == jobs else 1


class _Idle:
    """What happens between the last submit and the blocker's end, when nothing does."""

    def __init__(self, process: psutil.Process, transport: Counted, seconds: float) -> None:
        self._process = process
        self._transport = transport
        self._began = time.monotonic()
        self._cpu = self._cpu_seconds()
        self.seconds = self.requests_a_minute = self.cpu_percent = 0.0
        say(f"waiting; nothing ends for {seconds:.0f} s or more")

    def end_of(self, blocker: bool) -> None:
        """The blocker has ended: the idle time is over."""
        if not blocker:
            return
        self.seconds = round(time.monotonic() - self._began, 1)
        sent = sum(at >= self._began for at in self._transport.sent)
        self.requests_a_minute = round(sent / self.seconds * 60, 1)
        self.cpu_percent = round((self._cpu_seconds() - self._cpu) / self.seconds * 100, 2)
        say(f"idle for {self.seconds} s; the jobs end now")

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)
