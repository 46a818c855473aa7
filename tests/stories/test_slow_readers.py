"""
Readers of results that hardly read, and such that vanish: others are served, and memory stays bounded.
"""

import socket
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest
from checker import echo_answers, violations
from stories.proxy import FaultProxy
from stories.server import KEY, Server, wait_for

pytestmark = pytest.mark.engine
READERS = 50
MOST_BYTES_A_READER = 3 << 20  # it holds one chunk, whatever the job is
ROWS = 20_000


def test_slow_and_vanishing_readers_harm_nobody(serve: Callable[..., Server]) -> None:
    """50 at 1 kB a second and 50 that are reset in mid-file, while another job is submitted and read."""
    server = serve()
    large = [f"row {index} {'x' * 40}" for index in range(ROWS)]
    quick = [f"quick {index}" for index in range(20)]
    port = int(server.url.rpartition(":")[2])
    with ExitStack() as stack:
        client = stack.enter_context(server.client())
        slow, resetting = (stack.enter_context(FaultProxy("127.0.0.1", port)) for _ in range(2))
        job_id = client.infer(large)
        client.wait(job_id, timeout=120)
        for form in ("jsonl", "csv", "parquet"):  # what reading costs once is not the readers' cost
            client.await_job_results(job_id).save(server.echo_log.with_name(f"warm.{form}"))
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        for proxy in (slow, resetting):
            proxy.bandwidth(1_000)
        request = (
            f"GET /api/jobs/{job_id}/results?format=jsonl HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n"
        )
        for proxy in (slow, resetting):
            for _ in range(READERS):
                reader = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=60))
                reader.sendall(request.encode())
        wait_for(lambda: slow.connections + resetting.connections == 2 * READERS, what="all readers")
        after = client.infer(quick)
        client.wait(after, timeout=60)
        grown = process.memory_info().rss - before
        resetting.reset()
        wait_for(lambda: _connections(process) <= READERS + 5, what="the end of the vanished ones' connections")
        assert [] == violations(server.evidence(after, echo_answers(quick)))
        assert ROWS == len(client.await_job_results(job_id).to_list())
        grown = max(grown, process.memory_info().rss - before)
        assert grown < 2 * READERS * MOST_BYTES_A_READER
        print(f"grown by {grown >> 10:,} KiB for {2 * READERS} readers")


def _connections(process: psutil.Process) -> int:
    return sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections())
