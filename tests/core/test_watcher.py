"""Many waits, one connection: ends, deletions, lost cursors, progress and outages reach exactly those who wait."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import milkrun as mr
from milkrun import wire

WAIT = 10


class Feed:
    """A scripted engine whose long-polls are answered when the test says so."""

    def __init__(self, build: Any) -> None:
        self.build = build
        self.jobs: dict[str, wire.Job] = {}
        self.asked: list[httpx.Request] = []
        self._news: list[Any] = []
        self._more = threading.Condition()

    def tell(self, news: Any) -> None:
        with self._more:
            self._news.append(news)
            self._more.notify_all()

    def end(self, *job_ids: str) -> None:
        ended = [self.build.job(id=job_id, status="succeeded") for job_id in job_ids]
        self.jobs |= {job.id: job for job in ended}
        self.tell(wire.Changes(jobs=ended, cursor=f"c{len(self.asked)}"))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if request.url.path == "/api/jobs":
            if "ids" in request.url.params:
                named = [self.jobs.get(each) for each in request.url.params["ids"].split(",")]
            else:
                named = [job for job in self.jobs.values() if job.status == request.url.params["status"]]
            answer: Any = wire.JobList(jobs=[job for job in named if job])
        elif "after" not in request.url.params:
            answer = wire.Changes(jobs=[], cursor="c0")
        else:
            with self._more:
                while not self._news:
                    self._more.wait(WAIT)
                answer = self._news.pop(0)
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, content=answer.model_dump_json())

    def await_poll(self, cursor: str) -> None:
        """Wait until the feed is asked from here on."""
        deadline = time.monotonic() + WAIT
        while not any(asked.url.params.get("after") == cursor for asked in self.asked):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def asked_for(self, path: str) -> list[httpx.Request]:
        return [request for request in self.asked if request.url.path == path]


@pytest.fixture
def feed(build: Any) -> Feed:
    found = Feed(build)
    found.jobs = {f"job_{n}": build.job(id=f"job_{n}") for n in range(300)}
    return found


@pytest.fixture
def watcher(feed: Feed, build: Any) -> Iterator[mr.Watcher]:
    found = mr.Watcher(mr.Milkrun(build.url, transport=httpx.MockTransport(feed)), progress_seconds=0.05)
    yield found
    found.close()
    feed.tell(wire.Changes(jobs=[], cursor="end"))


def test_any_number_of_jobs_are_one_poll(feed: Feed, watcher: mr.Watcher) -> None:
    futures = {job_id: watcher.watch(job_id) for job_id in feed.jobs}
    feed.end("job_7")
    assert "job_7" == futures.pop("job_7").result(WAIT).id
    feed.end(*futures)
    assert [future.result(WAIT).id for future in futures.values()] == list(futures)
    assert len(feed.asked_for("/api/changes")) <= 4
    assert len(feed.asked_for("/api/jobs")) <= 9, "all at the subscription, and each once as it is new, in hundreds"


def test_a_job_that_had_ended_before_is_known_at_once(feed: Feed, watcher: mr.Watcher, build: Any) -> None:
    first = watcher.watch("job_0")
    feed.jobs["job_1"] = build.job(id="job_1", status="failed")
    assert mr.JobStatus.failed is watcher.watch("job_1").result(WAIT).status
    assert not first.done()


def test_several_may_wait_for_one_job_and_one_may_leave(feed: Feed, watcher: mr.Watcher) -> None:
    stays, leaves = watcher.watch("job_0"), watcher.watch("job_0")
    assert leaves.cancel()
    feed.end("job_0")
    assert "job_0" == stays.result(WAIT).id
    assert leaves.cancelled()


def test_a_missing_or_deleted_job_ends_its_own_wait_only(feed: Feed, watcher: mr.Watcher) -> None:
    other, missing, gone = watcher.watch("job_0"), watcher.watch("job_none"), watcher.watch("job_1")
    with pytest.raises(mr.NotFound, match="job_none"):
        missing.result(WAIT)
    feed.tell(wire.Changes(jobs=[], deleted=["job_1"], cursor="c1"))
    with pytest.raises(mr.NotFound, match="job_1"):
        gone.result(WAIT)
    feed.end("job_0")
    assert "job_0" == other.result(WAIT).id


def test_a_lost_cursor_may_mean_that_the_job_is_gone(feed: Feed, watcher: mr.Watcher, build: Any) -> None:
    """As after a restore: nobody will ever tell of a job that was submitted behind the backup."""
    future, other = watcher.watch("job_0"), watcher.watch("job_1")
    while len(feed.asked_for("/api/changes")) < 2:
        time.sleep(0.01)
    del feed.jobs["job_0"]
    feed.tell(build.problem(410, "cursor_lost"))
    with pytest.raises(mr.NotFound, match="job_0"):
        future.result(WAIT)
    feed.end("job_1")
    assert "job_1" == other.result(WAIT).id


def test_a_lost_cursor_reads_the_jobs_anew(feed: Feed, watcher: mr.Watcher, build: Any) -> None:
    future = watcher.watch("job_0")
    while len(feed.asked_for("/api/changes")) < 2:
        time.sleep(0.01)
    feed.jobs["job_0"] = build.job(id="job_0", status="cancelled")
    feed.tell(build.problem(410, "cursor_lost"))
    assert mr.JobStatus.cancelled is future.result(WAIT).status


def test_a_refusal_reaches_every_waiter_and_the_next_wait_begins_anew(
    feed: Feed, watcher: mr.Watcher, build: Any
) -> None:
    futures = [watcher.watch("job_0"), watcher.watch("job_1")]
    feed.tell(wire.Changes(jobs=[], cursor="c1"))
    feed.await_poll("c1")  # a poll that began when both waited
    feed.tell(build.problem(401, "unauthenticated"))
    for future in futures:
        with pytest.raises(mr.AuthenticationError):
            future.result(WAIT)
    again = watcher.watch("job_0")
    feed.end("job_0")
    assert "job_0" == again.result(WAIT).id


def test_progress_is_told_to_those_who_want_it(feed: Feed, watcher: mr.Watcher) -> None:
    told: list[str] = []
    heard = threading.Event()

    def fail(_: mr.Job) -> None:
        raise RuntimeError

    def tell(job: mr.Job) -> None:
        told.append(job.id)
        if len(told) == 2:
            heard.set()

    futures = [watcher.watch("job_0", fail), watcher.watch("job_1", tell), watcher.watch("job_2")]
    assert heard.wait(WAIT)
    assert {"job_1"} == set(told)
    feed.end("job_0", "job_1", "job_2")
    assert 3 == len([future.result(WAIT) for future in futures])


def test_progress_of_many_is_that_of_those_that_run(feed: Feed, watcher: mr.Watcher, build: Any) -> None:
    """One request a round, however many wait behind them."""
    feed.jobs = {job_id: build.job(id=job_id, status="queued") for job_id in feed.jobs}
    feed.jobs["job_7"] = build.job(id="job_7", status="running", rows_done=1)
    heard: dict[str, int] = {}
    enough = threading.Event()

    def tell(job: mr.Job) -> None:
        heard[job.id] = heard.get(job.id, 0) + 1
        if heard.get("job_7", 0) >= 4:
            enough.set()

    futures = [watcher.watch(job_id, tell) for job_id in feed.jobs]
    assert enough.wait(WAIT)
    assert {1, 2} >= {times for job_id, times in heard.items() if job_id != "job_7"}  # twice: the feed's first look
    assert len([request for request in feed.asked_for("/api/jobs") if "status" in request.url.params]) >= 2
    assert not any(future.done() for future in futures)


def test_progress_is_told_while_new_waits_keep_coming(feed: Feed, watcher: mr.Watcher) -> None:
    """A busy process hears of its old jobs too."""
    heard: list[str] = []
    watcher.watch("job_0", lambda job: heard.append(job.id))
    deadline = time.monotonic() + WAIT
    for number in range(1, 300):  # each sooner than a round of progress
        watcher.watch(f"job_{number}")
        time.sleep(0.02)
        if len(heard) >= 4:
            break
    assert len(heard) >= 4
    assert time.monotonic() < deadline


def test_an_id_that_can_not_be_sent_is_refused_at_the_door(watcher: mr.Watcher) -> None:
    """It would end the others' waits."""
    for job_id in ("", "x" * 70_000, "job_\ud800", "job 1", "a/b"):
        with pytest.raises(ValueError, match="no job has such an id"):
            watcher.watch(job_id)


def test_an_outage_ends_no_wait_that_began_after_it_was_noticed(feed: Feed, watcher: mr.Watcher, build: Any) -> None:
    """Each wait has the whole patience."""
    first = watcher.watch("job_0")
    feed.await_poll("c0")
    late = watcher.watch("job_1")
    feed.tell(build.problem(401, "unauthenticated"))
    with pytest.raises(mr.AuthenticationError):
        first.result(WAIT)
    feed.end("job_1")
    assert "job_1" == late.result(WAIT).id


def test_event_loops_wait_too(feed: Feed, watcher: mr.Watcher) -> None:
    async def wait() -> str:
        future = watcher.watch("job_0")
        asyncio.get_running_loop().call_later(0.05, feed.end, "job_0")
        return (await asyncio.wait_for(asyncio.wrap_future(future), WAIT)).id

    assert "job_0" == asyncio.run(wait())


def test_nobody_waits_nobody_asks(feed: Feed, watcher: mr.Watcher) -> None:
    future = watcher.watch("job_0")
    feed.end("job_0")
    future.result(WAIT)
    time.sleep(0.3)
    asked = len(feed.asked)
    time.sleep(0.2)
    assert asked == len(feed.asked)


def test_closing_cancels_the_waits(feed: Feed, watcher: mr.Watcher) -> None:
    future = watcher.watch("job_0")
    watcher.close()
    assert future.cancelled()
    with pytest.raises(RuntimeError):
        watcher.watch("job_1")


def test_one_engine_has_one_watcher_a_process() -> None:
    first = mr.Watcher.shared("http://engine.test", "key")
    assert first is mr.Watcher.shared("http://engine.test", "key")
    assert first is not mr.Watcher.shared("http://engine.test", "other")


def test_a_forked_child_has_a_watcher_of_its_own() -> None:
    parents = mr.Watcher.shared("http://engine.test", "key")
    reader, writer = os.pipe()
    with mr.Watcher._sharing:  # as another thread of the parent may at that moment
        if (child := os.fork()) == 0:
            os.write(writer, b"other" if mr.Watcher.shared("http://engine.test", "key") is not parents else b"same")
            os._exit(0)
    os.waitpid(child, 0)
    assert b"other" == os.read(reader, 10)
    os.close(reader)
    os.close(writer)


@pytest.mark.engine
def test_a_hundred_jobs_of_a_real_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from milkrun import local

    monkeypatch.setenv("MILKRUN_REPLICA", "echo")
    engine = local.ensure(tmp_path)
    with mr.Milkrun(engine.url, engine.api_key) as client:
        watcher = mr.Watcher(mr.Milkrun(engine.url, engine.api_key))
        futures = [watcher.watch(client.infer(["slow:0.5", f"job {n}"])) for n in range(100)]
        assert {mr.JobStatus.succeeded} == {future.result(120).status for future in futures}
        watcher.close()
    process = local._children.pop(engine.pid)
    process.terminate()
    process.wait(60)
