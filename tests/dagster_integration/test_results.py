"""What an asset becomes: values in each form, metadata, check, Parquet; and what is refused."""

from typing import Any, get_type_hints

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster_polars import PolarsParquetIOManager

import milkrun as mr
from dagster_milkrun import Options, build_milkrun_asset, milkrun_asset, options

TABLE = {"id": ["a", "b", "c"], "text": ["one", "fail: context_length_exceeded", "three"]}


def as_polars() -> pl.DataFrame:
    return pl.DataFrame(TABLE)


def as_pandas() -> pd.DataFrame:
    return pd.DataFrame(TABLE)


def as_arrow() -> pa.Table:
    return pa.table(TABLE)


def as_list() -> list[dict[str, Any]]:
    return pl.DataFrame(TABLE).to_dicts()


READ = {
    pl.DataFrame: lambda value: value.to_dicts(),
    pd.DataFrame: lambda value: value.astype(object).where(value.notna(), None).to_dict("records"),
    pa.Table: lambda value: value.to_pylist(),
    list: list,
}


@pytest.mark.parametrize("rows", [as_polars, as_pandas, as_arrow, as_list], ids=lambda rows: rows.__name__)
@pytest.mark.parametrize("results_as", [None, "polars"])
def test_the_value_comes_in_the_form_of_the_annotation_or_as_told(tell: Any, rows: Any, results_as: str | None) -> None:
    """The same rows in each form, in the caller's order, with the check, the schema and the sample beside them."""
    made = build_milkrun_asset(rows, name="made", column="text", key_column="id", results_as=results_as)
    story = tell([made])
    value = story.materialize("made", op="made").output_for_node("made")
    wanted = pl.DataFrame if results_as else get_type_hints(rows)["return"]
    assert type(value) is (list if rows is as_list and not results_as else wanted)
    found = READ[type(value)](value)
    assert [(row["key"], row["status"]) for row in found] == [("a", "succeeded"), ("b", "failed"), ("c", "succeeded")]
    assert [row["error_code"] for row in found] == [None, "context_length_exceeded", None]
    metadata = story.last("made").metadata
    assert metadata["dagster/row_count"].value == 3
    assert {"index", "key", "output"} <= {column.name for column in metadata["dagster/column_schema"].value.columns}
    sample = [record.data for record in metadata["milkrun/sample"].records]
    assert [record["key"] for record in sample] == ["a", "b", "c"]
    assert [record["error_code"] for record in sample] == [None, "context_length_exceeded", None]


def test_metadata_has_counts_tokens_errors_and_the_link(tell: Any) -> None:
    """Numbers are numbers, so that Dagster plots them; the data version is the hash of the inputs."""
    story = tell([build_milkrun_asset(as_list, name="facts", column="text", sample_rows=2)])
    result = story.materialize("facts", op="facts")
    metadata = story.last("facts").metadata
    job = story.client.job(metadata["milkrun/job_id"].value)
    numbers = {name: metadata[f"milkrun/{name}"].value for name in ("rows_total", "rows_succeeded", "rows_failed")}
    assert numbers == {"rows_total": 3, "rows_succeeded": 2, "rows_failed": 1}
    assert metadata["milkrun/prompt_tokens"] == dg.MetadataValue.int(job.usage.prompt_tokens)
    assert metadata["milkrun/completion_tokens"] == dg.MetadataValue.int(job.usage.completion_tokens)
    assert metadata["milkrun/row_errors"] == dg.MetadataValue.json({"context_length_exceeded": 1})
    assert metadata["milkrun/job"] == dg.MetadataValue.url(job.url)
    assert len(metadata["milkrun/sample"].records) == 2
    assert story.last("facts").tags["dagster/data_version"] == job.input_hash
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == ("failed_share", False, dg.AssetCheckSeverity.WARN)
    assert check.metadata["milkrun/failed_share"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(("share", "passed"), [(0.4, True), (0.1, False), (None, None)])
def test_the_check_allows_the_share_that_it_is_told(tell: Any, share: float | None, passed: bool | None) -> None:
    story = tell([build_milkrun_asset(as_list, name="shared", column="text", max_failed_share=share)])
    result = story.materialize("shared", op="shared")
    assert [check.passed for check in result.get_asset_check_evaluations()] == ([] if passed is None else [passed])


def test_the_check_alone_judges_the_last_materialization_without_a_job(tell: Any, client: mr.Milkrun) -> None:
    """Whoever runs only the check submits nothing."""
    story = tell([build_milkrun_asset(as_list, name="judged", column="text", max_failed_share=0.5)])
    story.materialize("judged", op="judged")
    before = len(client.jobs(limit=None))
    check = dg.AssetCheckKey(dg.AssetKey("judged"), "failed_share")
    job = dg.define_asset_job("only", selection=dg.AssetSelection.checks(check))
    story.of(build_milkrun_asset(as_list, name="judged", column="text", max_failed_share=0.5), jobs=[job])
    result = story.run(job="only")
    assert [each.passed for each in result.get_asset_check_evaluations()] == [True]
    assert len(client.jobs(limit=None)) == before


def test_after_more_failed_rows_than_allowed_a_retry_runs_them_alone(tell: Any, client: mr.Milkrun) -> None:
    """The step's retry submits the failed row; a second run for the new job follows, and fails as the first did."""
    retry = dg.RetryPolicy(max_retries=1)
    story = tell([build_milkrun_asset(as_list, name="again", column="text", max_failed_rows=0, retry_policy=retry)])
    story.ended(story.run("again"), "again")
    (request,) = story.tick()
    old = request.tags["milkrun/job_id"]
    assert story.answer(request).success, "it submitted, and ends without output"
    (new,) = [job for job in client.jobs(labels={"milkrun/asset": "again"}) if job.id != old]
    ended = client.wait(new.id, timeout=60)
    assert (old, old, 2, 1) == (ended.rows_from, ended.retry_of, ended.rows_reused, ended.rows_failed)
    (request,) = story.tick()
    assert new.id == request.tags["milkrun/job_id"]
    assert story.last("again") is None


def test_failed_rows_that_are_allowed_do_not_run_again(tell: Any, client: mr.Milkrun) -> None:
    """A re-execution finds the job and materializes it."""
    story = tell([build_milkrun_asset(as_list, name="lenient", column="text", max_failed_rows=1, mode="blocking")])
    first = story.run("lenient", tags={"milkrun/mode": "blocking"})
    job_def = story.defs.resolve_implicit_global_asset_job_def()
    again = story.instance.create_run_for_job(
        job_def,
        tags={"milkrun/mode": "blocking"},
        parent_run_id=first.run_id,
        root_run_id=first.run_id,
    )
    assert execute_run(InMemoryJob(job_def), again, story.instance).success
    assert 1 == len(client.jobs(labels={"milkrun/asset": "lenient"}))


def test_where_a_retry_would_find_the_same_job_none_is_made(tell: Any) -> None:
    """The job succeeded, and `reuse` says that it answers."""
    retry = dg.RetryPolicy(max_retries=2)
    options = {"column": "text", "max_failed_rows": 0, "retry_policy": retry, "reuse": "inputs_match"}
    story = tell([build_milkrun_asset(as_list, name="strict", **options)])
    story.ended(story.run("strict"), "strict")
    (request,) = story.tick()
    result = story.answer(request, fails=True)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert "reuse='failed_rows'" in failed.step_failure_data.user_failure_data.description
    assert failed.step_failure_data.user_failure_data.metadata["milkrun/rows_failed"].value == 1
    assert story.last("strict") is None


def test_parquet_goes_through_an_io_manager_and_is_read_downstream(tell: Any, tmp_path: Any) -> None:
    """A polars asset is stored as Parquet, with the metadata of both."""

    @milkrun_asset(column="text", key_column="id", io_manager_key="parquet")
    def stored() -> pl.DataFrame:
        return as_polars()

    @dg.asset(ins={"stored": dg.AssetIn(input_manager_key="parquet")})
    def counted(stored: pl.DataFrame) -> int:
        return stored.height

    manager = PolarsParquetIOManager(base_dir=str(tmp_path))
    story = tell([stored, counted], resources={"parquet": manager})
    story.ended(story.run(), "stored")
    (request,) = story.tick()
    assert story.answer(request).output_for_node("counted") == 3
    assert pl.read_parquet(tmp_path / "stored.parquet")["key"].to_list() == ["a", "b", "c"]
    assert {"milkrun/job", "dagster/row_count", "dagster/column_schema"} <= story.last("stored").metadata.keys()


def test_a_file_and_a_generator_are_rows_too(tell: Any, tmp_path: Any) -> None:
    path = tmp_path / "rows.csv"
    pl.DataFrame(TABLE).write_csv(path)

    @milkrun_asset(column="text")
    def from_file() -> Any:
        return path

    @milkrun_asset
    def from_generator() -> Any:
        yield from TABLE["text"]

    story = tell([from_file, from_generator])
    assert len(story.materialize("from_file", op="from_file").output_for_node("from_file")) == 3
    assert len(story.materialize("from_generator", op="from_generator").output_for_node("from_generator")) == 3


def test_asset_options_reach_the_asset() -> None:
    """Key, group, kinds, description and partitions are those of any asset."""
    days = dg.StaticPartitionsDefinition(["mon"])

    @milkrun_asset(key_prefix=["care", "v1"], group_name="care", owners=["team:care"], partitions_def=days)
    def named() -> list[str]:
        """What it is."""
        return []

    key = dg.AssetKey(["care", "v1", "named"])
    spec = named.get_asset_spec(key)
    assert (spec.group_name, spec.description, spec.kinds) == ("care", "What it is.", {"milkrun", "llm"})
    assert spec.owners == ["team:care"]
    assert named.partitions_def == days


def test_unknown_options_and_forms_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="promt"):
        build_milkrun_asset(as_list, promt="{text}")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="polars, pandas, arrow"):
        build_milkrun_asset(as_list, results_as="csv")


def test_infer_options_are_those_of_the_client_less_what_the_asset_says_itself() -> None:
    """A new option of the client is offered here, or is named here as the asset's own."""
    own = {"inputs", "data", "idempotency_key", "max_failed_rows", "name", "description", "external_url"}
    assert set(mr.SubmitOptions.__annotations__) - own == set(options.InferOptions.__annotations__)
    assert set(options.InferOptions.__annotations__) < set(Options.__annotations__)
