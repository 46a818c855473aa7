"""
What Airflow asks of a provider when it starts: names only, nothing is imported.
"""

from importlib.metadata import version
from typing import Any

_PACKAGE = "airflow_provider_milkrun"
_NAME = "Milkrun"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, in the form of Airflow's `provider_info.schema.json`."""
    return {
        "package-name": "airflow-provider-milkrun",
        "name": _NAME,
        "description": "Batch LLM inference on your own machines; tasks defer and hold no worker.",
        "versions": [version("airflow-provider-milkrun")],
        "integrations": [{"integration-name": _NAME, "tags": ["ai"]}],
        "operators": [_modules("operators")],
        "sensors": [_modules("sensors")],
        "hooks": [_modules("hooks")],
        "triggers": [_modules("triggers")],
        "connection-types": [
            {
                "connection-type": "milkrun",
                "hook-class-name": f"{_PACKAGE}.hooks.MilkrunHook",
                "hook-name": _NAME,
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login", "port"],
                    "relabeling": {"host": "Engine URL", "password": "API key"},
                    "placeholders": {"host": "http://milkrun:8787", "password": "mk_…"},
                },
                "conn-fields": {
                    "model": {
                        "label": "Default model",
                        "description": "For tasks that name none; empty for the engine's own default",
                        "schema": {"type": ["string", "null"]},
                    },
                    "job_priority": {
                        "label": "Default priority",
                        "description": "0 to 10, smaller is sooner; jobs have 1 when nothing is said",
                        "schema": {"type": ["integer", "null"], "minimum": 0, "maximum": 10},
                    },
                    "public_url": {
                        "label": "Public URL",
                        "description": "How a browser reaches the engine, if that differs from the engine's own word",
                        "schema": {"type": ["string", "null"], "format": "url"},
                    },
                    "namespace": {
                        "label": "Namespace",
                        "description": "Keeps the jobs of several Airflows apart that share one API key's tenant; "
                        "this Airflow's base URL when empty",
                        "schema": {"type": ["string", "null"]},
                    },
                },
            }
        ],
        "extra-links": [f"{_PACKAGE}.links.MilkrunJobLink"],
        "task-decorators": [{"name": "milkrun", "class-name": f"{_PACKAGE}.decorators.milkrun_task"}],
    }


def _modules(name: str) -> dict[str, Any]:
    return {"integration-name": _NAME, "python-modules": [f"{_PACKAGE}.{name}"]}
