"""
The examples of README and guide are DAG files that Airflow takes.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "airflow_provider"
HEAD = "from airflow.sdk import dag, task\n"


def blocks() -> list[pytest.param]:
    found = [
        (path.stem, number, block)
        for path in (ROOT / "README.md", ROOT / "docs" / "guide.md")
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
    ]
    assert len(found) >= 6
    return [pytest.param(block, id=f"{name}-{number}") for name, number, block in found]


@pytest.mark.parametrize("block", blocks())
def test_an_example_is_a_dag(block, database, tmp_path):
    """Each defines a DAG by itself; a fragment of one does with the imports that a DAG file has anyway."""
    from airflow.dag_processing.dagbag import DagBag

    is_fragment = "@dag" not in block
    body = (
        f"{HEAD}@dag(schedule=None)\ndef fragment():\n"
        + re.sub("^", "    ", block, flags=re.MULTILINE)
        + "\n    label('x')\nfragment()\n"
    )
    (tmp_path / "example.py").write_text(body if is_fragment else block)
    bag = DagBag(dag_folder=tmp_path)

    assert {} == bag.import_errors
    assert 1 == len(bag.dags)
    assert all(dag.tasks for dag in bag.dags.values())
