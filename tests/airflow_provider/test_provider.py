"""
What Airflow reads of the provider.
"""

import json
from pathlib import Path

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk.module_loading import import_string
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_provider_milkrun.provider import get_provider_info


def test_info_fits_airflows_schema():
    """Airflow drops a provider whose information it can't read."""
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_every_name_can_be_imported():
    """A wrong name hides silently in Airflow: nothing but the missing thing would tell."""
    info = get_provider_info()
    names = [each["hook-class-name"] for each in info["connection-types"]]
    names += info["extra-links"] + [each["class-name"] for each in info["task-decorators"]]
    for kind in ("operators", "sensors", "hooks", "triggers"):
        names += [module for entry in info[kind] for module in entry["python-modules"]]
    for name in names:
        assert import_string(name) if name.rpartition(".")[2][0].isupper() or "task" in name else __import__(name)


def test_airflow_discovers_it():
    """The entry point gives Airflow the connection type, its form, the decorator and the link."""
    manager, runtime = ProvidersManager(), ProvidersManagerTaskRuntime()

    assert "airflow-provider-milkrun" in manager.providers
    assert runtime.hooks["milkrun"].hook_name == "Milkrun"
    assert "airflow_provider_milkrun.links.MilkrunJobLink" in manager.extra_links_class_names
    assert [task for task, _ in runtime.taskflow_decorators.items() if task == "milkrun"] == ["milkrun"]


@pytest.mark.parametrize("field", ["model", "job_priority", "public_url", "namespace"])
def test_the_form_has_its_fields(field):
    """Fields of the form are the keys that the hook reads from the connection's extra."""
    (kind,) = get_provider_info()["connection-types"]

    assert field in kind["conn-fields"]
