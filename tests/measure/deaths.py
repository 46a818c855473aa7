"""
How soon the death of a replica's process is noticed, and what one row that kills its replica costs the others.

`kill -9` of echo's process in the local pool and of its actor on Ray, each some times in mid-job; then one row among as
many as a replica holds at once ends its process whenever it runs.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import psutil
from checker import echo_answers, violations
from measure.report import figures, median, say, table
from stories.server import Server, wait_for

PATIENCE_SECONDS = 300.0
PROCESSES = {"local": "milkrun_engine.replicas.worker", "ray": "ray::_Host"}


def main() -> int:
    """Measure and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="of each kind")
    parser.add_argument("--window", type=int, default=256, help="rows in flight beside the one that kills")
    options = parser.parse_args()
    lines, broken = [], []
    for pool in PROCESSES:
        with tempfile.TemporaryDirectory(prefix="milkrun-deaths-") as folder:
            noticed, wrong = _kills(Path(folder), pool, options.kills)
        lines.append((pool, median(noticed), round(max(noticed), 2)))
        broken += wrong
        say(f"{pool}: noticed after {max(noticed):.2f} s at most")
    with tempfile.TemporaryDirectory(prefix="milkrun-deaths-") as folder:
        restarts, wrong = _poison(Path(folder), options.window)
    bound = math.ceil(math.log2(options.window)) + 3
    broken += wrong
    table(("killed in pool", "s noticed median", "s noticed worst"), lines)
    figures("deaths", {
        "noticed": {pool: {"median_s": middle, "worst_s": worst} for pool, middle, worst in lines},
        "poison_window": options.window, "poison_restarts": restarts, "poison_bound": bound, "violations": broken[:5],
    })  # fmt: skip
    return 1 if broken or restarts > bound else 0


def _kills(folder: Path, pool: str, count: int) -> tuple[list[float], list[str]]:
    """The seconds from each kill until the server's log tells of the death, and the broken promises."""
    texts = [f"row {index}" for index in range(2_000 * count)]
    arguments = {"window_rows": 32, "handout_rows": 16}
    noticed = []
    with Server(folder, pool=pool, pace=0.004, engine_args=arguments) as server, server.client() as client:
        job_id = client.infer(texts)
        for number in range(count):
            share = len(texts) * (number + 0.5) / count
            wait_for(lambda share=share: client.job(job_id).rows_done > share, seconds=PATIENCE_SECONDS)
            told = _deaths(server)
            for process in _processes(server, PROCESSES[pool]):
                process.kill()
            killed = time.monotonic()
            wait_for(lambda told=told: _deaths(server) > told, seconds=PATIENCE_SECONDS, what="the notice")
            noticed.append(time.monotonic() - killed)
        client.wait(job_id, timeout=PATIENCE_SECONDS)
        return noticed, violations(server.evidence(job_id, echo_answers(texts), spare_executions=32 * count))


def _poison(folder: Path, window: int) -> tuple[int, list[str]]:
    """How often the replica died, and the broken promises: other rows than those of a clean run are one."""
    texts = ["die: now" if index == window // 3 else f"row {index}" for index in range(2 * window)]
    arguments = {"window_rows": window, "handout_rows": 32}
    with Server(folder, engine_args=arguments) as server, server.client() as client:
        job_id = client.infer(texts)
        client.wait(job_id, timeout=PATIENCE_SECONDS)
        evidence = server.evidence(job_id, echo_answers(texts), spare_executions=window * 20)
        return _deaths(server), violations(evidence)


def _deaths(server: Server) -> int:
    return server.log.read_text(errors="replace").count('"replica_died"')


def _processes(server: Server, mark: str) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children(recursive=True)
    found = [child for child in children if any(part.startswith(mark) for part in child.cmdline())]
    assert found, f"no process of {mark} runs"
    return found
