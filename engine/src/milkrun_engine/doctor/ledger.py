"""
The ledger and its blobs, the models, and the engine that runs on them.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from milkrun.wire import CallbackInfo
from milkrun_engine.dispatch.agreement import differences
from milkrun_engine.doctor.findings import Finding, ok, warning, wrong
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas.weights import PACKAGE

_CLOCK_SECONDS = 5.0


def ledger(revision: str | None, head: str, known: Sequence[str], error: str | None = None) -> Finding:
    """
    Whether it answers, and is of this version.

    Args:
        revision: its last migration; None where there is no ledger yet.
        known: the migrations of this version.
        error: why it does not answer.
    """
    if error is not None:
        return wrong("ledger", f"does not answer ({error})", "check MILKRUN_DATABASE_URL, the server and its network")
    if revision is None:
        return warning("ledger", "there is none yet", "nothing, before the first start; else check where it should be")
    if revision not in known:
        return wrong("ledger", f"is of a newer version (migration {revision}, here {head})", "install that version")
    if revision != head:
        return warning("ledger", f"is at migration {revision} of {head}", "the next start of an engine migrates it")
    return ok("ledger", f"answers, at migration {head}")


def blobs(root: Path, ledger_id: str | None, owner: str | None, *, has_marked: bool, restoring: bool) -> Finding:
    """
    Whether these are the ledger's blobs, the same ones for all of its engines.

    Args:
        ledger_id: the ledger's own name; None where there is no ledger yet.
        owner: whose blobs the folder says that they are.
        has_marked: some engine of the ledger has marked its folder.
        restoring: a restore has not ended.
    """
    if restoring:
        return wrong("blobs", f"a restore into {root} was not finished", "run the same `milkrun restore` again")
    if ledger_id is None:
        return ok("blobs", "no ledger yet, so nobody's")
    if owner == ledger_id:
        return ok("blobs", "are this ledger's")
    if owner is not None:
        return wrong("blobs", f"{root} holds another ledger's", "MILKRUN_BLOB_DIR must be one folder for all engines")
    if has_marked:
        return wrong("blobs", f"{root} is not the folder that the ledger knows", "set MILKRUN_BLOB_DIR, or mount it")
    return ok("blobs", "not marked yet; the next start does it")


def models(declared: Sequence[ModelSpec] | str) -> Finding:
    """Whether the models' file can be read and their weights are there; the words of what is wrong with it."""
    if isinstance(declared, str):
        words = " ".join(declared.split())  # a YAML parser draws pictures
        return wrong("models", words, "correct the file that MILKRUN_MODELS names")
    missing = [model.name for model in declared if model.replica == "vllm" and not _has_weights(model.weights)]
    names = ", ".join(model.name for model in declared)
    if missing:
        return wrong(
            "models",
            f"{names}; no weights of {', '.join(missing)}",
            "install the package, or correct `weights`",
        )
    hub = [model.name for model in declared if model.replica == "vllm" and _is_hub_id(model.weights)]
    if hub:
        return ok("models", f"{names}; from a model hub at the first start: {', '.join(hub)}")
    return ok("models", names)


def same_models(declared: Sequence[ModelSpec], told: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Whether the dispatching engine declares the same."""
    found = differences({model.name: model for model in declared}, told)
    if found:
        return warning(
            "same models",
            f"the dispatching engine differs: {'; '.join(found)}",
            "give all engines one models.yaml",
        )
    return ok("same models", "as the dispatching engine's" if told else "nobody dispatches")


def clock(difference_seconds: float, whose: str) -> Finding:
    """This host's clock beside another."""
    found = f"{abs(difference_seconds):.1f} s {'behind' if difference_seconds < 0 else 'before'} {whose}"
    if abs(difference_seconds) > _CLOCK_SECONDS:
        return warning("clock", found, "let both keep time (NTP): callbacks are signed with it")
    return ok("clock", found)


def given_up(found: Sequence[CallbackInfo], most: int) -> Finding:
    """Callbacks that nobody took."""
    if not found:
        return ok("callbacks", "none given up")
    count = f"{most:,} or more" if len(found) >= most else f"{len(found):,}"
    receivers = ", ".join(sorted({callback.receiver for callback in found})[:3])
    return warning("callbacks", f"{count} given up ({receivers})", "see `milkrun callbacks`, and its `replay`")


def _has_weights(weights: str) -> bool:
    if weights.startswith(PACKAGE):
        try:
            distribution(weights.removeprefix(PACKAGE))
        except PackageNotFoundError:
            return False
        return True
    return _is_hub_id(weights) or Path(weights).is_dir()


def _is_hub_id(weights: str) -> bool:
    return not weights.startswith((PACKAGE, "/", "./", "../", "~")) and not Path(weights).is_dir()
