"""
The real vLLM with the default models: answers fit, bad rows are typed, death is told.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fix_replicas import a_handout, a_row, outcomes_of, text

from milkrun.status import RowErrorCode
from milkrun_engine.replicas.base import Outcome, ReplicaDied, ReplicaHandle
from milkrun_engine.replicas.local import LocalPool
from milkrun_engine.replicas.models import load_models
from milkrun_engine.replicas.profiles import DEFAULT_MAX_TOKENS
from milkrun_engine.replicas.requests import COMPLETION, EMBEDDING

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(600)]

SECRET = "zanzibar"
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalPool]:
    made = LocalPool(tmp_path_factory.mktemp("data"))
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(scope="module")
async def model(pool: LocalPool) -> AsyncIterator[ReplicaHandle]:
    handle = await pool.start_replica(load_models(None, "vllm")[0])
    await handle.ready()
    yield handle
    await handle.stop()


async def one(model: ReplicaHandle, body: Any = None, *, endpoint: str | None = None, **defaults: Any) -> Outcome:
    row = a_row(0, body) if endpoint is None else a_row(0, body, endpoint=endpoint)
    return (await outcomes_of(model, a_handout([row], **defaults)))[0]


async def test_it_says_what_it_runs_on(model: ReplicaHandle) -> None:
    info = await model.ready()
    assert 8192 == info.context_tokens
    assert {"device", "dtype", "vllm"} == set(info.detail)
    assert info.window_rows > info.handout_rows


async def test_chat(model: ReplicaHandle) -> None:
    outcome = await one(model, "What is the capital of France?", sampling=GREEDY | {"max_tokens": 20})
    assert "Paris" in text(outcome)
    assert "stop" == outcome.finish_reason
    assert outcome.prompt_tokens > outcome.completion_tokens > 0


async def test_completion(model: ReplicaHandle) -> None:
    outcome = await one(
        model, {"prompt": "The capital of France is"}, endpoint=COMPLETION, sampling=GREEDY | {"max_tokens": 4}
    )
    assert "Paris" in text(outcome)
    assert (4, "length") == (outcome.completion_tokens, outcome.finish_reason)


async def test_an_answer_without_a_bound_ends_at_ours_or_at_its_own_minimum(model: ReplicaHandle) -> None:
    minimums = (DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS + 8)
    hi = {"messages": [{"role": "user", "content": "Hi"}]}
    rows = [a_row(i, hi | {"min_tokens": minimum}) for i, minimum in enumerate(minimums)]
    outcomes = await outcomes_of(model, a_handout(rows, sampling=GREEDY))
    assert minimums == (outcomes[0].completion_tokens, outcomes[1].completion_tokens)


async def test_a_long_prompt_is_sampled_from_its_seed(model: ReplicaHandle) -> None:
    """It is read in parts, and what is sampled between them must not count."""
    prompt = "Tell me more about the lighthouse. " * 100
    answers = [text(await one(model, prompt, sampling={"max_tokens": 12})) for _ in range(2)]
    assert answers[0] == answers[1]


async def test_many_sampled_rows_share_the_engine(model: ReplicaHandle) -> None:
    """More prompts at once than a step has room for, so that some are read in parts."""
    rows = [f"Write a story about a lighthouse, a letter and the number {n}. " * 3 for n in range(60)]
    outcomes = await outcomes_of(model, a_handout(rows, sampling={"max_tokens": 8}))
    assert [None] * 60 == [outcomes[index].error_code for index in range(60)]


async def test_choices(model: ReplicaHandle) -> None:
    rows = [a_row(i, word) for i, word in enumerate(["Great!", "Awful.", "It broke.", "I love it."])]
    outcomes = await outcomes_of(model, a_handout(rows, output_schema={"choices": ["good", "bad"]}, sampling=GREEDY))
    assert {"good", "bad"} >= {text(outcome) for outcome in outcomes.values()}


async def test_json(model: ReplicaHandle) -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}, "n": {"type": "integer"}}}
    schema |= {"required": ["label", "n"], "additionalProperties": False}
    outcome = await one(model, "Label it.", output_schema={"json_schema": schema}, sampling=GREEDY)
    answer = json.loads(text(outcome))
    assert {"label", "n"} == set(answer)
    assert "\n" not in text(outcome), "white space costs tokens"


async def test_a_shared_prefix_is_counted_as_cached(model: ReplicaHandle) -> None:
    prompt = "You classify reviews with care. " * 40
    for _ in range(2):
        outcome = await one(model, "Fine.", system_prompt=prompt, sampling=GREEDY | {"max_tokens": 1})
    assert 0 < outcome.prompt_tokens - outcome.cached_tokens <= 64


async def test_several_choices_keep_the_whole_answer(model: ReplicaHandle) -> None:
    outcome = await one(model, "Hi", sampling={"n": 2, "max_tokens": 3})
    assert 2 == len(text(outcome)["choices"])


async def test_an_answer_cut_short_of_its_schema_is_truncated(model: ReplicaHandle) -> None:
    outcome = await one(model, SECRET, output_schema={"json_schema": {"type": "object"}}, sampling={"max_tokens": 1})
    assert (RowErrorCode.truncated, None, 1) == (outcome.error_code, outcome.output, outcome.completion_tokens)


_BAD: list[tuple[dict[str, Any], RowErrorCode]] = [
    ({"messages": [{"role": "user", "content": f"{SECRET} " * 9_000}]}, RowErrorCode.context_length_exceeded),
    (
        {"messages": [{"role": "user", "content": "word " * 7_900}], "max_tokens": 900},
        RowErrorCode.context_length_exceeded,
    ),
    ({"messages": [{"role": "user", "content": SECRET}], "max_tokens": 9_000}, RowErrorCode.context_length_exceeded),
    (
        {"messages": [{"role": "user", "content": SECRET}], "max_tokens": None, "min_tokens": 8_190},
        RowErrorCode.context_length_exceeded,
    ),
    ({"messages": [{"role": "user", "content": SECRET}], "temperature": SECRET}, RowErrorCode.invalid_row),
    ({"messages": [{"role": "user", "content": SECRET}], "temperature": -1}, RowErrorCode.invalid_row),
    ({"messages": [{"role": "user", "content": SECRET}], "chat_template": SECRET}, RowErrorCode.invalid_row),
    ({"messages": SECRET}, RowErrorCode.invalid_row),
    ({"no": SECRET}, RowErrorCode.invalid_row),
    (
        {"messages": [{"role": "user", "content": SECRET}], "structured_outputs": {"choice": []}},
        RowErrorCode.schema_rejected,
    ),
    (
        {
            "messages": [{"role": "user", "content": SECRET}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "wat"}}},
        },
        RowErrorCode.schema_rejected,
    ),
]


async def test_bad_rows_are_typed_alone_and_never_quoted(model: ReplicaHandle) -> None:
    rows = [a_row(i, body) for i, (body, _) in enumerate(_BAD)] + [a_row(99, {"messages": [], "prompt": SECRET})]
    outcomes = await outcomes_of(model, a_handout([*rows, a_row(100, "Hi")], sampling={"max_tokens": 2}))
    assert [code for _, code in _BAD] == [outcomes[i].error_code for i in range(len(_BAD))]
    assert outcomes[100].error_code is None
    assert not any(SECRET in (outcome.error_message or "") for outcome in outcomes.values())


async def test_a_bad_schema_of_the_job_is_typed(model: ReplicaHandle) -> None:
    outcome = await one(model, "Hi", output_schema={"json_schema": {"type": "wat"}})
    assert RowErrorCode.schema_rejected == outcome.error_code


async def test_abort_stops_at_once(model: ReplicaHandle) -> None:
    async def abort() -> None:
        await asyncio.sleep(1)
        await model.abort(50)

    aborting = asyncio.create_task(abort())
    start = time.monotonic()
    rows = [f"Tell a long story about {i}." for i in range(4)]
    assert {} == await outcomes_of(model, a_handout(rows, handout_id=50, sampling={"min_tokens": 4_000}))
    assert time.monotonic() - start < 6
    await aborting
    assert (await one(model, "Hi", sampling={"max_tokens": 1})).error_code is None


async def test_an_engine_core_answers_a_beat_at_work_and_none_while_it_is_frozen(model: ReplicaHandle) -> None:
    (core,) = [process for pid in (await model.ready()).pids if "EngineCore" in (process := psutil.Process(pid)).name()]
    work = asyncio.create_task(outcomes_of(model, a_handout(["Tell a story."], sampling={"max_tokens": 200})))
    await asyncio.wait_for(model.beat(), 30)
    core.suspend()
    beat = asyncio.create_task(model.beat())
    try:
        assert not (await asyncio.wait({beat}, timeout=3))[0]
    finally:
        core.resume()
    await asyncio.wait_for(beat, 30)
    await work


async def test_a_killed_engine_core_is_told_and_leaves_nothing(model: ReplicaHandle) -> None:
    """Runs last of those that share the model: it takes it away."""
    processes = [psutil.Process(pid) for pid in (await model.ready()).pids]
    (core,) = [process for process in processes if "EngineCore" in process.name()]
    asyncio.get_running_loop().call_later(1, core.kill)
    start = time.monotonic()
    with pytest.raises(ReplicaDied):
        await outcomes_of(model, a_handout(["Tell a story."], sampling={"min_tokens": 4_000}))
    assert time.monotonic() - start < 1 + 3
    await model.stop()
    shared = Path("/dev/shm")
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    assert not any((shared / f"__KMP_REGISTERED_LIB_{process.pid}_0").exists() for process in processes)


async def test_embeddings(pool: LocalPool) -> None:
    handle = await pool.start_replica(load_models(None, "vllm")[1])
    await handle.ready()
    texts = ["a cat", "a kitten", "quarterly revenue", "word " * 3_000]
    rows = [a_row(i, {"input": text_}, endpoint=EMBEDDING) for i, text_ in enumerate(texts)]
    outcomes = await outcomes_of(handle, a_handout([*rows, a_row(4, "a chat")]))
    await handle.stop()
    cat, kitten, revenue = [text(outcomes[i]) for i in range(3)]
    assert 384 == len(cat)
    assert (
        sum(a * b for a, b in zip(cat, kitten, strict=True))
        > 0.5
        > sum(a * b for a, b in zip(cat, revenue, strict=True))
    )
    assert RowErrorCode.context_length_exceeded == outcomes[3].error_code
    assert RowErrorCode.invalid_row == outcomes[4].error_code
    assert outcomes[0].prompt_tokens > 0
