"""
Templates substitute once: what a row holds is never read as a template.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milkrun_engine.domain import templates
from milkrun_engine.domain.errors import InvalidRequest
from milkrun_engine.domain.templates import MissingColumnError

texts = st.text(max_size=12) | st.sampled_from(["{a}", "{{", "}}", "{", "}", "{{a}}", "{b}{a}", "%s", "$a"])
names = st.text(st.characters(exclude_characters="{}"), min_size=1, max_size=6).filter(
    lambda name: name == name.strip()
)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@given(pieces=st.lists(st.tuples(texts, names), max_size=5), end=texts, values=st.lists(texts, min_size=5, max_size=5))
def test_a_rendering_is_the_texts_and_the_values_in_turn(
    pieces: list[tuple[str, str]], end: str, values: list[str]
) -> None:
    source = "".join(f"{escaped(text)}{{{name}}}" for text, name in pieces) + escaped(end)
    template = templates.parse(source)
    assert template.columns == tuple(name for _, name in pieces)
    row = dict(zip(template.columns, values, strict=False))
    assert template.render(row) == "".join(text + row[name] for text, name in pieces) + end


@given(text=texts)
def test_doubled_braces_are_literal(text: str) -> None:
    assert templates.parse(escaped(text)).render({}) == text


@given(text=texts)
def test_a_value_is_never_read_as_a_template(text: str) -> None:
    template = templates.parse("<{a}|{b}>")
    assert template.render({"a": text, "b": "{a}"}) == f"<{text}|{{a}}>"


@given(source=texts | st.text("{}ab ", max_size=12))
def test_any_text_is_a_template_or_refused(source: str) -> None:
    try:
        template = templates.parse(source)
    except InvalidRequest:
        return
    template.render(dict.fromkeys(template.columns, "x"))


@pytest.mark.parametrize("value", [1, 1.5, True, [1, "a"], {"a": {"b": None}}])
def test_what_is_no_text_goes_in_as_json(value: object) -> None:
    assert json.loads(templates.parse("{a}").render({"a": value})) == value


def test_nothing_goes_in_as_nothing() -> None:
    assert templates.parse("[{a}]").render({"a": None}) == "[]"


def test_a_missing_column_is_named() -> None:
    with pytest.raises(MissingColumnError) as caught:
        templates.parse("{a} {b}").render({"a": ""})
    assert caught.value.args == ("b",)


def test_names_may_have_spaces_around_and_inside() -> None:
    assert templates.parse("{ first name }").render({"first name": "Ada"}) == "Ada"


@pytest.mark.parametrize("source", ["{", "}", "{}", "{ }", "a}b", "{a{b}", "{a", "x {"])
def test_a_brace_without_its_partner_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest):
        templates.parse(source)
