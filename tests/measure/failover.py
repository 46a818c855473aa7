"""
Two engines on one Postgres, and the one that dispatches killed again and again: how soon does the other go on?

Recovery is from the kill to the next row that runs. Each killed engine is started again and stands by. The checker
judges the job at the end.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from checker import Place, echo_answers, violations
from checker.ledger import opened
from checker.rules import rows_redone
from fix_postgres import serving
from measure.report import figures, median, say, table
from stories.server import Server, wait_for

PATIENCE_SECONDS = 120.0
ROWS_PER_SECOND = 200.0
SECONDS_A_KILL = 16.0


def main() -> int:
    """Measure and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="milkrun-failover-") as folder, serving() as postgres:
        return _measure(Path(folder), postgres.database(), options.kills, options.seed)


def _measure(folder: Path, database: str, kills: int, seed: int) -> int:
    say(f"seed {seed}")
    place = Place(folder / "blobs", database)
    chance = random.Random(seed)
    texts = [f"row {index}" for index in range(round(ROWS_PER_SECOND * SECONDS_A_KILL * kills / 2))]
    engines = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        engines.append(Server(folder / name, pace=1 / ROWS_PER_SECOND, shared=place))
    recoveries: list[float] = []
    with engines[0] as one, engines[1] as two, one.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: _size(one) + _size(two), seconds=PATIENCE_SECONDS, what="the first row")
        for number in range(1, kills + 1):
            time.sleep(chance.uniform(1.0, 3.0))
            leader, other = (one, two) if _dispatches(one, place) else (two, one)
            size = _size(other)
            began = time.monotonic()
            other.interruptions.append(leader.kill())
            wait_for(lambda: _size(other) > size, seconds=PATIENCE_SECONDS, what="the other's first row")  # noqa: B023 (called at once)
            recoveries.append(time.monotonic() - began)
            say(f"kill {number}: {recoveries[-1]:.1f} s")
            leader.start()
        with two.client() as late:
            late.wait(job_id, timeout=PATIENCE_SECONDS + len(texts) / ROWS_PER_SECOND)
        two.echo_log.write_bytes(one.echo_log.read_bytes() + two.echo_log.read_bytes())
        evidence = two.evidence(job_id, echo_answers(texts))
    broken = violations(evidence)
    table(("kill", "s to the next row"), list(enumerate(recoveries, 1)))
    figures("failover", {
        "seed": seed, "rows": len(texts), "kills": kills, "rows_redone": rows_redone(evidence),
        "recovery_seconds_median": median(recoveries), "recovery_seconds_worst": round(max(recoveries), 2),
        "violations": broken[:5],
    })  # fmt: skip
    return 1 if broken else 0


def _dispatches(engine: Server, place: Place) -> bool:
    with engine.client() as client, opened(place) as ledger:
        return bool(ledger.ask("SELECT holder FROM posts")[0]["holder"] == client.health().instance_id)


def _size(engine: Server) -> int:
    return engine.echo_log.stat().st_size if engine.echo_log.exists() else 0
