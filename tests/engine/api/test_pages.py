"""
The pages: a signed link opens one job, nothing that a caller wrote becomes markup, and there are no scripts.
"""

import html

import pytest
from fix_api import KEY, OTHER_KEY, Api

pytestmark = pytest.mark.anyio
XSS = "<script>alert(1)</script>\"'&{{7*7}}"


async def test_the_link_of_a_job_opens_its_page_without_a_key(api: Api) -> None:
    submitted = await api.submit(name="Reviews")
    answer = await api.nobody.get(submitted["job"]["url"])
    assert answer.status_code == 200
    assert "Reviews" in answer.text
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("signature", ["", "?sig=", "?sig=0" * 2, "?sig=" + "0" * 32, "?sig=%C3%A9"])
async def test_without_its_signature_a_page_wants_a_key(api: Api, signature: str) -> None:
    job_id = (await api.submit())["job"]["id"]
    answer = await api.nobody.get(f"/jobs/{job_id}{signature}")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert (await api.mine.get(f"/jobs/{job_id}{signature}")).status_code == 200


async def test_a_signature_opens_its_own_job_only(api: Api) -> None:
    first, second = (await api.submit())["job"], (await api.submit())["job"]
    signature = first["url"].rpartition("=")[2]
    assert (await api.nobody.get(f"/jobs/{second['id']}?sig={signature}")).status_code == 401


async def test_a_page_of_another_tenant_is_not_found(api: Api) -> None:
    job = (await api.submit())["job"]
    theirs, never = await api.other.get(f"/jobs/{job['id']}"), await api.other.get("/jobs/job_never")
    assert (theirs.status_code, never.status_code) == (404, 404)
    assert theirs.text.replace(job["id"], "job_never") == never.text
    assert job["id"] not in (await api.other.get("/jobs")).text


async def test_the_list_wants_a_key_and_shows_ones_own(api: Api) -> None:
    job_id = await api.done(name="Reviews")
    assert (await api.nobody.get("/jobs")).status_code == 401
    text = (await api.mine.get("/jobs")).text
    assert "Reviews" in text
    assert f"/jobs/{job_id}?sig=" in text


async def test_what_callers_write_is_never_markup(api: Api) -> None:
    facts = {"name": XSS, "description": XSS, "labels": {XSS: XSS}, "external_url": f"https://a.test/{XSS}"}
    job = (await api.submit(**facts))["job"]
    for path in (job["url"], "/jobs"):
        text = (await api.mine.get(path)).text
        assert "<script" not in text
        assert "alert(1)" in text
        assert XSS in html.unescape(text)
    missing = await api.mine.get(f"/jobs/{XSS}")
    assert "<script" not in missing.text


async def test_a_jobs_page_leads_back_to_the_run_that_submitted_it_and_shows_its_labels(api: Api) -> None:
    facts = {"external_url": "https://orchestrator.test/runs/7?a=b&c=d", "labels": {"dag_id": "nightly"}}
    text = (await api.nobody.get((await api.submit(**facts))["job"]["url"])).text
    assert '<a href="https://orchestrator.test/runs/7?a=b&amp;c=d" rel="noopener noreferrer">' in text
    assert "<th>dag_id</th><td>nightly</td>" in text
    for url in ("javascript:alert(1)", "data:text/html,x", "//elsewhere.test", "JAVASCRIPT://a"):
        answer = await api.mine.post("/api/jobs", json={"rows": ["a"], "external_url": url})
        assert (422, "invalid_request") == (answer.status_code, answer.json()["code"])


async def test_no_page_allows_a_script_or_shows_a_prompt_or_an_answer(api: Api) -> None:
    job_id = await api.done(["the secret prompt"], spec={"system_prompt": "the secret system prompt"})
    job = (await api.mine.get(f"/api/jobs/{job_id}")).json()
    for path in (job["url"], "/jobs", "/jobs/job_never"):
        answer = await api.mine.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "script" not in answer.headers["content-security-policy"]
        assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == (
            "nosniff",
            "no-referrer",
        )
        assert "secret" not in answer.text
        assert "echo" not in answer.text, "an answer begins with it"
        assert KEY not in answer.text
        assert OTHER_KEY not in answer.text


async def test_a_running_jobs_page_renews_itself_and_an_ended_ones_does_not(api: Api) -> None:
    job = (await api.submit())["job"]
    assert 'http-equiv="refresh"' in (await api.nobody.get(job["url"])).text
    await api.mine.post(f"/api/jobs/{job['id']}/cancel")
    assert 'http-equiv="refresh"' not in (await api.nobody.get(job["url"])).text


async def test_the_beginning_leads_to_the_list(api: Api) -> None:
    assert (await api.mine.get("/")).headers["location"] == "/jobs"
    assert "No job yet" in (await api.mine.get("/jobs")).text
