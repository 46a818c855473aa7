"""The examples of the guide run as they stand there."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow

from milkrun.local import EngineFile
from prefect_milkrun import MilkrunCredentials

pytestmark = pytest.mark.usefixtures("harness")
GUIDE = Path(__file__).resolve().parents[2] / "prefect_integration" / "docs" / "guide.md"
EXAMPLES = {
    title: example
    for title, section in re.findall(
        r"^## (.*?)\n(.*?)(?=^## |\Z)", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for example in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_runs(
    example: str,
    engine: EngineFile,
    credentials: MilkrunCredentials,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a script, in a folder of its own; what it would serve or deploy runs once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILKRUN_URL", engine.url)
    monkeypatch.setenv("MILKRUN_API_KEY", engine.api_key)
    credentials.save("prod", overwrite=True)
    (tmp_path / "reviews.csv").write_text("text\nlovely\n")
    ready: list[tuple[Flow[..., Any], dict[str, Any]]] = []

    def keep(flow: Flow[..., Any], _name: str, parameters: dict[str, Any] | None = None, **_options: Any) -> None:
        ready.append((flow, parameters or {}))

    monkeypatch.setattr(Flow, "serve", keep)
    monkeypatch.setattr(Flow, "deploy", keep)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")
    for flow, parameters in ready:
        ours = {"path": "reviews.csv", "seconds": 1.0}
        flow(**parameters, **{name: value for name, value in ours.items() if name in flow.parameters.properties})
