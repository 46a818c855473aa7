"""
Inputs as callers send them: whatever is in a file, each row is a value or a bad row, and reading goes on anywhere.
"""

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milkrun.hashing import row_line
from milkrun.status import InputFormat
from milkrun_engine.blobs import inputs
from milkrun_engine.blobs.inputs import BadRow, Item
from milkrun_engine.domain.errors import InputUnreadable

JSONL, CSV, TSV, PARQUET = InputFormat.jsonl, InputFormat.csv, InputFormat.tsv, InputFormat.parquet
AWKWARD = [
    "", " ", "a\nb", "a\r\nb", "a\rb", '"', "a,b\tc", "\u2028 \u2029 \x85", "👩\u200d👧 é", "\x00", "\ufeffx", "{a}",
]  # fmt: skip
texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(AWKWARD)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows may have 1,000 bytes."""
    monkeypatch.setattr(inputs, "MAX_ROW_BYTES", 1_000)
    before = csv.field_size_limit(1_000)
    yield 1_000
    csv.field_size_limit(before)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "input"
    path.write_bytes(data)
    return path


def read(folder: Path, data: bytes, form: InputFormat) -> list[Any]:
    return [item.value for item in inputs.read(write(folder, data), form, 0)]


def reads_on_anywhere(path: Path, form: InputFormat) -> list[Item]:
    """Read a whole input; reading on from every place that was told must give the same rest."""
    items = list(inputs.read(path, form, 0))
    for at, item in enumerate(items):
        rest = inputs.read(path, form, item.position)
        assert [(row.value, row.position) for row in rest] == [(row.value, row.position) for row in items[at + 1 :]]
    return items


def as_csv(table: Sequence[Sequence[str]], delimiter: str = ",", line_end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerows(table)
    return text.getvalue().encode()


@given(values=st.lists(json_values, max_size=12), blank=st.sampled_from([b"", b"\n", b"  \r\n"]))
def test_json_lines_come_back_as_they_went(folder: Path, values: list[Any], blank: bytes) -> None:
    path = write(folder, b"".join(blank + row_line(value) for value in values))
    assert [item.value for item in reads_on_anywhere(path, JSONL)] == values


@given(rows=st.lists(st.tuples(texts, texts), max_size=8), tabs=st.booleans(), line_end=st.sampled_from(["\n", "\r\n"]))
def test_tables_come_back_as_they_went(folder: Path, rows: list[tuple[str, str]], tabs: bool, line_end: str) -> None:
    form, delimiter = (TSV, "\t") if tabs else (CSV, ",")
    path = write(folder, as_csv([("text", "other"), *rows], delimiter, line_end))
    assert [item.value for item in reads_on_anywhere(path, form)] == [{"text": a, "other": b} for a, b in rows]


@given(data=st.binary(max_size=60), form=st.sampled_from([JSONL, CSV, TSV]))
def test_any_bytes_are_rows_or_unreadable(folder: Path, data: bytes, form: InputFormat) -> None:
    """Never another exception, and never a value with bytes that are no text."""
    try:
        items = reads_on_anywhere(write(folder, data), form)
    except InputUnreadable:
        assert form is not JSONL
        return
    for item in items:
        if not isinstance(item.value, BadRow):
            json.dumps(item.value, ensure_ascii=False).encode()


@given(
    rows=st.lists(st.tuples(texts, st.integers(-5, 5) | st.none()), max_size=30), group=st.integers(1, 9)
)  # fmt: skip
def test_parquet_comes_back_as_it_went(folder: Path, rows: list[tuple[str, int | None]], group: int) -> None:
    table = pa.table(
        {"text": pa.array([a for a, _ in rows], pa.string()), "n": pa.array([b for _, b in rows], pa.int64())}
    )
    path = folder / "input.parquet"
    pq.write_table(table, path, row_group_size=group)
    items = reads_on_anywhere(path, PARQUET)
    assert [item.value for item in items] == [{"text": a, "n": b} for a, b in rows]
    assert [item.position for item in items] == list(range(1, len(rows) + 1))


def test_a_byte_order_mark_is_no_part_of_the_first_row(folder: Path) -> None:
    assert read(folder, b'\xef\xbb\xbf"a"\n"b"\n', JSONL) == ["a", "b"]
    assert read(folder, b"\xef\xbb\xbftext\na\n", CSV) == [{"text": "a"}]
    assert read(folder, b'\xef\xbb\xbf"text","n"\r\n"a","1"\r\n', CSV) == [{"text": "a", "n": "1"}]
    assert inputs.columns(write(folder, b"\xef\xbb\xbftext\n"), CSV) == ["text"]


def test_a_last_line_without_its_end_is_a_row(folder: Path) -> None:
    assert read(folder, b'"a"\n"b"', JSONL) == ["a", "b"]
    assert read(folder, b"text\na\nb", CSV) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("form", [JSONL, CSV, TSV])
def test_an_empty_file_has_no_rows(folder: Path, form: InputFormat) -> None:
    assert read(folder, b"", form) == []
    assert read(folder, b"\n\n", form) == []


def test_a_line_that_is_no_json_is_a_bad_row_alone(folder: Path) -> None:
    values = read(folder, b'"a"\n{"b":\n\xff\n"\\ud800"\n[1,2\n' + b"[" * 5_000 + b'\nNaN\n"z"\n', JSONL)
    assert (values[0], values[-1]) == ("a", "z")
    assert [type(value) for value in values[1:-1]] == [BadRow] * 6


def test_a_row_of_another_width_is_a_bad_row_alone(folder: Path) -> None:
    first, short, long, last = read(folder, b"a,b\n1,2\n3\n4,5,6\n7,8\n", CSV)
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "7", "b": "8"})
    assert isinstance(short, BadRow)
    assert isinstance(long, BadRow)


def test_a_row_that_is_not_utf8_is_a_bad_row_alone(folder: Path) -> None:
    bad, good = read(folder, b"text\ncaf\xe9\ncaf\xc3\xa9\n", CSV)
    assert isinstance(bad, BadRow)
    assert good == {"text": "café"}


@pytest.mark.parametrize("header", [b"caf\xe9,b\n", b'"a\n', b"a,a\n"])
def test_a_header_that_can_not_be_read_refuses_the_file(folder: Path, header: bytes) -> None:
    path = write(folder, header + b"1,2\n")
    with pytest.raises(InputUnreadable) as caught:
        inputs.columns(path, CSV)
    str(caught.value).encode()
    with pytest.raises(InputUnreadable):
        list(inputs.read(path, CSV, 0))


@pytest.mark.parametrize("size", [900, 1_002, 2_500, 10_000])
def test_an_over_long_line_is_one_bad_row(folder: Path, short_rows: int, size: int) -> None:
    """However long: none of its pieces passes for a row of its own."""
    long = b"x" * size
    json_rows = reads_on_anywhere(write(folder, b'"a"\n"' + long + b'"\n"b"\n'), JSONL)
    csv_rows = reads_on_anywhere(write(folder, b"text\na\n" + long + b"\nb\n"), CSV)
    wide_rows = reads_on_anywhere(write(folder, b"a,b\n1,2\n" + long[:500] + b"," + long[500:] + b"\n3,4\n"), CSV)
    for rows in (json_rows, csv_rows, wide_rows):
        assert len(rows) == 3
        assert isinstance(rows[1].value, BadRow) is (size > short_rows)
        assert not isinstance(rows[0].value, BadRow)
        assert not isinstance(rows[2].value, BadRow)


def test_times_decimals_and_bytes_are_text(folder: Path) -> None:
    instant = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    columns = {
        "us": pa.array([instant], pa.timestamp("us", "UTC")), "ns": pa.array([instant], pa.timestamp("ns", "UTC")),
        "decimal": pa.array([Decimal("1.50")]), "bytes": pa.array([b"\xff"]), "list": pa.array([[1, None]]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "typed")
    [item] = inputs.read(folder / "typed", PARQUET, 0)
    assert datetime.fromisoformat(item.value.pop("us")) == instant
    assert datetime.fromisoformat(item.value.pop("ns")) == instant
    assert item.value == {"decimal": "1.50", "bytes": "/w==", "list": [1, None]}


def test_a_frame_saved_by_pandas_can_be_read(folder: Path) -> None:
    pd.DataFrame({"at": pd.to_datetime(["2026-01-02", None]), "n": [1, 2]}).to_parquet(folder / "frame")
    values = [item.value for item in inputs.read(folder / "frame", PARQUET, 0)]
    assert values == [{"at": "2026-01-02T00:00:00", "n": 1}, {"at": None, "n": 2}]


def test_a_parquet_value_that_is_no_text_is_a_bad_row_alone(folder: Path) -> None:
    offsets, letters = pa.array([0, 3, 6], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffbxyz")
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, letters])
    pq.write_table(pa.table({"text": broken, "day": pa.array([0, 0], pa.date32())}), folder / "broken")
    bad, good = (item.value for item in inputs.read(folder / "broken", PARQUET, 0))
    assert isinstance(bad, BadRow)
    assert good == {"text": "xyz", "day": "1970-01-01"}


def test_a_date_past_the_calendar_is_a_bad_row_alone(folder: Path) -> None:
    pq.write_table(pa.table({"day": pa.array([3_000_000, 0], pa.date32())}), folder / "far")
    bad, good = (item.value for item in inputs.read(folder / "far", PARQUET, 0))
    assert isinstance(bad, BadRow)
    assert good == {"day": "1970-01-01"}


def test_a_parquet_file_cut_anywhere_is_unreadable(folder: Path) -> None:
    whole = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(500)]}), whole, row_group_size=100)
    data = whole.getvalue()
    for size in (0, 3, 4, len(data) // 2, len(data) - 9, len(data) - 1):
        path = write(folder, data[:size])
        with pytest.raises(InputUnreadable):
            list(inputs.read(path, PARQUET, 0))
        with pytest.raises(InputUnreadable):
            inputs.columns(path, PARQUET)


def test_a_parquet_file_damaged_inside_is_unreadable_from_there(folder: Path) -> None:
    whole = io.BytesIO()
    expected = [f"row {number} {number * 7919 % 1000}" for number in range(400)]
    pq.write_table(pa.table({"text": expected}), whole, row_group_size=100, compression="zstd", use_dictionary=False)
    data = bytearray(whole.getvalue())
    middle = pq.read_metadata(io.BytesIO(data)).row_group(2).column(0).data_page_offset
    data[middle : middle + 200] = b"\xff" * 200
    rows = []
    with pytest.raises(InputUnreadable):
        rows.extend(item.value["text"] for item in inputs.read(write(folder, bytes(data)), PARQUET, 0))
    assert rows == expected[: len(rows)]


@pytest.mark.parametrize(("form", "expected"), [(JSONL, None), (CSV, ["a", "b c"]), (TSV, ["a,b c"])])
def test_the_header_names_the_columns(folder: Path, form: InputFormat, expected: list[str] | None) -> None:
    assert inputs.columns(write(folder, b"a,b c\n1,2\n"), form) == expected
