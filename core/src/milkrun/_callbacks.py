"""
The callbacks' outbox of an engine: what a client asks of it.
"""

from typing import Any
from urllib.parse import quote

from milkrun import _requests, wire
from milkrun._drivers import Operation
from milkrun._operations import Link, exchange
from milkrun._requests import Call
from milkrun.status import CallbackState

_PATH = "/api/callbacks"
_PAGE = 1_000


def callbacks(link: Link, limit: int | None, state: CallbackState | str | None) -> Operation[list[wire.CallbackInfo]]:
    """List callbacks, page by page."""
    wanted = None if state is None else CallbackState(state)
    found: list[wire.CallbackInfo] = []
    before: str | None = None
    while limit is None or len(found) < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - len(found))
        given = [("limit", str(size)), ("before", before), ("state", wanted)]
        params = tuple((name, str(value)) for name, value in given if value is not None)
        answer = yield from exchange(link, Call(method="GET", path=_PATH, params=params))
        page = _requests.read(wire.CallbackList, answer)
        found += page.callbacks
        before = page.next
        if before is None:
            break
    return found


def replay(link: Link, callback_id: Any) -> Operation[wire.CallbackInfo]:
    """Send one again."""
    if not isinstance(callback_id, str) or not callback_id:
        raise TypeError(f"a callback's id is a non-empty text such as callbacks() names, not {callback_id!r}")
    call = Call(method="POST", path=f"{_PATH}/{quote(callback_id, safe='')}/replay")
    return _requests.read(wire.CallbackInfo, (yield from exchange(link, call)))


def replay_all(link: Link, receiver: str) -> Operation[int]:
    """Send all of a receiver again."""
    body = wire.ReplayRequest(receiver=receiver).model_dump_json().encode()
    answer = yield from exchange(link, Call(method="POST", path=f"{_PATH}/replay", body=body))
    return _requests.read(wire.Replayed, answer).callbacks


def rotate(link: Link, old: str, new: str) -> Operation[int]:
    """Sign with both secrets."""
    body = wire.RotateRequest(old=old, new=new).model_dump_json().encode()
    answer = yield from exchange(link, Call(method="POST", path=f"{_PATH}/rotate", body=body))
    return _requests.read(wire.Rotated, answer).jobs
