"""
What makes two submits equal: one definition for client and engine.

A file counts as its bytes, rows and tables as the JSON Lines that their rows make: the same
table is the same input from pandas, polars or pyarrow, whatever their versions. Name, labels,
priority and the like are not compared.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from milkrun.wire import JobSpec


def row_line(row: Any) -> bytes:
    """
    Write one row as a line of JSON Lines, newline included.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
        TypeError: for a value that is no JSON.
    """
    try:
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate: legal JSON only as an escape
        return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def rows_sha256(rows: Iterable[Any]) -> str:
    """Hash rows as their JSON Lines; what JSON does not have (dates, decimals, bytes) counts as its text."""
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def key_of(*parts: str | int) -> str:
    """Make one idempotency key of what stays the same across an orchestrator's retries (hex SHA-256)."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def input_hash(spec: JobSpec, rows_sha256: str) -> str:
    """Hash all that decides a job's answers: the rows and the spec (hex SHA-256)."""
    canonical = json.dumps(
        {"rows": rows_sha256, "spec": spec.model_dump(mode="json", exclude_defaults=True)},
        sort_keys=True,
        separators=(",", ":"),
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
