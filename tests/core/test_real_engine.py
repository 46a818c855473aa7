"""The client's journeys against a real engine with the echo replica, which the client starts itself."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pydantic
import pytest

import milkrun as mr
from milkrun import hashing, local, wire

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]


class Verdict(pydantic.BaseModel):
    mood: str
    stars: int


def stop(data_dir: Path) -> None:
    engine = local.EngineFile.read(data_dir)
    process = local._children.pop(engine.pid, None) if engine else None
    if process is not None:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this module's local engine lives; it is started by the first client."""
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILKRUN_REPLICA", "echo")
        yield folder
        stop(folder)


@pytest.fixture
def client(data_dir: Path) -> Iterator[mr.Milkrun]:
    """A client of the local engine."""
    with mr.Milkrun(data_dir=data_dir) as found:
        yield found


def test_rows_come_back_in_order_and_a_bad_row_is_alone(client: mr.Milkrun) -> None:
    rows = [{"id": f"r{n}", "text": "fail: now" if n == 3 else f"row {n}\u2028"} for n in range(24)]
    told: list[mr.Job] = []
    job_id = client.infer(rows, prompt="{text}", key_column="id", job_priority=0, name="first", labels={"a": "b"})
    results = client.await_job_results(job_id, timeout=60, on_progress=told.append)
    assert [row["id"] for row in rows] == [row.key for row in results]
    failed = [row for row in results if row.error is not None]
    assert [(row.index, row.status) for row in failed] == [(3, mr.RowStatus.failed)]
    assert failed[0].error is not None
    assert failed[0].error.code in set(mr.RowErrorCode)
    assert all(row.text for row in results if row.index != 3)
    assert told[-1].status is mr.JobStatus.succeeded
    job = client.job(job_id)
    assert (job.rows_succeeded, job.rows_failed, sum(job.row_errors.values())) == (23, 1, 1)
    assert job_id in [each.id for each in client.jobs(labels={"a": "b"})]
    joined = results.join(rows)
    assert [row["id"] for row in joined if row["error"]] == ["r3"]
    with pytest.raises(mr.TooManyRowsFailed):
        client.await_job_results(job_id, max_failed_rows=0)


def test_the_awaiting_client_does_the_same(data_dir: Path) -> None:
    async def journey() -> list[str | None]:
        async with mr.AsyncMilkrun(data_dir=data_dir) as client:
            job_id = await client.infer(["a", "b"], output_schema=["yes", "no"])
            ended = [job.id async for job in client.as_ended([job_id], timeout=60)]
            assert ended == [job_id]
            return [row.text async for row in await client.results(job_id)]

    answers = anyio.run(journey)
    assert (2, True) == (len(answers), set(answers) <= {"yes", "no"})


def test_a_large_job_is_uploaded_paged_and_exported(client: mr.Milkrun, tmp_path: Path) -> None:
    rows = ({"text": f"row {n} " + "x" * 100} for n in range(4_000))
    job_id = client.infer(rows, column="text")
    results = client.await_job_results(job_id, timeout=60)
    assert len(results) == 4_000
    assert list(range(4_000)) == [row.index for row in results]
    lines = results.save(tmp_path / "r.jsonl").read_bytes().splitlines()
    assert results.to_dicts() == [json.loads(line) for line in lines]
    assert (results.save(tmp_path / "r.csv")).read_text().count("\n") == 4_001
    frame = results.to_polars()
    assert frame["output"].to_list() == [row.text for row in results]
    assert results.to_arrow().num_rows == len(results.to_pandas()) == 4_000


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.jsonl", "r.parquet"])
def test_every_file_format_gives_the_same_answers(client: mr.Milkrun, tmp_path: Path, name: str) -> None:
    import polars as pl

    frame = pl.DataFrame({"id": ["a", "b", "c"], "text": ["one", "two,\n2", "drei ü\u2028"]})
    path = tmp_path / name
    writers: dict[str, Callable[[], object]] = {
        "r.csv": lambda: frame.write_csv(path),
        "r.tsv": lambda: frame.write_csv(path, separator="\t"),
        "r.jsonl": lambda: frame.write_ndjson(path),
        "r.parquet": lambda: frame.write_parquet(path),
    }
    writers[name]()
    options: mr.SubmitOptions = {"prompt": "{text}", "key_column": "id", "sampling": {"seed": 1}}
    results = client.await_job_results(client.infer(path, **options), timeout=60)
    from_rows = client.await_job_results(client.infer(frame.to_dicts(), **options), timeout=60)
    from_frame = client.await_job_results(client.infer(frame, **options), timeout=60)
    answers = [(row.key, row.text) for row in results]
    assert all(text for _, text in answers)
    assert answers == [(row.key, row.text) for row in from_rows] == [(row.key, row.text) for row in from_frame]


def test_a_schema_gives_instances(client: mr.Milkrun) -> None:
    job_id = client.infer(["a", "b"], output_schema=Verdict)
    assert [type(row.parsed) for row in client.await_job_results(job_id, timeout=60)] == [Verdict, Verdict]
    with mr.Milkrun(data_dir=client.settings.data_dir) as other:
        assert [row.parsed for row in other.results(job_id)] == [None, None]
        assert {type(row.parsed) for row in other.results(job_id, schema=Verdict)} == {Verdict}


def test_embeddings_are_lists_of_numbers(client: mr.Milkrun) -> None:
    results = client.await_job_results(client.embed(["a", "b"]), timeout=60)
    assert all(isinstance(row.output[0], float) and row.text is None for row in results)
    assert results.to_polars()["output"].dtype.is_nested()
    assert len(results.join([{}, {}])[0]["output"]) == len(results.to_list()[0].output)


def test_a_key_finds_its_job(client: mr.Milkrun) -> None:
    first = client.submit(["a"], idempotency_key="k1", sampling={"temperature": 0})
    again = client.submit(["a"], idempotency_key="k1", sampling={"temperature": 0})
    assert (again.job.id, again.reused) == (first.job.id, True)
    spec = wire.JobSpec(sampling={"temperature": 0}, model=None)
    expected = hashing.input_hash(spec, hashlib.sha256(hashing.row_line("a")).hexdigest())
    assert expected == first.job.input_hash
    attached = client.attach("k1", expected)
    assert attached.job.id == first.job.id
    assert attached.claim > again.claim > first.claim
    with pytest.raises(mr.Conflict) as differ:
        client.attach("k1", "0" * 64)
    assert differ.value.code == "inputs_differ"
    with pytest.raises(mr.InvalidRequest) as mismatch:
        client.infer(["b"], idempotency_key="k1")
    assert mismatch.value.code == "idempotency_mismatch"
    replaced = client.submit(["b"], idempotency_key="k1", on_mismatch="replace")
    assert (replaced.replaced, replaced.reused) == (first.job.id, False)


def test_a_stale_claim_cannot_cancel_and_a_person_can(client: mr.Milkrun) -> None:
    slow = ["slow:20"] * 3
    old = client.submit(slow, idempotency_key="k2")
    new = client.attach("k2")
    with pytest.raises(mr.Conflict) as stale:
        client.cancel(old.job.id, old.claim)
    assert stale.value.code == "stale_claim"
    assert client.cancel(new.job.id).status is mr.JobStatus.cancelled
    with pytest.raises(mr.JobCancelled) as cancelled:
        client.await_job_results(new.job.id)
    assert cancelled.value.job.rows_cancelled == 3
    assert [row.error and row.error.code for row in client.results(new.job.id)] == ["cancelled"] * 3


def test_a_wait_ends_at_its_time(client: mr.Milkrun) -> None:
    job_id = client.infer(["slow:20"])
    begun = time.monotonic()
    with pytest.raises(mr.WaitTimeout) as caught:
        client.wait(job_id, timeout=1)
    assert 1 <= time.monotonic() - begun < 6
    assert caught.value.job.id == job_id
    client.cancel(job_id)


def test_many_jobs_are_awaited_at_once(client: mr.Milkrun) -> None:
    ids = [client.infer([f"job {n}"], job_priority=n % 3) for n in range(30)]
    assert sorted(ids) == sorted(job.id for job in client.as_ended(ids, timeout=60))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"model": "no-such-model"}, "unknown_model"),
        ({"prompt": "{absent}"}, "missing_column"),
        ({"prompt": "{broken"}, "invalid_request"),
    ],
    ids=["model", "column", "template"],
)
def test_what_can_be_refused_at_the_door_is(client: mr.Milkrun, options: Any, code: str) -> None:
    with pytest.raises(mr.InvalidRequest) as caught:
        client.infer([{"text": "a"}], **options)
    assert caught.value.code == code


def test_wrong_keys_and_ids_are_told(client: mr.Milkrun) -> None:
    engine = local.ensure(client.settings.data_dir)
    with mr.Milkrun(engine.url, "wrong") as stranger, pytest.raises(mr.AuthenticationError):
        stranger.models()
    with pytest.raises(mr.NotFound):
        client.job("job_none")
    with pytest.raises(mr.NotFound):
        client.wait("job_none")


def test_an_engine_killed_in_mid_wait_is_started_anew_and_the_wait_goes_on(client: mr.Milkrun) -> None:
    job_id = client.infer(["slow:3", "a"])
    engine = local.ensure(client.settings.data_dir)
    threading.Timer(1.0, os.kill, (engine.pid, signal.SIGKILL)).start()
    assert client.wait(job_id, timeout=60).status is mr.JobStatus.succeeded
    assert local.ensure(client.settings.data_dir).instance_id != engine.instance_id


def test_the_command_line_end_to_end(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,text\na,one\nb,two\n")
    command = [sys.executable, "-c", "from milkrun._cli import main; main()", "--data-dir", str(data_dir)]
    options = ["--column", "text", "--key-column", "id", "-o", str(tmp_path / "o.jsonl"), "--json"]
    ran = subprocess.run(
        [*command, "submit", str(tmp_path / "r.csv"), *options], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["rows_succeeded"] == 2
    lines = (tmp_path / "o.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "b"]


def test_the_readme_runs(data_dir: Path) -> None:
    readme = (Path(__file__).parents[2] / "core" / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    environ = {**os.environ, "MILKRUN_DATA_DIR": str(data_dir)}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env=environ
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {line.split()[0] for line in ran.stdout.splitlines()} == {"a", "b"}


def test_a_job_is_paused_resumed_and_deleted(client: mr.Milkrun) -> None:
    blocking = client.infer(["slow:30 x"] * 2, job_priority=0)
    job_id = client.infer(["slow:4 a", "slow:4 b"], name="later", completion_window=timedelta(hours=1))
    paused = client.pause(job_id)
    assert (True, "paused", None) == (paused.paused, paused.waiting_reason, paused.queue)
    resumed = client.job(client.resume(job_id).id)
    assert resumed.queue is not None
    assert resumed.expires_at == resumed.created_at + timedelta(hours=1)
    with pytest.raises(mr.Conflict, match="not_ended"):
        client.delete(blocking)
    client.cancel(blocking)
    assert 2 == len(client.await_job_results(job_id, timeout=60))
    with pytest.raises(mr.Conflict, match="already_ended"):
        client.pause(job_id)
    client.delete(job_id)
    client.delete(job_id)
    with pytest.raises(mr.NotFound):
        client.job(job_id)


def test_whoever_waits_for_a_job_that_is_deleted_is_told(client: mr.Milkrun) -> None:
    """Its end and its deletion come in one look at the feed: the results are gone, so the wait fails."""
    gone, going_on = client.infer(["slow:30 x"]), client.infer(["slow:30 x"])
    cursor = client.changes().cursor
    client.cancel(gone)
    client.delete(gone)
    news = client.changes(cursor)
    assert ([gone], []) == (news.deleted, news.jobs)
    with pytest.raises(mr.NotFound, match="deleted"):
        client.wait(gone, timeout=30)
    client.cancel(going_on)
    assert mr.JobStatus.cancelled is client.wait(going_on, timeout=30).status


def test_a_job_ends_by_its_window_or_its_failed_rows(client: mr.Milkrun) -> None:
    late = client.infer(["quick", "slow:30 x"], completion_window=1)
    with pytest.raises(mr.JobExpired):
        client.await_job_results(late, timeout=60)
    assert [row.error.code for row in client.results(late) if row.error] in (["expired"], ["expired"] * 2)
    bad = client.infer(["fail: no", *["slow:30 x"] * 40], abort_after_failed_rows=1)
    with pytest.raises(mr.JobFailed, match="too_many_rows_failed"):
        client.await_job_results(bad, timeout=60)


def test_lists_are_filtered(client: mr.Milkrun) -> None:
    label = {"test": "filters"}
    first = client.infer(["a"], name="filter-a", labels=label)
    client.wait(first, 60)
    middle = client.job(first).finished_at
    second = client.infer(["b"], name="filter-b", labels=label)
    client.wait(second, 60)
    assert [second, first] == [job.id for job in client.jobs(name="filter-*", labels=label)]
    assert [first] == [job.id for job in client.jobs(name="filter-a", status=["succeeded", "failed"])]
    assert [second] == [job.id for job in client.jobs(labels=label, created_after=middle)]
    assert [first] == [job.id for job in client.jobs(labels=label, created_before=middle)]
    assert [] == client.jobs(labels=label, status=mr.JobStatus.expired)
