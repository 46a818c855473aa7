"""
`kill -9` of the server at random moments of one job's life: is anything lost, and what is done twice?

One echo job is slowed to take a minute; the first kills fall into its preparation, the last
one into its finish. The result is compared with an undisturbed run, and the checker judges it.
"""

import argparse
import random
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from checker import Answer, echo_answers, violations
from checker.rules import rows_redone
from measure.report import figures, median, say, table
from stories.server import Server, wait_for

import milkrun as mr

PATIENCE_SECONDS = 180.0
FINISH = 0.995


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: where the job was, what the server held, and how soon the next one worked."""

    number: int
    phase: str
    rows_done: int
    rows_leased: int
    ready_seconds: float
    next_row_seconds: float | None  #: None when no row was left to run


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
    # Two in preparation, one at the finish, the others anywhere between.
    moments = [0.0, 0.0, *sorted(chance.uniform(0, FINISH) for _ in range(count - 3)), FINISH]
    (folder / "killed").mkdir()
    server = Server(folder / "killed", pace=seconds / rows)
    began = time.monotonic()
    with server, server.client() as client, server.watched() as feed:
        job_id = client.infer(texts)
        kills = []
        for number, moment in enumerate(moments, 1):
            _await_share(client, job_id, rows * moment)
            time.sleep(chance.uniform(0, 0.5 if 0 < moment < FINISH else 0.1))
            kills.append(_kill(server, client, job_id, number))
            say(str(kills[-1]))
        client.wait(job_id, timeout=PATIENCE_SECONDS)
        took = time.monotonic() - began
        evidence = server.evidence(job_id, expected, feed=feed)
    broken = violations(evidence)
    unlike = sum(row.answer != answer for row, answer in zip(evidence.rows, undisturbed, strict=True))
    table(
        ("kill", "phase", "rows done", "rows leased", "s to ready", "s to next row"), [astuple(kill) for kill in kills]
    )
    ready = [kill.ready_seconds for kill in kills]
    working = [kill.next_row_seconds for kill in kills if kill.next_row_seconds is not None]
    figures("kills", {
        "seed": seed, "rows": rows, "kills": len(kills), "seconds": round(took, 1),
        "kills_in_preparation": sum(kill.phase == "preparation" for kill in kills),
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


def _await_share(client: mr.Milkrun, job_id: str, rows: float) -> None:
    if rows:
        wait_for(lambda: client.job(job_id).rows_done >= rows, seconds=PATIENCE_SECONDS, what=f"row {rows:.0f}")


def _kill(server: Server, client: mr.Milkrun, job_id: str, number: int) -> Kill:
    before = client.job(job_id)
    held = server.kill()
    killed_at = time.monotonic()
    server.start()
    ready = time.monotonic() - killed_at
    size = server.echo_log.stat().st_size if server.echo_log.exists() else 0  # no replica is back as soon as this
    working = None
    while not client.job(job_id).is_terminal:
        if server.echo_log.exists() and server.echo_log.stat().st_size > size:
            working = round(time.monotonic() - killed_at, 3)
            break
        assert time.monotonic() - killed_at < PATIENCE_SECONDS, server.tail()
        time.sleep(0.02)
    phase = "preparation" if before.rows_total is None else "ended" if before.is_terminal else "running"
    return Kill(number, phase, before.rows_done, held.rows(job_id), round(ready, 3), working)
