"""
What Dagster does not export: everything that may break with its next release, in one place.
"""

from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

__all__ = ["NO_LOCATION", "Interrupted", "instance_id", "location_of_run", "location_of_sensor", "selected_keys"]

#: what a step's termination raises in it; Ctrl-C where Dagster has not taken the signal
Interrupted = (DagsterExecutionInterruptedError, KeyboardInterrupt)

NO_LOCATION = "-"  #: of runs in the caller's own process


def instance_id(instance: dg.DagsterInstance) -> str:
    """Return what tells this Dagster instance from any other: the id of its run storage."""
    storage: Any = instance.run_storage  # its class says less than every SQL storage does
    return str(storage.get_run_storage_id())


def location_of_run(run: dg.DagsterRun) -> str:
    """Return the code location that a run was launched from."""
    return run.remote_job_origin.location_name if run.remote_job_origin else NO_LOCATION


def location_of_sensor(context: dg.SensorEvaluationContext) -> str:
    """Return the code location that a sensor is in."""
    origin = context.code_location_origin
    return origin.location_name if origin else NO_LOCATION


def selected_keys(repository: dg.RepositoryDefinition, run: dg.DagsterRun) -> AbstractSet[dg.AssetKey]:
    """Return what a run was to materialize; a run of a named job knows that through its job only."""
    if run.asset_selection:
        return run.asset_selection
    return repository.get_job(run.job_name).asset_layer.selected_asset_keys
