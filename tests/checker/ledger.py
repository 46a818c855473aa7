"""
Reading the ledger from outside: SQLite opened read-only, and the blobs that it names.
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
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from checker.facts import Chunk, Interruption, Ledger, Row, Window

RESULT_COLUMNS = (
    "index key status error_code error_message output finish_reason prompt_tokens cached_tokens completion_tokens "
    "attempts"
).split()


@contextmanager
def opened(data_dir: Path) -> Iterator[sqlite3.Connection]:
    """The ledger, read-only; also after `kill -9`, when its log is not folded in yet."""
    with closing(sqlite3.connect(f"file:{data_dir / 'milkrun.db'}?mode=ro", uri=True, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def read_ledger(data_dir: Path, job_id: str) -> Ledger:
    """One job with its windows, chunks and the files that they name."""
    with opened(data_dir) as connection:
        connection.execute("BEGIN")
        job = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        windows = connection.execute("SELECT * FROM windows WHERE job_id = ? ORDER BY number", (job_id,)).fetchall()
        chunks = connection.execute("SELECT * FROM chunks WHERE job_id = ? ORDER BY number", (job_id,)).fetchall()
    blobs = data_dir / "blobs"
    return Ledger(
        job=dict(job), windows=[_window(row) for row in windows], chunks=[_chunk(row, blobs) for row in chunks]
    )


def leased_rows(data_dir: Path, *, released: bool = False) -> dict[tuple[str, int], tuple[int, int]]:
    """The chunks that are leased now (`released`: or were given back), by (job, chunk): lease epoch and rows."""
    if not (data_dir / "milkrun.db").exists():
        return {}
    states = ("leased", "ready") if released else ("leased", "leased")
    query = "SELECT job_id, number, lease_epoch, rows FROM chunks WHERE state IN (?, ?) AND lease_epoch > 0"
    with opened(data_dir) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunks'").fetchone() is None:
            return {}  # killed before its first migration
        leased = connection.execute(query, states)
        return {(row["job_id"], row["number"]): (row["lease_epoch"], row["rows"]) for row in leased}


def interruption(data_dir: Path, *, released: bool = False) -> Interruption:
    """What the server that has just ended held (`released`: and gave back); taken before the next one starts."""
    return Interruption(at=time.time(), leased=leased_rows(data_dir, released=released))


def check_ledger(data_dir: Path) -> list[str]:
    """Judge every job by the ledger and its files alone."""
    from checker.rules import ledger_violations

    with opened(data_dir) as connection:
        ids = [row["id"] for row in connection.execute("SELECT id FROM jobs")]
    return [broken for job_id in ids for broken in ledger_violations(read_ledger(data_dir, job_id))]


def result_row(values: dict[str, Any]) -> Row:
    """A row of a chunk file."""
    output = values["output"]
    told = {**values, "output": None if output is None else json.loads(output)}
    return Row(*(told[name] for name in RESULT_COLUMNS))


def _window(row: sqlite3.Row) -> Window:
    numbers = array.array("I", zlib.decompress(row["permutation"]))
    places = list(zip(numbers[::2], numbers[1::2], strict=True))
    return Window(number=row["number"], first_index=row["first_index"], rows=row["rows"], places=places)


def _chunk(row: sqlite3.Row, blobs: Path) -> Chunk:
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
        errors=json.loads(row["errors"]) or {} if row["errors"] else {},
        slots=pq.read_table(asked, columns=["index"]).column("index").to_pylist(),
        file_sha256=hashlib.sha256(data).hexdigest() if data is not None else None,
        results=[result_row(each) for each in pq.read_table(io.BytesIO(data)).to_pylist()] if data is not None else (),
    )
