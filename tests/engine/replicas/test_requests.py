"""
A row's effective request is the job's defaults with the row's own body over them.
"""

import json
from typing import Any

import pytest
from fix_replicas import a_handout, a_row
from hypothesis import given
from hypothesis import strategies as st

from milkrun_engine.replicas.requests import EMBEDDING, InvalidRequest, constraint, merge, refuse_unfit

_names = st.sampled_from(["temperature", "top_p", "max_tokens", "stop", "seed", "x"])
_values = st.one_of(st.integers(0, 9), st.text(max_size=5), st.booleans())
_parameters = st.dictionaries(_names, _values)


def merged(
    body: Any, *, endpoint: str = "/v1/chat/completions", index: int = 0, job_id: str = "j", **defaults: Any
) -> Any:
    row = a_row(index, body, endpoint=endpoint)
    return merge(a_handout([row], job_id=job_id, **defaults), row)


@given(sampling=_parameters, own=_parameters)
def test_the_rows_own_parameters_win(sampling: dict[str, Any], own: dict[str, Any]) -> None:
    request = merged({"prompt": "p", **own}, sampling=sampling)
    for name, value in (sampling | own).items():
        assert value == request[name]


@given(index=st.integers(0, 1 << 40), job_id=st.text(max_size=20))
def test_a_seed_is_stable_and_of_32_bits(index: int, job_id: str) -> None:
    seeds = {merged({"prompt": "p"}, index=index, job_id=job_id)["seed"] for _ in range(2)}
    assert 1 == len(seeds)
    assert 0 <= seeds.pop() < 1 << 32


def test_seeds_differ_between_rows_and_jobs() -> None:
    seeds = {merged({"prompt": "p"}, index=i, job_id=job)["seed"] for i in range(100) for job in "ab"}
    assert 200 == len(seeds)


def test_the_jobs_system_prompt_goes_first() -> None:
    request = merged("hi", system_prompt="Be brief.")
    assert ["system", "user"] == [message["role"] for message in request["messages"]]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_rows_system_message_replaces_the_jobs(role: str) -> None:
    messages = [{"role": role, "content": "mine"}, {"role": "user", "content": "hi"}]
    assert messages == merged({"messages": messages}, system_prompt="Be brief.")["messages"]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"choices": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"json_schema": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"regex": "a+"}, {"regex": "a+"}),
    ],
)
def test_the_output_schema_becomes_structured_outputs(ours: Any, theirs: Any) -> None:
    request = merged("hi", output_schema=ours)
    assert theirs == request["structured_outputs"]
    assert next(iter(theirs.items())) == constraint(request)


def test_a_rows_response_format_replaces_the_jobs_schema() -> None:
    own = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    request = merged({"messages": [], "response_format": own}, output_schema={"choices": ["a"]})
    assert "structured_outputs" not in request
    assert ("json", {"type": "object"}) == constraint(request)


def test_an_embedding_gets_neither_seed_nor_schema() -> None:
    request = merged({"input": "hi"}, endpoint=EMBEDDING, output_schema={"choices": ["a"]}, sampling={"dimensions": 4})
    assert {"input": "hi", "dimensions": 4} == request


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b'"secret"', b"{", b'{"messages": "secret"}', b'{"messages": ["secret"]}']
)
def test_a_body_that_is_no_request_is_told_without_quoting_it(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as error:
        merged(body, system_prompt="s")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "request_",
    [
        {"chat_template": "{{ 1 }}"},
        {"input": ["a", "b"]},
        {"prompt": [[1, 2], [3]]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]},
    ],
)
def test_what_a_row_may_not_ask(request_: Any) -> None:
    with pytest.raises(InvalidRequest):
        refuse_unfit(request_)


def test_tokens_and_inline_media_are_one_input() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    refuse_unfit({"prompt": [1, 2, 3], "input": ["a"], "messages": [{"role": "user", "content": [image]}]})


def test_a_row_is_never_streamed() -> None:
    request = merged({"prompt": "p", "stream": True, "stream_options": {"include_usage": True}})
    assert {"prompt", "seed"} == set(json.loads(json.dumps(request)))
