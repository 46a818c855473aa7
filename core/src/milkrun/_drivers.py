"""
The two loops that perform what operations ask for: one blocks, one awaits.

An operation (`milkrun._operations`) is a generator that never does I/O. It yields an
effect and is resumed with the effect's answer, or has the effect's exception thrown in:

- `Send` is answered with the response; its body has been read, or written to `into`;
- `Sleep` is answered with None, later;
- `Perform` is answered with what the function returns; the awaiting driver runs it in a thread;
- `Tell` calls a function of the user's; the awaiting driver awaits it if it is a coroutine function;
- `Emit` hands a value to whoever iterates the operation.

A test steps operations by hand, or gives a driver a `sleep` that takes no time.
"""

import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import IO, Any, Generic, TypeAlias, TypeVar, cast

import anyio
import anyio.to_thread
import httpx

T = TypeVar("T")
H = TypeVar("H")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; a successful answer's body goes to `into` where that is given."""

    request: httpx.Request
    into: IO[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Perform:
    """Run a function that blocks: files, hashing, starting the local engine."""

    function: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Tell:
    """Call a function of the user's."""

    function: Callable[[Any], object]
    value: Any


@dataclass(frozen=True, slots=True)
class Emit(Generic[T]):
    """Hand a value to the caller."""

    value: T


Effect: TypeAlias = Send | Sleep | Perform | Tell
Operation: TypeAlias = Generator[Effect, Any, T]
Stream: TypeAlias = Generator[Effect | Emit[T], Any, None]


@dataclass(frozen=True, slots=True)
class _Finished:
    value: Any


def _resume(operation: Generator[Any, Any, Any], outcome: Any) -> Any:
    """Hand over an effect's outcome; return the next effect, or `_Finished`."""
    try:
        return operation.throw(outcome) if isinstance(outcome, Exception) else operation.send(outcome)
    except StopIteration as stop:
        return _Finished(stop.value)


class _Connections(Generic[H]):
    """An HTTP client of this process: a forked child must not talk on its parent's connections."""

    def __init__(self, connect: Callable[[], H]) -> None:
        self._connect = connect
        self._http = connect()
        self._pid = os.getpid()

    @property
    def http(self) -> H:
        """The client, made anew after a fork."""
        if self._pid != os.getpid():
            self._http, self._pid = self._connect(), os.getpid()
        return self._http


class Blocking(_Connections[httpx.Client]):
    """Performs operations in the calling thread."""

    def __init__(self, connect: Callable[[], httpx.Client], sleep: Callable[[float], object] = time.sleep) -> None:
        super().__init__(connect)
        self.sleep = sleep

    def run(self, operation: Operation[T]) -> T:
        """Perform an operation and return its result."""
        try:
            step = _resume(operation, None)
            while not isinstance(step, _Finished):
                step = _resume(operation, self._perform(step))
            return cast(T, step.value)
        finally:
            operation.close()

    def iterate(self, stream: Stream[T]) -> Iterator[T]:
        """Perform a stream and yield what it emits."""
        try:
            step = _resume(stream, None)
            while not isinstance(step, _Finished):
                if isinstance(step, Emit):
                    yield step.value
                    step = _resume(stream, None)
                else:
                    step = _resume(stream, self._perform(step))
        finally:
            stream.close()

    def _perform(self, effect: Effect) -> Any:
        try:
            match effect:
                case Send(request, into):
                    return self._send(request, into)
                case Sleep(seconds):
                    self.sleep(seconds)
                    return None
                case Perform(function):
                    return function()
                case Tell(function, value):
                    return _refuse_awaitable(function(value))
        except Exception as error:
            return error

    def _send(self, request: httpx.Request, into: IO[bytes] | None) -> httpx.Response:
        response = self.http.send(request, stream=True)
        try:
            if into is None or not response.is_success:
                response.read()
            else:
                for data in response.iter_bytes(_CHUNK):
                    into.write(data)
        finally:
            response.close()
        return response


def _refuse_awaitable(answer: object) -> object:
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("on_progress is a coroutine function; the blocking client takes a plain one")
    return answer


class Awaiting(_Connections[httpx.AsyncClient]):
    """Performs operations in the calling task; blocks nobody else."""

    def __init__(
        self, connect: Callable[[], httpx.AsyncClient], sleep: Callable[[float], Awaitable[object]] = anyio.sleep
    ) -> None:
        super().__init__(connect)
        self.sleep = sleep

    async def run(self, operation: Operation[T]) -> T:
        """Perform an operation and return its result."""
        try:
            step = _resume(operation, None)
            while not isinstance(step, _Finished):
                step = _resume(operation, await self._perform(step))
            return cast(T, step.value)
        finally:
            operation.close()

    async def iterate(self, stream: Stream[T]) -> AsyncIterator[T]:
        """Perform a stream and yield what it emits."""
        try:
            step = _resume(stream, None)
            while not isinstance(step, _Finished):
                if isinstance(step, Emit):
                    yield step.value
                    step = _resume(stream, None)
                else:
                    step = _resume(stream, await self._perform(step))
        finally:
            stream.close()

    async def _perform(self, effect: Effect) -> Any:
        try:
            match effect:
                case Send(request, into):
                    return await self._send(request, into)
                case Sleep(seconds):
                    await self.sleep(seconds)
                    return None
                case Perform(function):
                    return await anyio.to_thread.run_sync(function)
                case Tell(function, value):
                    answer = function(value)
                    return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            return error

    async def _send(self, request: httpx.Request, into: IO[bytes] | None) -> httpx.Response:
        response = await self.http.send(request, stream=True)
        try:
            if into is None or not response.is_success:
                await response.aread()
            else:
                async for data in response.aiter_bytes(_CHUNK):
                    await anyio.to_thread.run_sync(into.write, data)
        finally:
            await response.aclose()
        return response
