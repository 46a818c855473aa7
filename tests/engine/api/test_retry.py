"""
`POST /api/jobs/{id}/retry`: a job over the whole input that runs only what has no result.
"""

from typing import Any

import pytest
from fix_api import POOL, Api

from milkrun import wire

pytestmark = pytest.mark.anyio
ROWS = ["a", "fail", "b"]


async def retry(api: Api, job_id: str, **body: Any) -> Any:
    return await api.mine.post(f"/api/jobs/{job_id}/retry", json=body)


async def refused(api: Api, job_id: str, **body: Any) -> tuple[int, str]:
    answer = await retry(api, job_id, **body)
    problem = wire.Problem.model_validate_json(answer.content)
    assert "fail" not in problem.detail.split()
    return answer.status_code, problem.code


async def test_a_retry_answers_201_and_while_it_is_alive_200(api: Api) -> None:
    parent = await api.done(ROWS, idempotency_key="k", name="n")
    first = await retry(api, parent)
    again = await api.mine.post(f"/api/jobs/{parent}/retry")  # a body is not needed
    assert (201, 200) == (first.status_code, again.status_code)
    one, two = wire.Submitted.model_validate(first.json()), wire.Submitted.model_validate(again.json())
    assert (one.job.id, False, True) == (two.job.id, one.reused, two.reused)
    assert (parent, parent, parent) == (one.job.rows_from, one.job.retry_of, one.replaced)
    assert ("k", "n", POOL) == (one.job.idempotency_key, one.job.name, one.job.model)


async def test_its_result_is_the_whole_table(api: Api) -> None:
    parent = await api.done(ROWS)
    made = (await retry(api, parent)).json()["job"]["id"]
    api.world.prepare()
    api.world.run(POOL)
    job = wire.Job.model_validate((await api.mine.get(f"/api/jobs/{made}")).json())
    assert ("succeeded", 3, 2, 1, 2) == (
        job.status, job.rows_total, job.rows_succeeded, job.rows_failed, job.rows_reused,
    )  # fmt: skip
    assert {"invalid_row": 1} == job.row_errors
    assert (0, 0) == (job.usage.prompt_tokens, job.usage.completion_tokens)
    before, after = [(await api.mine.get(f"/api/jobs/{each}/results")).json() for each in (parent, made)]
    assert before["rows"] == after["rows"]


async def test_what_is_given_goes_before_the_parents(api: Api) -> None:
    facts = {"name": "n", "labels": {"a": "b"}, "external_url": "https://a.test/1", "priority": 3}
    parent = await api.done(ROWS, **facts)
    given = {"name": "m", "labels": {}, "external_url": "https://b.test/1", "priority": 0}
    job = (await retry(api, parent, **given)).json()["job"]
    assert given == {name: job[name] for name in given}


async def test_a_repeated_call_gets_its_own_job(api: Api) -> None:
    parent = await api.done(ROWS)
    first = (await retry(api, parent, submission_id="call-1")).json()["job"]["id"]
    api.world.prepare()
    api.world.run(POOL)
    again = await retry(api, parent, submission_id="call-1")
    assert (200, first) == (again.status_code, again.json()["job"]["id"])


async def test_what_can_not_be_retried_is_a_conflict(api: Api) -> None:
    alive = (await api.submit(ROWS))["job"]["id"]
    assert (409, "not_ended") == await refused(api, alive)
    api.world.prepare()
    api.world.run(POOL)
    good = await api.done(["a"])
    assert (409, "nothing_to_retry") == await refused(api, good)
    for file in api.world.blobs.root.glob("inputs/*/*"):
        file.unlink()
    assert (409, "input_deleted") == await refused(api, alive)


async def test_nobody_retries_jobs_of_others(api: Api) -> None:
    parent = await api.done(ROWS)
    assert 404 == (await api.other.post(f"/api/jobs/{parent}/retry")).status_code
    assert 401 == (await api.nobody.post(f"/api/jobs/{parent}/retry")).status_code


async def test_a_wrong_request_says_where(api: Api) -> None:
    parent = await api.done(ROWS)
    for body in ({"spec": {}}, {"external_url": "ftp://a.test"}, {"priority": 11}, {"callback": {"url": "x"}}):
        assert (422, "invalid_request") == await refused(api, parent, **body)
    assert [parent] == [job["id"] for job in (await api.mine.get("/api/jobs")).json()["jobs"]]


async def test_a_model_that_is_not_declared_any_more_is_refused(api: Api) -> None:
    parent = await api.done(ROWS)
    model = api.models.pop(POOL)
    assert (422, "unknown_model") == await refused(api, parent)
    api.models[POOL] = model


async def test_an_engine_that_is_stopping_takes_none(api: Api) -> None:
    parent = await api.done(ROWS)
    api.engine.refuse()
    assert (503, "shutting_down") == await refused(api, parent)


async def test_a_submit_may_ask_for_the_failed_rows_of_its_keys_job(api: Api) -> None:
    parent = await api.done(ROWS, idempotency_key="k")
    same = {"idempotency_key": "k", "reuse": "failed_rows"}
    assert parent == (await api.submit(ROWS, **same, max_failed_rows=1))["job"]["id"]
    made = await api.submit(ROWS, **same, max_failed_rows=0)
    assert (False, parent) == (made["reused"], made["job"]["rows_from"])


async def test_a_number_of_failed_rows_goes_with_that_reuse_only(api: Api) -> None:
    answer = await api.mine.post("/api/jobs", json={"rows": ROWS, "max_failed_rows": 0})
    assert 422 == answer.status_code
    assert "reuse='failed_rows'" in answer.json()["detail"]


async def test_the_page_says_what_it_retries(api: Api) -> None:
    parent = await api.done(ROWS)
    made = (await retry(api, parent)).json()["job"]["id"]
    api.world.prepare()
    page = (await api.mine.get(f"/jobs/{made}")).text
    assert f"the failed rows of <code>{parent}</code>" in page
    assert "(2 rows taken over)" in page
