"""
A cancel whose answer was lost is repeated, and told like the first: nobody knows whether that one was.
"""

import pytest
from fix_api import Api

pytestmark = pytest.mark.anyio


async def test_a_repeated_cancel_takes_the_rows_off_the_replicas_again(api: Api) -> None:
    heard: list[str] = []
    api.engine._signals.on_stopped(heard.append)
    job_id = (await api.mine.post("/api/jobs", json={"rows": ["a"]})).json()["job"]["id"]
    for _ in range(2):
        answer = await api.mine.post(f"/api/jobs/{job_id}/cancel")
        assert "cancelled" == answer.json()["status"]
    assert [job_id, job_id] == heard
