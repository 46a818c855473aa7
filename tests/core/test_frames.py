"""Tables of pandas, polars and pyarrow, in and out."""

import io
from pathlib import Path
from typing import Any

import pytest

from milkrun import hashing

pytestmark = pytest.mark.engine


def tables() -> dict[str, Any]:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    columns = {"id": [1, 2], "text": ["a\u2028b", None]}
    return {
        "pandas": pd.DataFrame(columns),
        "polars": pl.DataFrame(columns),
        "pyarrow": pa.table(columns),
        "batch": pa.RecordBatch.from_pydict(columns),
    }


def series() -> dict[str, Any]:
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    return {
        "pandas": pd.Series(["a", np.nan]),
        "pandas-string": pd.Series(["a", None], dtype="string"),
        "pandas-na": pd.Series(["a", pd.NA], dtype=object),
        "polars": pl.Series(["a", None]),
        "pyarrow": pa.chunked_array([["a", None]]),
    }


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "batch"])
def test_a_table_is_sent_as_parquet(call: Any, engine: Any, library: str) -> None:
    import pyarrow.parquet as pq

    call.method("infer", tables()[library], column="text")
    assert engine.requests[0].url.params["format"] == "parquet"
    sent = pq.read_table(io.BytesIO(engine.uploads[0]))
    assert sent.to_pydict() == {"id": [1, 2], "text": ["a\u2028b", None]}


def test_a_table_counts_as_its_rows_whoever_wrote_the_file(call: Any, engine: Any) -> None:
    import pandas as pd

    noted = tables()["pandas"]
    noted.attrs = {"made_by": "another version"}
    typed = pd.DataFrame({"id": [1, 2], "text": pd.Series(["a\u2028b", None], dtype=object)})
    for table in [*tables().values(), noted, typed]:
        call.method("infer", table, column="text")
    hashes = {engine.sent(n)["input"]["rows_sha256"] for n in range(1, len(engine.requests), 2)}
    assert hashes == {hashing.rows_sha256([{"id": 1, "text": "a\u2028b"}, {"id": 2, "text": None}])}


def test_values_that_json_has_not_count_as_well(call: Any, engine: Any) -> None:
    import datetime as dt
    import decimal

    import polars as pl

    for day in (1, 1, 2):
        values = {"at": [dt.date(2026, 1, day)], "price": [decimal.Decimal("1.50")], "raw": [b"\xff"]}
        call.method("infer", pl.DataFrame(values))
    first, again, other = (engine.sent(n)["input"]["rows_sha256"] for n in (1, 3, 5))
    assert first == again != other


@pytest.mark.parametrize("library", ["pandas", "pandas-string", "pandas-na", "polars", "pyarrow"])
def test_a_column_is_a_list_of_texts(call: Any, engine: Any, library: str) -> None:
    call.method("infer", series()[library])
    assert engine.sent()["rows"] == ["a", None]


def test_a_column_of_chats_is_a_list_of_rows(call: Any, engine: Any) -> None:
    import pandas as pd
    import polars as pl

    chats = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]]
    for column in (pl.Series(chats), pd.Series(chats)):
        call.method("infer", column)
        assert chats == engine.sent()["rows"]


def test_a_lazy_frame_is_refused_with_advice(call: Any) -> None:
    import polars as pl

    with pytest.raises(TypeError, match="collect"):
        call.method("infer", pl.LazyFrame({"a": [1]}))


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_results_become_a_frame(call: Any, engine: Any, build: Any, tmp_path: Path, library: str) -> None:
    import polars as pl

    engine.jobs["job_1"] = build.job(status="succeeded")
    engine.rows = [build.row(0), build.row(1)]
    pl.DataFrame({"index": [0, 1, 2], "output": ["x", None, "later"]}).write_parquet(tmp_path / "e")
    engine.exports = {"parquet": (tmp_path / "e").read_bytes()}
    results = call.method("results", "job_1")
    frame = call({"pandas": results.to_pandas, "polars": results.to_polars, "pyarrow": results.to_arrow}[library])
    assert type(frame).__module__.startswith(library)
    assert len(frame) == 2, "as many rows as when the results were asked for"
    first = frame["output"][0]
    assert "x" == (first.as_py() if library == "pyarrow" else first)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("output", ["text", [0.5, 1.0]], ids=["text", "vector"])
def test_results_join_a_frame(call: Any, engine: Any, build: Any, library: str, output: Any) -> None:
    engine.jobs["job_1"] = build.job(status="succeeded")
    engine.rows = [build.row(0, output), build.row(1, code="timeout")]
    results = call.method("results", "job_1")
    table = tables()[library]
    joined = call(results.join, table)
    names = joined.column_names if library == "pyarrow" else list(joined.columns)
    assert names == ["id", "text", "output", "status", "error", "error_message", "finish_reason"]
    first = joined["output"][0]
    assert output == (first.as_py() if library == "pyarrow" else list(first) if output != "text" else first)
    assert len(table.columns) == 2, "the caller's table is left as it was"
    with pytest.raises(ValueError, match="already has"):
        call(results.join, joined)


def test_a_missing_library_says_what_to_install(
    call: Any, engine: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    engine.jobs["job_1"] = build.job()
    engine.exports = {"parquet": b""}
    results = call.method("results", "job_1")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r'pip install "milkrun\[frames\]"'):
        call(results.to_polars)
