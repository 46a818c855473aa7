"""
Echo's answers are a function of the request alone, and fit what was asked.
"""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fix_replicas import ECHO, a_handout, a_row, text

from milkrun.status import RowErrorCode
from milkrun_engine.replicas.base import HandOut, Outcome
from milkrun_engine.replicas.echo import EchoReplica
from milkrun_engine.replicas.requests import COMPLETION, EMBEDDING

pytestmark = pytest.mark.anyio


async def run(handout: HandOut, echo: EchoReplica | None = None) -> list[Outcome]:
    outcomes = [outcome async for rows in (echo or EchoReplica(ECHO)).generate(handout) for outcome in rows]
    return sorted(outcomes, key=lambda outcome: outcome.index)


async def test_equal_requests_of_two_jobs_answer_alike() -> None:
    first, second = [await run(a_handout(["good", "bad"], job_id=job, handout_id=i)) for i, job in enumerate("ab")]
    assert first == second
    assert first[0].output != first[1].output


async def test_a_parameter_changes_the_answer() -> None:
    answers = [(await run(a_handout(["good"], sampling={"temperature": t})))[0].output for t in (0, 1)]
    assert answers[0] != answers[1]


async def test_tokens_are_counted_in_words() -> None:
    (outcome,) = await run(a_handout(["one two three"], system_prompt="be nice"))
    assert (5, "stop") == (outcome.prompt_tokens, outcome.finish_reason)
    assert outcome.completion_tokens == len(text(outcome).split())


async def test_choices_are_all_used_and_nothing_else() -> None:
    outcomes = await run(a_handout([f"text {i}" for i in range(50)], output_schema={"choices": ["a", "b", "c"]}))
    assert {"a", "b", "c"} == {text(outcome) for outcome in outcomes}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 5}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "string", "minLength": 12}, {"type": "null"}]}}},
        {"$defs": {"K": {"enum": ["x", "y"]}}, "type": "object", "properties": {"k": {"$ref": "#/$defs/K"}}},
        {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "minItems": 2},
        {
            "$defs": {
                "N": {"properties": {"n": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}}, "type": "object"}
            },
            "$ref": "#/$defs/N",
        },
        {"type": ["boolean", "null"]},
        {"type": "integer", "multipleOf": 7, "minimum": 8},
        {"const": {"fixed": [1]}},
    ],
)
async def test_json_fits_its_schema(schema: dict[str, Any]) -> None:
    for outcome in await run(a_handout([f"text {i}" for i in range(20)], output_schema={"json_schema": schema})):
        jsonschema.validate(json.loads(text(outcome)), schema)


@pytest.mark.parametrize("schema", [{"type": "wat"}, {"$ref": "#/nowhere"}, {"enum": []}])
async def test_a_bad_schema_is_typed(schema: dict[str, Any]) -> None:
    (outcome,) = await run(a_handout(["hi"], output_schema={"json_schema": schema}))
    assert RowErrorCode.schema_rejected == outcome.error_code


async def test_an_embedding_has_length_one() -> None:
    (outcome,) = await run(a_handout([a_row(7, {"input": "a cat"}, endpoint=EMBEDDING)]))
    assert 8 == len(text(outcome))
    assert math.isclose(1, sum(number**2 for number in text(outcome)))


@pytest.mark.parametrize(
    ("instruction", "code"),
    [
        ("fail: truncated and so on", RowErrorCode.truncated),
        ("fail:timeout", RowErrorCode.timeout),
        ("fail:", RowErrorCode.invalid_row),
        ("fail: nonsense", RowErrorCode.invalid_row),
        ("word " * 9_000, RowErrorCode.context_length_exceeded),
    ],
)
async def test_a_row_fails_alone(instruction: str, code: RowErrorCode) -> None:
    outcomes = await run(a_handout(["good", instruction, a_row(2, {"prompt": instruction}, endpoint=COMPLETION)]))
    assert [None, code, code] == [outcome.error_code for outcome in outcomes]


async def test_a_bad_body_is_an_invalid_row() -> None:
    (outcome,) = await run(a_handout([a_row(0, b"{")]))
    assert RowErrorCode.invalid_row == outcome.error_code


async def test_a_slow_row_holds_nobody_up() -> None:
    order = [
        outcome.index async for rows in EchoReplica(ECHO).generate(a_handout(["slow:0.1", "fast"])) for outcome in rows
    ]
    assert [1, 0] == order


async def test_each_executed_row_is_logged_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    monkeypatch.setenv("MILKRUN_ECHO_LOG", str(path))
    echo = EchoReplica(ECHO)
    await echo.start()
    await run(a_handout(["a", "fail:"], job_id="job_7"), echo)
    await echo.stop()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [("job_7", 0), ("job_7", 1)] == [(line["job_id"], line["index"]) for line in lines]
    assert {"job_id", "index", "chunk", "epoch", "pid", "t"} == set(lines[0])
