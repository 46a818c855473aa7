"""
Every export holds what the pages hold, whatever is in the answers.
"""

import csv
import io
import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from fix_store import World

from milkrun.status import JobKind, ResultFormat
from milkrun.wire import JobSpec
from milkrun_engine.replicas.base import Outcome
from milkrun_engine.service import exports

ANSWERS: list[Any] = [
    "plain", "", "a,b", 'say "x"', "two\nlines", "a\r\nb", "a\rb", "\u2028 \u2029", "👩\u200d👧", "\x00", "=1+1",
    "null", "1", {"choices": [{"text": "a"}]}, ["a", 1, None], "\ufeffbom", " spaces ", "\t", "é",
]  # fmt: skip


def awkward(index: int, body: bytes) -> Outcome:
    if index % 7 == 6:
        return Outcome(index, error_code="schema_rejected", error_message='a "schema",\nof two lines')
    return Outcome(
        index, output=json.dumps(ANSWERS[index % len(ANSWERS)]).encode(), prompt_tokens=index, finish_reason="stop"
    )


@pytest.fixture
def job_id(world: World) -> str:
    """A finished job with awkward keys and answers, in several chunks."""
    rows = [{"id": str(ANSWERS[number % 13]), "text": "x"} for number in range(60)]
    job_id = world.prepared(rows, spec=JobSpec(prompt="{text}", key_column="id"))
    while leases := world.claim(16):
        for lease in leases:
            world.finish(lease, awkward)
    return job_id


def pages(world: World, job_id: str, limit: int = 7) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    after, complete = -1, False
    while not complete:
        page = json.loads(exports.page(world.reader, world.reader.readable(world.tenant, job_id), after, limit))
        assert len(page["rows"]) <= limit
        rows += page["rows"]
        after, complete = page["next_after"], page["complete"]
    return rows


def export(world: World, job_id: str, form: ResultFormat) -> bytes:
    return b"".join(exports.export(world.reader, world.reader.readable(world.tenant, job_id), form))


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A page's row with the columns of an export."""
    error = row.pop("error") or {"code": None, "message": None}
    row |= {"error_code": error["code"], "error_message": error["message"]}
    return {name: row[name] for name in exports.EXPORT_COLUMNS}


def as_cell(output: Any) -> str | None:
    return output if output is None or isinstance(output, str) else json.dumps(output)


def test_pages_of_any_size_hold_the_same_rows(world: World, job_id: str) -> None:
    rows = pages(world, job_id, 10_000)
    assert len(rows) == 60
    for limit in (1, 7, 8, 59, 60):
        assert pages(world, job_id, limit) == rows
    expected = [None if index % 7 == 6 else ANSWERS[index % len(ANSWERS)] for index in range(60)]
    assert [row["output"] for row in rows] == expected


def test_json_lines_hold_what_the_pages_hold(world: World, job_id: str) -> None:
    lines = export(world, job_id, ResultFormat.jsonl).split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == [flat(row) for row in pages(world, job_id)]


def test_csv_holds_what_the_pages_hold(world: World, job_id: str) -> None:
    text = io.StringIO(export(world, job_id, ResultFormat.csv).decode(), newline="")
    header, *rows = csv.reader(text, strict=True)
    assert header == exports.EXPORT_COLUMNS
    expected = [flat(row) for row in pages(world, job_id)]
    for row in expected:
        row["output"] = as_cell(row["output"])
    assert rows == [["" if value is None else str(value) for value in row.values()] for row in expected]


def test_parquet_holds_what_the_pages_hold(world: World, job_id: str) -> None:
    table = pq.read_table(io.BytesIO(export(world, job_id, ResultFormat.parquet)))
    expected = [flat(row) for row in pages(world, job_id)]
    for row in expected:
        row["output"] = as_cell(row["output"])
    assert table.to_pylist() == expected


@pytest.mark.parametrize("form", list(ResultFormat))
def test_a_job_without_rows_is_an_empty_file_of_its_format(world: World, form: ResultFormat) -> None:
    data = export(world, world.prepared(0), form)
    match form:
        case ResultFormat.jsonl:
            assert data == b""
        case ResultFormat.csv:
            assert list(csv.reader(io.StringIO(data.decode()))) == [exports.EXPORT_COLUMNS]
        case ResultFormat.parquet:
            table = pq.read_table(io.BytesIO(data))
            assert (table.column_names, table.num_rows) == (exports.EXPORT_COLUMNS, 0)


def test_vectors_are_lists_of_numbers_in_parquet(world: World) -> None:
    job_id = world.prepared(["a", "b", 3], spec=JobSpec(kind=JobKind.embed))
    [lease] = world.claim(pool="vectors")
    world.finish(lease, lambda index, _: Outcome(index, output=json.dumps([0.5, index]).encode()))
    table = pq.read_table(io.BytesIO(export(world, job_id, ResultFormat.parquet)))
    assert table.column("output").to_pylist() == [[0.5, 0.0], [0.5, 1.0], None]
    assert pages(world, job_id)[1]["output"] == [0.5, 1]


def test_a_running_jobs_page_ends_at_the_settled_prefix(world: World) -> None:
    job_id = world.prepared(24)
    first, *_ = world.claim(3)
    world.finish(first)
    page = json.loads(exports.page(world.reader, world.reader.readable(world.tenant, job_id), -1, 100))
    assert (len(page["rows"]), page["settled"], page["next_after"], page["complete"]) == (8, 8, 7, False)
    page = json.loads(exports.page(world.reader, world.reader.readable(world.tenant, job_id), 7, 100))
    assert (page["rows"], page["next_after"], page["complete"]) == ([], 7, False)
