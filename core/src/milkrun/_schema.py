"""
What an answer must look like: from a user's `output_schema` to the wire, and from a row's text back to a value.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ValidationError

from milkrun.wire import OutputSchema

Parser: TypeAlias = Callable[[str], Any]


def to_wire(schema: Any) -> OutputSchema | None:
    """
    Read an `output_schema` argument.

    Raises:
        TypeError, ValueError: it is none of the forms that are understood.
    """
    match schema:
        case None | OutputSchema():
            return schema
        case type() if issubclass(schema, BaseModel):
            return OutputSchema(json_schema=schema.model_json_schema())
        case Mapping():
            return OutputSchema(json_schema=dict(schema))
        case list() | tuple() if schema and all(isinstance(choice, str) for choice in schema):
            if len(set(schema)) != len(schema):
                raise ValueError(f"output_schema names a choice twice: {list(schema)!r}")
            return OutputSchema(choices=list(schema))
        case _:
            raise TypeError(
                "output_schema takes a pydantic model class, a JSON schema (dict), a non-empty list of texts (choices) "
                f"or a milkrun.wire.OutputSchema, not {schema!r}"
            )


def parser(schema: Any) -> Parser | None:
    """
    Return what turns a row's text into `row.parsed`; None where text is all there is.

    A text that does not fit gives None: the row keeps its text, and its neighbours are not disturbed.
    """
    wired = to_wire(schema)
    if wired is None or wired.json_schema is None:
        return None
    is_model = isinstance(schema, type) and issubclass(schema, BaseModel)
    read: Parser = schema.model_validate_json if is_model else json.loads

    def parse(text: str) -> Any:
        try:
            return read(text)
        except (ValidationError, ValueError):
            return None

    return parse
