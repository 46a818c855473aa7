"""
The checker is itself tested: a right run has no violation, and each way to be wrong is named.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import pytest
from stories.server import Server

from checker import Evidence, FeedWatcher, Sighting, echo_answers, violations
from checker.facts import Chunk

pytestmark = pytest.mark.engine
TEXTS = ["fail: timeout" if index == 99 else f"row {index}" for index in range(300)]
T = TypeVar("T")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """The evidence of a run without any trouble."""
    with Server(tmp_path_factory.mktemp("server")) as server, server.client() as client:
        with server.watched() as feed:
            job_id = client.infer(TEXTS)
            client.wait(job_id, timeout=60)
        return server.evidence(job_id, echo_answers(TEXTS), feed=feed)


def test_a_right_run_has_no_violation(right: Evidence) -> None:
    """All rules ran over facts of every kind."""
    assert [] == violations(right)
    assert (300, 300) == (len(right.rows), len(right.executions or ()))
    assert right.sightings
    assert right.ledger.chunks


def _with(items: Sequence[T], at: int, **changes: Any) -> list[T]:
    return [*items[:at], replace(items[at], **changes), *items[at + 1 :]]  # type: ignore[type-var]


def _swapped(items: Sequence[T]) -> list[T]:
    return [items[1], items[0], *items[2:]]


def _chunk(right: Evidence, **changes: Any) -> Evidence:
    return replace(right, ledger=replace(right.ledger, chunks=_with(right.ledger.chunks, 1, **changes)))


def _first(right: Evidence) -> Chunk:
    return right.ledger.chunks[1]


def _counted_twice(right: Evidence) -> Evidence:
    job = {**right.ledger.job, "rows_decided": right.ledger.job["rows_decided"] + 16}
    return replace(right, ledger=replace(right.ledger, job=job))


def _committed_late(right: Evidence) -> Evidence:
    return _chunk(right, committed_at=right.ledger.job["finished_at"] + 1)


def _ran_after(right: Evidence) -> Evidence:
    assert right.executions
    run = right.executions[20]
    return replace(right, executions=[*right.executions, replace(run, at=run.at + 3_600)])


def _ran_again(right: Evidence) -> Evidence:
    assert right.executions
    return replace(right, executions=[*right.executions, right.executions[20]])


def _without_lease(right: Evidence) -> Evidence:
    assert right.executions
    early = replace(right.executions[20], epoch=0)
    return replace(right, executions=[early, *right.executions])


def _feed_back(right: Evidence) -> Evidence:
    job_id = right.job["id"]
    return replace(right, sightings=[Sighting(job_id, "running", 300, 5), Sighting(job_id, "queued", 0, 6)])


WRONGS: dict[str, tuple[Callable[[Evidence], Evidence], str]] = {
    "a row is lost": (lambda right: replace(right, rows=right.rows[:-1]), "299 rows are readable"),
    "rows are swapped": (lambda right: replace(right, rows=_swapped(right.rows)), "not dense and in order"),
    "a row comes twice": (lambda right: replace(right, rows=[*right.rows, right.rows[7]]), "not dense and in order"),
    "an answer is another": (lambda right: replace(right, rows=_with(right.rows, 3, output="other")), "row 3 is "),
    "a key is another": (lambda right: replace(right, rows=_with(right.rows, 3, key="k")), "row 3 is "),
    "an error has no type": (lambda right: replace(right, rows=_with(right.rows, 99, code=None)), "nor a typed error"),
    "a page is not the file": (lambda right: replace(right, rows=_with(right.rows, 3, output="x")), "committed file"),
    "a count is off": (lambda right: replace(right, job={**right.job, "rows_succeeded": 300}), "rows_succeeded 300"),
    "codes are off": (lambda right: replace(right, job={**right.job, "row_errors": {}}), "the API says row_errors"),
    "an export is short": (lambda right: replace(right, exports={"csv": right.exports["csv"][1:]}), "csv export"),
    "an export is disordered": (
        lambda right: replace(right, exports={"parquet": _swapped(right.exports["parquet"])}),
        "parquet export differs",
    ),
    "counted twice": (_counted_twice, "the ledger counts rows_decided 316"),
    "committed after the end": (_committed_late, "was committed 1.0"),
    "a file is missing": (lambda right: _chunk(right, file_sha256=None), "its result file is missing"),
    "a bit flipped": (lambda right: _chunk(right, file_sha256="0" * 64), "does not have the bytes"),
    "a file is short": (lambda right: _chunk(right, results=_first(right).results[1:]), "does not hold its rows"),
    "slots are swapped": (lambda right: _chunk(right, slots=_swapped(_first(right).slots)), "misplaces row"),
    "a row is in two chunks": (
        lambda right: _chunk(right, slots=[0, *_first(right).slots[1:]]),
        "do not hold each of its rows once",
    ),
    "leased after the end": (lambda right: _chunk(right, state="leased"), "has ended and chunk 1 is leased"),
    "failures miscounted": (lambda right: _chunk(right, rows_failed=5), "counts its failed rows wrongly"),
    "computed after its commit": (_ran_after, "s after its chunk"),
    "computed twice": (_ran_again, "1 rows ran again; the interrupted leases held 0"),
    "a lease vanished": (_without_lease, "no interruption took that lease"),
    "the feed went back": (_feed_back, "the change feed went backwards"),
    "the feed was silent": (lambda right: replace(right, sightings=[]), "the change feed never showed the job"),
    "the cursor went back": (lambda right: replace(right, cursors=[3, 2]), "cursor went backwards"),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_each_wrong_is_named(right: Evidence, wrong: str) -> None:
    """Evidence that was tampered with has a violation that says how."""
    tamper, sentence = WRONGS[wrong]
    found = violations(tamper(right))
    assert any(sentence in broken for broken in found), found


@pytest.fixture(scope="module")
def retried(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """The evidence of a retry, whose one failed row failed again."""
    with Server(tmp_path_factory.mktemp("server")) as server, server.client() as client:
        parent = client.infer(TEXTS)
        client.wait(parent, timeout=60)
        job_id = client.retry_failed(parent)
        client.wait(job_id, timeout=60)
        return server.evidence(job_id, echo_answers(TEXTS))


def test_a_right_retry_has_no_violation(retried: Evidence) -> None:
    """The one row ran; the others were taken over."""
    assert [] == violations(retried)
    assert [99] == [run.index for run in retried.executions or ()]
    assert 299 == len(retried.ledger.copied)


def _tokens_of_all(retried: Evidence) -> Evidence:
    tokens = sum(row.prompt_tokens for row in retried.rows)
    return replace(retried, ledger=replace(retried.ledger, job={**retried.ledger.job, "prompt_tokens": tokens}))


def _ran_a_copy(retried: Evidence) -> Evidence:
    assert retried.executions
    return replace(retried, executions=[*retried.executions, replace(retried.executions[0], index=5)])


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (_ran_a_copy, "1 rows that were taken over from job_"),
        (_tokens_of_all, "the ledger counts prompt_tokens"),
        (lambda retried: replace(retried, job={**retried.job, "rows_reused": 300}), "the API says rows_reused 300"),
    ],
)
def test_each_wrong_of_a_retry_is_named(
    retried: Evidence, tamper: Callable[[Evidence], Evidence], sentence: str
) -> None:
    """Evidence of a retry that was tampered with has a violation that says how."""
    assert any(sentence in broken for broken in violations(tamper(retried)))


def test_a_job_without_a_watcher_has_no_violation(right: Evidence) -> None:
    """Nobody who watched has missed nothing."""
    assert [] == violations(replace(right, sightings=[], cursors=[]))


def test_a_watcher_without_an_answer_fails() -> None:
    """No server, no watch."""
    with pytest.raises(httpx.ConnectError), FeedWatcher("http://127.0.0.1:9", "key"):
        pass


@pytest.mark.parametrize("status", [401, 500])
def test_a_watcher_that_is_refused_on_the_way_fails(status: int) -> None:
    """An answer that no waiter may expect is told at the end of the watch; so is whatever ends its thread."""
    answers = iter([(200, {"cursor": "feed.1", "jobs": []})])

    def answer(_request: httpx.Request) -> httpx.Response:
        code, body = next(answers, (status, {}))
        return httpx.Response(code, json=body)

    watcher = FeedWatcher("http://engine.test", "key")
    watcher._http = httpx.Client(base_url="http://engine.test", transport=httpx.MockTransport(answer))
    with pytest.raises(httpx.HTTPStatusError), watcher:
        pass
