"""
`kill -9` of everything at half of a large job, against the same job left alone: what does the death cost?

The rows are slowed so that they take a minute or more. The time from the kill until the model answers again is not
counted: it is the model's loading. What runs twice is what was leased and not committed.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from checker import check_ledger, echo_answer
from measure.report import figures, say, table
from stories.server import Server, wait_for

PATIENCE_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the job."""

    name: str
    seconds: float  #: from submit to end
    away_seconds: float  #: from the kill until the pool is ready again
    rows_leased: int  #: at the kill, uncommitted
    rows_redone: int
    wrong: int


def main() -> int:
    """Measure and report; 1 when a row was wrong, or more ran twice than was leased."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="the least that the rows take")
    options = parser.parse_args()
    runs = [_run(name, options.rows, options.seconds, kill=name == "killed") for name in ("clean", "killed")]
    columns = ("run", "seconds", "away", "rows leased", "rows redone", "wrong")
    table(columns, [(each.name, each.seconds, each.away_seconds, *_counts(each)) for each in runs])
    clean, killed = runs
    figures("restart", {
        "rows": options.rows, "clean_seconds": round(clean.seconds, 2), "killed_seconds": round(killed.seconds, 2),
        "away_seconds": round(killed.away_seconds, 2),
        "ratio": round((killed.seconds - killed.away_seconds) / clean.seconds, 4),
        "rows_leased": killed.rows_leased, "rows_redone": killed.rows_redone,
        "redone_percent": round(100 * killed.rows_redone / options.rows, 4), "wrong": clean.wrong + killed.wrong,
    })  # fmt: skip
    return 1 if clean.wrong or killed.wrong or killed.rows_redone > killed.rows_leased else 0


def _counts(run: Run) -> tuple[int, int, int]:
    return run.rows_leased, run.rows_redone, run.wrong


def _run(name: str, rows: int, seconds: float, *, kill: bool) -> Run:
    with tempfile.TemporaryDirectory(prefix="milkrun-restart-") as temporary:
        folder = Path(temporary)
        source = folder / "input.jsonl"
        with source.open("w") as lines:
            lines.writelines(f'{{"text": "row {index}"}}\n' for index in range(rows))
        away, leased = 0.0, 0
        with Server(folder, pace=seconds / rows) as server, server.client() as client:
            client.wait(client.infer(["warm"]), timeout=PATIENCE_SECONDS)
            began = time.monotonic()
            job_id = client.infer(source, prompt="{text}")
            if kill:
                half = rows // 2
                wait_for(lambda: client.job(job_id).rows_done >= half, seconds=PATIENCE_SECONDS, what="half the rows")
                away, leased = _kill(server, job_id)
            client.wait(job_id, timeout=PATIENCE_SECONDS)
            took = time.monotonic() - began
            say(f"{name}: {took:.1f} s; reading")
            wrong, at = 0, -1
            for at, row in enumerate(client.results(job_id)):
                wrong += (row.index, row.output) != (at, echo_answer(f"row {at}").output)
        wrong += rows - at - 1 + len(check_ledger(server.place))
        with server.echo_log.open("rb") as log:
            run = sum(job_id.encode() in line for line in log)
    return Run(name, took, away, leased, run - rows, wrong)


def _kill(server: Server, job_id: str) -> tuple[float, int]:
    """Kill server and replicas, start again; the seconds until the pool is ready, and the rows that were leased."""
    replicas = server.replicas()
    killed = time.monotonic()
    held = server.kill()
    for replica in replicas:
        replica.kill()
    server.start()
    with server.client() as client:
        wait_for(lambda: client.models()[0].state == "ready", seconds=PATIENCE_SECONDS, what="the model")
    return time.monotonic() - killed, held.rows(job_id)
