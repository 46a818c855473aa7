"""
Prompt templates: `{column}` is replaced by the row's value, `{{` and `}}` are literal braces.

One pass of plain substitution: values are never read as templates. Text goes in as it is,
null as nothing, everything else as compact JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from milkrun_engine.domain.errors import InvalidRequest


class MissingColumnError(KeyError):
    """A row does not have a column that the template names (`args[0]`)."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: text pieces and, between them, column names."""

    texts: tuple[str, ...]
    columns: tuple[str, ...]

    def render(self, row: Mapping[str, Any]) -> str:
        """
        Fill in one row.

        Raises:
            MissingColumnError: naming the column.
        """
        parts = [self.texts[0]]
        for column, text in zip(self.columns, self.texts[1:], strict=True):
            try:
                value = row[column]
            except KeyError:
                raise MissingColumnError(column) from None
            parts.append(value if type(value) is str else _as_text(value))
            parts.append(text)
        return "".join(parts)


def _as_text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def parse(source: str) -> Template:
    """
    Read a template.

    Raises:
        InvalidRequest: a brace without its partner, or an empty name.
    """
    texts: list[str] = []
    columns: list[str] = []
    text = ""
    at = 0
    while at < len(source):
        char = source[at]
        if source[at : at + 2] in ("{{", "}}"):
            text += char
            at += 2
        elif char == "{":
            end = source.find("}", at)
            name = source[at + 1 : end] if end > 0 else ""
            if end < 0 or not name.strip() or "{" in name:
                raise InvalidRequest(
                    f"prompt template: the brace at character {at} opens no column name; "
                    "write {column}, or {{ for a literal brace"
                )
            texts.append(text)
            columns.append(name.strip())
            text = ""
            at = end + 1
        elif char == "}":
            raise InvalidRequest(
                f"prompt template: the brace at character {at} closes nothing; write }}}} for a literal brace"
            )
        else:
            text += char
            at += 1
    return Template((*texts, text), tuple(columns))
