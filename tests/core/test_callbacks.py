"""The outbox of callbacks through both clients and the command."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

import milkrun as mr
from milkrun import wire

RECEIVER = "http://receiver.test:8000"


def an_answer(model: Any) -> httpx.Response:
    return httpx.Response(200, content=model.model_dump_json())


def a_callback(number: int, **facts: Any) -> wire.CallbackInfo:
    plain: dict[str, Any] = {
        "id": f"callback_{number}", "job_id": "job_1", "kind": "generic", "receiver": RECEIVER, "state": "given_up",
        "attempts": 10, "created_at": datetime(2026, 1, 2, tzinfo=UTC), "last_error": "it answered 500",
    }  # fmt: skip
    return wire.CallbackInfo.model_validate(plain | facts)


def test_a_list_comes_page_by_page(call: Any, engine: Any) -> None:
    engine.faults = [
        an_answer(wire.CallbackList(callbacks=[a_callback(2)], next="callback_2")),
        an_answer(wire.CallbackList(callbacks=[a_callback(1, kind="of_a_newer_engine", state="new")])),
    ]
    found = call.method("callbacks", None, state="given_up")
    assert ["callback_2", "callback_1"] == [callback.id for callback in found]
    assert [{"limit": "1000", "state": "given_up"}, {"limit": "1000", "before": "callback_2", "state": "given_up"}] == [
        dict(request.url.params) for request in engine.requests
    ]


def test_replay_and_rotate_ask_what_they_should(call: Any, engine: Any) -> None:
    engine.faults = [
        an_answer(a_callback(1, state="pending")), an_answer(wire.Replayed(callbacks=3)),
        an_answer(wire.Rotated(jobs=2)),
    ]  # fmt: skip
    assert mr.CallbackState.pending is call.method("replay_callback", "callback_1").state
    assert 3 == call.method("replay_callbacks", RECEIVER)
    assert 2 == call.method("rotate_callback_secret", "whsec_old", "whsec_new")
    assert ["/api/callbacks/callback_1/replay", "/api/callbacks/replay", "/api/callbacks/rotate"] == engine.paths
    assert [{"receiver": RECEIVER}, {"old": "whsec_old", "new": "whsec_new"}] == [engine.sent(1), engine.sent(2)]


def test_a_delivered_one_is_a_conflict(call: Any, engine: Any, build: Any) -> None:
    engine.faults = [build.problem(409, "callback_delivered")]
    with pytest.raises(mr.Conflict) as refused:
        call.method("replay_callback", "callback_1")
    assert "callback_delivered" == refused.value.code


def test_no_repr_shows_a_secret() -> None:
    shown = repr(wire.RotateRequest(old="whsec_a", new="whsec_b"))
    shown += repr(mr.Callback(url="http://a.test/", secret=["whsec_a", "whsec_b"]))
    assert "whsec" not in shown
    with pytest.raises(ValueError, match="at most 3"):
        mr.Callback(url="http://a.test/", secret=["a"] * 4)
