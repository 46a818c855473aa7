"""
A small instance of a JSON schema, chosen by a number: what echo answers where a schema is asked for.

Knows the schemas that pydantic writes; string patterns and formats are ignored.
"""

from collections.abc import Mapping
from typing import Any

_DEPTH = 16  # recursive models end here, in their optional parts


class SchemaRejected(ValueError):
    """No instance of this schema can be made."""


def instance(schema: Any, number: int) -> Any:
    """
    Make an instance of a schema; the same number makes the same one.

    Raises:
        SchemaRejected: the schema is malformed, unsatisfiable or too deep.
    """
    return _instance(schema, schema, number, 0)


def _instance(schema: Any, root: Any, number: int, depth: int) -> Any:
    if schema is True:
        return {}
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        raise SchemaRejected("the schema is no object, or too deep")
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return _pick(schema["enum"], number)
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, number, depth + 1)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            return _any_of(schema[name], root, number, depth)
    if "allOf" in schema:
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            merged |= _resolve(part["$ref"], root) if "$ref" in part else part
        return _instance(merged, root, number, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return _of_type(_pick(kind, number) if isinstance(kind, list) else kind, schema, root, number, depth)


def _of_type(kind: Any, schema: Mapping[str, Any], root: Any, number: int, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties", {})
            names = properties if depth < _DEPTH // 2 else schema.get("required", ())
            return {
                name: _instance(properties.get(name, True), root, number + i, depth + 1) for i, name in enumerate(names)
            }
        case "array":
            items = schema.get("prefixItems", []) or [schema.get("items", True)] * schema.get("minItems", 0)
            return [_instance(item, root, number + i, depth + 1) for i, item in enumerate(items)]
        case "string":
            text = f"echo {number % 1000}"
            return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", len(text) + 1_000_000)]
        case "integer" | "number":
            return _number(schema, number, 1 if kind == "integer" else 0.5)
        case "boolean":
            return number % 2 == 0
        case "null":
            return None
    raise SchemaRejected("the schema names an unknown type")


def _number(schema: Mapping[str, Any], number: int, step: float) -> float:
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step if "exclusiveMinimum" in schema else None)
    high = schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else None)
    if low is None:
        low = 0 if high is None or high >= 0 else high
    multiple = schema.get("multipleOf")
    value: float = -(-low // multiple) * multiple if multiple else low
    span = 0 if multiple else int((min(high, low + 100) if high is not None else low + 100) - low)
    return value + number % (span + 1)


def _any_of(options: Any, root: Any, number: int, depth: int) -> Any:
    null = {"type": "null"}
    if depth >= _DEPTH // 2 and null in options:
        return None
    return _instance(_pick(options, number), root, number, depth + 1)


def _pick(options: Any, number: int) -> Any:
    if not isinstance(options, list) or not options:
        raise SchemaRejected("the schema has an empty choice")
    return options[number % len(options)]


def _resolve(reference: Any, root: Any) -> Any:
    target = root
    try:
        for part in str(reference).removeprefix("#").strip("/").split("/") if reference != "#" else ():
            target = target[part.replace("~1", "/").replace("~0", "~")]
    except (KeyError, TypeError) as error:
        raise SchemaRejected("the schema has a broken reference") from error
    return target
