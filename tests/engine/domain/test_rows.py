"""
Every JSON value is a request or a typed refusal; nothing that a caller sends raises.
"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milkrun.status import JobKind, RowErrorCode
from milkrun.wire import JobSpec
from milkrun_engine.domain import rows
from milkrun_engine.domain.rows import CHAT, COMPLETION, EMBEDDING, PreparedRow, RefusedRow, RowReader

POOLS = {"echo": JobKind.generate, "other": JobKind.generate, "vectors": JobKind.embed}
names = st.sampled_from(["messages", "prompt", "input", "model", "role", "content", "id", "text"]) | st.text(max_size=3)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["echo", "vectors", "user", "{text}"])
)  # fmt: skip
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
specs = st.builds(
    JobSpec, kind=st.sampled_from(JobKind), prompt=st.none() | st.sampled_from(["{text}", "{id} {text}", "fixed"]),
    key_column=st.none() | st.sampled_from(["id", "messages", "model"]),
    sampling=st.sampled_from([{}, {"max_tokens": 5}, {"max_tokens": "many"}, {"max_completion_tokens": 7}]),
)  # fmt: skip


def read(value: Any, **spec: Any) -> PreparedRow | RefusedRow:
    job = JobSpec(**spec)
    pool = "vectors" if job.kind is JobKind.embed else "echo"
    return RowReader.of(job, pool, POOLS).read(7, value)


def request(row: PreparedRow | RefusedRow) -> tuple[str, Any]:
    assert isinstance(row, PreparedRow), row
    return row.endpoint, json.loads(row.body)


@given(spec=specs, value=values)
def test_any_value_is_a_request_or_a_refusal(spec: JobSpec, value: Any) -> None:
    pool = "vectors" if spec.kind is JobKind.embed else "echo"
    row = RowReader.of(spec, pool, POOLS).read(3, value)
    assert row.index == 3
    if isinstance(row, RefusedRow):
        assert row.code in {RowErrorCode.invalid_row, RowErrorCode.model_not_found}
        assert row.message
        return
    assert isinstance(json.loads(row.body), dict)
    assert POOLS[row.pool] is spec.kind
    assert (row.endpoint == EMBEDDING) is (spec.kind is JobKind.embed)
    assert row.tokens > 0


def test_a_text_is_a_users_message() -> None:
    expected = CHAT, {"messages": [{"role": "user", "content": "hi"}]}
    assert request(read("hi")) == expected
    assert request(read({"text": "hi"}, prompt="{text}")) == expected
    assert request(read("hi", prompt="{text}")) == expected


def test_messages_a_prompt_and_an_input_keep_their_parameters() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert request(read(messages)) == (CHAT, {"messages": messages})
    assert request(read({"messages": messages, "seed": 3})) == (CHAT, {"messages": messages, "seed": 3})
    assert request(read({"prompt": "hi", "n": 2})) == (COMPLETION, {"prompt": "hi", "n": 2})
    assert request(read("hi", kind="embed")) == (EMBEDDING, {"input": "hi"})
    assert request(read({"input": "hi"}, kind="embed")) == (EMBEDDING, {"input": "hi"})


def test_a_row_may_name_another_model_of_its_jobs_kind() -> None:
    row = read({"prompt": "hi", "model": "other"})
    assert (row.pool, request(row)[1]) == ("other", {"prompt": "hi"})


@pytest.mark.parametrize("model", ["nobody's", "vectors", None, 3, ["echo"], {}])
def test_a_model_that_can_not_run_the_row_refuses_it(model: Any) -> None:
    row = read({"prompt": "hi", "model": model})
    assert isinstance(row, RefusedRow)
    assert row.code is RowErrorCode.model_not_found


@pytest.mark.parametrize(("key", "expected"), [("a", "a"), (3, "3"), (None, None), ({"a": 1}, '{"a":1}')])
def test_a_key_is_a_label_and_no_part_of_the_request(key: Any, expected: str | None) -> None:
    row = read({"id": key, "prompt": "hi"}, key_column="id")
    assert row.key == expected
    assert request(row)[1] == {"prompt": "hi"}


def test_a_refused_row_keeps_its_key() -> None:
    row = read({"id": "k", "other": 1}, key_column="id", prompt="{text}")
    assert isinstance(row, RefusedRow)
    assert row.key == "k"
    assert "'text'" in row.message


def test_a_row_without_its_key_column_is_refused() -> None:
    assert isinstance(read({"prompt": "hi"}, key_column="id"), RefusedRow)
    assert isinstance(read("hi", key_column="id"), RefusedRow)


def test_a_row_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_BYTES", 100)
    assert isinstance(read("x" * 40), PreparedRow)
    assert isinstance(read("x" * 100), RefusedRow)


def test_a_prompt_is_estimated_by_its_bytes_and_the_answers_limit() -> None:
    assert read("x" * 400, sampling={"max_tokens": 500}).tokens in range(600, 700)


def test_a_row_too_deep_to_be_written_is_refused_by_itself() -> None:
    reader = RowReader.of(JobSpec(), "m", {"m": JobKind.generate})
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    refused = reader.read(3, {"prompt": "x", "extra": deep})
    assert isinstance(refused, RefusedRow)
    assert (refused.index, refused.code) == (3, RowErrorCode.invalid_row)
