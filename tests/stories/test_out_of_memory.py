"""
Memory runs out: a replica's for one row, and the engine's own for a while. The limits are the test's, by `prlimit`.
"""

import contextlib
import math
import resource
from collections.abc import Callable, Iterator

import psutil
import pytest
from checker import echo_answers, violations
from stories.server import Server, wait_for

pytestmark = pytest.mark.engine
GIB = 1 << 30
ROWS = 3_000


@contextlib.contextmanager
def limited(process: psutil.Process, bytes_: int) -> Iterator[None]:
    """Let a process, and those that it starts, have no more address space than this."""
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (bytes_, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_AS, before)


def test_a_row_that_no_replica_has_the_memory_for_fails_alone(serve: Callable[..., Server]) -> None:
    """Its replica breaks each time that it runs; its neighbours answer as if it were not there."""
    server = serve(engine_args={"window_rows": 8, "handout_rows": 8})
    texts = ["hog:65536 MiB" if index == 13 else f"row {index}" for index in range(40)]
    engine = psutil.Process(server.pid)
    with server.client() as client, limited(engine, engine.memory_info().vms + 4 * GIB):
        job_id = client.infer(texts)
        client.wait(job_id, timeout=90)
        rows = client.await_job_results(job_id).to_list()
    failed = {row.index: row.error.code for row in rows if row.error}
    assert {13: "engine_crash"} == failed
    answers = [answer.output for answer in echo_answers(texts)]
    assert [*answers[:13], *answers[14:]] == [row.output for row in rows if row.index != 13]
    assert "MemoryError" in (server.data_dir / "logs" / "echo.log").read_text()
    assert server.log.read_text().count('"replica_died"') <= math.ceil(math.log2(8)) + 3


def test_an_engine_that_had_no_memory_for_a_while_goes_on(serve: Callable[..., Server]) -> None:
    """It goes on by itself, or its successor does: nothing is lost, nothing counted twice."""
    server = serve(pace=0.001)
    texts = [f"row {index}" for index in range(ROWS)]
    with server.client() as client:
        job_id = client.infer(texts)
        wait_for(lambda: client.job(job_id).rows_succeeded > 0, what="the first commits")
        engine = psutil.Process(server.pid)
        with limited(engine, 1 << 20):
            wait_for(lambda: not server.is_alive or "MemoryError" in server.log.read_text(), what="a failure")
        if not server.is_alive:
            server.start()
        assert ROWS == client.wait(job_id, timeout=90).rows_succeeded
    # What ran again is what a replica and the leases held; that bound is of other stories.
    assert [] == violations(server.evidence(job_id, echo_answers(texts), spare_executions=ROWS // 2))


def test_limits_bite() -> None:
    """Else the stories above would tell nothing."""
    with limited(psutil.Process(), 1 << 20), pytest.raises(MemoryError):
        bytearray(GIB)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
