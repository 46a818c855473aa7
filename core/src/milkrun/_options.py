"""
The arguments of `infer`, `submit` and `embed`: written once, shown by `help()`, checked by type checkers.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypedDict, TypeVar, cast, get_type_hints

from milkrun.status import JobKind, OnMismatch, Reuse
from milkrun.wire import Callback

F = TypeVar("F", bound=Callable[..., Any])


class SubmitOptions(TypedDict, total=False):
    """What a submit may say beside its rows."""

    inputs: Any  #: another name for rows
    data: Any  #: another name for rows
    model: str | None  #: the engine's default model when absent
    prompt: str | None  #: a template over the row's columns: "Classify: {text}"
    system_prompt: str | None  #: goes before every row
    sampling: Mapping[str, Any] | None  #: OpenAI parameter names: temperature, max_tokens, seed, …
    output_schema: Any  #: a pydantic model, a JSON schema, a list of choices, or a `wire.OutputSchema`
    column: str | None  #: short for prompt="{column}"
    key_column: str | None  #: the column that labels a row in the results
    kind: JobKind | str  #: generate or embed
    job_priority: int  #: 0 to 10, smaller is sooner; 0 for somebody waiting at a keyboard
    idempotency_key: str | None  #: the same key with the same inputs gives the same job
    reuse: Reuse | str  #: inputs_match, always, failed_rows or never
    on_mismatch: OnMismatch | str  #: fail or replace, when the key's job has other inputs
    max_failed_rows: int | None  #: with reuse="failed_rows": more than these in a succeeded job run again
    completion_window: float | timedelta | None  #: seconds until the job ends as expired, keeping what is done
    abort_after_failed_rows: int | None  #: the job fails as soon as so many rows have failed, keeping what is done
    name: str | None
    description: str | None
    labels: Mapping[str, str] | None  #: to filter lists and the change feed by
    external_url: str | None  #: back to the orchestrator's run
    callback: Callback | Mapping[str, Any] | None  #: where the engine says that the job has ended


DEFAULTS: Mapping[str, Any] = {
    "kind": JobKind.generate,
    "job_priority": 1,
    "reuse": Reuse.inputs_match,
    "on_mismatch": OnMismatch.fail,
}


def spelled_out(method: F) -> F:
    """
    Let a method that takes `**options: Unpack[SubmitOptions]` show and check the names.

    An unknown name is a TypeError at the call, which proposes the nearest one.
    """
    known = get_type_hints(SubmitOptions)
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter(name, keyword, default=DEFAULTS.get(name), annotation=hint) for name, hint in known.items()
    ]
    signature = inspect.signature(method)
    plain = [entry for entry in signature.parameters.values() if entry.kind is not inspect.Parameter.VAR_KEYWORD]

    names = [*known, *(entry.name for entry in plain)]

    @functools.wraps(method)
    def blocking(*args: Any, **given: Any) -> Any:
        refuse_unknown(given, names, method.__name__)
        return method(*args, **given)

    @functools.wraps(method)
    async def awaiting(*args: Any, **given: Any) -> Any:
        refuse_unknown(given, names, method.__name__)
        return await method(*args, **given)

    checked: Any = awaiting if inspect.iscoroutinefunction(method) else blocking
    checked.__signature__ = signature.replace(parameters=[*plain, *options])
    return cast(F, checked)


def refuse_unknown(given: Iterable[str], known: list[str], function: str) -> None:
    """Raise a TypeError for the first name that is not known."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It takes {', '.join(known)}."
            raise TypeError(f"{function}() has no argument {name!r}.{hint}")
