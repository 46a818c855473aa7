"""
A window's rows are cut into chunks, each row into one, and found again by the permutation.
"""

import zlib
from array import array

from hypothesis import given
from hypothesis import strategies as st

from milkrun_engine.domain import planning
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.planning import CHUNK_ROWS_MAX, CHUNK_ROWS_MIN, CHUNK_SECONDS
from milkrun_engine.domain.rows import CHAT, PreparedRow

SPEEDS = {"fast": 100_000, "slow": 50}
MODELS = {name: ModelSpec(name=name, weights="", tokens_per_second=speed) for name, speed in SPEEDS.items()}


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int, list[PreparedRow]]:
    """First index, rows of the window, and those of them that can be asked."""
    first, size = draw(st.integers(0, 2**40)), draw(st.integers(0, 3_000))
    pattern = draw(st.lists(st.sampled_from(["fast", "fast", "slow", None]), min_size=1, max_size=7))
    tokens = draw(st.lists(st.integers(1, 400_000), min_size=1, max_size=5))
    rows = [
        PreparedRow(first + at, None, pool, CHAT, b"{}", tokens[at % len(tokens)])
        for at in range(size)
        if (pool := pattern[at % len(pattern)]) is not None
    ]
    return first, size, rows


@given(window=windows())
def test_chunks_partition_the_window(window: tuple[int, int, list[PreparedRow]]) -> None:
    _, size, rows = window
    chunks = planning.plan_chunks(rows, size, MODELS)
    assert sorted(row.index for chunk in chunks for row in chunk.rows) == [row.index for row in rows]
    assert [chunk.first_index for chunk in chunks] == sorted(chunk.first_index for chunk in chunks)
    for chunk in chunks:
        indices = [row.index for row in chunk.rows]
        assert indices == sorted(indices)
        assert chunk.first_index == indices[0]
        assert {row.pool for row in chunk.rows} == {chunk.pool}


@given(window=windows())
def test_chunks_have_the_sizes_of_the_design(window: tuple[int, int, list[PreparedRow]]) -> None:
    _, size, rows = window
    most = max(CHUNK_ROWS_MIN, min(CHUNK_ROWS_MAX, size // 16))
    for chunk in planning.plan_chunks(rows, size, MODELS):
        assert 1 <= len(chunk.rows) <= most
        behind_minimum = chunk.rows[CHUNK_ROWS_MIN:]
        if behind_minimum:
            tokens = sum(row.tokens for row in chunk.rows[:-1])
            assert tokens <= CHUNK_SECONDS * SPEEDS[chunk.pool]


@given(window=windows())
def test_the_permutation_finds_every_row(window: tuple[int, int, list[PreparedRow]]) -> None:
    first, size, rows = window
    places = [[row.index for row in chunk.rows] for chunk in planning.plan_chunks(rows, size, MODELS)]
    asked = {row.index for row in rows}
    if refused := [index for index in range(first, first + size) if index not in asked]:
        places.append(refused)
    found = array("I", zlib.decompress(planning.pack_permutation(first, size, places)))
    assert [places[ordinal][slot] for ordinal, slot in zip(found[::2], found[1::2], strict=True)] == list(
        range(first, first + size)
    )


def test_the_first_windows_are_small_so_that_work_starts_at_once() -> None:
    assert [planning.window_rows(number) for number in range(5)] == [256, 1_024, 4_096, 65_536, 65_536]
