"""The code location that `tests/measure dagster` serves: as many partitions as the environment says."""

import os

import dagster as dg

from dagster_milkrun import MilkrunResource, milkrun_asset, milkrun_defs


def partitions(name: str) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition(os.environ[name].split())


@milkrun_asset(partitions_def=partitions("PARTITIONS_ALONE"))
def alone(context: dg.AssetExecutionContext) -> list[str]:
    return [context.partition_key]


@milkrun_asset(
    partitions_def=partitions("PARTITIONS_TOGETHER"),
    backfill_policy=dg.BackfillPolicy.single_run(),
    results_as="nothing",
)
def together(context: dg.AssetExecutionContext) -> list[str]:
    return list(context.partition_keys)


@milkrun_asset
def endless() -> list[str]:
    return ["slow:3600 never"]


defs = dg.Definitions.merge(
    dg.Definitions(assets=[alone, together, endless], executor=dg.in_process_executor),
    milkrun_defs(MilkrunResource()),
)
