"""
Customer reviews as Dagster assets: a model answers the rows of `moods`, and no process of Dagster waits for it.

    PYTHONPATH=examples/reviews dagster dev -f examples/dagster/definitions.py

`MILKRUN_URL` and `MILKRUN_API_KEY` name the engine; `route.py` beside this file sets up everything and runs it once.
"""

import dagster as dg
import polars as pl
from dagster_polars import PolarsParquetIOManager

from dagster_milkrun import MilkrunResource, milkrun_asset, milkrun_defs
from task import LABELS, SAMPLING, read_rows


@dg.asset
def reviews() -> pl.DataFrame:
    """One row for each review: its id, and the chat that asks for its mood."""
    return pl.DataFrame(read_rows())


@milkrun_asset(output_schema=LABELS, sampling=SAMPLING, key_column="id", max_failed_share=0.01)
def moods(reviews: pl.DataFrame) -> pl.DataFrame:
    """The label of each review; the check `failed_share` warns when more than 1 % of the rows failed."""
    return reviews


engine = MilkrunResource(url=dg.EnvVar("MILKRUN_URL"), api_key=dg.EnvVar("MILKRUN_API_KEY"))
defs = dg.Definitions.merge(
    dg.Definitions(
        assets=[reviews, moods],
        resources={"io_manager": PolarsParquetIOManager()},
        executor=dg.in_process_executor,  # one process a run
    ),
    milkrun_defs(engine),
)
