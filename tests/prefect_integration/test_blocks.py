import json
import os
import subprocess
import sys
from typing import Any

import pytest
from prefect.testing.standard_test_suites import BlockStandardTestSuite

import milkrun as mr
from milkrun.local import EngineFile
from prefect_milkrun import MilkrunCredentials, MilkrunJob

FRESH = """
import json, sys
from prefect.blocks.core import Block
assert not any(name.startswith("prefect_milkrun") for name in sys.modules)
block = Block.load("milkrun-credentials/fresh")
print(json.dumps({"class": type(block).__name__, "key": block.api_key.get_secret_value(), "shown": repr(block)}))
"""


@pytest.mark.parametrize("block", [MilkrunCredentials, MilkrunJob])
class TestBlocksMeetPrefectsStandards(BlockStandardTestSuite):
    test_has_a_valid_image = None  # it fetches a logo from the web, and we have none

    @pytest.fixture
    def block(self, block: Any) -> Any:
        return block


def test_slugs_never_change() -> None:
    assert ("milkrun-credentials", "milkrun-job") == (
        MilkrunCredentials.get_block_type_slug(),
        MilkrunJob.get_block_type_slug(),
    )


def test_a_stored_block_is_found_by_a_process_that_never_imports_us(harness: None) -> None:
    from prefect.settings import get_current_settings

    block = MilkrunCredentials(base_url="http://engine:8787", api_key="mk_secret")
    block.save("fresh", overwrite=True)
    environ = {**os.environ, "PREFECT_API_URL": str(get_current_settings().api.url)}
    done = subprocess.run(
        [sys.executable, "-c", FRESH], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert ("MilkrunCredentials", "mk_secret") == (told["class"], told["key"])
    assert "mk_secret" not in told["shown"]


def test_prefects_own_pages_never_show_the_key(harness: None) -> None:
    from prefect.client.orchestration import get_client

    MilkrunCredentials(base_url="http://engine:8787", api_key="mk_secret").save("hidden", overwrite=True)
    with get_client(sync_client=True) as client:
        shown = client.request("GET", "/block_types/slug/milkrun-credentials/block_documents/name/hidden").json()[
            "data"
        ]
    assert {"********"} == {shown["api_key"]}


def test_a_block_without_fields_reads_the_environment(engine: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILKRUN_URL", engine.url)
    monkeypatch.setenv("MILKRUN_API_KEY", engine.api_key)
    with MilkrunCredentials().get_client() as client:
        assert engine.instance_id == client.health().instance_id


def test_no_local_engine_is_started_unasked() -> None:
    with pytest.raises(mr.LocalEngineError):
        MilkrunCredentials().get_client()


async def asked(credentials: MilkrunCredentials) -> list[mr.ModelInfo]:
    async with credentials.get_async_client() as client:
        return await client.models()


@pytest.mark.anyio
async def test_the_awaiting_client_reads_the_same_engine(credentials: MilkrunCredentials) -> None:
    assert await asked(credentials)
