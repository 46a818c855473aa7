"""
The ledger's figures for metrics, whichever process reads them.
"""

import pytest
from fix_store import World

from milkrun.status import JobStatus
from milkrun_engine.domain.states import ChunkState
from milkrun_engine.store.posts import DISPATCHER


def test_an_empty_ledger_has_zeroes(world: World) -> None:
    figures = world.store.figures.read()
    assert dict.fromkeys(JobStatus, 0) == figures.jobs
    assert ({}, {}, {}, {}) == (figures.of_models, figures.chunks, figures.oldest_waiting_seconds, figures.callbacks)
    assert (None, 0) == (figures.holder, figures.term)


def test_figures_are_those_of_every_writer(world: World) -> None:
    world.prepared(["a", "fail", 3], callback={"kind": "generic", "url": "http://a.test/"})
    world.run()
    world.prepared(24)
    other = world.another_store(clock_offset_seconds=50)
    other.chunks.claim("echo", "two", 1)
    world.store.posts.take(DISPATCHER, "two", 60, {})
    for store in (world.store, other):
        figures = store.figures.read()
        assert (1, 1) == (figures.jobs[JobStatus.succeeded], figures.jobs[JobStatus.queued])
        sums = {"rows_succeeded": 1, "rows_failed": 2, "prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 1}
        assert {"echo": sums} == figures.of_models
        assert {("echo", ChunkState.ready): 2, ("echo", ChunkState.leased): 1} == figures.chunks
        assert {"pending": 1} == figures.callbacks
        assert ("two", 1) == (figures.holder, figures.term)
    assert {"echo": pytest.approx(50, abs=5)} == figures.oldest_waiting_seconds
    other.close()


def test_a_post_whose_lease_is_over_has_no_holder(world: World) -> None:
    world.store.posts.take(DISPATCHER, "one", 5, {})
    world.advance(6)
    assert (None, 1) == ((figures := world.store.figures.read()).holder, figures.term)
