"""The alpha of a LoRA: from its tensors, its metadata or an adapter_config.json, and never from another adapter's."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from public_weights import State, lora_of, prefixed, random_state, wan_transformer
from safetensors.torch import save_file

from rollforce.checkpoints.read import read_checkpoint
from rollforce.errors import CheckpointError

Q, K = "blocks.0.attn1.to_q", "blocks.1.attn1.to_k"
RIGHT: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_k"]}


@pytest.fixture(scope="module")
def lora() -> State:
    return prefixed(lora_of(random_state(wan_transformer()), [Q, K]), "transformer.")


def write(folder: Path, lora: State, name: str = "ink.safetensors", **metadata: str) -> Path:
    save_file(lora, folder / name, metadata=metadata)
    return folder / name


def strengths(path: Path) -> list[float]:
    """alpha / rank of both modules."""
    state = read_checkpoint(path).state
    ranks = [len(state[f"{module}.lora_A.weight"]) for module in (Q, K)]
    return [float(state.get(f"{module}.alpha", rank)) / rank for module, rank in zip((Q, K), ranks, strict=True)]


def beside(folder: Path, **settings: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**RIGHT, **settings}))


@pytest.mark.parametrize(("settings", "wanted"), [
    ({}, [1.5, 1.5]),
    ({"use_rslora": True}, [3.0, 3.0]),
    ({"alpha_pattern": {"blocks.0.attn1.to_q": 2}}, [0.5, 1.5]),
    ({"r": 16, "rank_pattern": {"to_q": 4, "^blocks.1.attn1.to_k": 4}}, [1.5, 1.5]),
    ({"target_modules": r".*attn1\.to_(q|k)"}, [1.5, 1.5]),
    ({"target_modules": ["self_attn.q", "model.blocks.1.self_attn.k"]}, [1.5, 1.5]),  # original words, whole names
    ({"target_modules": "all-linear", "lora_alpha": None}, [1.0, 1.0]),
])  # fmt: skip
@pytest.mark.parametrize("place", ["beside", "peft's names", "metadata"])
def test_what_is_said_of_this_adapter(place: str, settings: Any, wanted: Any, lora: State, tmp_path: Path) -> None:
    settings, told = RIGHT | settings, {}
    if place == "metadata":
        words = {f"transformer.{key}": value for key, value in settings.items()}
        told["lora_adapter_metadata"] = json.dumps({**words, "transformer_2.lora_alpha": 99, "text_encoder.r": 1})
    else:
        beside(tmp_path, **settings)
    path = write(tmp_path, lora, "adapter_model.safetensors" if place == "peft's names" else "ink.safetensors", **told)
    assert strengths(path) == wanted


def test_a_tensor_comes_first_and_it_is_said_where_alpha_was_read(lora: State, tmp_path: Path) -> None:
    own = {**lora, f"transformer.{Q}.alpha": torch.tensor(1.0)}
    beside(tmp_path)
    assert strengths(write(tmp_path, own)) == [0.25, 1.5]
    assert "alpha / rank 0.25 to 1.5 (adapter_config.json)" in read_checkpoint(tmp_path / "ink.safetensors").about
    both = write(tmp_path, {**own, f"transformer.{K}.alpha": torch.tensor(1.0)})
    assert "alpha / rank 0.25 (in its tensors)" in read_checkpoint(both).about


def test_plain_numbers_in_a_pickle_are_alphas(lora: State, tmp_path: Path) -> None:
    torch.save({"lora": {**lora, f"transformer.{Q}.alpha": 8, f"transformer.{K}.alpha": 2.0}}, tmp_path / "ink.pt")
    assert strengths(tmp_path / "ink.pt") == [2.0, 0.5]


@pytest.mark.parametrize(("told", "wanted"), [("8", 2.0), ("2.0", 0.5), ("None", 1.0), ("0", 1.0)])
def test_kohya_s_metadata(told: str, wanted: float, lora: State, tmp_path: Path) -> None:
    assert strengths(write(tmp_path, lora, ss_network_alpha=told, ss_network_dim="4")) == [wanted, wanted]


OTHERS = [
    ({"r": 64}, "it says rank 64 of blocks.0.attn1.to_q, whose pair has 4"),
    ({"rank_pattern": {"to_k": 2}}, "it says rank 2 of blocks.1.attn1.to_k"),
    ({"target_modules": ["to_q", "ffn.net.2"]}, r"blocks.1.attn1.to_k is none of its target_modules"),
    ({"target_modules": "blocks.0.*"}, r"none of its target_modules"),
    ({"peft_type": "LOHA"}, "its peft_type is LOHA"),
]


@pytest.mark.parametrize(("other", "why"), OTHERS)
def test_settings_of_another_adapter_are_left_alone(other: Any, why: str, lora: State, tmp_path: Path,
                                                    caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    beside(tmp_path, **other)
    with caplog.at_level(logging.WARNING):
        assert strengths(write(tmp_path, lora)) == [1.0, 1.0]
    assert "adapter_config.json beside ink.safetensors is of another adapter" in caplog.text
    with pytest.raises(CheckpointError, match=f"of another adapter than adapter_model.safetensors: .*{why}"):
        read_checkpoint(write(tmp_path, lora, "adapter_model.safetensors"))
    assert strengths(tmp_path / "ink.safetensors") == [1.0, 1.0]  # there is one now that the settings belong to
    told = json.dumps({f"transformer.{key}": value for key, value in {**RIGHT, **other}.items()})
    with pytest.raises(CheckpointError, match="its own metadata .*is of another adapter"):
        read_checkpoint(write(tmp_path, lora, "own.safetensors", lora_adapter_metadata=told))


def test_settings_that_do_not_say_whose_they_are(lora: State, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16}))
    assert strengths(write(tmp_path, lora)) == [1.0, 1.0]


@pytest.mark.parametrize(("settings", "words"), [
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa'"),
    ({"use_qalora": True}, "use_qalora is set"),
    ({"use_dora": True}, "without its magnitudes"),
    ({"lora_alpha": "much"}, "lora_alpha of blocks.0.attn1.to_q is 'much'"),
    ({"lora_alpha": 10**400}, "a number below 1e\\+09"),
    ({"alpha_pattern": [3]}, r"alpha_pattern is \[3\]; an object"),
    ({"alpha_pattern": {"to_[": 3}}, "not a pattern of names"),
    ({"target_modules": 3}, "target_modules of a LoRA are 3"),
])  # fmt: skip
def test_settings_that_cannot_be_used(settings: Any, words: str, lora: State, tmp_path: Path) -> None:
    beside(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(write(tmp_path, lora, "adapter_model.safetensors"))


@pytest.mark.parametrize(("told", "words"), [
    ({"lora_adapter_metadata": "{"}, "lora_adapter_metadata is damaged"),
    ({"lora_adapter_metadata": "[3]"}, "holds a list, not an object"),
    ({"ss_network_alpha": "half"}, "ss_network_alpha is 'half'"),
])  # fmt: skip
def test_metadata_that_cannot_be_read(told: dict[str, str], words: str, lora: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(write(tmp_path, lora, **told))
