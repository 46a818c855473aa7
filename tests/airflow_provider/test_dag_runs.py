"""
Whole DAGs in one process: Airflow parses, stores, renders, maps, retries; triggers run inline.
"""

import json
import os
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from airflow.sdk import DAG, task, task_group
from airflow.sdk import dag as dag_of

from airflow_provider_milkrun.operators import MilkrunInferOperator, MilkrunSubmitOperator
from airflow_provider_milkrun.sensors import MilkrunJobSensor

pytestmark = [
    pytest.mark.usefixtures("engine", "database"),
    # All of Airflow runs in this process, and with it every library that it uses: theirs are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::airflow_provider_milkrun"),
]


def run(dag):
    """Store the DAG, run it to its end, return what its tasks returned by task id (and map index)."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(dag_folder=os.devnull)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)
    ended = dag.test()
    tries = {(ti.task_id, ti.map_index): (str(ti.state), ti.try_number) for ti in ended.get_task_instances()}
    with create_session() as session:
        found = session.query(XComModel).filter_by(dag_id=dag.dag_id, run_id=ended.run_id, key="return_value").all()
        returned = {(each.task_id, each.map_index): XComModel.deserialize_value(each) for each in found}
    return str(ended.state), tries, returned


def test_a_file_becomes_a_table_and_one_bad_row_is_only_a_row(tmp_path):
    """Operator with a path from a template, a prompt over columns, and the results in Parquet."""
    (tmp_path / "reviews.csv").write_text("id,text\na,fine\nb,fail:timeout\nc,{{ ds }}\n")
    target = tmp_path / "labels.parquet"
    with DAG("file_to_parquet", schedule=None, params={"folder": str(tmp_path)}) as dag:
        MilkrunInferOperator(
            task_id="label",
            rows="{{ params.folder }}/reviews.csv",
            column="text",
            key_column="id",
            output_path="{{ params.folder }}/labels.parquet",
        )
    state, _, returned = run(dag)

    assert state == "success"
    assert returned["label", -1]["row_errors"] == {"timeout": 1}
    table = pq.read_table(target).to_pylist()
    assert [("a", "succeeded"), ("b", "failed"), ("c", "succeeded")] == [(row["key"], row["status"]) for row in table]
    assert "{{ ds }}" in table[2]["output"]


def test_rows_come_from_a_function_and_go_to_the_next_task():
    """`@task.milkrun` between two plain tasks, with another task's output as its argument."""
    with DAG("decorated", schedule=None) as dag:

        @task
        def count() -> int:
            return 3

        @task.milkrun(prompt="Say {text}")
        def label(number: int):
            return [{"text": f"{each} {{{{ ds }}}}"} for each in range(number)]

        @task
        def after(manifest: dict) -> int:
            return manifest["rows_succeeded"]

        after(label(count()))
    state, _, returned = run(dag)

    assert state == "success"
    assert returned["after", -1] == 3


def test_mapped_tasks_have_a_job_each(client):
    """`.expand` over the outputs of another task."""
    with DAG("mapped", schedule=None) as dag:

        @task
        def shards() -> list:
            return [["slow:0.5 a"], ["b", "c"], ["d"]]

        MilkrunInferOperator.partial(task_id="label").expand(rows=shards())
    state, _, returned = run(dag)

    assert state == "success"
    assert [1, 2, 1] == [returned["label", index]["rows_succeeded"] for index in range(3)]
    assert len({returned["label", index]["job_id"] for index in range(3)}) == 3


def test_one_task_submits_and_another_waits():
    """The job's id goes by XCom."""
    with DAG("submit_and_wait", schedule=None) as dag:
        submit = MilkrunSubmitOperator(task_id="submit", rows=["slow:1 a", "b"])
        MilkrunJobSensor(task_id="wait", job_id=submit.output)
    state, _, returned = run(dag)

    assert state == "success"
    assert returned["wait", -1]["job_id"] == returned["submit", -1]
    assert returned["wait", -1]["rows_succeeded"] == 2


def test_a_sensor_may_look_again_and_again():
    """For a host without a triggerer."""
    with DAG("poke", schedule=None) as dag:
        submit = MilkrunSubmitOperator(task_id="submit", rows=["slow:1 a"])
        MilkrunJobSensor(task_id="wait", job_id=submit.output, deferrable=False, poke_interval=0.5)
    assert run(dag)[0] == "success"


def test_a_retry_finds_the_job_of_the_first_try(tmp_path, client):
    """The first try fails after its submit; the engine has one job in the end."""
    marker = tmp_path / "failed-once"

    class Fails(MilkrunInferOperator):
        def _first_look(self, client, record):
            if not marker.exists():
                marker.write_text(record["job_id"])
                raise ConnectionError("the first try ends here")
            return super()._first_look(client, record)

    with DAG("retried", schedule=None) as dag:
        Fails(task_id="label", rows=["slow:1 a"], retries=1, retry_delay=timedelta(0))
    state, tries, returned = run(dag)

    assert state == "success"
    assert tries["label", -1] == ("success", 2)
    assert returned["label", -1]["job_id"] == Path(marker).read_text()


def test_a_retry_after_too_many_failed_rows_runs_them_alone(client):
    """The second try takes the good row over; here it then allows what failed again."""

    class Allows(MilkrunInferOperator):
        def _finish(self, context, engine, client, job):
            self.max_failed_rows = context["ti"].try_number - 1
            return super()._finish(context, engine, client, job)

    with DAG("failed_rows", schedule=None) as dag:
        Allows(
            task_id="label", rows=["slow:1 a", "fail:timeout"], max_failed_rows=0, retries=1, retry_delay=timedelta(0)
        )
    state, tries, returned = run(dag)

    assert (state, tries["label", -1]) == ("success", ("success", 2))
    facts = returned["label", -1]
    assert (facts["rows_reused"], facts["rows_succeeded"], facts["rows_failed"]) == (1, 1, 1)
    parent = client.job(client.job(facts["job_id"]).rows_from)
    assert (parent.status, parent.rows_failed) == ("succeeded", 1)


def test_nothing_private_reaches_airflows_database(engine):
    """Neither rows, also of a template, nor prompts nor the key (a mapped task's constants are Airflow's: README)."""
    secret, replaced = "sdrow etavirp"[::-1], "PRI" + "VATE"  # Airflow stores this file, too
    with DAG("private", schedule=None, params={"texts": ["one", "two"], "by": replaced}) as dag:
        rows = [f"{secret} {each}" for each in range(10)]
        MilkrunInferOperator(task_id="label", rows=rows, system_prompt=secret)
        template = "{{ params.texts | map('replace', 'o', params.by) | list | tojson }}"
        MilkrunInferOperator(task_id="templated", rows=template, prompt=secret + " {text}", column=None)
    state, _, returned = run(dag)
    assert state == "success"
    assert (returned["label", -1]["rows_total"], returned["templated", -1]["rows_total"]) == (10, 2)
    from airflow.settings import engine as database

    content = json.dumps(list(database.raw_connection().driver_connection.iterdump()))
    assert "params.by" in content, "what is written into the DAG is there"
    for private in (secret, f"{replaced}ne", engine.api_key):
        assert private not in content


def test_rows_may_be_an_argument_of_the_dag_or_of_a_mapped_group(tmp_path):
    """Whatever Airflow resolves when the task runs."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("text\nfine\n")

    @dag_of(schedule=None, dag_id="parametrised")
    def parametrised(path=str(tmp_path / "a.csv")):
        MilkrunInferOperator(task_id="label", rows=path, column="text")

        @task_group
        def shard(path):
            MilkrunInferOperator(task_id="label", rows=path, column="text")

        shard.expand(path=[str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])

    state, _, returned = run(parametrised())
    assert state == "success"
    assert {("label", -1), ("shard.label", 0), ("shard.label", 1)} <= returned.keys()
