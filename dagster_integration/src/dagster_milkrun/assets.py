"""
`milkrun_asset` and `build_milkrun_asset`: an asset whose rows a model answers.

Deferred, the default, the asset takes two runs of one asset key. The first run submits the job and ends
without output; the second one, started by `milkrun_defs`' sensor and held in the queue until the job has
ended, fetches the results and materializes. No process exists in between. Blocking, one run does both.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Unpack, get_args, get_type_hints, overload

import dagster as dg

import milkrun as mr
from dagster_milkrun import _host, runs
from dagster_milkrun.failures import failure
from dagster_milkrun.options import InferOptions, MilkrunOptions, Mode, OpOptions, Options, OutOptions
from dagster_milkrun.resources import MilkrunResource, opened
from dagster_milkrun.results import FORMS, Form, form_of, job_metadata, value_metadata
from dagster_milkrun.runs import State
from milkrun import hashing, outcome

CHECK = "failed_share"
OUT = "result"
HOLD_SECONDS = 40.0  # a backfill whose runs have all ended, without materializing, is given up by Dagster
_PROGRESS_SECONDS = 30.0
_LABEL_CHARACTERS = 500


def build_milkrun_asset(
    rows: Callable[..., Any], *, name: str | None = None, **options: Unpack[Options]
) -> dg.AssetsDefinition:
    """
    Return an asset whose value is a model's answers to the rows that a function returns.

    The function is as that of `@dagster.asset`: it may take `context`, upstream assets, a config and resources. It
    returns what `milkrun.infer` takes: a list or iterable of rows, a table, or the path of a file. It is called
    again by a retry, so that it should return the same rows for the same partition.

    Args:
        rows: the function.
        name: the asset's name; the function's by default.
        options: see `Options`.

    Example:
        replies = build_milkrun_asset(load_tickets, name="replies", prompt="Answer: {text}", results_as="polars")
    """
    if unknown := options.keys() - Options.__annotations__.keys():
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}; there are {', '.join(Options.__annotations__)}")
    own: MilkrunOptions = _those(options, MilkrunOptions)
    out: dict[str, Any] = _those(options, OutOptions)
    op: dict[str, Any] = _those(options, OpOptions)
    name = name or rows.__name__
    if "key" not in out:
        prefix = out.pop("key_prefix", [])
        out["key"] = [*([prefix] if isinstance(prefix, str) else prefix), name]
    key = dg.AssetKey.from_coercible(out.pop("key"))
    op_name = "__".join(key.path)
    form = FORMS[form_of(rows, own.get("results_as"))]
    resource_key = own.get("resource_key", "milkrun")
    _checked(own.get("mode", "deferred"))
    body = _Body(
        rows=rows,
        key=key,
        op_name=op_name,
        form=form,
        resource_key=resource_key,
        own=own,
        submit={
            "on_mismatch": mr.OnMismatch.replace,
            "reuse": mr.Reuse.failed_rows,
            **_those(options, InferOptions),
        },
    )
    checks = [] if body.max_failed_share is None else [_check_spec(key, body.max_failed_share)]
    op["required_resource_keys"] = {resource_key, *op.get("required_resource_keys", ())}
    out.setdefault("kinds", {"milkrun", "llm"})
    out.setdefault("description", inspect.getdoc(rows))
    declare = dg.multi_asset(
        name=op_name,
        outs={OUT: dg.AssetOut(key=key, dagster_type=form.dagster_type(), is_required=False, **out)},
        check_specs=checks,
        can_subset=True,  # else the check's output is required, also of the run that only submits
        **op,
    )
    return declare(body.as_function())


@overload
def milkrun_asset(rows: Callable[..., Any], /) -> dg.AssetsDefinition: ...


@overload
def milkrun_asset(
    *, name: str | None = None, **options: Unpack[Options]
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]: ...


def milkrun_asset(
    rows: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Unpack[Options]
) -> dg.AssetsDefinition | Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """
    Turn a function that returns rows into an asset of a model's answers: `build_milkrun_asset` as a decorator.

    Example:
        @milkrun_asset(prompt="Is this positive or negative? {text}", output_schema=["positive", "negative"])
        def moods(reviews: pl.DataFrame) -> pl.DataFrame:
            return reviews
    """
    if rows is not None:
        return build_milkrun_asset(rows)
    return lambda function: build_milkrun_asset(function, name=name, **options)


def _checked(mode: str) -> str:
    if mode not in get_args(Mode):
        raise ValueError(f"the mode is one of {', '.join(get_args(Mode))}, not {mode!r}")
    return mode


@dataclass(frozen=True, slots=True, kw_only=True)
class _Body:
    """What the asset's op does."""

    rows: Callable[..., Any]
    key: dg.AssetKey
    op_name: str
    form: Form
    resource_key: str
    own: MilkrunOptions
    submit: Mapping[str, Any]

    @property
    def max_failed_share(self) -> float | None:
        return self.own.get("max_failed_share", 0.0)

    @property
    def finds_ended_jobs_again(self) -> bool:
        """Whether a submit is answered with its key's succeeded job, however many of its rows failed."""
        return self.submit["reuse"] in (mr.Reuse.inputs_match, mr.Reuse.always)

    def as_function(self) -> Callable[..., Iterator[Any]]:
        """Return the body with the parameters of the rows' function, which Dagster reads to find its inputs."""
        hints = get_type_hints(self.rows)
        given = list(inspect.signature(self.rows).parameters.values())
        wants_context = bool(given) and given[0].name in {"context", "_context", "_"}
        typed = [each.replace(annotation=hints.get(each.name, each.annotation)) for each in given[wants_context:]]

        def compute(context: dg.AssetExecutionContext, **arguments: Any) -> Iterator[Any]:
            rows = lambda: self.rows(*([context] if wants_context else []), **arguments)  # noqa: E731
            return self.events(context, rows)

        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=dg.AssetExecutionContext
        )
        compute.__name__ = self.op_name
        compute.__doc__ = self.rows.__doc__
        compute.__annotations__ = {each.name: each.annotation for each in (context, *typed)}
        compute.__signature__ = inspect.Signature([context, *typed])  # type: ignore[attr-defined]
        return compute

    def events(self, context: dg.AssetExecutionContext, rows: Callable[[], Any]) -> Iterator[Any]:
        """Submit, or take over the job that this run was started for; yield the output once the job has ended."""
        resource = opened(context.resources, self.resource_key)
        client = resource.client
        if OUT not in context.op_execution_context.selected_output_names:
            yield from self._check_again(context)
            return
        try:
            carried, key = self._carried(context, client, resource)
            if carried is None:
                job = self._submit_and_wait(context, resource, rows, key)
            else:
                job = self._seen_again(context, client, carried)
            if job is not None:
                runs.mark(context.instance, context.run.run_id, State.done)
                yield from self._finish(context, client, job)
        except mr.MilkrunError as error:
            raise failure(error, same_job=self.finds_ended_jobs_again) from error

    def _carried(
        self, context: dg.AssetExecutionContext, client: mr.Milkrun, resource: MilkrunResource
    ) -> tuple[mr.Job | None, str]:
        """Return the job that this run was started for, if any, and the key under which to submit if there is none."""
        run = context.run
        key = hashing.key_of(
            "dagster",
            resource.deployment_of(context.instance),
            self.key.to_user_string(),
            *_partitions(context).values(),
            run.root_run_id or run.run_id,
        )
        if run.tags.get(runs.ASSET) != self.key.to_user_string():
            return None, key
        is_again = context.op_execution_context.retry_number > 0 or run.parent_run_id is not None
        try:
            job = client.job(run.tags[runs.JOB])
        except mr.NotFound:
            if is_again:
                return None, key
            raise
        # The second run's root is itself: the job knows the key that the first run made.
        key = job.idempotency_key or key
        allowed = None if self.finds_ended_jobs_again else self.own.get("max_failed_rows")
        if is_again and job.is_terminal and not outcome.is_good(job, allowed):
            return None, key
        return job, key

    def _submit_and_wait(
        self, context: dg.AssetExecutionContext, resource: MilkrunResource, rows: Callable[[], Any], key: str
    ) -> mr.Job | None:
        """Submit, and wait if this run is to block; None where a second run takes over."""
        client, mode = resource.client, self._mode(context)
        options = {
            **self.submit,
            "idempotency_key": key,
            "name": self.key.to_user_string()[:200],
            "external_url": resource.run_url(context.run.run_id),
            "labels": self._labels(context, resource, mode),
        }
        if self.submit["reuse"] == mr.Reuse.failed_rows:
            options["max_failed_rows"] = self.own.get("max_failed_rows")
        submitted = client.submit(rows(), **options)
        with _cancelled_with_the_run(client, submitted):
            self._announce(context, submitted, mode)
            if mode == "blocking":
                return client.wait(submitted.job.id, self.own.get("timeout_seconds"), _progress_log(context))
            if "dagster/backfill" in context.run.tags:
                _wait_until_carried(context.instance, submitted.job.id)
            return None

    def _mode(self, context: dg.AssetExecutionContext) -> str:
        tagged = context.run.tags.get(runs.MODE)
        if tagged is not None:
            return _checked(tagged)
        # A run in the caller's own process (`dg.materialize`) has no code location whose sensor would follow it up.
        is_followed = _host.location_of_run(context.run) != _host.NO_LOCATION
        return self.own.get("mode", "deferred") if is_followed else "blocking"

    def _labels(self, context: dg.AssetExecutionContext, resource: MilkrunResource, mode: str) -> dict[str, str]:
        run = context.run
        selection = " ".join(sorted(key.to_user_string() for key in run.asset_selection or ())) or run.job_name
        labels = {
            **(self.submit.get("labels") or {}),
            "milkrun/deployment": resource.deployment_of(context.instance),
            "milkrun/code_location": _host.location_of_run(run),
            "milkrun/mode": mode,
            "milkrun/asset": self.key.to_user_string(),
            "milkrun/selection": selection,
            "milkrun/run_id": run.run_id,
            **_partitions(context),
        }
        if "dagster/backfill" in run.tags:
            labels["milkrun/backfill"] = run.tags["dagster/backfill"]
        return {name: value[:_LABEL_CHARACTERS] for name, value in labels.items()}

    def _announce(self, context: dg.AssetExecutionContext, submitted: mr.Submitted, mode: str) -> None:
        """Say in the run's tags, the asset's events and the log which job this is."""
        job = submitted.job
        runs.note_submitted(
            context.instance,
            context.run.run_id,
            self.op_name,
            job_id=job.id,
            claim=submitted.claim,
            replaced=submitted.replaced,
            state=State.blocking if mode == "blocking" else State.submitted,
        )
        partition = context.partition_key if context.has_partition_key else None
        facts: dict[str, dg.MetadataValue] = {
            "milkrun/job_id": dg.MetadataValue.text(job.id),
            "milkrun/job": dg.MetadataValue.url(job.url),
            "milkrun/status": dg.MetadataValue.text(job.status.value),
        }
        context.log_event(dg.AssetObservation(asset_key=self.key, partition=partition, metadata=facts))
        how = "found again" if submitted.reused else "submitted"
        then = "waiting for it" if mode == "blocking" else "a second run materializes when it has ended"
        context.log.info("Job %s %s; %s. %s", job.id, how, then, job.url)

    def _seen_again(self, context: dg.AssetExecutionContext, client: mr.Milkrun, job: mr.Job) -> mr.Job | None:
        """Return the job once more if it has ended; None if this run came too early, as without the queue's limit."""
        if job.is_terminal:
            return job
        if "dagster/backfill" in context.run.tags:  # it is all that keeps the backfill open
            return client.wait(job.id, None, _progress_log(context))
        # First the tag, then another look: if the sensor misses the tag, the job had not ended when it looked, and
        # this look comes after the end that it acts upon.
        runs.mark(context.instance, context.run.run_id, State.passed)
        job = client.job(job.id)
        if job.is_terminal:
            return job
        context.log.info(
            "Job %s goes on (%s): another run takes over when it has ended.", job.id, outcome.progress(job)
        )
        return None

    def _finish(self, context: dg.AssetExecutionContext, client: mr.Milkrun, job: mr.Job) -> Iterator[Any]:
        outcome.check(job, self.own.get("max_failed_rows"))
        job = client.job(job.id)  # with its errors by code
        results = client.results(job.id, self.submit.get("output_schema"))
        value = self.form.take(results)
        sample_rows = min(5, self.own.get("sample_rows", 5))
        shown = value_metadata(self.form, value, row_count=len(results), sample_rows=sample_rows)
        yield dg.Output(
            None if self.form is FORMS["nothing"] else value,
            output_name=OUT,
            metadata={**job_metadata(job), **shown},
            data_version=dg.DataVersion(job.input_hash),
        )
        if context.op_execution_context.selected_asset_check_keys:
            yield self._check(job.rows_failed, job.rows_total or 0, job.row_errors)

    def _check(self, failed: int, total: int, codes: Mapping[str, int]) -> dg.AssetCheckResult:
        share = failed / total if total else 0.0
        assert self.max_failed_share is not None
        return dg.AssetCheckResult(
            asset_key=self.key,
            check_name=CHECK,
            passed=share <= self.max_failed_share,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "milkrun/failed_share": dg.MetadataValue.float(share),
                "milkrun/rows_failed": dg.MetadataValue.int(failed),
                "milkrun/row_errors": dg.MetadataValue.json(dict(codes)),
            },
        )

    def _check_again(self, context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult]:
        """Judge the last materialization, where only the check is to run: no job is needed for that."""
        last = context.instance.get_latest_materialization_event(self.key)
        found = last.asset_materialization.metadata if last and last.asset_materialization else {}
        failed, total, codes = (found.get(f"milkrun/{name}") for name in ("rows_failed", "rows_total", "row_errors"))
        if isinstance(failed, dg.IntMetadataValue) and isinstance(total, dg.IntMetadataValue):
            by_code: Any = codes.value if isinstance(codes, dg.JsonMetadataValue) else {}
            yield self._check(failed.value or 0, total.value or 0, by_code)


def _those(options: Mapping[str, Any], kind: Any) -> Any:
    return {name: value for name, value in options.items() if name in kind.__annotations__}


def _check_spec(key: dg.AssetKey, share: float) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(CHECK, asset=key, description=f"At most {share:.1%} of the rows failed.")


def _partitions(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Return the labels that name the run's partitions: one, or the first and last of a range."""
    if context.has_partition_key:
        return {"milkrun/partition": context.partition_key}
    if context.has_partition_key_range:
        of = context.partition_key_range
        return {"milkrun/partition_start": of.start, "milkrun/partition_end": of.end}
    return {}


@contextmanager
def _cancelled_with_the_run(client: mr.Milkrun, submitted: mr.Submitted) -> Iterator[None]:
    """Cancel the job when the run is terminated, unless a newer attempt has it."""
    try:
        yield
    except _host.Interrupted:
        with suppress(mr.MilkrunError):  # the cancellation sensor does it again
            client.cancel(submitted.job.id, submitted.claim)
        raise


def _wait_until_carried(instance: dg.DagsterInstance, job_id: str) -> None:
    """Stay alive until the second run exists, so that the backfill never sees all its runs ended."""
    deadline = time.monotonic() + HOLD_SECONDS
    while not runs.carrying(instance, [job_id])[job_id] and time.monotonic() < deadline:
        time.sleep(0.5)


def _progress_log(context: dg.AssetExecutionContext) -> Callable[[mr.Job], None]:
    due = 0.0

    def told(job: mr.Job) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _PROGRESS_SECONDS
            context.log.info("Job %s: %s, %s", job.id, job.status, outcome.progress(job))

    return told
