"""
Backfills on a real `dagster dev`: what waits while their jobs run, and does each partition come out once?

One backfill takes a run a partition, the other one all partitions in a single run; both are deferred. A slow
job holds the engine's replica until all of their runs are held. The second time all of Dagster is killed while
they are held; and when a third of the jobs have ended, daemon and engine are killed and the change feed forgets
the sensor's cursor.
"""

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

from hosts.dagster import HELD, Dev, until
from measure.report import figures, say, table
from stories.server import KEY, Server

import milkrun as mr

PROJECT = Path(__file__).resolve().parent.parent / "dagster_integration" / "backfills.py"
CONFIG = HELD + "    max_concurrent_runs: 4\n"
BLOCKER_SECONDS = 3_600
START_SECONDS = 1_800.0  # two cores start a run in about five seconds
CANCEL_SECONDS = 10.0
LOOK_SECONDS = 2.0


@dataclass(slots=True)
class Round:
    """What one round's backfills came to."""

    name: str
    partitions: int = 0
    runs_held: int = 0
    held_after_s: float = 0.0
    processes_launching: int = 0  #: the most run processes while the first runs came and went
    processes_held: int = 0  #: the most while all runs were held
    cancelled_s: float = 0.0  #: from the click on Terminate to the job's end, the longest
    done_after_s: float = 0.0  #: from the end of the slow job
    broken: list[str] = field(default_factory=list)

    def expect(self, what: str, expected: object, found: object) -> None:
        """Note a promise that was not kept."""
        if expected != found:
            self.broken.append(f"{self.name}: {what}: expected {expected}, found {found}")


def main() -> int:
    """Measure and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--multi", type=int, default=40, help="partitions of the backfill with a run for each")
    parser.add_argument("--single", type=int, default=200, help="partitions of the backfill in a single run")
    parser.add_argument("--terminated", type=int, default=3, help="held runs to terminate")
    parser.add_argument("--hold-seconds", type=float, default=60.0, help="how long to count processes")
    parser.add_argument("--pace", type=float, default=0.5, help="seconds between two rows' ends")
    options = parser.parse_args()
    rounds = []
    for name in ("undisturbed", "killed"):
        with tempfile.TemporaryDirectory(prefix="milkrun-dagster-") as folder:
            rounds.append(_measure(Round(name), Path(folder), options))
    names = [each.name for each in fields(Round) if each.name != "broken"]
    table([name.replace("_", " ") for name in names], [astuple(each)[: len(names)] for each in rounds])
    broken = [text for each in rounds for text in each.broken]
    lines = [dict(zip(names, astuple(each), strict=False)) for each in rounds]
    figures("dagster", {"multi": options.multi, "single": options.single, "broken": broken, "rounds": lines})
    return 1 if broken else 0


def _measure(found: Round, folder: Path, options: argparse.Namespace) -> Round:
    keys = {
        "alone": [f"a{n:03}" for n in range(options.multi)],
        "together": [f"t{n:03}" for n in range(options.single)],
    }
    found.partitions = options.multi + options.single
    (home := folder / "home").mkdir()
    (folder / "engine").mkdir()
    server = Server(folder / "engine", pace=options.pace, engine_args={"window_rows": 1, "handout_rows": 1})
    dev = Dev(
        home,
        PROJECT,
        CONFIG,
        MILKRUN_URL=server.url,
        MILKRUN_API_KEY=KEY,
        **{f"PARTITIONS_{asset.upper()}": " ".join(those) for asset, those in keys.items()},
    )
    with server, server.client() as client, dev:
        blocker = client.infer([f"slow:{BLOCKER_SECONDS}"], job_priority=0)
        until(60, lambda: client.job(blocker).status is mr.JobStatus.running)
        began = time.monotonic()
        backfills = {asset: dev.backfill(asset, those) for asset, those in keys.items()}
        endless = [dev.launch("endless") for _ in range(options.terminated)]
        with _most_run_processes(dev) as launching:
            _await_all_held(dev, options.multi + 1 + len(endless))
        found.processes_launching = max(launching)
        found.held_after_s = round(time.monotonic() - began, 1)
        found.runs_held = options.multi + 1 + len(endless)
        say(f"{found.name}: {found.runs_held} runs held after {found.held_after_s:.0f} s")
        with _most_run_processes(dev) as held:
            time.sleep(options.hold_seconds)
        found.processes_held = max(held)
        found.expect("run processes while jobs run", 0, found.processes_held)
        found.expect("the run processes were counted", True, found.processes_launching > 0)
        _terminate(found, dev, client)
        if is_killed := found.name == "killed":
            dev.kill()
            dev.start()
        ended = time.monotonic()
        client.cancel(blocker)
        if is_killed:
            _kill(found, dev, server, client, options)
        for asset, backfill_id in backfills.items():
            status = dev.backfill_ends(backfill_id, START_SECONDS)
            found.expect(f"backfill of {asset}", "COMPLETED_SUCCESS", status)
        found.done_after_s = round(time.monotonic() - ended, 1)
        say(f"{found.name}: done after {found.done_after_s:.0f} s")
        _judge(found, dev, client, keys, backfills, others=len(endless) + 1)
    return found


def _await_all_held(dev: Dev, count: int) -> None:
    """Wait until all first runs have ended and each left a run in the queue."""

    def all_held() -> bool:
        held = [run for run in dev.runs(milkrun__state="waiting") if run["status"] == "QUEUED"]
        return len(held) == count and not dev.run_processes()

    until(START_SECONDS, all_held, LOOK_SECONDS)


@contextmanager
def _most_run_processes(dev: Dev) -> Iterator[list[int]]:
    """Count the run processes once a second, in the background."""
    counts: list[int] = []
    is_over = False

    def count() -> None:
        while not is_over:
            counts.append(len(dev.run_processes()))
            time.sleep(1)

    with ThreadPoolExecutor(1) as thread:
        counted = thread.submit(count)
        try:
            yield counts
        finally:
            is_over = True
            counted.result()


def _terminate(found: Round, dev: Dev, client: mr.Milkrun) -> None:
    """Click on Terminate of the held runs of `endless`, one after the other."""
    for run in dev.runs(milkrun__asset="endless"):
        clicked = time.monotonic()
        dev.terminate(run["runId"])
        job_id = run["tags"]["milkrun/job_id"]
        until(60, lambda job_id=job_id: client.job(job_id).status is mr.JobStatus.cancelled, 0.1)
        found.cancelled_s = max(found.cancelled_s, round(time.monotonic() - clicked, 1))
    say(f"{found.name}: cancelled at most {found.cancelled_s:.1f} s after the click")
    found.expect("cancelled in time", True, found.cancelled_s <= CANCEL_SECONDS)


def _kill(found: Round, dev: Dev, server: Server, client: mr.Milkrun, options: argparse.Namespace) -> None:
    """Kill daemon and engine when a third of the jobs have ended, and start both again on a pruned feed."""
    labels = {"milkrun/asset": "alone"}
    until(START_SECONDS, lambda: _ended(client, labels) >= options.multi / 3)
    cursor = _cursor(dev)
    say(f"killed: {_ended(client, labels)} of {options.multi} jobs have ended, {len(dev.run_processes())} runs go on")
    dev.kill_daemon()
    server.kill()
    floor = _prune(server.data_dir)
    server.start()
    try:
        client.changes(after=cursor)
    except mr.ResponseError as error:
        found.expect("the cursor's end", "cursor_lost", error.code)
    else:
        found.broken.append("the feed still knew the sensor's cursor")
    dev.start()
    until(120, lambda: _number(_cursor(dev)) >= floor)


def _prune(data_dir: Path) -> int:
    """Let the feed forget all that it told so far; the smallest cursor that it knows."""
    with closing(sqlite3.connect(data_dir / "milkrun.db")) as ledger, ledger:
        ledger.execute("UPDATE tenants SET change_number = change_number + 1")
        ledger.execute("UPDATE tenants SET change_floor = change_number")
        return int(ledger.execute("SELECT max(change_floor) FROM tenants").fetchone()[0])


def _cursor(dev: Dev) -> str:
    """Where the sensor stands in the change feed."""
    cursor = json.loads(dev.cursor("milkrun_completion") or "{}")
    return str(cursor["feed"])


def _number(cursor: str) -> int:
    return int(cursor.rpartition(".")[2])


def _ended(client: mr.Milkrun, labels: Mapping[str, str]) -> int:
    return sum(job.is_terminal for job in client.jobs(None, labels=labels))


def _judge(
    found: Round,
    dev: Dev,
    client: mr.Milkrun,
    keys: Mapping[str, list[str]],
    backfills: Mapping[str, str],
    *,
    others: int,
) -> None:
    """Each partition once, and no job or run too many."""
    jobs = {"alone": len(keys["alone"]), "together": 1}
    for asset, those in keys.items():
        made = sorted(each["partition"] for each in dev.materializations(asset))
        found.expect(f"partitions of {asset}", those, made)
        statuses = [job.status.value for job in client.jobs(None, labels={"milkrun/backfill": backfills[asset]})]
        found.expect(f"jobs of {asset}", ["succeeded"] * jobs[asset], statuses)
        done = [run["status"] for run in dev.runs(milkrun__asset=asset)]
        found.expect(f"second runs of {asset}", ["SUCCESS"] * jobs[asset], done)
    found.expect("jobs in all", sum(jobs.values()) + others, len(client.jobs(None)))
    found.expect("run processes at the end", [], dev.run_processes())
