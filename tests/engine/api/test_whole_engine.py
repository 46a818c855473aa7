"""
A whole engine in one process, with its duties and real echo replicas in a local pool.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fix_api import Api, serve

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """An engine that runs its jobs by itself."""
    async with serve(tmp_path_factory.mktemp("engine"), duties=True, pool="local") as api:
        yield api


async def ended(api: Api, submitted: dict[str, Any]) -> dict[str, Any]:
    """Wait for a job's end through the change feed, then read the job."""
    cursor, job_id = submitted["cursor"], submitted["job"]["id"]
    while True:
        news = (await api.mine.get("/api/changes", params={"after": cursor, "on": "end", "wait": 60})).json()
        cursor = news["cursor"]
        if job_id in {job["id"] for job in news["jobs"]}:
            job: dict[str, Any] = (await api.mine.get(f"/api/jobs/{job_id}")).json()
            return job


async def results(api: Api, job_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await api.mine.get(f"/api/jobs/{job_id}/results")).json()["rows"]
    return rows


async def test_a_job_runs_from_submit_to_results(running: Api) -> None:
    rows = [*(f"row {number}" for number in range(40)), "fail: truncated", 3]
    job = await ended(running, await running.submit(rows, spec={"sampling": {"temperature": 0}}))
    assert (job["status"], job["rows_succeeded"], job["row_errors"]) == (
        "succeeded", 40, {"truncated": 1, "invalid_row": 1}
    )  # fmt: skip
    found = await results(running, job["id"])
    assert [row["index"] for row in found] == list(range(42))
    assert all(row["output"].endswith(f": row {row['index']}") for row in found[:40])


async def test_equal_rows_of_two_jobs_have_equal_answers(running: Api) -> None:
    jobs = [await ended(running, await running.submit(["a", "b"])) for _ in range(2)]
    first, second = [await results(running, job["id"]) for job in jobs]
    assert [row["output"] for row in first] == [row["output"] for row in second]


async def test_a_table_is_the_same_input_whoever_wrote_its_file(running: Api) -> None:
    """The client says what the rows count as; the bytes of two files of them may differ."""
    answers = []
    for body in (b'"a"\n', b'"a" \n'):
        file = (await running.mine.post("/api/files", params={"format": "jsonl"}, content=body)).json()
        source = {"file_id": file["id"], "rows_sha256": "0" * 64}
        request = {"input": source, "idempotency_key": "table"}
        answers.append((await running.mine.post("/api/jobs", json=request)).json())
    assert [False, True] == [answer["reused"] for answer in answers]
    assert answers[0]["job"]["id"] == answers[1]["job"]["id"]


async def test_choices_and_vectors(running: Api) -> None:
    schema = {"choices": ["yes", "no"]}
    job = await ended(running, await running.submit(["a", "b", "c"], spec={"output_schema": schema}))
    assert {row["output"] for row in await results(running, job["id"])} <= {"yes", "no"}
    job = await ended(running, await running.submit(["a", "b"], spec={"kind": "embed"}))
    assert all(len(row["output"]) == 8 for row in await results(running, job["id"]))


async def test_a_poison_row_is_alone_and_the_job_succeeds(running: Api) -> None:
    rows = [f"row {number}" for number in range(10)]
    rows[6] = "die:"
    job = await ended(running, await running.submit(rows))
    assert (job["status"], job["row_errors"]) == ("succeeded", {"engine_crash": 1})
    found = await results(running, job["id"])
    assert [row["index"] for row in found if row["error"]] == [6]


async def test_a_cancel_stops_the_rows_in_flight(running: Api) -> None:
    submitted = await running.submit(["slow:60"] * 12)
    await running.mine.post(f"/api/jobs/{submitted['job']['id']}/cancel", json={"claim": submitted["claim"]})
    assert (await ended(running, submitted))["status"] == "cancelled"
    quick = await ended(running, await running.submit(["a"]))
    assert quick["status"] == "succeeded", "the replica is free for others"


async def test_a_job_of_no_rows_ends_at_once(running: Api) -> None:
    assert (await ended(running, await running.submit([])))["status"] == "succeeded"
