"""The public face: names, parity of the two clients, what help() shows."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import milkrun as mr

REPLACED = {"AsyncResults": "Results", "AsyncIterator": "Iterator", "httpx.AsyncBaseTransport": "httpx.BaseTransport"}
RENAMED = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}


def public(kind: type) -> dict[str, Any]:
    members = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
    return {RENAMED.get(name, name): value for name, value in members.items() if name[0] != "_" or name in RENAMED}


def plain(signature: inspect.Signature) -> str:
    text = str(signature)
    for name, sync_name in REPLACED.items():
        text = text.replace(name, sync_name)
    return text


def test_all_is_sorted_and_true() -> None:
    assert sorted(mr.__all__) == mr.__all__
    assert [name for name in mr.__all__ if not hasattr(mr, name)] == []


def test_every_exception_is_public() -> None:
    def tree(kind: type[mr.MilkrunError]) -> set[str]:
        return {kind.__name__}.union(*(tree(sub) for sub in kind.__subclasses__()))

    assert tree(mr.MilkrunError) - set(mr.__all__) == set()


@pytest.mark.parametrize(("blocking", "awaiting"), [(mr.Milkrun, mr.AsyncMilkrun), (mr.Results, mr.AsyncResults)])
def test_both_worlds_have_the_same_methods(blocking: type, awaiting: type) -> None:
    one, other = public(blocking), public(awaiting)
    assert one.keys() - {"__enter__", "__exit__", "__iter__"} == other.keys() - {"__enter__", "__exit__", "__iter__"}
    for name in one.keys() & other.keys():
        assert plain(inspect.signature(one[name])) == plain(inspect.signature(other[name])), name
        assert one[name].__doc__ == other[name].__doc__, name


def test_every_public_method_says_what_it_gives() -> None:
    silent = [
        f"{kind.__name__}.{name}"
        for kind in (mr.Milkrun, mr.AsyncMilkrun, mr.Results, mr.AsyncResults)
        for name, value in public(kind).items()
        if not name.startswith("_") and not value.__doc__
    ]
    assert silent == []


@pytest.mark.parametrize("function", [mr.infer, mr.AsyncMilkrun.submit, mr.Milkrun.embed])
def test_help_spells_out_the_options(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert parameters["job_priority"].default == 1
    assert parameters.keys() >= mr.SubmitOptions.__annotations__.keys()


def test_an_unknown_option_is_refused_with_a_proposal() -> None:
    with pytest.raises(TypeError, match=r"infer\(\) has no argument 'promt'. Did you mean 'prompt'\?"):
        mr.infer(["a"], promt="x")  # type: ignore[call-arg]


def test_version_is_that_of_the_distribution() -> None:
    project = Path(__file__).parents[2] / "core" / "pyproject.toml"
    declared = re.search(r'^version = "(.*)"$', project.read_text(), re.MULTILINE)
    from milkrun._requests import USER_AGENT

    assert declared is not None
    assert f"milkrun/{declared[1]}" == USER_AGENT
