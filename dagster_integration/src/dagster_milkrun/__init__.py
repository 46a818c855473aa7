"""
Milkrun in Dagster: assets of batch LLM inference that hold no process while they wait.
"""

from importlib.metadata import version

from dagster_shared.libraries import DagsterLibraryRegistry

from dagster_milkrun.assets import build_milkrun_asset, milkrun_asset
from dagster_milkrun.definitions import milkrun_defs
from dagster_milkrun.failures import failure
from dagster_milkrun.options import Options
from dagster_milkrun.resources import MilkrunResource
from dagster_milkrun.sensors import build_cancellation_sensor, build_completion_sensor

__all__ = [
    "MilkrunResource",
    "Options",
    "build_cancellation_sensor",
    "build_completion_sensor",
    "build_milkrun_asset",
    "failure",
    "milkrun_asset",
    "milkrun_defs",
]

DagsterLibraryRegistry.register("dagster-milkrun", version("dagster-milkrun"), is_dagster_package=False)
