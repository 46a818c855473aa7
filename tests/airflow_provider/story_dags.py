"""
The DAGs of `test_components.py`, copied into the DAG folder of its Airflow.
"""

import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_milkrun.operators import MilkrunInferOperator

PROMPT = Path(__file__).with_name("prompt.txt")


class DiesAfterSubmit(MilkrunInferOperator):
    """Its first try dies when the engine has the job, and Airflow does not know yet."""

    def _submit(self, context, engine, client):
        submitted = super()._submit(context, engine, client)
        if context["ti"].try_number == 1:
            os._exit(9)
        return submitted


class DiesBeforeSubmit(MilkrunInferOperator):
    """Its first try dies before the engine has heard of the job."""

    def _submit(self, context, engine, client):
        if context["ti"].try_number == 1:
            os._exit(9)
        return super()._submit(context, engine, client)


class HeldBack(MilkrunInferOperator):
    """Its second try comes to the engine long after the first one's trigger was told to stop."""

    def _submit(self, context, engine, client):
        if context["ti"].try_number == 2:
            time.sleep(10)
        return super()._submit(context, engine, client)


with DAG("short", schedule=None):
    MilkrunInferOperator(
        task_id="label", rows=["slow:2 a", "b", "fail:timeout c"], output_path=str(PROMPT.with_name("out.jsonl"))
    )

with DAG("medium", schedule=None):
    MilkrunInferOperator(task_id="label", rows=["slow:40 a", "b"])

with DAG("long", schedule=None):
    MilkrunInferOperator(task_id="label", rows=["slow:300 a", "b"])

with DAG("changing", schedule=None):
    MilkrunInferOperator(task_id="label", rows=[{"text": "a"}], prompt=PROMPT.read_text())

with DAG("limited", schedule=None):
    MilkrunInferOperator(task_id="label", rows=["slow:300 a"], execution_timeout=timedelta(seconds=5))

with DAG("impatient", schedule=None):
    MilkrunInferOperator(task_id="label", rows=["slow:300 a"], timeout=5)

with DAG("held_back", schedule=None):
    HeldBack(task_id="label", rows=["slow:300 a"])

with DAG("limited_in_worker", schedule=None):
    MilkrunInferOperator(task_id="label", rows=["slow:300 a"], deferrable=False, execution_timeout=timedelta(seconds=5))

with DAG("blocking", schedule=None):
    MilkrunInferOperator(task_id="label", rows=["slow:300 a"], deferrable=False)

with DAG("deleted", schedule=None):
    MilkrunInferOperator(task_id="label", rows=["slow:300 a"])

with DAG("dies_before", schedule=None):
    DiesBeforeSubmit(task_id="label", rows=["slow:1 a"], retries=1, retry_delay=timedelta(0))

with DAG("dies_after", schedule=None):
    DiesAfterSubmit(task_id="label", rows=["slow:1 a"], retries=1, retry_delay=timedelta(0))
