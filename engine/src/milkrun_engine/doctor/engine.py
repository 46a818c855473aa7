"""
The running engine, as a client sees it.
"""

from milkrun.wire import Health, ModelInfo
from milkrun_engine.doctor.findings import Finding, ok, warning, wrong


def running(where: str, health: Health | None, error: str, *, is_local: bool) -> Finding:
    """Whether it answers; `error` says why not."""
    if health is not None:
        return ok("engine", f"answers at {where}")
    if is_local:
        return warning("engine", f"none runs on {where}", "`milkrun serve`; or a client starts the local one by itself")
    return wrong("engine", f"{where} does not answer: {error}", "check MILKRUN_URL, the engine's log, and proxies")


def ready(health: Health) -> Finding:
    """Whether it takes jobs."""
    if health.status == "ready":
        return ok("ready", "takes jobs")
    return wrong("ready", f"is {health.status}", "see its log; one that is starting or stopping says so for a moment")


def version(mine: str, its: str) -> Finding:
    """Whether client and engine are of one version."""
    if mine == its:
        return ok("version", f"{its}, as here")
    return warning("version", f"the engine is {its}, here is {mine}", "install one version on both sides")


def key(error: str | None) -> Finding:
    """Whether it lets this key in."""
    if error is None:
        return ok("API key", "is let in")
    return wrong("API key", error, "set MILKRUN_API_KEY to a key of this engine (MILKRUN_ADMIN_KEY there)")


def pools(models: list[ModelInfo]) -> Finding:
    """Whether a model fails to load."""
    failing = [model for model in models if model.state == "failing"]
    if failing:
        words = "; ".join(f"{model.name}: {model.detail or 'no reason told'}" for model in failing)
        return wrong("pools", words, "see the model's log below `logs` in the engine's data directory")
    return ok("pools", ", ".join(f"{model.name} {model.state}" for model in models))
