"""
A backup taken in the middle of a job, from a running engine, and what an engine makes of it; `kill -9` on the way.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checker import Place, echo_answers, interruption, violations
from stories.server import KEY, Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine
ROWS = 6_000
JOBS = 100
TEXTS = [f"row {index} of the story" for index in range(ROWS)]


@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Place | None, Place | None]]:
    """Where the ledger is and where it goes: None is SQLite in a data directory."""
    kinds = request.param
    if "postgres" not in kinds:
        yield None, None
        return
    server = request.getfixturevalue("postgres")
    urls = [server.database(empty=number == 1) if kind == "postgres" else None for number, kind in enumerate(kinds)]
    yield tuple(Place(tmp_path / f"blobs{number}", url) if url else None for number, url in enumerate(urls))
    for url in filter(None, urls):
        server.drop(url)


def command(name: str, folder: Path, server: Server) -> subprocess.Popen[str]:
    """`milkrun backup` or `milkrun restore`, as the server's operator runs it."""
    code = "from milkrun._commands import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, name, str(folder), "--data-dir", str(server.data_dir), "--json"],
        env=server._environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def done(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says at its end."""
    out, err = process.communicate(timeout=120)
    assert 0 == process.returncode, err
    told: dict[str, Any] = json.loads(out)
    return told


def files_in(folder: Path) -> int:
    """How many whole files lie below a folder."""
    return sum(path.is_file() and not path.name.endswith(".part") for path in folder.rglob("*"))


def killed_midway(name: str, folder: Path, server: Server, blobs: Path, most: int) -> None:
    """`kill -9` when some blobs are copied, and not all."""
    process = command(name, folder, server)
    deadline = time.monotonic() + 60
    while files_in(blobs) < most // 3:
        assert process.poll() is None, f"it was too fast to be killed: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert -signal.SIGKILL == process.returncode
    assert files_in(blobs) < most


@pytest.mark.parametrize(
    "places", [("sqlite", "sqlite"), ("sqlite", "postgres"), ("postgres", "sqlite")], indirect=True, ids="-to-".join
)
def test_a_job_goes_on_from_a_backup(places: tuple[Place | None, Place | None], tmp_path: Path) -> None:
    """Every row of it once, in order, whatever was done to the engine that the backup came from."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    with Server(tmp_path / "old", pace=0.002, shared=places[0]) as old, old.client() as client:
        cursor = client.changes().cursor
        job_id = client.infer(TEXTS, idempotency_key="story")
        wait_for(lambda: client.job(job_id).rows_succeeded > 300, what="some commits")
        [replica] = old.replicas()
        replica.suspend()  # the engine goes on, and the job stays in its middle
        report = done(command("backup", tmp_path / "backup", old))
        assert [] == report["missing"]
        old.kill()
        replica.kill()
    new = Server(tmp_path / "new", shared=places[1])
    told = done(command("restore", tmp_path / "backup", new))
    assert {"running": 1} == told["jobs"], "the backup is of the middle of it"
    # What the old engine executed counts as executed: its results came along, or are computed again.
    new.echo_log.write_bytes(old.echo_log.read_bytes())
    [ledger] = (tmp_path / "backup").glob("ledger_*.db")
    new.interruptions.append(interruption(Place(tmp_path / "backup" / "blobs", ledger)))
    with new, new.client() as client:
        assert job_id == client.infer(TEXTS, idempotency_key="story")
        client.wait(job_id, timeout=60)
        with pytest.raises(mr.ResponseError) as lost:
            client.changes(cursor)
        assert "cursor_lost" == lost.value.code
        assert [] == violations(new.evidence(job_id, echo_answers(TEXTS), spare_executions=ROWS))


def test_a_backup_and_a_restore_survive_kill_9(tmp_path: Path) -> None:
    """Half of one is never taken for a whole: the backup before stays, and no engine starts on half a restore."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "backup"
    with Server(tmp_path / "old") as old, old.client() as client:
        job_ids = [client.infer([f"{number}"]) for number in range(JOBS)]
        for _ in client.as_ended(job_ids, timeout=120):
            pass
        most = 3 * len(job_ids)
        killed_midway("backup", folder, old, folder / "blobs", most)
        new = Server(tmp_path / "new")
        refused = command("restore", folder, new)
        assert "no whole backup" in refused.communicate(timeout=60)[1]
        report = done(command("backup", folder, old))
        assert (most, True) == (report["blobs"], report["copied"] < most)
    blobs = new.data_dir / "blobs"
    killed_midway("restore", folder, new, blobs, most)
    new.launch()
    assert 1 == new._process.wait(60)
    assert "was not finished" in new.tail()
    told = done(command("restore", folder, new))
    assert ({"succeeded": len(job_ids)}, most) == (told["jobs"], told["blobs"])
    with new, mr.Milkrun(new.url, KEY) as client:
        outputs = [str(client.results(job_id).to_list()[0].output) for job_id in job_ids]
        assert [str(number) for number in range(JOBS)] == [output.rpartition(": ")[2] for output in outputs]
        assert len(job_ids) == len(client.jobs(None, "succeeded"))
