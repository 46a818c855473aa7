"""
Operators without a scheduler: execute, defer, resume, on the real engine.
"""

import asyncio
import contextlib
import json
import threading
import time
from datetime import timedelta

import pytest
from airflow.sdk import DAG, Asset, ObjectStoragePath
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowTaskTimeout,
    TaskDeferralError,
    TaskDeferralTimeout,
    TaskDeferred,
)
from airflow.serialization.serialized_objects import DagSerialization
from airflow_provider.stand_ins import connection

import milkrun as mr
from airflow_provider_milkrun.links import JOB_URL
from airflow_provider_milkrun.operators import MilkrunInferOperator, MilkrunSubmitOperator


def an_infer(rows=("hello", "world"), **options):
    """Make the operator anew, as each attempt and each resumption does."""
    return MilkrunInferOperator(task_id="t", rows=list(rows), **options)


def run(make, context):
    """Run a task to its end: each resumption on a fresh operator."""
    result = None
    try:
        return make().execute(context)
    except TaskDeferred as deferred:
        result = deferred
    while True:

        async def fire(trigger=result.trigger):
            async for event in trigger.run():
                return event.payload
            return None

        event = asyncio.run(fire())
        try:
            return make().resume_execution(result.method_name, {"event": event}, context)
        except TaskDeferred as deferred:
            result = deferred


def deferral(operator, context):
    """Return how the operator defers."""
    with pytest.raises(TaskDeferred) as caught:
        operator.execute(context)
    return caught.value


def same(trigger):
    """What a trigger that takes another's place has to have of it."""
    path, arguments = trigger.serialize()
    return path, {name: value for name, value in arguments.items() if name != "not_before"}


@pytest.mark.parametrize("seconds", [0, 10])
def test_a_deferral_lasts_a_while_at_least(engine, attempt, client, monkeypatch, seconds):
    """See `triggers.settled`."""
    monkeypatch.setattr("airflow_provider_milkrun.triggers.SETTLE_SECONDS", seconds)
    trigger = deferral(an_infer(["slow:20 a"]), attempt()).trigger

    assert seconds - 5 < trigger.not_before - time.time() <= seconds
    client.cancel(trigger.job_id)


def test_it_defers_and_resumes_on_a_fresh_instance(engine, attempt):
    """All that the second half knows comes from the event, Airflow's store and the engine."""
    manifest = run(lambda: an_infer(["slow:0.5 a", "b", "fail:timeout c"]), attempt())

    assert (manifest["status"], manifest["rows_succeeded"], manifest["rows_failed"]) == ("succeeded", 2, 1)
    assert manifest["row_errors"] == {"timeout": 1}
    assert manifest["prompt_tokens"] > 0


def test_the_manifest_is_small_and_says_nothing_of_the_rows(engine, attempt):
    """It goes into Airflow's database."""
    manifest = run(lambda: an_infer([f"private words {number}" for number in range(500)]), attempt())

    assert len(json.dumps(manifest)) <= 4096
    assert "private" not in json.dumps(manifest)
    assert engine.api_key not in json.dumps(manifest)


def test_a_job_that_has_ended_is_not_waited_for(engine, attempt):
    """The second attempt finds it, and finishes without a trigger."""
    first = run(an_infer, attempt())

    assert first["job_id"] == an_infer().execute(attempt())["job_id"]


def test_a_short_job_may_be_waited_for_in_the_worker(engine, attempt):
    """Two worker starts are spared."""
    assert an_infer(["slow:0.3 a"], wait_up_to=30).execute(attempt())["status"] == "succeeded"


def test_it_can_block(engine, attempt):
    """For a host without a triggerer."""
    assert an_infer(["slow:0.3 a"], deferrable=False).execute(attempt())["status"] == "succeeded"


def test_every_attempt_finds_the_same_job(engine, attempt, client):
    """The key holds no try number; each attempt's claim is greater."""
    first, second = deferral(an_infer(["slow:20 a"]), attempt()), deferral(an_infer(["slow:20 a"]), attempt())

    assert first.trigger.job_id == second.trigger.job_id
    assert first.trigger.claim < second.trigger.claim
    client.cancel(first.trigger.job_id)


def test_changed_rows_replace_the_job(engine, attempt, client):
    """A cleared task with other inputs wants other answers."""
    old = deferral(an_infer(["slow:20 a"]), attempt()).trigger.job_id
    new = deferral(an_infer(["slow:20 b"]), attempt()).trigger.job_id

    assert old != new
    assert client.job(old).status is mr.JobStatus.cancelled
    client.cancel(new)


def test_reuse_always_keeps_the_job(engine, attempt, client):
    """Where the function that makes the rows is not deterministic."""
    old = deferral(an_infer(["slow:20 a"], reuse="always"), attempt()).trigger.job_id

    assert old == deferral(an_infer(["slow:20 b"], reuse="always"), attempt()).trigger.job_id
    client.cancel(old)


def test_two_airflows_do_not_meet(engine, attempt, client, monkeypatch):
    """The same DAG in two deployments with one engine: the namespace keeps their jobs apart."""
    one = deferral(an_infer(["slow:20 a"]), attempt()).trigger.job_id
    monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", connection(engine, namespace="staging"))
    other = deferral(an_infer(["slow:20 b"]), attempt()).trigger.job_id

    assert not client.job(one).is_terminal
    client.cancel(one)
    client.cancel(other)


def test_the_job_says_where_it_comes_from(engine, attempt, client):
    """The engine's page leads back to Airflow, and Airflow's to the engine."""
    context = attempt(map_index=2)
    job = client.job(deferral(an_infer(["slow:20 a"], labels={"team": "x"}, job_priority=0), context).trigger.job_id)

    run_id = context["ti"].run_id
    assert job.labels == {"team": "x", "dag_id": "d", "task_id": "t", "run_id": run_id, "map_index": "2"}
    assert job.external_url == context["ti"].log_url
    assert context["ti"].xcoms[JOB_URL] == job.url
    assert job.priority == 0
    client.cancel(job.id)


def test_the_connection_says_what_the_task_leaves_open(engine, attempt, client, monkeypatch):
    """Model and priority."""
    monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", connection(engine, model="all-minilm-l6-v2", job_priority="7"))
    job_id = MilkrunSubmitOperator(task_id="t", rows=["a"], kind="embed").execute(attempt())

    assert (client.job(job_id).model, client.job(job_id).priority) == ("all-minilm-l6-v2", 7)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_results_go_to_a_file(engine, attempt, tmp_path, name):
    """Its folder is made; its suffix says the format."""
    target = tmp_path / "new" / name
    manifest = run(lambda: an_infer(output_path=str(target)), attempt())

    assert manifest["output"] == str(target)
    assert target.stat().st_size > 0


def test_rows_and_results_may_lie_in_object_storage(engine, attempt, tmp_path):
    """Here the one on this disk; Airflow has the others."""
    (tmp_path / "in.csv").write_text("id,text\nx,hello\ny,world\n")
    source, target = f"file://{tmp_path}/in.csv", f"file://{tmp_path}/out/result.jsonl"

    def make():
        return MilkrunInferOperator(task_id="t", rows=source, prompt="{text}", key_column="id", output_path=target)

    assert run(make, attempt())["rows_succeeded"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "result.jsonl").read_text().splitlines()]
    assert ["x", "y"] == [line["key"] for line in lines]


def test_a_path_object_is_taken_too(engine, attempt, tmp_path):
    """Another task may hand one over."""
    (tmp_path / "in.jsonl").write_text('"hello"\n')
    operator = MilkrunInferOperator(
        task_id="t", rows=ObjectStoragePath(f"file://{tmp_path}/in.jsonl"), deferrable=False
    )

    assert operator.execute(attempt())["rows_total"] == 1


def test_an_output_without_a_known_format_sends_nothing(engine, attempt, client):
    """It would be found out after hours, otherwise."""
    context = attempt()
    with pytest.raises(AirflowFailException, match=r"known are \.jsonl, \.csv, \.parquet"):
        an_infer(output_path="results.xls").execute(context)
    assert client.jobs(labels={"run_id": context["ti"].run_id}) == []


def test_after_too_many_failed_rows_the_next_attempt_runs_them_alone(engine, attempt, client):
    """The task fails, and is left to its retries; the others' answers are taken over."""
    context = attempt()
    with pytest.raises(AirflowException, match="reuse='failed_rows'") as caught:
        run(lambda: an_infer(["fail:timeout", "b"], max_failed_rows=0), context)

    assert not isinstance(caught.value, AirflowFailException)
    first = context["task_state_store"]["milkrun"]["job_id"]
    with pytest.raises(AirflowException):
        run(lambda: an_infer(["fail:timeout", "b"], max_failed_rows=0), context)
    second = client.job(context["task_state_store"]["milkrun"]["job_id"])
    assert (first, 1, 1) == (second.rows_from, second.rows_reused, second.rows_failed)


def test_failed_rows_that_are_allowed_do_not_run_again(engine, attempt):
    """An attempt that finds them, as after a worker's death, collects the same job."""
    first = run(lambda: an_infer(["fail:timeout", "b"], max_failed_rows=1), attempt())

    assert first["job_id"] == an_infer(["fail:timeout", "b"], max_failed_rows=1).execute(attempt())["job_id"]
    assert first["job_id"] == an_infer(["fail:timeout", "b"]).execute(attempt())["job_id"]


@pytest.mark.parametrize("reuse", ["inputs_match", mr.Reuse.always])
def test_where_a_retry_would_find_the_same_job_too_many_failed_rows_fail_the_task_for_good(engine, attempt, reuse):
    """Trying again would end the same."""
    with pytest.raises(AirflowFailException, match="a retry would find the same job"):
        run(lambda: an_infer(["fail:timeout", "b"], max_failed_rows=0, reuse=reuse), attempt())


def test_after_a_timeout_the_next_attempt_runs_what_is_left(engine, attempt, client):
    """What the cancelled job has answered is taken over."""
    rows = [f"row {number}" for number in range(16)] + ["slow:3 z"] * 8
    context = attempt()
    old = deferral(an_infer(rows), context).trigger.job_id
    deadline = time.monotonic() + 30
    while client.job(old).rows_succeeded < 8:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.cancel(old)
    new = client.job(deferral(an_infer(rows), context).trigger.job_id)

    assert old == new.rows_from
    ended = client.wait(new.id, timeout=60)
    assert ended.rows_reused >= 8
    assert ended.rows_succeeded == 24


def test_a_cancelled_job_fails_the_task_for_good(engine, attempt, client):
    """Somebody meant it."""
    context = attempt()
    deferred = deferral(an_infer(["slow:20 a"]), context)
    client.cancel(deferred.trigger.job_id)
    with pytest.raises(AirflowFailException, match="JobCancelled"):
        an_infer().execute_complete(context, {"job_id": deferred.trigger.job_id, "reason": "ended"})


@pytest.mark.parametrize("deferrable", [True, False])
def test_a_timeout_cancels_the_job(engine, attempt, client, deferrable):
    """And leaves the rest to the task's retries."""
    context = attempt()
    with pytest.raises(AirflowException, match="WaitTimeout") as caught:
        run(lambda: an_infer(["slow:20 a"], timeout=timedelta(seconds=0.5), deferrable=deferrable), context)

    assert not isinstance(caught.value, AirflowFailException)
    assert client.job(context["task_state_store"]["milkrun"]["job_id"]).status is mr.JobStatus.cancelled


def test_a_timeout_may_leave_the_job(engine, attempt, client):
    """The task's next attempt finds it again."""
    context = attempt()
    with pytest.raises(AirflowException):
        run(lambda: an_infer(["slow:20 a"], timeout=0.5, cancel_on_timeout=False), context)
    job = client.job(context["task_state_store"]["milkrun"]["job_id"])

    assert not job.is_terminal
    client.cancel(job.id)


@pytest.mark.parametrize("with_store", [True, False])
def test_airflows_own_time_limit_leaks_no_job(engine, attempt, client, with_store):
    """Airflow skips `execute_complete` and `on_kill` then; without a store the engine knows the job by its key."""
    context = attempt(with_store=with_store)
    job_id = deferral(an_infer(["slow:20 a"]), context).trigger.job_id
    with pytest.raises(TaskDeferralTimeout):
        an_infer().resume_execution("__fail__", {"error": "Trigger timeout"}, context)

    assert client.job(job_id).status is mr.JobStatus.cancelled


def test_a_broken_trigger_is_replaced(engine, attempt, client):
    """Three times; then the task's own retries have their turn, and the job still goes on."""
    context = attempt()
    first = deferral(an_infer(["slow:20 a"], timeout=3600), context)
    for _ in range(3):
        with pytest.raises(TaskDeferred) as caught:
            an_infer().resume_execution("__fail__", {"error": "Trigger failure"}, context)
        assert same(first.trigger) == same(caught.value.trigger)
    with pytest.raises(AirflowException, match="next attempt finds it"):
        an_infer().resume_execution("__fail__", {"error": "Trigger failure"}, context)

    assert not client.job(first.trigger.job_id).is_terminal
    client.cancel(first.trigger.job_id)


def test_a_broken_trigger_of_an_ended_job_is_no_failure(engine, attempt, client):
    """The job is what counts."""
    context = attempt()
    job_id = deferral(an_infer(["slow:0.3 a"]), context).trigger.job_id
    client.wait(job_id)

    assert an_infer().resume_execution("__fail__", {"error": "Trigger failure"}, context)["status"] == "succeeded"


@pytest.mark.parametrize("event", [None, {}, {"job_id": "job_x", "reason": "unsure", "message": "gone"}])
def test_a_strange_event_is_looked_into(engine, attempt, client, event):
    """It is neither a success nor a failure."""
    context = attempt()
    job_id = deferral(an_infer(["slow:20 a"]), context).trigger.job_id
    with pytest.raises(TaskDeferred) as caught:
        an_infer().execute_complete(context, event)

    assert job_id == caught.value.trigger.job_id
    client.cancel(job_id)


@pytest.mark.parametrize("reason", ["ended", "timeout"])
@pytest.mark.parametrize("with_store", [True, False])
def test_an_older_attempts_event_ends_nothing(engine, attempt, client, reason, with_store):
    """Its job was replaced, and is cancelled; this attempt waits for its own."""
    context = attempt(with_store=with_store)
    old = deferral(an_infer(["slow:20 a"]), context).trigger.job_id
    new = deferral(an_infer(["slow:20 b"]), context).trigger.job_id
    # Without a store nobody counts new waits: the task's own retries take them up.
    with pytest.raises(TaskDeferred if with_store else AirflowException) as caught:
        an_infer().execute_complete(context, {"job_id": old, "reason": reason})

    assert not isinstance(caught.value, AirflowFailException)
    assert client.job(old).status is mr.JobStatus.cancelled
    assert not client.job(new).is_terminal
    client.cancel(new)


def test_no_trigger_failure_is_swallowed_without_a_job(engine, attempt):
    """Nothing was submitted: there is nothing to heal."""
    with pytest.raises(AirflowFailException, match="NotFound") as caught:
        an_infer().resume_execution("__fail__", {"error": "Trigger failure"}, attempt())

    assert isinstance(caught.value.__context__, mr.NotFound | TaskDeferralError)


def test_airflows_time_limit_lies_behind_the_triggers(engine, attempt, client):
    """Unless `execution_timeout` asks for less."""
    late = deferral(an_infer(["slow:20 a"], timeout=100), attempt())
    soon = deferral(an_infer(["slow:20 a"], timeout=100, execution_timeout=timedelta(seconds=5)), attempt())
    none = deferral(an_infer(["slow:20 a"]), attempt())

    assert late.timeout > timedelta(seconds=200)
    assert soon.timeout == timedelta(seconds=5)
    assert none.timeout is None
    client.cancel(none.trigger.job_id)


@pytest.mark.parametrize(("state", "ends"), [("failed", True), ("success", True), ("running", False), (None, False)])
def test_a_kill_in_the_worker_asks_for_the_tasks_state_too(engine, attempt, client, state, ends):
    """An evicted worker's job is still wanted; that of a task marked failed is not."""
    operator, context = an_infer(["slow:20 a"], deferrable=False), attempt(state=state)

    def work():
        with contextlib.suppress(AirflowException):
            operator.execute(context)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    give_up = time.monotonic() + 30
    while "milkrun" not in context["task_state_store"] and time.monotonic() < give_up:
        time.sleep(0.05)
    operator.on_kill()
    job_id = context["task_state_store"]["milkrun"]["job_id"]

    assert ends == client.job(job_id).is_terminal
    client.cancel(job_id)
    thread.join(30)


def test_outlets_get_the_facts(engine, attempt):
    """Whoever is triggered by the asset sees counts and links."""

    class Events(dict):
        def __missing__(self, asset):
            return self.setdefault(asset.name, type("Event", (), {"extra": None})())

    context = {**attempt(), "outlet_events": Events()}
    manifest = run(lambda: an_infer(outlets=[Asset("labels")]), context)

    assert manifest == context["outlet_events"]["labels"].extra


def test_rows_are_never_rendered_nor_shown():
    """A stray template in a review stays text; Airflow's pages show how many rows there are."""
    text = "{{ var.value.secret }}"
    operator = an_infer([text, "b"])
    operator.render_template_fields({})
    with DAG("d", schedule=None) as dag:
        MilkrunInferOperator(task_id="t", rows=[text, "b"], prompt="Say {{ds}} {text}")

    assert operator.rows.value == [text, "b"]
    assert str(operator.rows) == "<2 rows>"
    assert "var.value" not in json.dumps(DagSerialization.serialize_dag(dag), default=str)


def test_a_path_is_a_template():
    """A text as `rows` is."""
    operator = MilkrunInferOperator(task_id="t", rows="in-{{ ds }}.csv", output_path="out-{{ ds }}.csv")
    operator.render_template_fields({"ds": "2026-01-01"})

    assert ("in-2026-01-01.csv", "out-2026-01-01.csv") == (operator.rows, operator.output_path)


def test_what_a_template_gave_is_hidden_as_soon_as_it_is_there():
    """Airflow shows rendered fields, and stores them."""
    operator = an_infer()
    operator.rows = '["the patient", "his words"]'
    assert "<2 rows>" == repr(operator.rows)
    assert ["the patient", "his words"] == operator.rows.value


def test_a_list_that_is_no_json_says_what_to_do():
    """What `{{ ti.xcom_pull(...) }}` gives."""
    with pytest.raises(ValueError, match=r"tojson.*its output"):
        an_infer().rows = "['a', 'b']"


def test_a_template_may_give_a_json_list(engine, attempt):
    """Such as `{{ params.texts | tojson }}`."""
    operator = MilkrunInferOperator(task_id="t", rows="{{ texts | tojson }}", deferrable=False)
    operator.render_template_fields({"texts": ["a", "b", "c"]})

    assert operator.execute(attempt())["rows_total"] == 3


@pytest.mark.parametrize("options", [{"prompt": "{absent}"}, {"model": "no-such-model"}, {"job_priority": 99}])
def test_a_wrong_request_is_not_tried_again(engine, attempt, options):
    """The engine, or the client before it, says what is wrong."""
    operator = MilkrunInferOperator(task_id="t", rows=[{"text": "a"}], **options)
    with pytest.raises(AirflowFailException):
        operator.execute(attempt())


def test_an_engine_that_is_away_is_left_to_the_retries(attempt, monkeypatch):
    """Nothing was submitted, or the engine knows the key."""
    monkeypatch.setenv("AIRFLOW_CONN_MILKRUN_DEFAULT", '{"conn_type": "milkrun", "host": "http://127.0.0.1:9"}')
    monkeypatch.setattr("milkrun._retry.pause", lambda *_facts, **_options: None)  # no patience in a test
    with pytest.raises(AirflowException, match="ConnectError") as caught:
        an_infer().execute(attempt())
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize(
    "options", [{"timeout": "60"}, {"wait_up_to": "5"}, {"max_failed_rows": "3"}], ids=lambda each: next(iter(each))
)
def test_a_wrong_option_is_found_when_the_dag_is_read(options):
    """Not when a job runs that nobody will collect."""
    with pytest.raises(TypeError, match=next(iter(options))):
        an_infer(**options)


def test_no_wait_is_longer_than_the_timeout(engine, attempt, client):
    """Also where the worker waits first."""
    began = time.monotonic()
    deferred = deferral(an_infer(["slow:60 a"], wait_up_to=timedelta(seconds=30), timeout=1), attempt())
    client.cancel(deferred.trigger.job_id)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("path", ["s3://bucket/out.csv", "gs://bucket/out.csv", "nowhere://a/out.csv"])
def test_a_place_that_nothing_can_write_to_sends_nothing(engine, attempt, client, path):
    """The job would have run for nothing."""
    before = len(client.jobs(limit=None))
    with pytest.raises(AirflowFailException, match="apache-airflow-providers-amazon"):
        an_infer(output_path=path).execute(attempt())
    assert before == len(client.jobs(limit=None))


@pytest.mark.parametrize("submitted", [True, False])
@pytest.mark.parametrize("cancels", [True, False])
def test_airflows_time_limit_in_the_worker_leaks_no_job(engine, attempt, client, monkeypatch, cancels, submitted):
    """It strikes anywhere: here in the wait, or when the engine has accepted and the answer is on its way."""

    class Limited(MilkrunInferOperator):
        def _submit(self, context, engine, client):
            found = super()._submit(context, engine, client)
            if not submitted:
                raise AirflowTaskTimeout
            return found

        def _wait(self, *_):
            raise AirflowTaskTimeout

    context = attempt()
    with pytest.raises(AirflowTaskTimeout):
        Limited(task_id="t", rows=["slow:60 a"], deferrable=False, cancel_on_timeout=cancels).execute(context)
    (job,) = client.jobs(labels={"run_id": context["ti"].run_id})
    assert cancels is (job.status is mr.JobStatus.cancelled)
    client.cancel(job.id)


@pytest.mark.parametrize("too_late", [True, False])
def test_a_task_that_was_ended_while_its_rows_were_made_leaves_no_job(engine, attempt, client, too_late):
    """Its worker lives on for seconds, and would submit."""

    class Ended(MilkrunInferOperator):
        def _submit(self, context, engine, client):
            context["ti"].state = "failed"
            if too_late:
                submitted = super()._submit(context, engine, client)
                self.on_kill()
                return submitted
            self.on_kill()
            return super()._submit(context, engine, client)

    context = attempt()
    with pytest.raises(AirflowFailException, match="a user ended the task"):
        Ended(task_id="t", rows=["slow:60 a"]).execute(context)
    (job,) = client.jobs(labels={"run_id": context["ti"].run_id})
    assert mr.JobStatus.cancelled is job.status


def test_an_engine_that_is_away_at_the_look_is_waited_for(engine, attempt, client, monkeypatch):
    """Some times; the job goes on meanwhile."""
    context = attempt()
    first = deferral(an_infer(["slow:60 a"]), context)
    event = {"event": {"job_id": first.trigger.job_id, "reason": "unsure", "message": "gone"}}
    monkeypatch.setattr(mr.Milkrun, "job", lambda *_: (_ for _ in ()).throw(mr.ConnectError("nobody there")))
    for _ in range(3):
        with pytest.raises(TaskDeferred) as caught:
            an_infer(["slow:60 a"]).resume_execution("execute_complete", event, context)
        assert same(first.trigger) == same(caught.value.trigger)
    with pytest.raises(AirflowException, match="next attempt finds it"):
        an_infer(["slow:60 a"]).resume_execution("execute_complete", event, context)
    monkeypatch.undo()
    client.cancel(first.trigger.job_id)
