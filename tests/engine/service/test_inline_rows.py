"""
Rows that came in a submit's body: one file a job, and none for a submit that made no job.
"""

from typing import Any

import pytest
from fix_api import Api

pytestmark = pytest.mark.anyio


def inputs(api: Api) -> set[str]:
    return {path.name for path in api.world.blobs.root.glob("inputs/*/*")}


async def test_equal_rows_of_two_jobs_have_files_of_their_own(api: Api) -> None:
    """A shared name could be deleted as an old left-over while the second job takes it."""
    for _ in range(2):
        await api.submit(["a", "b"])
    assert 2 == len(inputs(api))


async def test_a_submit_that_finds_its_job_leaves_no_file(api: Api) -> None:
    first = await api.submit(["a", "b"], idempotency_key="k")
    again = await api.submit(["a", "b"], idempotency_key="k")
    assert (first["job"]["id"], True) == (again["job"]["id"], again["reused"])
    assert 1 == len(inputs(api))
    api.world.prepare()
    assert 2 == api.world.job(first["job"]["id"]).rows_total, "the job's own file is there"


async def test_an_upload_outlives_a_submit_that_finds_its_job(api: Api) -> None:
    uploaded = (await api.mine.post("/api/files", params={"format": "jsonl"}, content=b'"a"\n')).json()["id"]
    for _ in range(2):
        answer = await api.mine.post("/api/jobs", json={"input": {"file_id": uploaded}, "idempotency_key": "k"})
    assert answer.json()["reused"]
    assert {uploaded} == inputs(api)


@pytest.mark.parametrize(
    "body",
    [
        {"rows": [{"a": 1}], "spec": {"prompt": "{b}"}},
        {"rows": ["other"], "idempotency_key": "k"},
    ],
    ids=["missing column", "other inputs"],
)
async def test_a_refused_submit_leaves_no_file(api: Api, body: dict[str, Any]) -> None:
    await api.submit(["a"], idempotency_key="k")
    before = inputs(api)
    assert 422 == (await api.mine.post("/api/jobs", json=body)).status_code
    assert before == inputs(api)
