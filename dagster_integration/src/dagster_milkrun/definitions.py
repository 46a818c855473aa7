"""
`milkrun_defs`: what a code location needs beside its assets.
"""

import dagster as dg

from dagster_milkrun.resources import MilkrunResource
from dagster_milkrun.sensors import INTERVAL_SECONDS, build_cancellation_sensor, build_completion_sensor


def milkrun_defs(
    resource: MilkrunResource | None = None,
    *,
    resource_key: str = "milkrun",
    minimum_interval_seconds: int = INTERVAL_SECONDS,
) -> dg.Definitions:
    """
    Return the two sensors, and the resource if it is given: once a code location, merged with its definitions.

    Example:
        defs = dg.Definitions.merge(dg.Definitions(assets=[moods]), milkrun_defs(MilkrunResource(url="http://engine:8787")))
    """
    sensors = [
        build_completion_sensor(resource_key=resource_key, minimum_interval_seconds=minimum_interval_seconds),
        build_cancellation_sensor(resource_key=resource_key, minimum_interval_seconds=minimum_interval_seconds),
    ]
    return dg.Definitions(sensors=sensors, resources={resource_key: resource} if resource is not None else {})
