"""
The host: Python and packages, folders, memory, file descriptors, addresses.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from milkrun_engine.doctor.findings import Finding, ok, warning, wrong
from milkrun_engine.settings import EngineSettings, is_loopback

GIB = 1 << 30
_LITTLE_SPACE, _NO_SPACE = 10 * GIB, 1 * GIB
_LITTLE_SHM, _LITTLE_MEMORY = 1 * GIB, 2 * GIB
_FEW_DESCRIPTORS = 4_096


def packages(python: tuple[int, int], versions: Mapping[str, str | None], needed: Iterable[str]) -> Finding:
    """
    Python and what must be importable.

    Args:
        versions: of the packages, by name; None is one that is absent.
        needed: those without which the settings can't work.
    """
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    found = f"Python {python[0]}.{python[1]}; {told}"
    missing = [name for name in needed if not versions.get(name)]
    if python < (3, 11):
        return wrong("packages", found, "use Python 3.11 or newer")
    if missing:
        names = " and ".join(missing)
        return wrong("packages", f"{found}; no {names}", f"pip install 'milkrun-engine[{','.join(missing)}]'")
    if versions.get("milkrun") != versions.get("milkrun-engine"):
        return wrong("packages", found, "install milkrun and milkrun-engine of one version")
    return ok("packages", found)


def folder(check: str, path: Path, free_bytes: int | None) -> Finding:
    """A folder that the engine writes into; `free_bytes` is None where it is not there."""
    if free_bytes is None:
        return warning(check, f"{path} is not there yet", "nothing, before the first start; else check the path")
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return wrong(check, f"{path} can't be written ({error.strerror})", "give it to the engine's user")
    found = f"{path} is writable, {_size(free_bytes)} free"
    if free_bytes < _NO_SPACE:
        return wrong(check, found, "make room: jobs stop where no result can be written")
    if free_bytes < _LITTLE_SPACE:
        return warning(check, found, "make room soon, or delete old jobs")
    return ok(check, found)


def memory(available_bytes: int, shm_bytes: int | None, *, uses_ray: bool) -> Finding:
    """Memory, and what of it Ray and torch share between processes."""
    shm = "no /dev/shm" if shm_bytes is None else f"{_size(shm_bytes)} free in /dev/shm"
    found = f"{_size(available_bytes)} available, {shm}"
    if uses_ray and (shm_bytes or 0) < _LITTLE_SHM:
        return wrong("memory", found, "Ray needs 1 GiB of /dev/shm or more (docker run --shm-size=4g)")
    if available_bytes < _LITTLE_MEMORY:
        return warning("memory", found, "a model of any size needs more; stop what else runs here")
    return ok("memory", found)


def descriptors(most: int) -> Finding:
    """How many files and connections a process may hold open."""
    found = f"{most:,} open files a process"
    if most < _FEW_DESCRIPTORS:
        return warning("open files", found, "raise it (ulimit -n 65536): each waiting client holds a connection")
    return ok("open files", found)


def addresses(listening: Iterable[str], public_url: str | None) -> Finding:
    """Who can reach the engine, and whether keys and prompts travel in clear."""
    hosts = sorted(set(listening))
    found = f"listens on {', '.join(hosts)}"
    if all(is_loopback(host) for host in hosts):
        return ok("address", f"{found}: this host alone")
    if public_url is not None and public_url.startswith("https://"):
        return ok("address", f"{found}, behind {public_url}")
    return warning(
        "address", f"{found} without TLS", "put a proxy with TLS before it, and name it: MILKRUN_PUBLIC_URL=https://…"
    )


def public_url(listening: Iterable[str], url: str | None) -> Finding:
    """Whether links in answers and pages lead anywhere for others."""
    if url is not None:
        return ok("public URL", url)
    if all(is_loopback(host) for host in listening):
        return ok("public URL", "not set: nobody else reaches this engine")
    return warning(
        "public URL",
        "not set: links lead to where the engine listens",
        "set MILKRUN_PUBLIC_URL to what others call",
    )


def settings(read: EngineSettings | str) -> Finding:
    """The variables; the words of what can't be used."""
    if isinstance(read, str):
        return wrong("settings", read, "correct the variable")
    ledger = "Postgres" if read.database_url else f"SQLite in {read.data_dir}"
    return ok("settings", f"{read.replica} on {read.pool_name}, ledger: {ledger}")


def is_loopback_url(url: str) -> bool:
    """Whether a URL leads to this host itself, which no proxy does."""
    return is_loopback((urlsplit(url).hostname or "").strip("[]"))


def versions_of(names: Iterable[str]) -> dict[str, str | None]:
    """The installed versions of packages."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def free_bytes(path: Path) -> int | None:
    """What a folder's file system has left for us; None where there is no such folder."""
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _size(count: int) -> str:
    return f"{count / GIB:,.1f} GiB"
