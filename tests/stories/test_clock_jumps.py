"""
The engine's clock is set by an hour, ahead and back, while it holds leases: nothing runs twice or ends early.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checker import Place, echo_answers, violations
from stories.clock import Clock
from stories.server import Server, wait_for

pytestmark = pytest.mark.engine
HOUR = 3_600
ROWS = 800


def test_the_clock_is_set_for_sqlite_and_python_alike(tmp_path: Path) -> None:
    """Else the jumps below would be none."""
    clock = Clock(tmp_path)
    clock.set_ahead(HOUR)
    code = "import sqlite3, time; print(time.time(), time.monotonic()); print(*sqlite3.connect(':memory:').execute("
    code += "\"SELECT (julianday('now') - 2440587.5) * 86400\").fetchone())"
    told = subprocess.run([sys.executable, "-c", code], env=clock.environ, capture_output=True, text=True, check=True)
    of_python, monotonic, of_sqlite = map(float, told.stdout.split())
    assert all(abs(seen - time.time() - HOUR) < 300 for seen in (of_python, of_sqlite))
    assert abs(monotonic - time.monotonic()) < 300


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_a_jump_in_mid_job_changes_nothing(
    serve: Callable[..., Server], place: Place, tmp_path: Path, ahead: int
) -> None:
    """The leases that are held are renewed on; no row runs again."""
    clock, shared = Clock(tmp_path), place if isinstance(place.database, str) else None
    server = serve(pace=0.01, shared=shared, environ=clock.environ)
    texts = [f"row {index}" for index in range(ROWS)]
    with server.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > ROWS // 10, seconds=60, what="the first commits")
        clock.set_ahead(ahead)
        wait_for(lambda: client.job(job_id).rows_succeeded > ROWS // 2, seconds=60, what="half of the rows")
        clock.set_ahead(0)
        assert ROWS == client.wait(job_id, timeout=120).rows_succeeded
        later = client.infer(["afterwards"])
        assert 1 == client.wait(later, timeout=60).rows_succeeded
    assert "leases_rescued" not in server.log.read_text()
    evidence = server.evidence(job_id, echo_answers(texts))
    # When something happened is told by a clock that was wrong: only the order of times may look strange.
    assert [] == [broken for broken in violations(evidence) if " s after " not in broken]
    assert [1] == sorted({chunk.attempts for chunk in evidence.ledger.chunks}), "each chunk was leased once"
