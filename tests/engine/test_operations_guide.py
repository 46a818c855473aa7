"""
The operator's guide: its commands run as they stand, and its tables are whole.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from stories.server import KEY, Server, wait_for

import milkrun as mr

GUIDE = (Path(__file__).parents[2] / "engine" / "docs" / "operations.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running engine, with a job behind it and a callback that is still tried."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        with running.client() as client:
            client.wait(client.infer(["a"], callback=mr.Callback(url="http://127.0.0.1:9/")), timeout=60)
            wait_for(lambda: client.callbacks()[0].attempts, what="an attempt")
        yield running


def test_its_commands_run(server: Server, tmp_path: Path) -> None:
    """All of them, one after the other, in one folder."""
    environ = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ENGINE": server.url,
        "MILKRUN_API_KEY": KEY, "MILKRUN_ADMIN_KEY": KEY, "MILKRUN_REPLICA": "echo",
        "MILKRUN_DATA_DIR": str(server.data_dir),
    }  # fmt: skip
    said = ""
    assert 5 == len(blocks("sh"))
    for block in blocks("sh"):
        for line in block.splitlines():
            done = subprocess.run(
                ["bash", "-c", line], env=environ, cwd=tmp_path,
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert 0 == done.returncode, f"{line}\n{done.stdout}{done.stderr}"
            said += done.stdout
    for words in ("nothing wrong", "milkrun_jobs{", "0 of them copied now", "Restored the backup", "are sent again"):
        assert words in said
    assert (tmp_path / "restored" / "milkrun.db").is_file()


def test_its_table_of_metrics_is_whole(server: Server) -> None:
    answer = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False)
    families = list(text_string_to_metric_families(answer.text))
    told = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in families
        if family.name.startswith("milkrun_") and not family.name.endswith("_created")
    }
    assert told == set(re.findall(r"^\| `(milkrun_\w+)` \|", GUIDE, re.MULTILINE))


def test_its_scrape_configuration_is_yaml() -> None:
    [block] = blocks("yaml")
    assert "milkrun" == yaml.safe_load(block)["scrape_configs"][0]["job_name"]
