"""
Put task instances into Airflow's database as they are once they have deferred: one for each job id on the input.

Run by `measure airflow` in the environment of its Airflow: five hundred real deferrals would take workers an hour.
"""

import os
import sys
import time
from datetime import UTC, datetime

from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dagrun import get_or_create_dagrun
from airflow.models.trigger import Trigger
from airflow.sdk import DAG, timezone
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType

from airflow_provider_milkrun.operators import MilkrunInferOperator
from airflow_provider_milkrun.triggers import MilkrunJobTrigger

job_ids = sys.stdin.read().split()
with DAG("deferred", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
    MilkrunInferOperator.partial(task_id="label").expand(rows=[[job_id] for job_id in job_ids])
DagBundlesManager().sync_bundles_to_db()
bag = DagBag(dag_folder=os.devnull)
bag.bag_dag(dag)
sync_bag_to_db(bag, "dags-folder", None)
with create_session() as session:
    now = timezone.utcnow()
    run = get_or_create_dagrun(
        dag=DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag)),
        start_date=now,
        logical_date=None,
        data_interval=None,
        run_after=now,
        run_id=f"run-{time.time()}",
        session=session,
        conf={},
        triggered_by=DagRunTriggeredByType.TEST,
        triggering_user_name="measure",
    )
    run.update_state(session=session)
    for instance in run.get_task_instances(session=session):
        trigger = Trigger.from_object(
            MilkrunJobTrigger(job_id=job_ids[instance.map_index], conn_id="milkrun_default", claim=1)
        )
        session.add(trigger)
        session.flush()
        instance.state, instance.trigger_id = TaskInstanceState.DEFERRED, trigger.id
