"""
Reading the ledger from outside: its database opened read-only, and the blobs that it names.
"""

import array
import hashlib
import io
import json
import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq

from checker.facts import Chunk, Interruption, Ledger, Row, Window

RESULT_COLUMNS = (
    "index key status error_code error_message output finish_reason prompt_tokens cached_tokens completion_tokens "
    "attempts"
).split()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a ledger and its blobs lie."""

    blobs: Path
    database: Path | str  #: a file of SQLite, or the URL of a Postgres database

    @classmethod
    def of(cls, data_dir: Path) -> Self:
        """That of an engine with a data directory of its own."""
        return cls(data_dir / "blobs", data_dir / "milkrun.db")


class Reader:
    """Asks a ledger, whichever database it is in."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def ask(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Rows by column; JSON comes as it was put in."""
        mark = "?" if isinstance(self._connection, sqlite3.Connection) else "%s"
        rows = [dict(row) for row in self._connection.execute(query.replace("?", mark), values)]
        for row in rows:
            for name in ("errors", "suspects"):
                if isinstance(row.get(name), str):
                    row[name] = json.loads(row[name])
        return rows


@contextmanager
def opened(place: Place) -> Iterator[Reader]:
    """The ledger, read-only, one snapshot; also after `kill -9`, when SQLite's log is not folded in yet."""
    if isinstance(place.database, Path):
        with closing(sqlite3.connect(f"file:{place.database}?mode=ro", uri=True, timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            yield Reader(connection)
        return
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(place.database, row_factory=dict_row) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield Reader(connection)


def read_ledger(place: Place, job_id: str) -> Ledger:
    """One job with its windows, chunks and the files that they name."""
    with opened(place) as ledger:
        (job,) = ledger.ask("SELECT * FROM jobs WHERE id = ?", job_id)
        windows = ledger.ask("SELECT * FROM windows WHERE job_id = ? ORDER BY number", job_id)
        chunks = ledger.ask("SELECT * FROM chunks WHERE job_id = ? ORDER BY number", job_id)
    return Ledger(
        job=job, windows=[_window(row) for row in windows], chunks=[_chunk(row, place.blobs) for row in chunks]
    )


def leased_rows(place: Place, *, released: bool = False) -> dict[tuple[str, int], tuple[int, int]]:
    """The chunks that are leased now (`released`: or were given back), by (job, chunk): lease epoch and rows."""
    if isinstance(place.database, Path):
        if not place.database.exists():
            return {}
        with opened(place) as ledger:
            if not ledger.ask("SELECT 1 AS found FROM sqlite_master WHERE name = 'chunks'"):
                return {}  # killed before its first migration
    states = ("leased", "ready") if released else ("leased", "leased")
    query = "SELECT job_id, number, lease_epoch, rows FROM chunks WHERE state IN (?, ?) AND lease_epoch > 0"
    with opened(place) as ledger:
        leased = ledger.ask(query, *states)
    return {(row["job_id"], row["number"]): (row["lease_epoch"], row["rows"]) for row in leased}


def interruption(place: Place, *, released: bool = False) -> Interruption:
    """What the server that has just ended held (`released`: and gave back); taken before the next one starts."""
    return Interruption(at=time.time(), leased=leased_rows(place, released=released))


def check_ledger(place: Place) -> list[str]:
    """Judge every job by the ledger and its files alone."""
    from checker.rules import ledger_violations

    with opened(place) as ledger:
        ids = [row["id"] for row in ledger.ask("SELECT id FROM jobs")]
    return [broken for job_id in ids for broken in ledger_violations(read_ledger(place, job_id))]


def result_row(values: dict[str, Any]) -> Row:
    """A row of a chunk file."""
    output = values["output"]
    told = {**values, "output": None if output is None else json.loads(output)}
    return Row(*(told[name] for name in RESULT_COLUMNS))


def _window(row: dict[str, Any]) -> Window:
    numbers = array.array("I", zlib.decompress(row["permutation"]))
    places = list(zip(numbers[::2], numbers[1::2], strict=True))
    return Window(number=row["number"], first_index=row["first_index"], rows=row["rows"], places=places)


def _chunk(row: dict[str, Any], blobs: Path) -> Chunk:
    asked = blobs / row["input_blob"]
    answered = blobs / row["result_blob"] if row["result_blob"] else None
    data = answered.read_bytes() if answered is not None and answered.exists() else None
    return Chunk(
        number=row["number"],
        window=row["window"],
        state=row["state"],
        rows=row["rows"],
        first_index=row["first_index"],
        lease_epoch=row["lease_epoch"],
        attempts=row["attempts"],
        committed_at=row["committed_at"],
        result_sha256=row["result_sha256"],
        rows_failed=row["rows_failed"],
        errors=row["errors"] or {},
        slots=pq.read_table(asked, columns=["index"]).column("index").to_pylist(),
        file_sha256=hashlib.sha256(data).hexdigest() if data is not None else None,
        results=[result_row(each) for each in pq.read_table(io.BytesIO(data)).to_pylist()] if data is not None else (),
    )
