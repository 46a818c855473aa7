"""
Results as a Dagster value, and the metadata that an asset's page shows about them.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_origin, get_type_hints

import dagster as dg

import milkrun as mr
from milkrun import outcome

_SHOWN = ("index", "key", "status", "output", "error_code", "finish_reason")
_CELL_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Form:
    """One form in which an asset's value may come."""

    take: Callable[[mr.Results], Any]
    head: Callable[[Any, int], Iterable[Mapping[str, Any]]]  #: the first rows as dicts
    columns: Callable[[Any], Mapping[str, Any]]  #: name → type
    type_name: str | None = None  #: module:attribute

    def dagster_type(self) -> Any:
        """Return what the output is declared as."""
        if self.type_name is None:
            return list
        module, _, name = self.type_name.partition(":")
        return getattr(importlib.import_module(module), name)


def _columns_of_rows(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    first: Mapping[str, Any] = next(iter(rows), {})
    return {name: type(value).__name__ if value is not None else "string" for name, value in first.items()}


def _rows(results: mr.Results) -> list[dict[str, Any]]:
    return results.to_dicts()


FORMS: Mapping[str, Form] = {
    "list": Form(_rows, lambda value, n: value[:n], _columns_of_rows),
    "polars": Form(
        lambda results: results.to_polars(),
        lambda value, n: value.head(n).to_dicts(),
        lambda value: value.schema,
        "polars:DataFrame",
    ),
    "pandas": Form(
        lambda results: results.to_pandas(),
        lambda value, n: value.head(n).to_dict("records"),
        lambda value: value.dtypes.to_dict(),
        "pandas:DataFrame",
    ),
    "arrow": Form(
        lambda results: results.to_arrow(),
        lambda value, n: value.slice(0, n).to_pylist(),
        lambda value: {field.name: field.type for field in value.schema},
        "pyarrow:Table",
    ),
    # By reference: nothing goes through the IO manager, the metadata names the job.
    "nothing": Form(
        lambda results: results,
        lambda value, n: [row.flat() for row in islice(value, n)],
        lambda value: _columns_of_rows(row.flat() for row in islice(value, 1)),
        "dagster:Nothing",
    ),
}
_FORM_OF_MODULE = {"polars": "polars", "pandas": "pandas", "pyarrow": "arrow"}


def form_of(function: Callable[..., Any], results_as: str | None) -> str:
    """
    Choose the form: as told, else the frame library that the function's return annotation names, else a list.

    Raises:
        ValueError: there is no such form.
    """
    if results_as is not None:
        if results_as not in FORMS:
            raise ValueError(f"results_as is one of {', '.join(FORMS)}, not {results_as!r}")
        return results_as
    returned = get_type_hints(function).get("return", inspect.Signature.empty)
    module = getattr(get_origin(returned) or returned, "__module__", "")
    return _FORM_OF_MODULE.get(module.partition(".")[0], "list")


def job_metadata(job: mr.Job) -> dict[str, dg.MetadataValue]:
    """Return counts, tokens, errors and the link of a job."""
    metadata = metadata_of(outcome.summary(job))
    if job.row_errors:
        metadata["milkrun/row_errors"] = dg.MetadataValue.json(job.row_errors)
    return metadata


def metadata_of(facts: Mapping[str, str | int | float | None]) -> dict[str, dg.MetadataValue]:
    """Return flat facts as metadata; numbers stay numbers and keep their names, so that Dagster plots them."""
    metadata: dict[str, dg.MetadataValue] = {}
    for name, value in facts.items():
        match value:
            case str() if name == "url":
                metadata["milkrun/job"] = dg.MetadataValue.url(value)
            case str():
                metadata[f"milkrun/{name}"] = dg.MetadataValue.text(value)
            case int():
                metadata[f"milkrun/{name}"] = dg.MetadataValue.int(value)
            case float():
                metadata[f"milkrun/{name}"] = dg.MetadataValue.float(value)
            case None:
                pass
    return metadata


def value_metadata(form: Form, value: Any, *, row_count: int, sample_rows: int) -> dict[str, dg.MetadataValue]:
    """Return row count, column schema and a few rows; texts are cut short, prompts are not among them."""
    columns = [dg.TableColumn(str(name), str(kind)) for name, kind in form.columns(value).items()]
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/row_count": dg.MetadataValue.int(row_count),
        "dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns)),
    }
    if sample_rows and row_count:
        records = [
            dg.TableRecord({name: _cell(row.get(name)) for name in _SHOWN}) for row in form.head(value, sample_rows)
        ]
        schema = dg.TableSchema([dg.TableColumn(name, "int" if name == "index" else "string") for name in _SHOWN])
        metadata["milkrun/sample"] = dg.MetadataValue.table(records, schema)
    return metadata


def _cell(value: Any) -> str | int | None:
    if value is None or value != value:  # noqa: PLR0124 (pandas writes absent texts as NaN)
        return None
    if isinstance(value, int):
        return value
    text = str(value)
    return text if len(text) <= _CELL_CHARACTERS else f"{text[:_CELL_CHARACTERS]}…"
