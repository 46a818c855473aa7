"""The code location that `test_dagster_dev.py` serves; its rows are as slow as the environment says."""

import os
from typing import Any

import dagster as dg

from dagster_milkrun import MilkrunResource, milkrun_asset, milkrun_defs

SECONDS = os.environ.get("STORY_SECONDS", "1")
days = dg.StaticPartitionsDefinition(["mon", "tue", "wed"])
week = dg.StaticPartitionsDefinition([f"d{n}" for n in range(4)])


@dg.asset
def tickets() -> list[dict[str, str]]:
    return [{"text": f"slow:{SECONDS} ticket"}, {"text": "fail: invalid_row"}]


@milkrun_asset(prompt="{text}")
def replies(tickets: list[dict[str, str]]) -> list[dict[str, str]]:
    return tickets


@dg.asset
def report(replies: list[dict[str, Any]]) -> int:
    return len(replies)


@dg.asset(automation_condition=dg.AutomationCondition.eager())
def mirrored(report: int) -> int:
    return report


@milkrun_asset
def endless() -> list[str]:
    return ["slow:600 never"]


@milkrun_asset
def endless_blocking() -> list[str]:
    return ["slow:600 never"]


@milkrun_asset(partitions_def=days)
def daily(context: dg.AssetExecutionContext) -> list[str]:
    return [f"slow:{SECONDS} {context.partition_key}"]


@milkrun_asset(partitions_def=week, backfill_policy=dg.BackfillPolicy.single_run(), results_as="nothing")
def weekly(context: dg.AssetExecutionContext) -> list[str]:
    return [f"slow:{SECONDS} {key}" for key in context.partition_keys]


assets = [tickets, replies, report, mirrored, endless, endless_blocking, daily, weekly]
defs = dg.Definitions.merge(
    dg.Definitions(
        assets=assets,
        executor=dg.in_process_executor,
        sensors=[
            dg.AutomationConditionSensorDefinition(
                "automation", target="*", default_status=dg.DefaultSensorStatus.RUNNING, minimum_interval_seconds=5
            )
        ],
    ),
    milkrun_defs(MilkrunResource(url=dg.EnvVar("STORY_URL"), api_key=dg.EnvVar("STORY_KEY"))),
)
