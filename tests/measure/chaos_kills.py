"""
One random-kill run: twenty jobs while server, replica and receiver die at random moments; then everything is judged.
"""

import random
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure.chaos_jobs import (
    Callers,
    Plan,
    Receiver,
    answers_of,
    await_ends,
    failed_requests,
    hurry_callbacks,
    judge,
    recovery_seconds,
    undelivered,
)
from stories.server import Server

JOBS = 20
SUBMIT_SECONDS = 2.0
SECONDS_A_ROW = 0.002
WINDOW_ROWS = 64
PAUSES = (0.2, 3.0)
REPLICA_SECONDS = 5.0  #: so long one is waited for
FAULTS = (3, 5)
VICTIMS = {"server": 5, "replica": 3, "receiver": 2}


def run(seed: int, folder: Path) -> dict[str, Any]:
    """Run it on an empty folder; everything that is left to chance follows from the seed."""
    began = time.monotonic()
    chance = random.Random(seed)
    plans = [Plan.of(chance, number, SUBMIT_SECONDS) for number in range(JOBS)]
    schedule = [(chance.uniform(*PAUSES), victim) for victim in _victims(chance)]
    server = Server(
        folder, pace=SECONDS_A_ROW, engine_args={"window_rows": WINDOW_ROWS, "handout_rows": WINDOW_ROWS // 4}
    )
    receiver = Receiver(folder)
    callers: Callers | None = None
    try:
        with server, server.client() as client, server.watched() as feed:
            callers = Callers(plans, [client], receiver)
            faults: Counter[str] = Counter()
            for pause, victim in schedule:
                time.sleep(pause)
                faults[victim] += _kill(victim, server, receiver)
            server.await_ready()
            job_ids = callers.job_ids()
            await_ends(client, job_ids)
            hurry_callbacks(server.place)
            verdict = judge(
                plans,
                lambda plan, job_id: server.evidence(
                    job_id, answers_of(plan), feed=feed, spare_executions=WINDOW_ROWS * faults["replica"]
                ),
                job_ids,
            )
            wanted = [plan.calls_back for plan in plans]
            verdict.violations += undelivered(server.place, job_ids, receiver.heard(), wanted)
            verdict.violations += failed_requests(server.log)
            kills = [cut.at for cut in server.interruptions]
            recovery = recovery_seconds(server.place, kills)
    finally:
        if callers is not None:
            callers.give_up()
        receiver.kill()
    return {
        "faults": dict(faults),
        **asdict(verdict),
        "recovery_seconds": recovery,
        "seconds": round(time.monotonic() - began, 1),
    }


def _victims(chance: random.Random) -> list[str]:
    """Who dies, in order; a second death of a replica might rightly be blamed on a row that ran alone both times."""
    victims = chance.choices(list(VICTIMS), list(VICTIMS.values()), k=chance.randint(*FAULTS))
    first = victims.index("replica") if "replica" in victims else -1
    return ["server" if who == "replica" and at != first else who for at, who in enumerate(victims)]


def _kill(victim: str, server: Server, receiver: Receiver) -> int:
    """Kill one and start it again, without waiting for that; returns how many died."""
    match victim:
        case "server":
            server.kill()
            server.launch()
        case "receiver":
            receiver.kill()
            receiver.start()
        case _:
            deadline = time.monotonic() + REPLICA_SECONDS
            while not (replicas := server.replicas()):
                if time.monotonic() > deadline:
                    return 0
                time.sleep(0.02)
            replicas[0].kill()
    return 1
