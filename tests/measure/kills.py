"""
`kill -9` of the server at random moments of one job's life: is anything lost, and what is done twice?

One echo job is slowed to take a minute. The first two kills fall between windows of its
preparation, the last one between the last result file and its commit, the others anywhere.
The result is compared with an undisturbed run, and the checker judges it.
"""

import argparse
import random
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from checker import Answer, echo_answers, violations
from checker.ledger import opened
from checker.rules import rows_redone
from measure.report import figures, median, say, table
from stories.server import Server, wait_for

import milkrun as mr

PATIENCE_SECONDS = 180.0
PHASES = ("preparation", "running", "finish", "ended")
RESULT_FILE = re.compile(r"(\d+)\.(\d+\.)?out_")


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: where the job was, what the server held, and how soon the next one worked."""

    number: int
    phase: str
    rows_decided: int
    rows_leased: int
    ready_seconds: float | None = None  #: until it answers; None when the next kill did not wait for that
    next_row_seconds: float | None = None  #: until a row runs; None also when no row was left to run


def main() -> int:
    """Measure and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="what the rows take without a kill")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="milkrun-kills-") as folder:
        return _measure(Path(folder), options.rows, options.seconds, options.kills, options.seed)


def _measure(folder: Path, rows: int, seconds: float, count: int, seed: int) -> int:
    say(f"seed {seed}")
    texts = [f"fail: timeout {index}" if index % 997 == 0 else f"row {index}" for index in range(rows)]
    expected = echo_answers("fail: timeout" if text.startswith("fail:") else text for text in texts)
    undisturbed = _undisturbed(folder / "undisturbed", texts)
    chance = random.Random(seed)
    (folder / "killed").mkdir()
    server = Server(folder / "killed", pace=seconds / rows)
    began = time.monotonic()
    with server, server.client() as client, server.watched() as feed:
        job_id = client.infer(texts)
        kills = []
        moments = _moments(server, client, job_id, rows, sorted(chance.uniform(0, 0.95) for _ in range(count - 3)))
        for number, await_moment in enumerate(moments, 1):
            await_moment()
            if 2 < number < count:
                time.sleep(chance.uniform(0, 0.5))
            kills.append(_kill(server, job_id, number, at_once=number == 1))
            say(str(kills[-1]))
        client.wait(job_id, timeout=PATIENCE_SECONDS)
        took = time.monotonic() - began
        evidence = server.evidence(job_id, expected, feed=feed)
    broken = violations(evidence)
    unlike = sum(row.answer != answer for row, answer in zip(evidence.rows, undisturbed, strict=True))
    columns = ("kill", "phase", "rows decided", "rows leased", "s to ready", "s to next row")
    table(columns, [astuple(kill) for kill in kills])
    ready = [kill.ready_seconds for kill in kills if kill.ready_seconds is not None]
    working = [kill.next_row_seconds for kill in kills if kill.next_row_seconds is not None]
    figures("kills", {
        "seed": seed, "rows": rows, "kills": len(kills), "seconds": round(took, 1),
        "phases": {phase: sum(kill.phase == phase for kill in kills) for phase in PHASES},
        "rows_leased_at_kills": sum(kill.rows_leased for kill in kills), "rows_redone": rows_redone(evidence),
        "rows_unlike_undisturbed": unlike, "violations": broken[:5],
        "ready_seconds_median": median(ready), "ready_seconds_worst": round(max(ready), 3),
        "next_row_seconds_median": median(working), "next_row_seconds_worst": round(max(working), 3),
    })  # fmt: skip
    return 1 if broken or unlike else 0


def _undisturbed(folder: Path, texts: list[str]) -> list[Answer]:
    """The answers of a run that nobody disturbs, by index."""
    folder.mkdir()
    with Server(folder) as server, server.client() as client:
        job_id = client.infer(texts)
        client.wait(job_id, timeout=PATIENCE_SECONDS)
        evidence = server.evidence(job_id)
        assert [] == violations(evidence)
        return [row.answer for row in evidence.rows]


def _moments(
    server: Server, client: mr.Milkrun, job_id: str, rows: int, shares: list[float]
) -> list[Callable[[], None]]:
    """What to wait for before each kill."""

    def windows(count: int) -> Callable[[], None]:
        return lambda: _poll(lambda: _job(server, job_id)["next_window"] >= count)

    def share(part: float) -> Callable[[], None]:
        return lambda: wait_for(lambda: client.job(job_id).rows_done >= rows * part, seconds=PATIENCE_SECONDS)

    return [
        windows(1),
        windows(3),
        *(share(part) for part in shares),
        lambda: _poll(lambda: _all_files(server, job_id)),
    ]


def _kill(server: Server, job_id: str, number: int, *, at_once: bool) -> Kill:
    """Kill the server and start it again; `at_once` leaves it to the next kill to wait."""
    held = server.kill()
    killed_at = time.monotonic()
    job = _job(server, job_id)
    running = "finish" if _all_files(server, job_id) else "running"
    phase = "ended" if job["finished_at"] else running if job["prepared"] else "preparation"
    kill = Kill(number, phase, job["rows_decided"], held.rows(job_id))
    if at_once:
        server.launch()
        return kill
    server.start()
    ready = round(time.monotonic() - killed_at, 3)
    size = _log_size(server)  # no replica is back as soon as this
    while not _job(server, job_id)["finished_at"]:
        if _log_size(server) > size:
            return replace(kill, ready_seconds=ready, next_row_seconds=round(time.monotonic() - killed_at, 3))
        assert time.monotonic() - killed_at < PATIENCE_SECONDS, server.tail()
        time.sleep(0.02)
    return replace(kill, ready_seconds=ready)


def _job(server: Server, job_id: str) -> dict[str, Any]:
    """The job's row in the ledger: it is there when the server is not."""
    with opened(server.place) as ledger:
        return ledger.ask("SELECT * FROM jobs WHERE id = ?", job_id)[0]


def _all_files(server: Server, job_id: str) -> bool:
    """Whether every chunk has a result file, so that only its commit is missing."""
    names = [path.name for path in (server.data_dir / "blobs" / "jobs" / job_id).iterdir()]
    answered = {found[1] for name in names if (found := RESULT_FILE.match(name))}
    job = _job(server, job_id)
    return bool(job["prepared"]) and len(answered) >= int(job["next_chunk"])


def _poll(condition: Callable[[], bool]) -> None:
    """Wait without pauses: the moment is short."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the moment did not come"


def _log_size(server: Server) -> int:
    return server.echo_log.stat().st_size if server.echo_log.exists() else 0
