"""
`kill -9` at every fail point of a job's life, and a disk that is full at every place where the engine writes.

Most of a story's time is waiting, so the chosen ones run side by side; each test then looks at its own.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from checker import Place, echo_answers, interruption, violations
from stories.receiver import Receiver
from stories.server import KEY, Server, wait_for

import milkrun as mr
from milkrun_engine.failpoints import Point

pytestmark = pytest.mark.engine
ROWS = 300  # two windows
TEXTS = [f"row {index} of the story" for index in range(ROWS)]
LONG_TEXTS = [text.ljust(5_000, ".") for text in TEXTS]
SLOW = 0.02  # seconds a row, where something must happen meanwhile
SIDE_BY_SIDE = 4
PATIENCE_SECONDS = 120.0
SPACE_SECONDS = 10.0  #: so soon a job goes on when its disk has room again
Act = Callable[[mr.Milkrun, ExitStack], str]


def insist(call: Callable[[], Any]) -> Any:
    """What a caller gets who asks again for as long as nobody answers."""

    def answer() -> Any:
        try:
            return [call()]
        except mr.RequestError:
            return None

    return wait_for(answer, seconds=PATIENCE_SECONDS, what="an answer")[0]


def submit(client: mr.Milkrun, _: ExitStack, *, texts: list[str] = TEXTS, **more: Any) -> str:
    """Submit once, however often the server must be asked."""
    job_id: str = insist(lambda: client.submit(texts, idempotency_key="once", **more)).job.id
    return job_id


def upload(client: mr.Milkrun, stack: ExitStack) -> str:
    """Rows that are too large for a request's body go as a file."""
    return submit(client, stack, texts=LONG_TEXTS)


def cancel(client: mr.Milkrun, stack: ExitStack) -> str:
    """Cancel a job with some committed rows."""
    job_id = submit(client, stack)
    wait_for(lambda: client.job(job_id).rows_succeeded, what="a commit")
    insist(lambda: client.cancel(job_id))
    return job_id


def call_back(client: mr.Milkrun, stack: ExitStack) -> str:
    """A receiver hears of the end."""
    receiver = stack.enter_context(Receiver())

    def twice_under_one_id() -> None:
        first, second, *_ = receiver.wait(2)
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)

    stack.callback(twice_under_one_id)
    return submit(client, stack, callback=mr.Callback(url=receiver.url))


def in_mid_job(server: Server, client: mr.Milkrun, stack: ExitStack) -> None:
    """An earlier server died, with chunks leased."""
    server.start()
    job_id = submit(client, stack)
    wait_for(lambda: client.job(job_id).rows_succeeded, what="a commit")
    server.kill()


def with_a_leftover(server: Server, _client: mr.Milkrun, stack: ExitStack) -> None:
    """A file of an earlier life is old enough to go."""
    old = server.place.blobs / "inputs" / "left.part"
    old.parent.mkdir(parents=True)
    old.touch()
    os.utime(old, (0, 0))
    stack.callback(lambda: wait_for(lambda: not old.exists(), what="the sweep"))


@dataclass(frozen=True)
class Story:
    """What a client does to a server that dies at a point, or what was before that server."""

    act: Act = submit
    time: int = 1  #: how often the point is reached until it dies
    pace: float = 0.0
    before: Callable[[Server, mr.Milkrun, ExitStack], None] | None = None


STORIES: Mapping[Point, Story] = {
    Point.upload_received: Story(upload, time=2),
    Point.input_written: Story(upload),
    Point.input_renamed: Story(upload),
    Point.submit_uncommitted: Story(),
    Point.submit_committed: Story(),
    Point.answer_due: Story(),
    Point.window_planned: Story(time=2),
    Point.chunk_written: Story(time=20),
    Point.chunk_renamed: Story(time=20),
    Point.window_uncommitted: Story(time=2),
    Point.window_committed: Story(time=2),
    Point.chunk_claimed: Story(),
    Point.job_started: Story(),
    Point.rows_handed_out: Story(time=3),
    Point.rows_finished: Story(time=3),
    Point.result_written: Story(time=3),
    Point.result_synced: Story(time=3),
    Point.result_renamed: Story(time=3),
    Point.record_uncommitted: Story(time=3),
    Point.record_committed: Story(time=3),
    Point.job_ended: Story(),
    Point.callback_sent: Story(call_back),
    Point.cancel_uncommitted: Story(cancel, pace=SLOW),
    Point.cancel_committed: Story(cancel, pace=SLOW),
    Point.leases_renewed: Story(pace=SLOW),
    Point.election_taken: Story(before=in_mid_job, pace=SLOW / 2),
    Point.crew_started: Story(before=in_mid_job, pace=SLOW / 2),
    Point.leftover_found: Story(before=with_a_leftover),
}
#: what a second database could answer differently; there a killed engine's post is free after eight seconds
ON_POSTGRES = (
    Point.submit_uncommitted,
    Point.submit_committed,
    Point.window_uncommitted,
    Point.window_committed,
    Point.chunk_claimed,
    Point.record_uncommitted,
    Point.record_committed,
    Point.callback_sent,
    Point.cancel_uncommitted,
    Point.cancel_committed,
    Point.crew_started,
)


def tell(point: Point, folder: Path, place: Place | None) -> list[str]:
    """Run a server that dies at a point and the one after it; returns the violations."""
    story = STORIES[point]
    folder.mkdir()
    server = Server(folder, pace=story.pace, shared=place)
    with ExitStack() as stack, server.client() as client, ThreadPoolExecutor(1) as caller:
        stack.callback(server.end)
        if story.before is not None:
            story.before(server, client, stack)
        server.fail_points = f"{point}=kill@{story.time}"
        server.launch()
        acting = None
        if story.before is None:
            server.await_ready()
            acting = caller.submit(story.act, client, stack)
        server.await_death(point)
        server.fail_points = ""
        server.start()
        job_id = acting.result() if acting is not None else story.act(client, stack)
        job = client.wait(job_id, timeout=PATIENCE_SECONDS)
        assert (mr.JobStatus.cancelled if story.act is cancel else mr.JobStatus.succeeded) is job.status
        assert [job_id] == [each.id for each in client.jobs()]
        evidence = server.evidence(job_id, echo_answers(LONG_TEXTS if story.act is upload else TEXTS))
        # A shared ledger also gives leases back that a busy machine renews too late: work is done again for no death.
        return violations(evidence if place is None else replace(evidence, executions=None))


Told = Callable[[Point, str], list[str]]


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """What came of a point's story; all that are chosen have begun."""
    folder = tmp_path_factory.mktemp("fail-points")
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = [(each["point"], each["database"]) for each in params if {"point", "database"} <= each.keys()]
    postgres = request.getfixturevalue("postgres") if any(name == "postgres" for _, name in chosen) else None
    futures: dict[tuple[Point, str], Future[list[str]]] = {}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for point, name in chosen:
            own = folder / f"{name}-{point}"
            place = Place(own / "blobs", postgres.database()) if name == "postgres" and postgres else None
            futures[point, name] = pool.submit(tell, point, own, place)
        yield lambda point, name: futures[point, name].result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize("point", Point)
def test_a_server_killed_there_goes_on(told: Told, point: Point, database: str) -> None:
    """It dies there by SIGKILL; its successor ends the one job, and every promise is kept."""
    assert [] == told(point, database)


@pytest.mark.parametrize("database", ["postgres"])
@pytest.mark.parametrize("point", ON_POSTGRES)
def test_the_same_on_postgres(told: Told, point: Point, database: str) -> None:
    """Where a killed process leaves a transaction, a lease or a post behind."""
    assert [] == told(point, database)


def test_a_typo_is_told_at_the_start(tmp_path: Path) -> None:
    """The engine does not begin, and says what it would understand."""
    serve = [sys.executable, "-m", "milkrun_engine", "serve", "--data-dir", str(tmp_path), "--replica", "echo"]
    done = subprocess.run(
        serve, env={**os.environ, "MILKRUN_FAILPOINTS": "result_renamd=kill@1"}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert 1 == done.returncode
    assert "no point 'result_renamd'; there are upload_received, " in done.stderr


INPUT_FAULTS = {Point.upload_received: "enospc", Point.input_written: "eio", Point.input_renamed: "enospc"}
LATER_FAULTS = {
    Point.chunk_written: "enospc",
    Point.chunk_renamed: "eio",
    Point.result_written: "eio",
    Point.result_synced: "enospc",
    Point.result_renamed: "enospc",
}


def once(faults: Mapping[Point, str]) -> str:
    """Each fault at the first time that its point is reached."""
    return ",".join(f"{point}={fault}@1" for point, fault in faults.items())


def test_a_submit_that_finds_no_room_is_told(serve: Callable[..., Server]) -> None:
    """Each place of an upload refuses once with a typed 507 and leaves nothing; the client asks again by itself."""
    server = serve(fail_points=once(INPUT_FAULTS))
    for _ in INPUT_FAULTS:
        answer = httpx.post(
            f"{server.url}/api/files?format=jsonl",
            content=b'"a"\n',
            headers={"Authorization": f"Bearer {KEY}"},
        )
        assert (507, "disk_full") == (answer.status_code, answer.json()["code"])
    assert fired(server) == list(INPUT_FAULTS)
    assert [] == [path for path in (server.place.blobs / "inputs").rglob("*") if path.is_file()]
    with server.client() as client:
        assert 1 == client.wait(client.infer(["a"]), timeout=60).rows_succeeded
        server.stop()
        server.fail_points = "input_written=enospc@1"
        server.start()
        assert 1 == client.wait(client.infer(["b"]), timeout=60).rows_succeeded, "a 507 is retryable"
    assert fired(server)[len(INPUT_FAULTS) :] == [Point.input_written]


def test_a_running_job_waits_for_its_disk(serve: Callable[..., Server]) -> None:
    """Refused at each place where its files are written, it says what it waits for, and ends by itself."""
    server = serve(fail_points=once(LATER_FAULTS))
    with server.client() as client:
        job_id = client.infer(TEXTS[:8])
        waits_for_disk(client, job_id)
        assert 8 == client.wait(job_id, timeout=60).rows_succeeded
        assert client.job(job_id).waiting_reason is None
    assert fired(server) == list(LATER_FAULTS)
    assert [] == violations(server.evidence(job_id, echo_answers(TEXTS[:8])))


@pytest.mark.parametrize("full", ["data", "data/blobs"])
def test_a_disk_that_is_full(tmp_path: Path, small_disk: Callable[[Path], None], full: str) -> None:
    """Of the whole engine, or of its blobs: no submit is taken, the job waits, and goes on soon after there is room."""
    disk = tmp_path / full
    disk.mkdir(parents=True)
    small_disk(disk)
    with Server(tmp_path, pace=SLOW) as server, server.client() as client:
        job_id = client.infer(TEXTS)
        wait_for(lambda: client.job(job_id).rows_succeeded, what="a commit")
        filler = disk / "filler"
        fill(filler)
        waits_for_disk(client, job_id)
        answer = httpx.post(
            f"{server.url}/api/jobs", json={"rows": TEXTS}, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        assert (507, "disk_full") == (answer.status_code, answer.json()["code"])
        server.interruptions.append(interruption(server.place))  # leases can't be renewed on a full ledger
        decided = client.job(job_id).rows_succeeded
        filler.unlink()
        wait_for(lambda: client.job(job_id).rows_succeeded > decided, seconds=SPACE_SECONDS, what="the next commit")
        assert ROWS == client.wait(job_id, timeout=60).rows_succeeded
        assert [] == violations(server.evidence(job_id, echo_answers(TEXTS)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Puts an empty disk of its own below a folder."""
    with ExitStack() as stack:

        def mount(folder: Path) -> None:
            command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and not os.environ.get("CI"):
                pytest.skip(f"no disk could be mounted: {done.stderr}")
            assert 0 == done.returncode, done.stderr
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)

        yield mount


def fill(filler: Path) -> None:
    """Leave no byte free."""
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def waits_for_disk(client: mr.Milkrun, job_id: str) -> None:
    """Wait until the job says so."""
    wait_for(lambda: client.job(job_id).waiting_reason == "disk_full", what="the wait")


def fired(server: Server) -> list[str]:
    """The fail points in the order of the server's log."""
    lines = (json.loads(line) for line in server.log.read_text().splitlines())
    return [line["point"] for line in lines if line.get("action") == "fail_point"]
