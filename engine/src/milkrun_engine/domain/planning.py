"""
How an input is cut: windows of consecutive rows, and inside a window chunks for one pool.

The first windows are small, so that work starts at once. A chunk is the unit of lease and
commit: 8 to 1,024 rows, at most a sixteenth of its window, about `CHUNK_SECONDS` of one
replica.
"""

import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.rows import PreparedRow

FIRST_WINDOWS = (256, 1_024, 4_096)
WINDOW_ROWS = 65_536
WINDOW_BYTES = 64_000_000
CHUNK_ROWS_MIN, CHUNK_ROWS_MAX = 8, 1_024
CHUNK_SECONDS = 20


def window_rows(number: int) -> int:
    """The most rows of a job's window `number` (from 0)."""
    return FIRST_WINDOWS[number] if number < len(FIRST_WINDOWS) else WINDOW_ROWS


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """Rows of one window for one pool, in the caller's order."""

    pool: str
    rows: Sequence[PreparedRow]

    @property
    def first_index(self) -> int:
        """The smallest index among its rows: the settled prefix ends here until it is committed."""
        return self.rows[0].index


def plan_chunks(rows: Iterable[PreparedRow], window: int, models: dict[str, ModelSpec]) -> list[PlannedChunk]:
    """
    Cut a window's rows into chunks.

    Args:
        rows: the window's askable rows, by index.
        window: rows that the window holds, refused ones included.
        models: every pool's model by name.
    """
    most_rows = max(CHUNK_ROWS_MIN, min(CHUNK_ROWS_MAX, window // 16))
    chunks: list[PlannedChunk] = []
    for pool, members in _by_pool(rows).items():
        most_tokens = CHUNK_SECONDS * models[pool].tokens_per_second
        start, tokens = 0, 0
        for at, row in enumerate(members):
            taken = at - start
            if taken >= most_rows or (taken >= CHUNK_ROWS_MIN and tokens + row.tokens > most_tokens):
                chunks.append(PlannedChunk(pool, members[start:at]))
                start, tokens = at, 0
            tokens += row.tokens
        chunks.append(PlannedChunk(pool, members[start:]))
    return sorted(chunks, key=lambda chunk: chunk.first_index)


def _by_pool(rows: Iterable[PreparedRow]) -> dict[str, list[PreparedRow]]:
    pools: dict[str, list[PreparedRow]] = {}
    for row in rows:
        pools.setdefault(row.pool, []).append(row)
    return pools


def pack_permutation(first_index: int, window: int, chunks: Sequence[Sequence[int]]) -> bytes:
    """
    Write where each row of a window went: index → (chunk, slot), two 32-bit numbers a row, compressed.

    Args:
        first_index: the window's first row.
        window: rows in the window.
        chunks: the indices of each chunk's rows, in slot order; together they are the whole window.
    """
    places = array("I", bytes(8 * window))
    for ordinal, indices in enumerate(chunks):
        for slot, index in enumerate(indices):
            at = 2 * (index - first_index)
            places[at], places[at + 1] = ordinal, slot
    return zlib.compress(places.tobytes(), 1)
