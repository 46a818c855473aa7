"""Two runs of one asset: the first submits, the second one materializes; nothing waits in between."""

import time
from typing import Any

import dagster as dg
import pytest

import milkrun as mr
from dagster_milkrun import build_milkrun_asset, milkrun_asset, sensors
from milkrun import outcome

RUN_URL = "http://dagster.test/runs/"


@dg.asset
def tickets() -> list[dict[str, str]]:
    return [{"id": f"t{n}", "text": f"ticket {n}"} for n in range(3)]


@milkrun_asset(prompt="{text}", key_column="id", labels={"team": "care"})
def replies(tickets: list[dict[str, str]]) -> list[dict[str, str]]:
    """Answers to tickets."""
    return tickets


@milkrun_asset(prompt="{text}", key_column="id")
def other_replies(tickets: list[dict[str, str]]) -> list[dict[str, str]]:
    return tickets


@dg.asset
def report(replies: list[dict[str, Any]]) -> int:
    return len([row for row in replies if row["output"]])


@milkrun_asset
def slow_words() -> list[str]:
    return ["slow:60 word"]


def test_the_first_run_submits_and_the_second_one_materializes_and_goes_on(tell: Any, client: mr.Milkrun) -> None:
    """Nothing is materialized before the job has ended, and then all that was selected."""
    story = tell([tickets, replies, report], on_disk=True)
    first = story.run(tags={"team": "care"})
    assert story.last("tickets") is not None
    assert story.last("replies") is story.last("report") is None
    assert {event.step_key for event in first.all_events if event.is_step_skipped} == {"report"}
    job = story.ended(first, "replies")
    assert (job.name, job.external_url) == ("replies", RUN_URL + first.run_id)
    noted = story.instance.fetch_observations(dg.AssetKey("replies"), limit=1).records[0].asset_observation
    assert noted is not None
    assert noted.metadata["milkrun/job_id"].value == job.id

    requests = story.tick()
    assert [request.run_key for request in requests] == [f"{job.id}:ready"]
    assert requests[0].asset_selection == [dg.AssetKey("replies"), dg.AssetKey("report")]
    assert requests[0].tags["team"] == "care"
    second = story.answer(requests[0])
    assert [row["key"] for row in second.output_for_node("replies")] == ["t0", "t1", "t2"]
    assert second.output_for_node("report") == 3
    assert len(client.jobs(labels={"milkrun/run_id": first.run_id})) == 1
    assert story.tick() == []


def test_a_run_is_held_while_the_job_runs_and_let_go_at_its_end(tell: Any, client: mr.Milkrun) -> None:
    """The sensor asks for the second run at once, marks it as waiting, and flips the mark."""
    story = tell([slow_words])
    job_id = story.submitted(story.run("slow_words"), "slow_words")
    (request,) = story.tick()
    assert (request.run_key, request.tags["milkrun/state"]) == (f"{job_id}:waiting", "waiting")
    assert request.tags["milkrun/claim"].isdigit()
    held = story.instance.create_run_for_job(
        story.defs.resolve_implicit_global_asset_job_def(), tags=request.tags, status=dg.DagsterRunStatus.NOT_STARTED
    )
    assert story.tick() == []
    client.cancel(job_id)
    assert story.tick() == []
    assert story.instance.get_run_by_id(held.run_id).tags["milkrun/state"] == "ready"


def test_a_held_run_says_how_far_its_job_is(tell: Any, client: mr.Milkrun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a minute, by the one request that a tick makes, and at the job's end."""

    @milkrun_asset
    def halting() -> list[str]:
        return ["word", "slow:60 word"]

    story = tell([halting])
    job_id = story.submitted(story.run("halting"), "halting")
    (request,) = story.tick()
    held = story.instance.create_run_for_job(
        story.defs.resolve_implicit_global_asset_job_def(), tags=request.tags, status=dg.DagsterRunStatus.NOT_STARTED
    )
    progress = lambda: story.instance.get_run_by_id(held.run_id).tags.get("milkrun/progress")  # noqa: E731
    while client.job(job_id).rows_done == 0:
        time.sleep(0.1)
    story.tick()
    assert progress() is None
    monkeypatch.setattr(sensors, "SHOW_SECONDS", 0.0)
    while progress() != "1 of 2 rows done":
        story.tick()
    client.cancel(job_id)
    story.tick()
    assert progress() == outcome.progress(client.job(job_id))
    assert story.instance.get_run_by_id(held.run_id).tags["milkrun/state"] == "ready"


def test_a_second_run_that_nothing_held_ends_without_output_and_another_one_comes(
    tell: Any, client: mr.Milkrun
) -> None:
    """Without the limit in dagster.yaml the asset costs one extra run, and is materialized once."""
    story = tell([slow_words])
    job_id = story.submitted(story.run("slow_words"), "slow_words")
    (early,) = story.tick()
    assert story.answer(early).success
    assert story.last("slow_words") is None
    client.cancel(job_id)
    (late,) = story.tick()
    assert late.run_key == f"{job_id}:ready"
    assert not story.answer(late, fails=True).success
    assert story.tick() == []


def test_a_run_that_came_as_the_job_ended_is_not_followed_by_another(tell: Any) -> None:
    """The run that was to wait but found its job ended materializes; the sensor leaves it at that."""
    story = tell([tickets, replies])
    first = story.run()
    job = story.ended(first, "replies")
    (request,) = story.tick()
    waiting = {**request.tags, "milkrun/state": "waiting"}
    assert story.run("replies", tags=waiting).success
    story.cursor = None
    assert story.last("replies") is not None
    assert story.tick() == []
    assert job.status is mr.JobStatus.succeeded


def test_in_a_backfill_a_second_run_that_nothing_held_waits_itself(tell: Any, client: mr.Milkrun) -> None:
    """Dagster gives a backfill up when its runs have ended without materializing."""

    @milkrun_asset
    def unhurried() -> list[str]:
        return ["slow:4 word"]

    story = tell([unhurried])
    job_id = story.submitted(story.run("unhurried"), "unhurried")
    (early,) = story.tick()
    assert early.tags["milkrun/state"] == "waiting"
    assert not client.job(job_id).is_terminal
    second = story.run("unhurried", tags={**early.tags, "dagster/backfill": "b"})
    assert len(second.output_for_node("unhurried")) == 1
    assert story.tick() == []


def test_blocking_waits_in_its_own_run_and_no_sensor_follows(tell: Any) -> None:
    """One run, one job, the value at its end."""
    story = tell([tickets, replies, report])
    result = story.run(tags={"milkrun/mode": "blocking"})
    assert result.output_for_node("report") == 3
    assert story.tick() == []


def test_a_run_in_the_callers_process_waits_because_no_sensor_would_come(tell: Any) -> None:
    """`dg.materialize` returns values, as anybody expects of it."""
    story = tell([])
    result = dg.materialize([tickets, replies, report], resources={"milkrun": story.resource}, instance=story.instance)
    assert result.output_for_node("report") == 3


def test_a_named_job_and_its_config_are_carried_on(tell: Any) -> None:
    """The second run makes what the job would have made after the asset, with the same config."""

    class Loud(dg.Config):
        mark: str = "."

    @milkrun_asset
    def shouts(context: dg.AssetExecutionContext, config: Loud, tickets: list[dict[str, str]]) -> list[str]:
        context.log.info("shouting")
        return [row["text"] + config.mark for row in tickets]

    @dg.asset
    def loudest(config: Loud, shouts: list[dict[str, Any]]) -> str:
        return str(max(row["output"] for row in shouts)) + config.mark

    @dg.asset(deps=[loudest])
    def not_selected() -> None: ...

    day = dg.define_asset_job("day", selection=["tickets", "shouts", "loudest"])
    story = tell([tickets, shouts, loudest, not_selected], jobs=[day])
    ops = {name: {"config": {"mark": "!"}} for name in ("shouts", "loudest")}
    story.ended(story.run(job="day", config={"ops": ops}), "shouts")
    (request,) = story.tick()
    assert request.asset_selection == [dg.AssetKey("loudest"), dg.AssetKey("shouts")]
    second = story.answer(request, config=request.run_config)
    assert second.output_for_node("loudest").endswith("!")


def test_two_deferred_assets_in_line_each_have_their_own_job(tell: Any) -> None:
    """The second run of the first asset is the first run of the second asset."""

    @milkrun_asset(prompt="Again: {output}")
    def echoes(replies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return replies

    story = tell([tickets, replies, echoes])
    first = story.run()
    story.ended(first, "replies")
    (request,) = story.tick()
    second = story.answer(request)
    assert story.last("replies") is not None
    assert story.last("echoes") is None
    story.ended(second, "echoes")
    (request,) = story.tick()
    assert request.asset_selection == [dg.AssetKey("echoes")]
    assert len(story.answer(request).output_for_node("echoes")) == 3
    story.look_at_all_jobs()
    assert story.tick() == [], "each had its run"


def test_two_deployments_on_one_engine_do_not_see_each_others_jobs(tell: Any) -> None:
    """Each sensor asks for its own deployment's jobs; by default that is the instance's own id."""
    one, other = tell([tickets, replies]), tell([tickets, replies])
    one.ended(one.run(), "replies")
    assert other.tick() == []
    assert len(one.tick()) == 1


@pytest.mark.parametrize("kind", ["static", "multi"])
def test_partitions_are_carried_and_have_a_job_each(tell: Any, kind: str) -> None:
    """A partition's second run materializes that partition."""
    days: dg.PartitionsDefinition[Any] = dg.StaticPartitionsDefinition(["mon", "tue"])
    if kind == "multi":
        days = dg.MultiPartitionsDefinition({"day": days, "land": dg.StaticPartitionsDefinition(["de", "fr"])})

    @milkrun_asset(partitions_def=days)
    def daily(context: dg.AssetExecutionContext) -> list[str]:
        return [f"the day {context.partition_key}"]

    story = tell([daily])
    for key in days.get_partition_keys():
        first = story.run("daily", partition=str(key))
        assert story.ended(first, "daily").labels["milkrun/partition"] == key
        (request,) = story.tick()
        second = story.answer(request)
        assert key in second.output_for_node("daily")[0]["output"]
    assert set(days.get_partition_keys()) == story.instance.get_materialized_partitions(dg.AssetKey("daily"))


def test_a_range_of_partitions_is_one_job_with_results_by_reference(tell: Any) -> None:
    """A single-run backfill submits once; each partition of the range is materialized."""
    days = dg.StaticPartitionsDefinition([f"d{n}" for n in range(5)])

    @milkrun_asset(partitions_def=days, backfill_policy=dg.BackfillPolicy.single_run(), results_as="nothing")
    def ranged(context: dg.AssetExecutionContext) -> list[str]:
        return [f"the day {key}" for key in context.partition_keys]

    story = tell([ranged])
    reach = {"dagster/asset_partition_range_start": "d1", "dagster/asset_partition_range_end": "d3"}
    job = story.ended(story.run("ranged", tags=reach), "ranged")
    assert (job.rows_total, job.labels["milkrun/partition_start"], job.labels["milkrun/partition_end"]) == (
        3,
        "d1",
        "d3",
    )
    (request,) = story.tick()
    assert reach.items() <= request.tags.items()
    story.answer(request)
    assert {"d1", "d2", "d3"} == story.instance.get_materialized_partitions(dg.AssetKey("ranged"))
    assert story.last("ranged").metadata["milkrun/job_id"].value == job.id


def test_an_asset_that_is_gone_holds_up_no_other(tell: Any, client: mr.Milkrun) -> None:
    """Renamed or removed while its job ran: its results stay at the engine, and the sensor goes on."""
    story = tell([tickets, replies, other_replies])
    for asset in ("replies", "other_replies"):
        story.ended(story.run("tickets", asset), asset)
    story.of(tickets, other_replies)
    story.cursor = None
    story.look_at_all_jobs()
    assert [dg.AssetKey("other_replies")] == [key for request in story.tick() for key in request.asset_selection]


def test_a_mode_that_does_not_exist_is_refused() -> None:
    """A first run that nothing follows would end well."""
    with pytest.raises(ValueError, match="deferred, blocking, not 'defered'"):
        build_milkrun_asset(lambda: ["a"], name="wrong", mode="defered")  # type: ignore[typeddict-item]
