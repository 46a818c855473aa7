"""
The ledger under any order of events: submits, claims, commits, deaths, crashes, cancels, pauses, expiry, deletions.

A Hypothesis state machine drives the real store and blobs through whatever sequence it can
think of and checks the promises after every step. `pytest --hypothesis-profile=long
tests/engine/store/test_state_machine.py` looks for an hour; every run looks for some seconds.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fix_store import World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from milkrun.status import FeedEvents, JobStatus, OnMismatch, Reuse
from milkrun_engine.blobs import chunk_files
from milkrun_engine.domain import planning, quarantine
from milkrun_engine.domain.errors import AlreadyEnded, IdempotencyMismatch, NotEnded, NothingToRetry, StaleClaim
from milkrun_engine.domain.jobs import JobRecord, NewRetry
from milkrun_engine.domain.leases import LEASE_SECONDS, Lease, Suspicion
from milkrun_engine.domain.states import LIVE, MOVES, ChunkState
from milkrun_engine.service.views import PageLinks, job_view
from milkrun_engine.store.schema import callbacks, chunks, jobs

CLOSING_SECONDS = 30.0
WINDOW_ROWS = 20  # small, so that a job of some rows has several windows, each of several chunks
POOLS = ("echo", "other")
KINDS: list[Any] = ["good", "fail", 3, {"prompt": "x", "model": "other"}, {"prompt": "x", "model": "nobody's"}]
CALLBACK = {"kind": "generic", "url": "http://receiver.test/"}
LINKS = PageLinks("http://engine.test", b"secret")


@dataclass
class Seen:
    """What was seen of a job so far, to compare with what comes next."""

    job: JobRecord
    change_number: int
    status_number: int
    rows: int
    committed: dict[int, tuple[str, str]] = field(default_factory=dict)
    read: list[dict[str, Any]] = field(default_factory=list)


class Ledger(RuleBasedStateMachine):
    """Any order of events, and what must hold after each."""

    begin_ledger: Callable[[Path], AbstractContextManager[World]]

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()
        folder = self.opened.enter_context(tempfile.TemporaryDirectory())
        self.world = self.opened.enter_context(type(self).begin_ledger(Path(folder)))
        self.cursor = self.world.store.feed.cursor(self.world.tenant)
        self.seen: dict[str, Seen] = {}
        self.inputs: dict[str, int] = {}
        self.held: list[Lease] = []  # leases that must still hold
        self.lost: list[Lease] = []  # leases that must not: given to others, or their job was stopped
        self.spent: list[Lease] = []  # leases that were committed
        self.folds: dict[str, tuple[list[int], chunk_files.ChunkCounts]] = {}
        self.touched: set[str] = set()
        self.deleted: set[str] = set()  # not yet told
        self.windows = patch.object(planning, "window_rows", lambda _number: WINDOW_ROWS)
        self.windows.start()

    def teardown(self) -> None:
        """Let every job come to its end, and check once more."""
        try:
            if sys.exc_info()[1] is None:
                self._come_to_an_end()
        finally:
            self.windows.stop()
            self.opened.close()

    def _come_to_an_end(self) -> None:
        self.restart()
        for seen in self._alive():
            self.world.store.controls.pause(self.world.tenant, seen.job.id, paused=False)
        self.world.prepare()
        for pool in POOLS:
            self.world.claim(16, pool=pool)
        self.commit_late()
        self.world.take_over()
        for pool in POOLS:
            self.world.run(pool)
        self.touched = set(self.seen)
        self.promises()
        assert self.world.store.jobs.unfinished() == 0
        for job_id, seen in self.seen.items():
            assert seen.job.rows_read == len(self.world.results(job_id))
            if seen.job.status is JobStatus.succeeded:
                assert self.inputs[job_id] == seen.job.rows_total == seen.job.rows_decided
            if seen.job.rows_from in self.seen:  # and was not deleted
                mine = self.world.results(job_id)
                theirs = self.world.results(seen.job.rows_from)[: len(mine)]
                good = [row["index"] for row in theirs if row["status"] == "succeeded"]
                assert [theirs[index] for index in good] == [mine[index] for index in good], "what was good stays"
                assert seen.job.rows_reused >= len(good)

    # Events ---------------------------------------------------------------------------------------------------------

    @initialize(rows=st.integers(9, 45))
    def begin(self, rows: int) -> None:
        """Begin with a job that has something to do."""
        self.submit(rows, ["good"], None, Reuse.inputs_match, OnMismatch.fail, 1, None, None)
        self.world.prepare_window()

    @precondition(lambda self: len(self.seen) < 5)
    @rule(
        rows=st.integers(0, 45),
        pattern=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
        key=st.sampled_from([None, "a", "b"]),
        reuse=st.sampled_from(Reuse),
        on_mismatch=st.sampled_from(OnMismatch),
        priority=st.integers(0, 10),
        limit=st.sampled_from([None, None, 1, 9]),
        window=st.sampled_from([None, None, CLOSING_SECONDS - 1]),
    )
    def submit(
        self,
        rows: int,
        pattern: list[Any],
        key: str | None,
        reuse: Reuse,
        on_mismatch: OnMismatch,
        priority: int,
        limit: int | None,
        window: float | None,
    ) -> None:
        values = [pattern[number % len(pattern)] for number in range(rows)]
        facts = {"idempotency_key": key, "reuse": reuse, "on_mismatch": on_mismatch, "priority": priority}
        facts |= {"abort_after_failed_rows": limit, "window_seconds": window, "callback": CALLBACK}
        facts["max_failed_rows"] = 0 if reuse is Reuse.failed_rows else None
        held = [seen.job for seen in self.seen.values() if key is not None and seen.job.idempotency_key == key]
        try:
            result = self.world.submit(values, **facts)
        except IdempotencyMismatch:
            assert held
            assert reuse in {Reuse.inputs_match, Reuse.failed_rows}
            assert on_mismatch is OnMismatch.fail
            return
        if result.reused:
            assert reuse is not Reuse.never
            assert result.job.id in {job.id for job in held}
            assert result.job.status in {*LIVE, JobStatus.succeeded}
            assert reuse is not Reuse.failed_rows or result.job.status in LIVE or not result.job.rows_failed
            return
        assert result.job.id not in self.seen
        if result.cancelled is not None:
            self._lose(lambda lease: lease.job_id == result.cancelled)
        self.inputs[result.job.id] = rows

    @precondition(lambda self: 0 < len(self.seen) < 5)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.inputs)))
        parent = self.world.job(job_id)
        new = NewRetry(tenant_id=self.world.tenant, parent=job_id, callback=CALLBACK)
        try:
            result = self.world.store.retries.retry(new, lambda _blob: True)
        except NotEnded:
            assert parent.status in LIVE
            return
        except NothingToRetry:
            assert (JobStatus.succeeded, 0) == (parent.status, parent.rows_failed)
            return
        assert result.job.rows_from == job_id
        assert parent.status not in LIVE
        assert result.job.status in LIVE
        if not result.reused:
            assert result.job.id not in self.seen
            self.inputs[result.job.id] = self.inputs[job_id]

    @precondition(lambda self: any(not seen.job.prepared for seen in self.seen.values()))
    @rule()
    def prepare_window(self) -> None:
        work = self.world.store.jobs.next_to_prepare()
        if done := self.world.prepare_window():
            assert done[1].accepted
            if done[1].ended is not None:
                self._lose(lambda lease: lease.job_id == work.job_id)

    @precondition(lambda self: any(seen.job.rows_decided < seen.job.rows_read for seen in self._alive()))
    @rule(pool=st.sampled_from(POOLS), limit=st.integers(1, 4), owner=st.sampled_from(["one", "two"]))
    def claim(self, pool: str, limit: int, owner: str) -> None:
        leases = self.world.claim(limit, pool=pool, owner=owner)
        assert not {lease.chunk_id for lease in leases} & {lease.chunk_id for lease in self.held}
        assert [lease.rank for lease in leases] == sorted(lease.rank for lease in leases)
        self.held += leases

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        lease = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        recorded = self.world.finish(lease)
        assert recorded.accepted
        if recorded.ended is JobStatus.failed:
            self._lose(lambda other: other.job_id == lease.job_id)
        self.spent.append(lease)
        self.touched.add(lease.job_id)

    @precondition(lambda self: self.lost or self.spent)
    @rule()
    def commit_late(self) -> None:
        """Those who lost their lease come back, all of them; so does one who committed already."""
        for lease in [*self.lost, *self.spent[-1:]]:
            assert not self.world.finish(lease).accepted
            assert not self.world.store.chunks.suspect(lease, {0: Suspicion(deaths=1)})
            assert not self.world.store.chunks.renew("one", {(lease.chunk_id, lease.epoch): 1})
        self.lost.clear()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), alone=st.booleans())
    def replica_dies(self, data: st.DataObject, alone: bool) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        lease = self.held[at]
        slots = data.draw(st.sets(st.integers(0, lease.rows - 1), min_size=1, max_size=1 if alone else 4))
        suspects = quarantine.after_death(lease.suspects, sorted(slots), alone=alone)
        assert self.world.store.chunks.suspect(lease, suspects)
        self.held[at] = replace(lease, suspects=suspects)

    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """Some leases are renewed in time, the others end and are rescued."""
        renewed = data.draw(st.sets(st.sampled_from(range(len(self.held))))) if self.held else set()
        kept = [self.held[at] for at in sorted(renewed)]
        self.world.advance(LEASE_SECONDS * 0.6)
        still = set()
        for owner in ("one", "two"):  # each renews what it thinks is its own
            in_hand = {(lease.chunk_id, lease.epoch): 1 for lease in kept}
            still |= self.world.store.chunks.renew(owner, in_hand)
        assert {lease.chunk_id for lease in kept} == still
        self.world.advance(LEASE_SECONDS * 0.6)
        ended = len(self.held) - len(kept)
        assert (ended > 0) is self.world.store.chunks.expired()
        assert ended == self.world.store.chunks.rescue()
        self._lose(lambda lease: lease not in kept)

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), owned=st.sampled_from(["person", "current", "stale"]))
    def cancel(self, data: st.DataObject, owned: str) -> None:
        job_id = data.draw(st.sampled_from(list(self.inputs)))
        before = self.world.job(job_id)
        claim = {"person": None, "current": before.claim, "stale": before.claim - 1}[owned]
        try:
            after, stopped = self.world.store.jobs.cancel(self.world.tenant, job_id, claim)
        except StaleClaim:
            assert owned == "stale"
            assert before == self.world.job(job_id)
            return
        assert stopped is (before.status in LIVE)
        assert stopped or before == after
        assert not (stopped and owned == "stale")
        self._lose(lambda lease: lease.job_id == job_id)
        self.touched.add(job_id)

    @rule()
    def windows_close(self) -> None:
        """Leases are over by then, too; until they are rescued, they hold."""
        self.world.advance(CLOSING_SECONDS)
        ended = {job_id for job_id, _ in self.world.store.controls.expire(10)}
        assert not self.world.store.controls.overdue()
        assert all(self.seen[job_id].job.status in LIVE for job_id in ended)
        self._lose(lambda lease: lease.job_id in ended)
        self.touched |= ended

    @precondition(lambda self: self.seen)
    @rule(data=st.data(), paused=st.booleans())
    def pause(self, data: st.DataObject, paused: bool) -> None:
        job_id = data.draw(st.sampled_from(list(self.inputs)))
        before = self.world.job(job_id)
        try:
            after = self.world.store.controls.pause(self.world.tenant, job_id, paused=paused)
        except AlreadyEnded:
            assert before.status not in LIVE
            return
        assert after == replace(before, paused=paused)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.inputs)))
        try:
            self.world.store.controls.delete(self.world.tenant, job_id)
        except NotEnded:
            assert self.world.job(job_id).status in LIVE
            return
        assert self.seen.pop(job_id).job.status not in LIVE
        del self.inputs[job_id]
        self.touched.discard(job_id)
        self.lost = [lease for lease in self.lost if lease.job_id != job_id]
        self.spent = [lease for lease in self.spent if lease.job_id != job_id]
        self.deleted.add(job_id)

    @rule()
    def progress_is_published(self) -> None:
        self.world.store.feed.publish_progress(sorted(self.seen))

    @rule()
    def restart(self) -> None:
        """`kill -9`: all in memory is gone, the next process gives the leases back."""
        self._lose(lambda _lease: True)
        self.world.reopen()

    def _alive(self) -> list[Seen]:
        return [seen for seen in self.seen.values() if seen.job.status in LIVE]

    def _lose(self, condition: Any) -> None:
        self.lost += [lease for lease in self.held if condition(lease)]
        self.held = [lease for lease in self.held if not condition(lease)]

    # Promises -------------------------------------------------------------------------------------------------------

    @invariant()
    def promises(self) -> None:
        """What holds after every step."""
        changed = self._read_feed()
        with self.world.store.database.read() as connection:
            query = select(jobs.c.id, jobs.c.change_number, jobs.c.status_number)
            numbers = {row.id: (row.change_number, row.status_number) for row in connection.execute(query)}
            told = connection.execute(select(callbacks.c.job_id)).scalars().all()
        assert set(numbers) == set(self.inputs)
        records = {job.id: job for job in self.world.store.jobs.by_ids(self.world.tenant, list(numbers))}
        for job_id in self.inputs:
            job = records[job_id]
            change_number, status_number = numbers[job_id]
            seen = self.seen.setdefault(job_id, Seen(job, 0, 0, self.inputs[job_id]))
            self._check_change(job, seen, changed, change_number, status_number)
            self._check_counts(job, seen)
            seen.job, seen.change_number, seen.status_number = job, change_number, status_number
            if job_id in self.touched:
                self._check_results(job, seen)
        stamped = [status_number for _, status_number in numbers.values()]
        assert len(set(stamped)) == len(stamped), "each change has a number of its own"
        self.touched.clear()
        over = [job_id for job_id, seen in self.seen.items() if seen.job.status not in LIVE]
        assert sorted(over) == sorted(told), "each job that is over has its callback in the outbox, and no other has"
        keys = [seen.job.idempotency_key for seen in self._alive() if seen.job.idempotency_key is not None]
        assert len(set(keys)) == len(keys), "a key has one live job"

    def _read_feed(self) -> dict[str, JobStatus]:
        told: dict[str, JobStatus] = {}
        deleted: set[str] = set()
        more = True
        while more:
            page = self.world.store.feed.changes(self.world.tenant, self.cursor, FeedEvents.status, {}, 2)
            assert _number(page.cursor) >= _number(self.cursor)
            assert not set(told) & {job.id for job in page.jobs}, "each job once"
            told |= {job.id: job.status for job in page.jobs}
            deleted |= set(page.deleted)
            self.cursor, more = page.cursor, page.more
        assert self.deleted == deleted, "every deletion is told, once"
        self.deleted.clear()
        return told

    def _check_change(
        self, job: JobRecord, seen: Seen, told: dict[str, JobStatus], change_number: int, status_number: int
    ) -> None:
        is_new = seen.change_number == 0
        if job.status is not seen.job.status or is_new:
            assert is_new or job.status in MOVES[seen.job.status], "statuses only move forward"
            assert told[job.id] is job.status, "every change of status is told"
            assert status_number > seen.status_number
        else:
            assert (job.id in told) is (job.paused is not seen.job.paused)
        assert change_number >= max(seen.change_number, status_number)
        assert job.epoch >= seen.job.epoch
        assert job.claim >= seen.job.claim

    def _check_counts(self, job: JobRecord, seen: Seen) -> None:
        """Counts are what the committed files add up to; a committed chunk never changes."""
        with self.world.store.database.read() as connection:
            query = select(chunks).where(chunks.c.job_id == job.id).order_by(chunks.c.first_index)
            entries = connection.execute(query).all()
        for entry in entries:
            named = entry.result_blob, entry.result_sha256
            assert (entry.state == ChunkState.committed) is (entry.result_blob is not None)
            if entry.number in seen.committed:
                assert seen.committed[entry.number] == named, "a committed chunk never changes"
            if entry.state == ChunkState.committed:
                seen.committed[entry.number] = named
        folds = [self._fold(*named) for named in seen.committed.values()]
        indices = [index for rows, _ in folds for index in rows]
        assert len(set(indices)) == len(indices), "a row has at most one outcome"
        for name in ("rows_succeeded", "rows_failed"):
            assert getattr(job, name) == sum(getattr(counts, name) for _, counts in folds)
        born = {entry.number for entry in entries if entry.attempts == 0}
        ran = [self._fold(*named) for number, named in seen.committed.items() if number not in born]
        for name in ("prompt_tokens", "completion_tokens"):
            assert getattr(job, name) == sum(getattr(counts, name) for _, counts in ran), "tokens are of what ran"
        copied = sum(counts.rows_succeeded for _, counts in folds) - sum(counts.rows_succeeded for _, counts in ran)
        assert copied == job.rows_reused
        assert copied == 0 or job.rows_from is not None
        assert job.rows_decided == len(indices) == job.rows_succeeded + job.rows_failed
        assert job.rows_read == sum(entry.rows for entry in entries) <= seen.rows
        if job.status in LIVE:
            assert not all(entry.state == ChunkState.committed for entry in entries) or not job.prepared
        else:
            view = job_view(job, LINKS, errors={})
            assert view.rows_succeeded + view.rows_failed + view.rows_cancelled == view.rows_read == view.rows_total
            assert not any(entry.state in {ChunkState.ready, ChunkState.leased} for entry in entries)

    def _fold(self, blob: str, sha256: str) -> tuple[list[int], chunk_files.ChunkCounts]:
        data = self.world.blobs.read(blob, sha256)  # also when it is known: it must still be there, unchanged
        if blob not in self.folds:
            rows = [chunk_files.ResultRow(**row) for row in chunk_files.read_result(data).to_pylist()]
            self.folds[blob] = [row.index for row in rows], chunk_files.count(rows)
        return self.folds[blob]

    def _check_results(self, job: JobRecord, seen: Seen) -> None:
        """The settled prefix only grows and is the beginning of the final result."""
        rows = self.world.results(job.id)
        assert [row["index"] for row in rows] == list(range(len(rows)))
        assert rows[: len(seen.read)] == seen.read
        assert job.status in LIVE or len(rows) == job.rows_read
        seen.read = rows


def _number(cursor: str) -> int:
    return int(cursor.rpartition(".")[2])


def test_the_ledger_keeps_its_promises_in_any_order_of_events(
    begin: Callable[[Path], AbstractContextManager[World]],
) -> None:
    Ledger.begin_ledger = staticmethod(begin)
    few = settings(max_examples=settings.default.max_examples // 2)  # each example is a whole life of some jobs
    run_state_machine_as_test(Ledger, settings=few)
