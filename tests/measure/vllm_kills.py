"""
The processes of a real replica, killed and frozen in mid-job: the Ray worker, and vLLM's engine core.

The default model answers short prompts at temperature 0; the result of a run with kills is
compared with that of a run without. What was committed before the kill must have its hash still.
"""

import argparse
import signal
import tempfile
import time
from pathlib import Path

import psutil
from checker import Evidence, violations
from checker.ledger import opened
from measure.report import figures, say, table
from stories.server import Server, wait_for

import milkrun as mr

LOAD_SECONDS = 600.0
SILENCE_SECONDS = 20  # of a replica that is frozen; a step of the small model takes a second
COLUMNS = ("what", "job s", "s to notice", "s to ready", "rows failed", "rows unlike undisturbed")
MARKS = {"worker": ("ray::_Host", "milkrun_engine.replicas.worker"), "engine core": ("VLLM::EngineCore",)}
FAULTS = [
    (f"{name} {what}", number, marks)
    for what, number in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP))
    for name, marks in MARKS.items()
]


def main() -> int:
    """Measure and report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--pool", choices=["ray", "local"], default="ray")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="milkrun-vllm-") as folder:
        return _measure(Path(folder), options.rows, options.max_tokens, options.pool)


def _measure(folder: Path, rows: int, max_tokens: int, pool: str) -> int:
    lines = []
    environ = {"MILKRUN_REPLICA_SILENCE_SECONDS": str(SILENCE_SECONDS)}
    with Server(folder, replica="vllm", pool=pool, environ=environ) as server:
        undisturbed, calm, _ = _run(server, rows, max_tokens, None)
        say(f"undisturbed: {calm:.1f} s")
        broken = violations(undisturbed)
        for name, number, marks in FAULTS:
            disturbed, took, (noticed, recovery, lost) = _run(server, rows, max_tokens, (number, marks))
            broken += [f"{name}: {what}" for what in [*lost, *violations(disturbed)]]
            failed = sum(row.status != "succeeded" for row in disturbed.rows)
            unlike = [row.index for row, other in zip(disturbed.rows, undisturbed.rows, strict=True)
                      if row.answer != other.answer]  # fmt: skip
            lines.append((name, took, noticed, recovery, failed, len(unlike)))
            say(f"{name}: noticed after {noticed:.1f} s, ready after {recovery:.1f} s; unlike: {unlike}")
    table(COLUMNS, lines)
    figures("vllm_kills", {
        "pool": pool, "rows": rows, "undisturbed_seconds": round(calm, 1),
        "silence_seconds": SILENCE_SECONDS, "violations": broken[:5],
        "faults": [dict(zip(COLUMNS, line, strict=True)) for line in lines],
    })  # fmt: skip
    return 1 if broken or any(failed or unlike > rows / 100 for *_, failed, unlike in lines) else 0


def _run(
    server: Server, rows: int, max_tokens: int, fault: tuple[int, tuple[str, ...]] | None
) -> tuple[Evidence, float, tuple[float, float, list[str]]]:
    """
    One job, with a signal to some process at a third of it; returns its evidence and its seconds.

    And those from the signal to its notice and to ready, and what is not as it was or ought to be.
    """
    noticed = recovery = 0.0
    struck: list[psutil.Process] = []
    before: dict[int, str] = {}
    texts = [f"Write one sentence about the number {index}." for index in range(rows)]
    with server.client() as client:
        began = time.monotonic()
        job_id = client.infer(texts, sampling={"temperature": 0, "max_tokens": max_tokens})
        if fault is not None:
            wait_for(lambda: client.job(job_id).rows_done >= rows / 3, seconds=LOAD_SECONDS, what="a third of the job")
            before = _hashes(server, job_id)
            told = _deaths(server)
            number, marks = fault
            struck = _processes(server, marks)
            killed_at = time.monotonic()
            for process in struck:
                process.send_signal(number)
            wait_for(lambda: _deaths(server) > told, seconds=LOAD_SECONDS, what="the notice")
            noticed = time.monotonic() - killed_at
            wait_for(lambda: _is_ready(client), seconds=LOAD_SECONDS, what="a new replica")
            recovery = time.monotonic() - killed_at
        client.wait(job_id, timeout=LOAD_SECONDS)
        took = time.monotonic() - began
        after = _hashes(server, job_id)
        lost = [f"chunk {number} has another hash" for number, sha256 in before.items() if after[number] != sha256]
        lost += [f"process {process.pid} is still there" for process in struck if _lives(process)]
        return server.evidence(job_id), took, (noticed, recovery, lost)


def _hashes(server: Server, job_id: str) -> dict[int, str]:
    """The hashes of the committed chunks, by number."""
    with opened(server.place) as ledger:
        query = "SELECT number, result_sha256 FROM chunks WHERE job_id = ? AND state = 'committed'"
        return {row["number"]: row["result_sha256"] for row in ledger.ask(query, job_id)}


def _deaths(server: Server) -> int:
    return server.log.read_text(errors="replace").count('"replica_died"')


def _is_ready(client: mr.Milkrun) -> bool:
    """Whether the default model has a replica that has loaded it."""
    [state] = [model.state for model in client.models() if model.is_default and model.kind is mr.JobKind.generate]
    return state == "ready"


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _processes(server: Server, marks: tuple[str, ...]) -> list[psutil.Process]:
    """The server's own descendants whose title begins with one of the marks, or that run that module."""
    found = []
    for process in psutil.Process(server.pid).children(recursive=True):
        title = process.cmdline() or [""]
        if any(title[0].startswith(mark) or mark in title for mark in marks):
            found.append(process)
    assert found, f"no process of {marks} runs"
    return found
