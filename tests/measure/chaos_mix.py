"""
The long mix: jobs come all the time while engines die, freeze, and lose disk, callers and ledger.

Once over one engine on SQLite, once over two that share a Postgres. Callers reach an engine through a fault proxy,
and so does an engine its Postgres.
"""

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from checker import Interruption, Place, gather, interruption
from fix_postgres import serving
from measure.chaos_jobs import (
    PATIENCE_SECONDS,
    Callers,
    Plan,
    Receiver,
    answers_of,
    await_ends,
    hurry_callbacks,
    judge,
    recovery_seconds,
    undelivered,
)
from measure.report import say
from stories.proxy import FaultProxy
from stories.server import KEY, Server

import milkrun as mr
from milkrun_engine.failpoints import Point

SEED = 1
SECONDS_A_JOB = 2.0
SECONDS_A_ROW = 0.002
WINDOW_ROWS = 64
PAUSES = (0.5, 5.0)
FREEZE_SECONDS = (1.0, 12.0)  #: a lease lasts ten
NET_SECONDS = (0.5, 6.0)
REPLICA_SECONDS = 15.0  #: between deaths: a row that ran alone at two of them would be blamed
WRITES = [point for point in Point if point.endswith(("_written", "_synced", "_renamed"))]


def run(database: str, minutes: float, folder: Path, *, seed: int = SEED) -> dict[str, Any]:
    """Mix for so long on an empty folder; what is left to chance follows from the seed, and from who was there."""
    seconds = minutes * 60
    began = time.monotonic()
    chance = random.Random(seed)
    plans = [Plan.of(chance, number, seconds) for number in range(max(20, int(seconds / SECONDS_A_JOB)))]
    with ExitStack() as stack:
        world = World(stack, database, folder)
        callers = Callers(plans, world.clients, world.receiver, seconds + PATIENCE_SECONDS)  # faults may hit on end
        stack.callback(callers.give_up)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(chance.uniform(*PAUSES))
            world.revive()
            world.hurt(chance)
        world.await_ready()
        job_ids = callers.job_ids()
        client = world.clients[0]
        live = await_ends(client, job_ids)
        say(f"{database}: all submitted, {live} not ended, judging")
        if not live:
            hurry_callbacks(world.place)
        verdict = judge(plans, world.evidence, job_ids)
        wanted = [plan.calls_back for plan in plans]
        verdict.violations += undelivered(world.place, job_ids, world.receiver.heard(), wanted)
        return {
            "faults": dict(world.faults),
            **asdict(verdict),
            "recovery_seconds": recovery_seconds(world.place, world.kills),
            "seconds": round(time.monotonic() - began, 1),
        }


class World:
    """Engines with all that stands between them and others."""

    def __init__(self, stack: ExitStack, name: str, folder: Path) -> None:
        self.faults: Counter[str] = Counter()
        self.kills: list[float] = []
        self._interruptions: list[Interruption] = []
        self._replica_killed_at = 0.0
        self._echo_log = folder / "echo.log"
        self._ledger: FaultProxy | None = None
        environ = {"MILKRUN_ECHO_LOG": str(self._echo_log)}
        shared: Place | None = None
        if name == "postgres":
            postgres = stack.enter_context(serving())
            shared = Place(folder / "blobs", postgres.database())
            self._ledger = stack.enter_context(FaultProxy(*postgres.address))
            environ["MILKRUN_DATABASE_URL"] = postgres.at(str(shared.database), self._ledger.port)
        self._engines: list[Server] = []
        self._doors: list[FaultProxy] = []
        self.clients: list[mr.Milkrun] = []
        for number in range(2 if shared else 1):
            (own := folder / str(number)).mkdir()
            arguments = {"window_rows": WINDOW_ROWS, "handout_rows": WINDOW_ROWS // 4}
            engine = Server(own, pace=SECONDS_A_ROW, engine_args=arguments, environ=environ, shared=shared)
            self._engines.append(stack.enter_context(engine))
            self._doors.append(stack.enter_context(FaultProxy("127.0.0.1", engine.port)))
            url = f"http://127.0.0.1:{self._doors[-1].port}"
            self.clients.append(stack.enter_context(mr.Milkrun(url, KEY)))
        self.place = self._engines[0].place
        self.receiver = Receiver(folder)
        stack.callback(self.receiver.kill)

    def revive(self) -> None:
        """Start what ended by itself, as a supervisor would: an engine that starts without its ledger gives up."""
        for engine in self._engines:
            if not engine.is_alive:
                self.faults["restarted"] += 1
                engine.fail_points = ""
                engine.launch()

    def await_ready(self) -> None:
        """Wait until every engine answers; one that was starting when it lost its ledger is started again."""
        for engine in self._engines:
            while True:
                self.revive()
                try:
                    engine.await_ready()
                    break
                except AssertionError:
                    if engine.is_alive:
                        raise

    def hurt(self, chance: random.Random) -> None:
        """One fault, and its end."""
        engine = chance.choice(self._engines)
        faults = [self._kill, self._fill_disk, self._kill_replica, self._freeze, self._freeze_replica, self._cut_off]
        if self._ledger is not None:
            faults.append(self._cut_ledger_off)
        chance.choice(faults)(chance, engine)

    def _kill(self, _chance: random.Random, engine: Server) -> None:
        self.faults["server killed"] += 1
        cut = engine.kill()
        self.kills.append(cut.at)
        self._interruptions.append(cut)
        engine.launch()

    def _fill_disk(self, chance: random.Random, engine: Server) -> None:
        some = {chance.choice(WRITES): chance.choice(("enospc", "eio")) for _ in range(3)}
        engine.fail_points = ",".join(f"{point}={fault}@{chance.randint(1, 5)}" for point, fault in some.items())
        self.faults["disk armed"] += len(some)
        self._kill(chance, engine)
        engine.fail_points = ""

    def _kill_replica(self, _chance: random.Random, engine: Server) -> None:
        if time.monotonic() - self._replica_killed_at > REPLICA_SECONDS and (replicas := _replicas(engine)):
            self._replica_killed_at = time.monotonic()
            self.faults["replica killed"] += 1
            replicas[0].kill()

    def _freeze(self, chance: random.Random, engine: Server) -> None:
        self.faults["server frozen"] += 1
        self._frozen(psutil.Process(engine.pid), chance.uniform(*FREEZE_SECONDS))

    def _freeze_replica(self, chance: random.Random, engine: Server) -> None:
        for replica in _replicas(engine)[:1]:
            self.faults["replica frozen"] += 1
            self._frozen(replica, chance.uniform(*FREEZE_SECONDS))

    def _frozen(self, process: psutil.Process, seconds: float) -> None:
        try:
            self._interruptions.append(self._suspended(process))
            time.sleep(seconds)
            process.resume()
        except psutil.NoSuchProcess:
            return

    def _suspended(self, process: psutil.Process) -> Interruption:
        """Freeze a process; returns what it holds."""
        while True:
            process.suspend()
            try:
                return interruption(self.place)
            except sqlite3.OperationalError:  # it stopped with the log's own lock in its hand: nobody can read
                process.resume()

    def _cut_off(self, chance: random.Random, engine: Server) -> None:
        self._break("callers", self._doors[self._engines.index(engine)], chance)

    def _cut_ledger_off(self, chance: random.Random, _engine: Server) -> None:
        self._break("ledger", self._ledger, chance)

    def _break(self, what: str, proxy: Any, chance: random.Random) -> None:
        faults: Mapping[str, Any] = {
            "late": lambda: proxy.latency(chance.uniform(0.05, 0.5)),
            "reset": proxy.reset,
            "silent": proxy.black_hole,
            "cut": lambda: proxy.cut_after(b"COMMIT" if what == "ledger" else b"POST /api/jobs"),
        }
        name = chance.choice(list(faults))
        self.faults[f"{what} {name}"] += 1
        faults[name]()
        time.sleep(chance.uniform(*NET_SECONDS))
        proxy.heal()

    def evidence(self, plan: Plan, job_id: str) -> Any:
        """All that is known of a job; what ran is judged where one engine has every lease."""
        return gather(
            self._engines[0].url,
            KEY,
            job_id,
            self.place,
            echo_log=None if self._ledger is not None else self._echo_log,
            expected=answers_of(plan),
            interruptions=self._interruptions,
            spare_executions=WINDOW_ROWS * self.faults["replica killed"],
        )


def _replicas(engine: Server) -> list[psutil.Process]:
    try:
        return engine.replicas()
    except psutil.Error:
        return []
