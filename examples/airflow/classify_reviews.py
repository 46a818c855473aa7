"""
The reviews as an Airflow DAG: the task hands over its rows, defers without a worker, and writes a table.

In a DAG folder of yours it needs `airflow-provider-milkrun`, the connection `milkrun_default`, and beside it the two
files of `../reviews` that hold its rows, `task.py` and `reviews.csv`.
"""

from typing import Any

from airflow.sdk import Asset, dag, task

from task import LABELS, SAMPLING, read_rows


@dag(schedule=None, params={"output": "reviews.csv"}, tags=["milkrun"])
def classify_reviews() -> None:
    """Classify the reviews, then say how it went."""

    @task.milkrun(
        output_schema=LABELS,
        sampling=SAMPLING,
        key_column="id",
        output_path="{{ params.output }}",
        max_failed_rows=10,
        outlets=[Asset("classified_reviews")],
    )
    def label() -> list[dict[str, Any]]:
        return read_rows()

    @task
    def tell(manifest: Any) -> None:
        print(f"{manifest['rows_succeeded']} of {manifest['rows_total']} reviews, see {manifest['output']}")

    tell(label())


classify_reviews()
