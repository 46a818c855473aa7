"""The examples of the guide run as they stand there."""

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from milkrun import local

GUIDE = Path(__file__).resolve().parents[2] / "dagster_integration" / "docs" / "guide.md"
EXAMPLES = {
    f"{title} {number}": example
    for title, section in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_runs(
    example: str, engine: local.EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asset of a code location materializes, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILKRUN_URL", engine.url)
    monkeypatch.setenv("MILKRUN_API_KEY", engine.api_key)
    module: dict[str, Any] = {}
    exec(compile(example, str(GUIDE), "exec"), module)
    if (defs := module.get("defs")) is None:
        return  # a script, which has run
    graph = defs.resolve_asset_graph()
    with dg.instance_for_test() as instance:
        for key in graph.toposorted_asset_keys:
            partitions = graph.get(key).partitions_def
            made = dg.materialize(
                [*defs.assets, *(defs.asset_checks or ())],
                selection=[key],
                partition_key=partitions.get_first_partition_key() if partitions else None,
                resources=defs.resources,
                instance=instance,
            )
            assert made.success
            assert all(check.passed for check in made.get_asset_check_evaluations())
