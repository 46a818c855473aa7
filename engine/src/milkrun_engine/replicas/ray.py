"""
The Ray pool: each replica is one plain Ray actor, on a Ray that lives and dies with the engine.

Ray places, starts and watches; rows reach the actor as msgpack bytes and come back over a
streaming generator.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

import psutil

from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas import frames, hosting, remains
from milkrun_engine.replicas.base import (
    HandOut,
    Outcome,
    Replica,
    ReplicaDied,
    ReplicaInfo,
    ReplicaLoadError,
    decode_handout,
    decode_outcomes,
    encode_handout,
    encode_outcomes,
)
from milkrun_engine.replicas.profiles import device, environment

log = logging.getLogger(__name__)
T = TypeVar("T")
_STOP_SECONDS = 15.0
_LOOK_SECONDS = 1.0
_RAY_CORE = {"raylet", "gcs_server"}
_OBJECT_STORE_BYTES = 256 << 20  # rows stream through; nothing is kept
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else it re-resolves the environment under `uv run`
    # Ray's ports execute what they are sent: they listen on the loopback address (what this name says on other
    # systems it does on Linux too), and ask for a token that only this engine's processes know.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}


class RayPool:
    """Replicas as Ray actors on this host; Ray itself starts with the first of them."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._folder: Path | None = None  # of Ray; also says that it runs, or starts
        self._start: asyncio.Task[None] | None = None  # of Ray
        self._starting = asyncio.Lock()
        self._handles: list[RayHandle] = []

    async def start(self) -> None:
        """Remove what a killed engine left."""
        await asyncio.to_thread(remains.sweep, self._data_dir)

    async def start_replica(self, spec: ModelSpec) -> "RayHandle":
        """Start an actor, which begins to load its model."""
        async with self._starting:
            if self._folder is not None and not _ray_lives():
                log.error("Ray is gone; starting it again", extra={"action": "ray_gone"})
                await self._end_ray()
            if self._folder is None:
                self._folder = remains.make(self._data_dir)
                self._start = asyncio.create_task(self._start_ray(self._folder))
                try:
                    await asyncio.shield(self._start)
                except BaseException:
                    await self._end_ray()
                    raise
        handle = RayHandle(spec, self._data_dir)
        self._handles = [known for known in self._handles if not known.stopped] + [handle]
        return handle

    async def stop(self) -> None:
        """Stop every replica, then Ray."""
        ends = await asyncio.gather(*(handle.stop() for handle in self._handles), return_exceptions=True)
        for error in filter(None, ends):
            log.error("a replica could not be stopped", extra={"action": "stop_failed"}, exc_info=error)
        self._handles.clear()
        async with self._starting:
            await self._end_ray()

    async def _start_ray(self, folder: Path) -> None:
        await asyncio.to_thread(_start_ray, folder)
        _take_signals_back()

    async def _end_ray(self) -> None:
        if self._folder is None:
            return
        if self._start is not None:  # its thread can't be cancelled, and would make the folder anew
            await asyncio.wait({self._start})
        await asyncio.to_thread(_stop_ray)
        await asyncio.to_thread(remains.remove, self._folder, self._data_dir)
        self._folder = None  # at the end: what was cancelled is done again


class RayHandle:
    """
    The engine's end of one actor.

    Ray never restarts it (`max_restarts=0`): a restarted actor would load its model while the
    dispatcher, which owns the back-off and the load breaker, takes it for dead. The dispatcher asks the pool
    for another one instead, so death means the same in every pool.
    """

    def __init__(self, spec: ModelSpec, data_dir: Path) -> None:
        import ray

        self._spec = spec
        self._data_dir = data_dir
        self._folder = remains.make(data_dir)
        self._info: ReplicaInfo | None = None
        self._leader = 0  # of its process group, once it runs
        self.stopped = False
        self._actor = (
            ray.remote(_Host)
            .options(
                num_cpus=0,  # Ray's count is bookkeeping; vLLM pins its own threads
                num_gpus=_gpus(spec),
                max_restarts=0,
                max_task_retries=0,  # a repeated call would run its rows again
                max_concurrency=1_000,
                runtime_env={"env_vars": environment(spec, data_dir, self._folder)},
            )
            .remote(frames.encode(frames.Load(spec, str(data_dir), str(self._folder))))
        )
        self._group = self._actor.group.remote()  # answered before the load blocks the actor
        self._loading = self._actor.load.remote()

    async def placed(self) -> None:
        """Wait until Ray has found room for the actor; see `ReplicaHandle`."""
        self._leader = await self._told(self._group)

    async def ready(self) -> ReplicaInfo:
        """Wait until the model is loaded; see `ReplicaHandle`."""
        if self._info is None:
            report = frames.decode_report(await self._told(self._loading))
            if isinstance(report, frames.LoadFailed):
                raise ReplicaLoadError(report.message)
            assert isinstance(report, frames.Ready)
            self._info = report.info
            remains.note(self._folder, self._info.pids)
        return self._info

    async def _told(self, reference: Awaitable[T]) -> T:
        """Wait for what the actor says; without its raylet it would never answer, nor Ray tell."""
        telling = asyncio.ensure_future(_awaited(reference))
        try:
            while not (await asyncio.wait({telling}, timeout=_LOOK_SECONDS))[0]:
                if not await asyncio.to_thread(_ray_lives):
                    raise ReplicaLoadError(f"Ray ended while {self._spec.name} was loading")
            return telling.result()
        except _ray_errors() as error:
            raise ReplicaLoadError(f"the actor of {self._spec.name} ended while loading") from error
        finally:
            telling.cancel()

    async def run(self, handout: HandOut) -> AsyncIterator[list[Outcome]]:
        """Run a hand-out; see `ReplicaHandle`. Leaving the loop early aborts it."""
        ended = False
        try:
            async for item in self._actor.run.remote(encode_handout(handout)):
                yield decode_outcomes(await item)
            ended = True
        except _ray_errors() as error:
            raise ReplicaDied(f"the actor of {self._spec.name} is gone ({type(error).__name__})") from error
        finally:
            if not ended:
                await self.abort(handout.id)

    async def abort(self, handout_id: int) -> None:
        """Stop the unfinished rows of a hand-out; never raises."""
        with contextlib.suppress(*_ray_errors()):
            self._actor.abort.remote(handout_id)

    async def beat(self) -> None:
        """Wait for a sign of life; see `ReplicaHandle`."""
        try:
            await self._actor.beat.remote()
        except _ray_errors() as error:
            raise ReplicaDied(f"the actor of {self._spec.name} is gone ({type(error).__name__})") from error

    async def kill(self) -> None:
        """Leave the end to `stop`, which asks an actor nothing that it takes for one that still loads."""
        self._info = None

    async def stop(self) -> None:
        """End the actor and its processes: politely, then by force."""
        import ray

        if self.stopped:
            return
        group = self._leader
        if not group:
            with contextlib.suppress(TimeoutError, *_ray_errors()):
                async with asyncio.timeout(_STOP_SECONDS):
                    group = await self._group
        if self._info is not None:  # else it still loads, and would answer after that only
            with contextlib.suppress(TimeoutError, *_ray_errors()):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._actor.stop.remote()
        if group:
            await asyncio.to_thread(remains.end, group, self._folder)
        with contextlib.suppress(*_ray_errors()):  # of a Ray that has ended, and was started anew
            await asyncio.to_thread(ray.kill, self._actor)
        await asyncio.to_thread(remains.remove, self._folder, self._data_dir)
        self.stopped = True  # at the end: a stop that was cancelled is done again


class _Host:
    """The actor: hosts any replica in a process that Ray started."""

    def __init__(self, load: bytes) -> None:
        command = frames.decode_command(load)
        assert isinstance(command, frames.Load)
        self._command = command
        self._replica: Replica | None = None

    async def group(self) -> int:
        """Name the process group that this process leads, or 0."""
        return os.getpgrp() if os.getpgrp() == os.getpid() else 0

    async def load(self) -> bytes:
        try:
            self._replica, info = await hosting.load(self._command.spec, Path(self._command.data_dir))
        except ReplicaLoadError as error:
            return frames.encode(frames.LoadFailed(str(error)))
        return frames.encode(frames.Ready(info))

    async def run(self, handout: bytes) -> AsyncIterator[bytes]:
        assert self._replica is not None
        async for finished in hosting.outcomes(self._replica, decode_handout(handout)):
            yield encode_outcomes(finished)

    async def abort(self, handout_id: int) -> None:
        if self._replica is not None:
            await self._replica.abort(handout_id)

    async def beat(self) -> None:
        if self._replica is not None:
            await self._replica.beat()

    async def stop(self) -> None:
        if self._replica is not None:
            await self._replica.stop()


def _start_ray(folder: Path) -> None:
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when Ray is imported
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise ReplicaLoadError("Ray is not installed: install milkrun-engine[ray], or use --pool local") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",  # never somebody else's cluster
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(folder),
    )


def _take_signals_back() -> None:
    """Ray puts handlers of its own, which end the process, under Python's: the engine ends in order."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _ray_processes() -> list[psutil.Process]:
    """Ray's own processes, without which no actor can start: children of ours, since Ray is local."""
    return [child for child in psutil.Process().children() if child.name() in _RAY_CORE]


def _ray_lives() -> bool:
    living = {child.name() for child in _ray_processes() if child.status() != psutil.STATUS_ZOMBIE}
    return living >= _RAY_CORE


def _stop_ray() -> None:
    try:
        import ray
    except ImportError:  # for want of it nothing was started
        return
    ray.shutdown()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.status() == psutil.STATUS_ZOMBIE and child.name() in _RAY_CORE:
                child.wait(0)


async def _awaited(reference: Awaitable[T]) -> T:
    return await reference


def _gpus(spec: ModelSpec) -> int:
    """Count the devices that a replica needs."""
    if spec.replica != "vllm" or device() == "cpu":
        return 0
    return int(spec.engine_args.get("tensor_parallel_size", 1)) * int(spec.engine_args.get("pipeline_parallel_size", 1))


def _ray_errors() -> tuple[type[BaseException], ...]:
    from ray.exceptions import RayError

    return (RayError,)
