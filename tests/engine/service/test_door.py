"""
What can't work is told at the door, in words that say what to do.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fix_store import MODELS

from milkrun.status import InputFormat, JobKind
from milkrun.wire import JobSpec, OutputSchema
from milkrun_engine.domain.errors import InvalidRequest, MissingColumn, UnknownModel
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.rows import RowReader
from milkrun_engine.service import door

KINDS = {name: model.kind for name, model in MODELS.items()}


def check(folder: Path, data: bytes | pa.Table, form: str, **spec: Any) -> None:
    path = folder / "input"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        pq.write_table(data, path)
    door.check_input(path, InputFormat(form), RowReader.of(JobSpec(**spec), "echo", KINDS))


def test_a_job_without_a_model_gets_the_default_of_its_kind() -> None:
    assert door.resolve_model(JobSpec(), MODELS).name == "echo"
    assert door.resolve_model(JobSpec(kind=JobKind.embed), MODELS).name == "vectors"
    assert door.resolve_model(JobSpec(model="other"), MODELS).name == "other"


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"model": "nobody's"}, "echo, other"),
        ({"model": "vectors"}, "echo, other"),
        ({"model": "echo", "kind": "embed"}, "vectors"),
    ],
)
def test_a_model_that_can_not_run_the_job_is_refused_with_those_that_can(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(UnknownModel, match=named):
        door.resolve_model(JobSpec(**spec), MODELS)


def test_a_kind_without_a_default_asks_for_a_name() -> None:
    models = {"only": ModelSpec(name="only", weights="")}
    with pytest.raises(UnknownModel, match="only"):
        door.resolve_model(JobSpec(), models)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "embed", "system_prompt": "x"},
        {"kind": "embed", "output_schema": OutputSchema(choices=["a"])},
        {"output_schema": OutputSchema(choices=["a"]), "sampling": {"response_format": {"type": "json_object"}}},
        {"sampling": {"temprature": 0}},
    ],
)
def test_a_spec_that_no_row_could_satisfy_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        door.check_spec(JobSpec(**spec))


TABLE = pa.table({"a": ["x"], "b": ["y"]})


@pytest.mark.parametrize(
    ("data", "form"),
    [(b"a,b\nx,y\n", "csv"), (b"a\tb\nx\ty\n", "tsv"), (b'{"a":"x","b":"y"}\n', "jsonl"), (TABLE, "parquet")],
)
def test_a_missing_column_is_told_where_the_header_or_first_row_shows_it(tmp_path: Path, data: Any, form: str) -> None:
    check(tmp_path, data, form, prompt="{a} {b}", key_column="a")
    with pytest.raises(MissingColumn, match="'c'; it has a, b"):
        check(tmp_path, data, form, prompt="{a} {c}")
    with pytest.raises(MissingColumn, match="'id'"):
        check(tmp_path, data, form, prompt="{a}", key_column="id")


@pytest.mark.parametrize(("data", "form"), [(b"a,b\n", "csv"), (TABLE.slice(0, 0), "parquet")])
def test_a_header_alone_shows_it_too(tmp_path: Path, data: Any, form: str) -> None:
    with pytest.raises(MissingColumn):
        check(tmp_path, data, form, prompt="{c}")


def test_plain_texts_are_the_column_text(tmp_path: Path) -> None:
    check(tmp_path, b'"hello"\n', "jsonl", prompt="Classify: {text}")
    with pytest.raises(MissingColumn):
        check(tmp_path, b'"hello"\n', "jsonl", prompt="Classify: {review}")


def test_a_table_without_a_template_is_told_how_to_ask(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"Classify: \{b\}"):
        check(tmp_path, b"a,b\nx,y\n", "csv")
    check(tmp_path, b"prompt,seed\nx,1\n", "csv")


@pytest.mark.parametrize("data", [b"", b"\n", b'"text"\n', b"{}\n", b"not json\n", b"[1]\n"])
def test_rows_of_json_lines_are_judged_one_by_one_later(tmp_path: Path, data: bytes) -> None:
    check(tmp_path, data, "jsonl")


@pytest.mark.parametrize(("data", "form"), [(b"PAR1", "parquet"), (b"a,a\n1,2\n", "csv"), (b"\xe9,b\n1,2\n", "csv")])
def test_a_file_that_is_none_is_refused(tmp_path: Path, data: bytes, form: str) -> None:
    with pytest.raises(InvalidRequest, match="can't be read"):
        check(tmp_path, data, form, prompt="{a}")


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.touch()
    with pytest.raises(InvalidRequest, match="empty"):
        door.check_input(path, InputFormat.csv, RowReader.of(JobSpec(prompt="{a}"), "echo", {}))
