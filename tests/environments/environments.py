"""
Make the project's environments, `.venvs/<name>`, from the pinned files beside this script.

    python3 tests/environments/environments.py create engine core    # fast when nothing changed
    python3 tests/environments/environments.py refresh engine         # pin anew from the .in files

Needs CPython 3.11 with venv and a package registry, nothing else; all it writes lies in
`.venvs` inside the checkout. An environment is finished once its stamp is written: one that
is half made, or made from other files, is made again.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

UV = "uv==0.13.9"
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VENVS = ROOT / ".venvs"
PACKAGES = {  #: what each environment installs editable; orchestrators exclude one another
    "core": ["core"],
    "engine": ["core", "engine"],
    "airflow": ["core", "engine", "airflow_provider"],
    "dagster": ["core", "engine", "dagster_integration"],
    "prefect": ["core", "engine", "prefect_integration"],
}
STAMP = "milkrun-stamp"


def require_python() -> None:
    """Go on under CPython 3.11: as it is, by `python3.11` if that is on the path, or not at all."""
    if sys.version_info[:2] == (3, 11) and platform.python_implementation() == "CPython":
        return
    other = shutil.which("python3.11")
    if other and not os.environ.get("MILKRUN_REEXECUTED"):
        os.environ["MILKRUN_REEXECUTED"] = "1"
        os.execv(other, [other, *sys.argv])
    sys.exit(
        f"Milkrun's environments need CPython 3.11; this is {platform.python_implementation()} "
        f"{platform.python_version()} and there is no python3.11 on the PATH.\n"
        "Install it (Debian, Ubuntu: apt install python3.11 python3.11-venv; others: pyenv install 3.11) "
        "and run the same command with python3.11."
    )


def create(*names: str) -> None:
    """Make the named environments, or find them as they should be."""
    VENVS.mkdir(exist_ok=True)
    for name in names:
        if not _is_ready(name):
            with _one_at_a_time():
                if not _is_ready(name):  # somebody else may have made it meanwhile
                    _make(name)


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return VENVS / name / "bin" / "python"


def refresh(*names: str) -> None:
    """Resolve the .in files of the named environments anew and write their pinned .txt."""
    VENVS.mkdir(exist_ok=True)
    folder = HERE.relative_to(ROOT)
    options = [f"--override={folder}/overrides.txt"]
    ours = sorted({distribution(package) for packages in PACKAGES.values() for package in packages})
    options += [f"--no-emit-package={name}" for name in ours]
    options += ["--no-annotate", f"--custom-compile-command=python3 {folder}/environments.py refresh"]
    with _one_at_a_time():
        uv = _Uv()
        for name in names:
            files = [f"{folder}/{name}.in", f"--output-file={folder}/{name}.txt"]
            uv.run(f"{name}: resolving", ["pip", "compile", "--quiet", "--upgrade", *uv.torch, *options, *files])


def distribution(package: str) -> str:
    """The name of what a folder of the checkout distributes."""
    for line in (ROOT / package / "pyproject.toml").read_text().splitlines():
        if line.startswith("name = "):
            return line.partition("=")[2].strip().strip('"')
    raise ValueError(f"{package}/pyproject.toml has no name")


def _make(name: str) -> None:
    started = time.monotonic()
    uv = _Uv()
    pinned = HERE / f"{name}.txt"
    count = sum("==" in line for line in pinned.read_text().splitlines())
    uv.run(f"{name}: new environment", ["venv", "--quiet", "--clear", f"--python={sys.executable}", str(VENVS / name)])
    # The file is complete, so nothing is resolved: what was tested is what is installed.
    install = ["pip", "install", "--quiet", f"--python={python(name)}", "--no-deps"]
    torch = [line for line in pinned.read_text().splitlines() if line.startswith("torch==")]
    if torch and uv.torch:  # first and alone: PyTorch's index is asked for nothing else
        uv.run(f"{name}: {torch[0]} from PyTorch's CPU index", [*install, *uv.torch, *torch])
    # Byte code now, on all cores: some machines never write it later, and vLLM then takes minutes to start.
    uv.run(f"{name}: {count} pinned packages", [*install, "--compile-bytecode", "-r", str(pinned)])
    editable = [f"--editable={ROOT / package}" for package in PACKAGES[name]]
    sources = f"{name}: {' and '.join(PACKAGES[name])} from this checkout"
    uv.run(sources, [*install, "--no-build-isolation", *editable])
    _stamp_file(name).write_text(_stamp(name))
    _say(f"{name}: ready after {time.monotonic() - started:.0f} s")


def _is_ready(name: str) -> bool:
    return python(name).exists() and _stamp_file(name).is_file() and _stamp_file(name).read_text() == _stamp(name)


def _stamp_file(name: str) -> Path:
    return VENVS / name / STAMP


def _stamp(name: str) -> str:
    digest = hashlib.sha256(f"{ROOT} {sys.version_info[:2]} {UV}".encode())
    for file in [HERE / f"{name}.txt", *(ROOT / package / "pyproject.toml" for package in PACKAGES[name])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


class _Uv:
    """A pinned uv inside the checkout, told what pip is told on this machine (uv does not read pip's settings)."""

    def __init__(self) -> None:
        self._path = VENVS / "uv" / "bin" / "uv"
        if not self._works():
            self._bootstrap()
        environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        self._environment = {**environment, "UV_CACHE_DIR": str(VENVS / "cache"), **self._pip_settings()}
        find_links = self._environment.get("UV_FIND_LINKS")
        self.torch = [] if find_links else ["--torch-backend", "cpu"]  #: where torch's CPU build comes from

    def run(self, what: str, arguments: list[str]) -> None:
        """Run uv; says what and how long, and goes on saying so while it takes long."""
        _run(what, [str(self._path), *arguments], self._environment)

    def _works(self) -> bool:
        try:
            done = subprocess.run([str(self._path), "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        return done.stdout.split()[1] == UV.partition("==")[2]

    def _bootstrap(self) -> None:
        folder = VENVS / "uv"
        shutil.rmtree(folder, ignore_errors=True)
        _run(
            "uv: new environment",
            [sys.executable, "-m", "venv", str(folder)],
            dict(os.environ),
            "CPython's venv module is incomplete (Debian, Ubuntu: apt install python3.11-venv)",
        )
        _run(f"uv: {UV}", [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", UV], dict(os.environ))

    def _pip_settings(self) -> dict[str, str]:
        listing = subprocess.run(
            [str(VENVS / "uv" / "bin" / "python"), "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        pip: dict[str, str] = {}
        for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):  # the environment wins
            key, _, value = line.partition("=")
            pip[key.rpartition(".")[2]] = str(ast.literal_eval(value))
        settings = {
            "UV_FIND_LINKS": ",".join(pip.get("find-links", "").split()),
            "UV_DEFAULT_INDEX": pip.get("index-url", ""),
            "UV_INDEX": pip.get("extra-index-url", ""),
            "UV_INDEX_STRATEGY": "unsafe-best-match" if "extra-index-url" in pip else "",  # as pip does
            "SSL_CERT_FILE": pip.get("cert", ""),
            "UV_HTTP_TIMEOUT": pip.get("default-timeout", pip.get("timeout", "")),
        }
        return {name: value for name, value in settings.items() if value and name not in os.environ}


def _run(what: str, command: list[str], environment: dict[str, str], hint: str = "") -> None:
    _say(what)
    started, free = time.monotonic(), shutil.disk_usage(ROOT).free
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    while True:
        try:
            code = process.wait(timeout=5)
            break
        except subprocess.TimeoutExpired:
            written = max(0, free - shutil.disk_usage(ROOT).free) / 1e9
            _say(f"  … {time.monotonic() - started:.0f} s, {written:.1f} GB written")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise SystemExit(f"failed ({code}): {what}" + (f"\n{hint}" if hint else ""))


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (VENVS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"[environments] {text}", file=sys.stderr, flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the project's environments inside the checkout.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("create", help="make environments").add_argument("names", nargs="+", choices=sorted(PACKAGES))
    commands.add_parser("refresh", help="pin anew from the .in files").add_argument(
        "names", nargs="*", choices=[*sorted(PACKAGES), []], help="all of them by default"
    )
    arguments = parser.parse_args()
    require_python()
    create(*arguments.names) if arguments.command == "create" else refresh(*(arguments.names or PACKAGES))


if __name__ == "__main__":
    main()
