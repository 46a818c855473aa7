"""
A disk that does not give a chunk's rows: other jobs go on, and its own ends when that lasts.
"""

import asyncio
import errno
from pathlib import Path

import pytest
from fix_api import Api, serve

from milkrun_engine.blobs.local import LocalBlobs
from milkrun_engine.dispatch import pool_runner

pytestmark = pytest.mark.anyio


async def _ended(api: Api, job_id: str) -> dict[str, object]:
    async with asyncio.timeout(30):
        while True:
            job: dict[str, object] = (await api.mine.get(f"/api/jobs/{job_id}")).json()
            if job["finished_at"]:
                return job
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("most_reads", [1, 5])
async def test_an_input_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_reads: int) -> None:
    """Once is borne, and the chunk claimed again after its lease; what lasts fails the job."""
    monkeypatch.setattr(pool_runner, "_MOST_READS", most_reads)
    read, failures = LocalBlobs.read, iter([True])

    def fails_once(blobs: LocalBlobs, name: str, sha256: str) -> bytes:
        if next(failures, False):
            raise OSError(errno.EIO, "bad sector")
        return read(blobs, name, sha256)

    monkeypatch.setattr(LocalBlobs, "read", fails_once)
    async with serve(tmp_path, duties=True) as api:
        first = (await api.submit(["a"]))["job"]["id"]
        second = (await api.submit(["b"]))["job"]["id"]
        ended = [await _ended(api, job_id) for job_id in (first, second)]
    assert "succeeded" in {job["status"] for job in ended}
    failed = [job["failure"] for job in ended if job["status"] == "failed"]
    assert (["input_unreadable"] if most_reads == 1 else []) == [why["code"] for why in failed]  # type: ignore[index]
