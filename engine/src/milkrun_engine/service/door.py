"""
What is refused at the door: a job whose spec or input can't work, told before it is accepted.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from milkrun.status import CallbackKind, InputFormat, JobKind, RowErrorCode
from milkrun.wire import Callback, JobSpec
from milkrun_engine.blobs import inputs
from milkrun_engine.domain import sampling
from milkrun_engine.domain.callbacks import secrets_of
from milkrun_engine.domain.errors import InputUnreadable, InvalidRequest, MissingColumn, UnknownModel
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.domain.rows import TEXT_COLUMN, RefusedRow, RowReader

_SECRET = re.compile(r"whsec_(?:[A-Za-z0-9+/]{4}){8,}(?:[A-Za-z0-9+/]{2,3})?={0,2}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")
#: what a request says of itself, and what the engine says of the callback
_OWN_HEADERS = re.compile(r"(?i)host|content-length|transfer-encoding|connection|te|trailer|upgrade|expect|webhook-.*")


def resolve_model(spec: JobSpec, models: dict[str, ModelSpec]) -> ModelSpec:
    """
    The model that a job's rows run on unless they name their own.

    Raises:
        UnknownModel: the name is not declared, is of another kind, or the kind has no default.
    """
    of_kind = [model for model in models.values() if model.kind is spec.kind]
    if spec.model is None:
        default = next((model for model in of_kind if model.is_default), None)
        if default is None:
            raise UnknownModel(f"this engine has no default model of kind {spec.kind}; name one of {_names(of_kind)}")
        return default
    model = models.get(spec.model)
    if model is None:
        raise UnknownModel(f"this engine has no model {spec.model!r}; it has {_names(models.values())}")
    if model.kind is not spec.kind:
        raise UnknownModel(
            f"model {model.name!r} is of kind {model.kind}; for {spec.kind} name one of {_names(of_kind)}"
        )
    return model


def check_callback(callback: Callback) -> None:
    """
    Refuse a callback that could not be sent; its URL's address is `Egress.check`'s. No word quotes what is secret.

    Raises:
        InvalidRequest: its secret, a header or its path can't be used.
    """
    for secret in secrets_of(callback.secret):
        check_secret(secret, "callback.secret")
    for name, value in callback.headers.items():
        if not _HEADER_NAME.fullmatch(name) or _OWN_HEADERS.fullmatch(name):
            raise InvalidRequest("callback.headers has a name that is no header, or one that the engine sets")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequest(f"callback.headers: the value of {name} has characters that a header can't have")
    path = callback.url.partition("?")[0].partition("#")[0]
    if callback.kind is CallbackKind.prefect_resume and not path.endswith("/resume"):
        raise InvalidRequest("callback.url of a prefect_resume is `{api}/flow_runs/{id}/resume`")


def check_secret(secret: str, where: str) -> None:
    """
    Refuse what is no signing secret, without quoting it.

    Raises:
        InvalidRequest: naming where it stands.
    """
    if not _SECRET.fullmatch(secret):
        raise InvalidRequest(f"{where} is not `whsec_` and base64 of 24 bytes or more")


def check_spec(spec: JobSpec) -> None:
    """
    Refuse what no row could satisfy.

    Raises:
        InvalidRequest: saying what is wrong.
    """
    sampling.check(spec.sampling)
    if spec.kind is JobKind.embed:
        given = [name for name in ("system_prompt", "output_schema") if getattr(spec, name) is not None]
        if given:
            raise InvalidRequest(f"an embed job takes no {given[0]}")
    if spec.output_schema is not None and "response_format" in spec.sampling:
        raise InvalidRequest("give either output_schema or sampling's response_format, not both")


def check_input(path: Path, form: InputFormat, reader: RowReader) -> None:
    """
    Refuse an input whose header, schema or first row shows that it can't fit the job.

    Raises:
        MissingColumn: the template or key names a column that is not there.
        InvalidRequest: the file can't be read, or its rows are of no use without a template.
    """
    try:
        columns = inputs.columns(path, form)
        first = next(inputs.read(path, form, 0), None)
    except InputUnreadable as error:
        raise InvalidRequest(f"the input can't be read: {error}") from error
    if columns is None and first is not None and isinstance(first.value, dict):
        columns = list(first.value)
    elif columns is None and first is not None and isinstance(first.value, str):
        columns = [TEXT_COLUMN]
    if columns is None:
        return
    if not columns and form is not InputFormat.jsonl:
        raise InvalidRequest("the input is empty: a table has at least a header line")
    named = [*(reader.template.columns if reader.template else ()), *filter(None, [reader.spec.key_column])]
    for column in named:
        if column not in columns:
            raise MissingColumn(f"the input has no column {column!r}; it has {', '.join(columns)}")
    if form is not InputFormat.jsonl and first is not None:
        row = reader.read(0, first.value)
        if reader.template is None and isinstance(row, RefusedRow) and row.code is RowErrorCode.invalid_row:
            raise InvalidRequest(
                f"the input is a table ({', '.join(columns)}); say what to ask of a row: name the column that is the "
                "prompt, or give a prompt template over the columns, such as 'Classify: {" + columns[-1] + "}'"
            )


def _names(models: Iterable[ModelSpec]) -> str:
    names = sorted(model.name for model in models)
    return ", ".join(names) or "none"
