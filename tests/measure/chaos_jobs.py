"""
The jobs of a chaos run: what they ask, who submits them while servers die, and what became of each.
"""

import json
import math
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from checker import Evidence, Place, echo_answers, violations
from checker.ledger import opened
from stories.server import free_port, wait_for

import milkrun as mr

PATIENCE_SECONDS = 120.0
SIZES = (1, 8, 40, 300)  # the last one has two windows
WEIGHTS = (3, 6, 8, 3)


@dataclass(frozen=True)
class Plan:
    """One job: when it is submitted and what of it is asked."""

    key: str
    texts: list[str]
    priority: int
    at: float  #: seconds after the beginning
    cancel_after: float | None
    calls_back: bool

    @classmethod
    def of(cls, chance: random.Random, number: int, within_seconds: float) -> Self:
        """A job by chance."""
        rows = chance.choices(SIZES, WEIGHTS)[0]
        texts = [f"fail: timeout {index}" if chance.random() < 0.02 else f"row {index}" for index in range(rows)]
        return cls(
            key=f"job {number}",
            texts=texts,
            priority=chance.randint(0, 3),
            at=chance.uniform(0, within_seconds),
            cancel_after=chance.uniform(0, 2) if chance.random() < 0.2 else None,
            calls_back=chance.random() < 0.3,
        )


@dataclass
class Verdict:
    """What became of jobs: figures that add up."""

    jobs: int = 0
    rows: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    not_terminal: int = 0
    violations: list[str] = field(default_factory=list)


class Receiver:
    """The process that hears callbacks."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "heard.log"
        self._log.touch()
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/"
        self.start()

    def start(self) -> None:
        """Listen."""
        script = str(Path(__file__).with_name("chaos_receiver.py"))
        self._process = subprocess.Popen([sys.executable, script, str(self._port), str(self._log)])

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.wait()

    def heard(self) -> dict[str, set[str]]:
        """The ids of what was heard, by job."""
        ids: dict[str, set[str]] = {}
        for line in self._log.read_text().splitlines():
            ids.setdefault((heard := json.loads(line))["job_id"], set()).add(heard["id"])
        return ids


class Callers:
    """Submits and cancels as planned, each call for as long as nobody answers, up to the patience in seconds."""

    def __init__(
        self,
        plans: Sequence[Plan],
        clients: Sequence[mr.Milkrun],
        receiver: Receiver,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._patience = patience
        self.plans = plans
        self._clients = clients
        self._receiver = receiver
        self._began = time.monotonic()
        self._pool = ThreadPoolExecutor(8)
        early = sorted(enumerate(plans), key=lambda each: each[1].at)  # a caller that waits holds a place
        calls = {number: self._pool.submit(self._call, number, plan) for number, plan in early}
        self._calls = [calls[number] for number in range(len(plans))]

    def _call(self, number: int, plan: Plan) -> str:
        client = self._clients[number % len(self._clients)]
        time.sleep(max(0.0, self._began + plan.at - time.monotonic()))
        job_id = insist(
            lambda: (
                client.submit(
                    plan.texts,
                    job_priority=plan.priority,
                    idempotency_key=plan.key,
                    callback=mr.Callback(url=self._receiver.url) if plan.calls_back else None,
                ).job.id
            ),
            self._patience,
        )
        if plan.cancel_after is not None:
            time.sleep(plan.cancel_after)
            insist(lambda: client.cancel(job_id), self._patience)
        return job_id

    def job_ids(self) -> list[str]:
        """The jobs in the order of their plans."""
        self._pool.shutdown()
        return [call.result() for call in self._calls]

    def give_up(self) -> None:
        """Begin no call any more; nothing, once all have ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def insist(call: Callable[[], Any], patience: float = PATIENCE_SECONDS) -> Any:
    """What a caller gets who asks again for as long as nobody answers."""

    def answer() -> Any:
        try:
            return [call()]
        except (mr.RequestError, mr.EngineUnavailable):
            return None

    return wait_for(answer, seconds=patience, what="an answer")[0]


def await_ends(client: mr.Milkrun, job_ids: Sequence[str]) -> int:
    """Wait until all jobs are over; returns how many are not."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        live = [job for job in insist(lambda: client.jobs(ids=job_ids)) if not job.status.is_terminal]
        if not live or time.monotonic() > deadline:
            return len(live)
        time.sleep(0.1)


def hurry_callbacks(place: Place) -> None:
    """Let those that met a dead receiver be due now, not minutes later, and wait until all are delivered."""

    def pending() -> int:
        with written(place) as ledger:
            return int(ledger.execute("UPDATE callbacks SET due_at = 0 WHERE state = 'pending'").rowcount)

    wait_for(lambda: not pending(), seconds=PATIENCE_SECONDS, what="every callback")


@contextmanager
def written(place: Place) -> Iterator[Any]:
    """The ledger, to be written: this is no reader's business."""
    if isinstance(place.database, Path):
        with closing(sqlite3.connect(place.database, timeout=30)) as connection, connection:
            yield connection
        return
    import psycopg

    with psycopg.connect(place.database) as connection:
        yield connection


def undelivered(
    place: Place, job_ids: Sequence[str], heard: dict[str, set[str]], calls_back: Sequence[bool]
) -> list[str]:
    """Which callbacks are not marked as delivered, were not heard, or had two ids."""
    with opened(place) as ledger:
        states = {row["job_id"]: row["state"] for row in ledger.ask("SELECT job_id, state FROM callbacks")}
    return [
        f"the callback of {job_id} is {states.get(job_id)}, heard as {heard.get(job_id)}"
        for job_id, wanted in zip(job_ids, calls_back, strict=True)
        if (states.get(job_id), len(heard.get(job_id, ()))) != (("delivered", 1) if wanted else (None, 0))
    ]


def judge(plans: Sequence[Plan], evidence: Callable[[Plan, str], Evidence], job_ids: Sequence[str]) -> Verdict:
    """Let the checker look at every job."""
    verdict = Verdict(jobs=len(plans), rows=sum(len(plan.texts) for plan in plans))
    if len(set(job_ids)) != len(plans):
        verdict.violations.append(f"{len(plans)} keys have {len(set(job_ids))} jobs")
    for plan, job_id in zip(plans, job_ids, strict=True):
        known = evidence(plan, job_id)
        times = Counter(row.index for row in known.rows)
        verdict.rows_doubled += sum(times.values()) - len(times)
        if known.job["status"] != "cancelled":
            verdict.rows_lost += len(plan.texts) - len(times)
        verdict.not_terminal += known.job["status"] not in ("succeeded", "cancelled")
        verdict.violations += violations(known)
    return verdict


def answers_of(plan: Plan) -> Any:
    """What echo must say to a job."""
    return echo_answers("fail: timeout" if text.startswith("fail:") else text for text in plan.texts)


def recovery_seconds(place: Place, kills: Sequence[float]) -> float:
    """The longest time from a server's death to the next committed row of a job that was there."""
    with opened(place) as ledger:
        commits = ledger.ask(
            "SELECT jobs.created_at, chunks.committed_at FROM chunks JOIN jobs ON jobs.id = chunks.job_id "
            "WHERE chunks.committed_at IS NOT NULL"
        )
    times = sorted(kills)
    longest = 0.0
    for at, following in zip(times, [*times[1:], math.inf], strict=False):  # without a kill: none
        after = [row["committed_at"] for row in commits if row["created_at"] < at < row["committed_at"]]
        if after and min(after) < following:  # else it was killed again before it could
            longest = max(longest, min(after) - at)
    return round(longest, 3)


def failed_requests(log: Path) -> list[str]:
    """Requests that ended as `internal`: a kill explains none."""
    return [line[:300] for line in log.read_text(errors="replace").splitlines() if '"internal_error"' in line]
