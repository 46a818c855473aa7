"""Operations stepped by hand: no client, no clock, no I/O."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

import milkrun as mr
from milkrun import _operations, _requests, _waiting, wire
from milkrun._drivers import Emit, Perform, Send, Sleep
from milkrun._operations import Link
from milkrun.settings import Settings


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def link(clock: Clock) -> Link:
    return Link(Settings(url="http://engine.test"), _requests.Endpoint(url="http://engine.test"), clock)


def answer(model: Any) -> httpx.Response:
    return httpx.Response(200, content=model.model_dump_json(), request=httpx.Request("GET", "http://engine.test"))


def result(operation: Generator[Any, Any, Any], value: Any) -> Any:
    with pytest.raises(StopIteration) as stop:
        operation.send(value)
    return stop.value.value


def test_a_broken_connection_sleeps_and_sends_anew(link: Link, build: Any) -> None:
    operation = _operations.job(link, "job_1")
    first = next(operation)
    pause = operation.throw(httpx.ReadError("reset", request=first.request))
    assert isinstance(pause, Sleep)
    second = operation.send(None)
    assert isinstance(second, Send)
    assert first.request is not second.request
    assert build.job() == result(operation, answer(build.job()))


def test_a_wait_subscribes_before_it_reads_the_job(link: Link, build: Any) -> None:
    operation = _waiting.wait(link, "job_1", timeout=None, on_progress=None)
    subscribe = next(operation)
    assert (subscribe.request.url.path, subscribe.request.url.params["on"]) == ("/api/changes", "end")
    assert "after" not in subscribe.request.url.params
    read = operation.send(answer(wire.Changes(jobs=[], cursor="c7")))
    assert read.request.url.path == "/api/jobs/job_1"
    poll = operation.send(answer(build.job()))
    assert (poll.request.url.params["after"], poll.request.url.params["wait"]) == ("c7", "25.000")
    ended = build.job(status="succeeded")
    last = operation.send(answer(wire.Changes(jobs=[ended], cursor="c8")))
    assert last.request.url.path == "/api/jobs/job_1", "the job itself also has row_errors"
    assert ended == result(operation, answer(ended))


def test_a_wait_asks_the_engine_for_no_more_than_its_time(link: Link, clock: Clock, build: Any) -> None:
    operation = _waiting.wait(link, "job_1", timeout=5, on_progress=None)
    next(operation)
    operation.send(answer(wire.Changes(jobs=[], cursor="c1")))
    poll = operation.send(answer(build.job(rows_done=2)))
    assert poll.request.url.params["wait"] == "5.000"
    clock.now += 5
    with pytest.raises(mr.WaitTimeout, match=r"job job_1, still running \(2 of 3 rows done\). It goes on") as caught:
        operation.send(answer(wire.Changes(jobs=[], cursor="c2")))
    assert build.job(rows_done=2) == caught.value.job


def test_an_engine_that_stays_away_ends_the_wait_at_its_time(link: Link, clock: Clock, build: Any) -> None:
    operation = _waiting.wait(link, "job_1", timeout=5, on_progress=None)
    next(operation)
    operation.send(answer(wire.Changes(jobs=[], cursor="c1")))
    poll = operation.send(answer(build.job()))
    assert isinstance(operation.throw(httpx.ConnectError("refused", request=poll.request)), Sleep)
    clock.now += 4.9
    again = operation.send(None)
    last = operation.throw(httpx.ConnectError("refused", request=again.request))
    assert last.seconds == pytest.approx(0.1), "to the end of its time and no further"
    clock.now += 0.1
    again = operation.send(None)
    with pytest.raises(mr.WaitTimeout) as caught:
        operation.throw(httpx.ConnectError("refused", request=again.request))
    assert isinstance(caught.value.__cause__, mr.ConnectError)


def test_a_slow_failure_is_tried_again(link: Link, clock: Clock, build: Any) -> None:
    """The time that a try took does not count: a read that hung for a minute deserves another try."""
    operation = _operations.job(link, "job_1")
    first = next(operation)
    clock.now += 60
    assert isinstance(operation.throw(httpx.ReadTimeout("late", request=first.request)), Sleep)
    again = operation.send(None)
    clock.now += 60
    with pytest.raises(mr.RequestTimeout, match="did not answer in time"):
        operation.throw(httpx.ReadTimeout("late", request=again.request))


def test_a_wait_knows_of_an_end_whose_details_it_could_not_read(link: Link, clock: Clock, build: Any) -> None:
    operation = _waiting.wait(link, "job_1", timeout=5, on_progress=None)
    next(operation)
    operation.send(answer(wire.Changes(jobs=[], cursor="c1")))
    operation.send(answer(build.job()))
    ended = build.job(status="succeeded")
    read = operation.send(answer(wire.Changes(jobs=[ended], cursor="c2")))
    clock.now += 5
    with pytest.raises(StopIteration) as stop:
        operation.throw(httpx.ConnectError("refused", request=read.request))
    assert ended == stop.value.value


def test_the_last_try_of_a_wait_is_as_short_as_what_is_left(link: Link, clock: Clock, build: Any) -> None:
    operation = _waiting.wait(link, "job_1", timeout=5, on_progress=None)
    subscribe = next(operation)
    clock.now += 4
    read = operation.send(answer(wire.Changes(jobs=[], cursor="c1")))
    timeouts = [send.request.extensions["timeout"] for send in (subscribe, read)]
    assert [(8.0, 8.0), (4.0, 4.0)] == [(timeout["connect"], timeout["read"]) for timeout in timeouts]


def test_one_text_is_no_list_of_jobs(link: Link) -> None:
    with pytest.raises(TypeError, match="job_1"):
        next(_waiting.as_ended(link, "job_1", timeout=None))


def test_a_lost_cursor_begins_anew(link: Link, build: Any) -> None:
    operation = _waiting.as_ended(link, ["job_1"], timeout=None)
    next(operation)
    operation.send(answer(wire.Changes(jobs=[], cursor="c1")))
    operation.send(answer(wire.JobList(jobs=[build.job()])))
    subscribe = operation.send(build.problem(410, "cursor_lost"))
    assert isinstance(subscribe, Send)
    assert "after" not in subscribe.request.url.params
    read = operation.send(answer(wire.Changes(jobs=[], cursor="other-feed")))
    assert isinstance(read, Send)
    assert read.request.url.params["ids"] == "job_1"
    ended = build.job(status="failed")
    assert Emit(ended) == operation.send(answer(wire.JobList(jobs=[ended])))
    result(operation, None)


def test_a_deleted_job_ends_the_wait(link: Link, build: Any) -> None:
    operation = _waiting.wait(link, "job_1", timeout=None, on_progress=None)
    next(operation)
    operation.send(answer(wire.Changes(jobs=[], cursor="c1")))
    operation.send(answer(build.job()))
    with pytest.raises(mr.NotFound, match="job_1"):
        operation.send(answer(wire.Changes(jobs=[], deleted=["job_1"], cursor="c2")))


def test_a_refused_local_engine_is_ensured_once_more(clock: Clock, tmp_path: Path, build: Any) -> None:
    old, new = _requests.Endpoint(url="http://old.test"), _requests.Endpoint(url="http://new.test", api_key="k")
    link = Link(Settings(data_dir=tmp_path), old, clock)
    operation = _operations.job(link, "job_1")
    first = next(operation)
    locate = operation.throw(httpx.ConnectError("refused", request=first.request))
    assert isinstance(locate, Perform)
    second = operation.send(new)
    assert isinstance(second, Send)
    assert (second.request.url.host, second.request.headers["authorization"]) == ("new.test", "Bearer k")
    assert isinstance(operation.throw(httpx.ConnectError("refused", request=second.request)), Sleep)
    assert new == link.endpoint
    operation.close()
