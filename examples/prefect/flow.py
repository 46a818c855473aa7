"""
The reviews as a Prefect flow: it hands over its rows, holds no process while the job runs, and writes a table.

`python flow.py` serves it. It needs `prefect-milkrun`, and an engine in `MILKRUN_URL` and `MILKRUN_API_KEY`.
"""

from typing import Any

from prefect import flow, task

from prefect_milkrun import infer
from task import LABELS, SAMPLING, read_rows


@task
def load() -> list[dict[str, Any]]:
    """Read the rows; not again when the flow goes on after its job."""
    return read_rows()


@flow(persist_result=True, log_prints=True)
def classify_reviews(output: str = "reviews.csv") -> str:
    """Classify the reviews, say how it went, and return the job's page."""
    results = infer(load(), output_schema=LABELS, sampling=SAMPLING, key_column="id", max_failed_rows=10)
    print(f"{results.rows_succeeded} of {results.rows_total} reviews, see {results.save(output)}")
    return results.url


if __name__ == "__main__":
    classify_reviews.serve("reviews")
