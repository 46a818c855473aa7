"""
What `milkrun_asset` takes: of the job, of the asset, of its op, and of this package.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, TypedDict

import dagster as dg

import milkrun as mr
from milkrun.wire import Callback

Mode = Literal["deferred", "blocking"]


class InferOptions(TypedDict, total=False):
    """What the job is asked: `milkrun.SubmitOptions`, less what the asset says itself."""

    model: str | None
    prompt: str | None
    system_prompt: str | None
    sampling: Mapping[str, Any] | None
    output_schema: Any
    column: str | None
    key_column: str | None
    kind: mr.JobKind | str
    job_priority: int
    reuse: mr.Reuse | str  #: failed_rows by default: a retry runs only the rows without a result
    completion_window: float | timedelta | None  #: the job ends as expired after so long
    abort_after_failed_rows: int | None  #: the job fails as soon as so many rows have failed
    on_mismatch: mr.OnMismatch | str  #: replace by default: inputs that changed since the last try get a new job
    labels: Mapping[str, str] | None  #: beside the asset's own
    callback: Callback | Mapping[str, Any] | None


class OutOptions(TypedDict, total=False):
    """What goes to `dagster.AssetOut`."""

    key: dg.AssetKey | str | list[str]
    key_prefix: str | list[str]
    description: str | None
    io_manager_key: str
    metadata: Mapping[str, Any]
    group_name: str
    code_version: str
    automation_condition: dg.AutomationCondition[dg.AssetKey]
    freshness_policy: Any
    owners: list[str]
    tags: Mapping[str, str]
    kinds: set[str]


class OpOptions(TypedDict, total=False):
    """What goes to `dagster.multi_asset`."""

    ins: Mapping[str, dg.AssetIn]
    deps: list[Any]
    partitions_def: dg.PartitionsDefinition[Any]
    backfill_policy: dg.BackfillPolicy
    retry_policy: dg.RetryPolicy
    required_resource_keys: set[str]
    pool: str
    op_tags: Mapping[str, Any]


class MilkrunOptions(TypedDict, total=False):
    """What this package does with the job."""

    mode: Mode  #: deferred by default; the run tag `milkrun/mode` wins
    results_as: str | None  #: list, polars, pandas, arrow or nothing; by default as the function's return annotation
    max_failed_share: float | None  #: more failed rows fail the asset's check (a warning); None: no check; 0 by default
    max_failed_rows: (
        int | None
    )  #: more failed rows fail the run, a retry runs them alone; any number is well by default
    sample_rows: int  #: shown in the metadata, at most 5; 0 keeps outputs out of Dagster's database
    timeout_seconds: float | None  #: of the blocking wait; the job goes on, and a retry waits on
    resource_key: str  #: "milkrun" by default


class Options(InferOptions, OutOptions, OpOptions, MilkrunOptions, total=False):
    """Everything that `milkrun_asset` takes."""
