"""
What users write shows nowhere but in the ledger and the blobs: not in logs, metrics or any other file.
"""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from stories.receiver import Receiver, Reply
from stories.server import KEY, Server, wait_for

import milkrun as mr

pytestmark = pytest.mark.engine
WORD = "canary"
SECRET = "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5"  # in base64: the word, four times
HIDDEN = (WORD, SECRET, "Y2FuYXJ5", KEY)


def _written(folder: Path) -> dict[Path, str]:
    """Every file that an engine wrote, but for the ledger, the blobs and `engine.json`, whose business is its key."""
    kept = {folder / "data" / "engine.json"}
    found = {}
    for path in folder.rglob("*"):
        ledger = path.name.startswith("milkrun.db") or (folder / "data" / "blobs") in path.parents
        if path.is_file() and not ledger and path not in kept:
            found[path] = path.read_text(errors="replace").lower()
    return found


def test_no_word_of_a_user_is_in_any_text_file_or_metric(serve: Callable[..., Server]) -> None:
    """Success, row errors, a row that crashes its replica, refusals, and a callback that fails and is given up."""
    server = serve(environ={"MILKRUN_LOG_LEVEL": "DEBUG"})
    folder = server.data_dir.parent
    with Receiver(lambda heard: Reply(500 if "/late" in heard.path else 410)) as receiver, server.client() as client:
        facts = {"name": f"{WORD} name", "labels": {f"{WORD}-label": f"{WORD}-value"}, "description": f"{WORD} said"}
        for place in ("gone", "late"):
            callback = mr.Callback(
                url=f"{receiver.url}/{place}?token={WORD}", secret=SECRET, headers={"Authorization": f"Bearer {WORD}"}
            )
            rows = [f"tell {WORD}", f"fail: truncated {WORD}", f"die: {WORD}", {WORD: WORD}]
            job_id = client.infer(rows, callback=callback, idempotency_key=f"{WORD} {place}", **facts)
            job = client.wait(job_id, timeout=90)
            assert {"truncated": 1, "engine_crash": 1, "invalid_row": 1} == client.job(job_id).row_errors
            assert 1 == job.rows_succeeded
        receiver.wait(2)
        with pytest.raises(mr.InvalidRequest):
            client.infer([WORD], model=f"{WORD}-model")
        with pytest.raises(mr.NotFound):
            client.job(f"job_{WORD}")
        headers = {"Authorization": f"Bearer {KEY}"}

        def scrape() -> str:
            return httpx.get(f"{server.url}/metrics", headers=headers, trust_env=False).text

        wait_for(lambda: 'milkrun_callbacks{state="given_up"} 1.0' in scrape(), what="a callback given up")
        told = scrape().lower()
    assert 'milkrun_replica_deaths_total{pool="echo"}' in told
    server.stop()
    written = _written(folder)
    assert {"server.log", "echo.log"} <= {path.name for path in written}
    # echo's own log, which only tests ask for, names the rows by hash.
    assert '"action": "replica_died"' in written[folder / "server.log"]
    texts = {"/metrics": told, **{str(path): text for path, text in written.items()}}
    hits = [(name, word) for name, text in texts.items() for word in HIDDEN if word.lower() in text]
    assert [] == hits
