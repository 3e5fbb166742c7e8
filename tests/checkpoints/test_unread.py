"""Quantised weights of other tools are refused by the name that people know them by."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from public_weights import MAKERS, State, random_state, to_original
from weight_formats import matrices, save

from rollforce.checkpoints.read import read_checkpoint
from rollforce.errors import CheckpointError

CODES = torch.zeros(24, 12, dtype=torch.uint8)


@pytest.fixture(scope="module")
def wan() -> State:
    """Tiny weights under the original names."""
    return to_original("transformer", random_state(MAKERS["transformer"]()))


@pytest.mark.parametrize(("ending", "name"), [
    ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes NF4"), ("weight.absmax", "bitsandbytes"),
    ("SCB", "bitsandbytes LLM.int8"), ("_weight_qdata", "torchao"), ("proj_down", r"SVDQuant \(nunchaku\)"),
    ("weight_scale_2", "NVFP4"), ("qweight", "GPTQ or AWQ"), ("weight_packed", "compressed-tensors"),
    ("weight_scale_inv", "float8 in blocks"), ("weight._data", "quanto"), ("weight_quantizer._amax", "ModelOpt"),
    ("W_q", "HQQ"),
])  # fmt: skip
def test_by_names(ending: str, name: str, wan: State, tmp_path: Path) -> None:
    made = {**wan, f"model.diffusion_model.{matrices(wan)[0]}.{ending}": CODES}
    with pytest.raises(CheckpointError, match=f"is quantised: {name}.*, which is not read here. Take the release in"):
        read_checkpoint(save(tmp_path / "wan.safetensors", made))


def test_by_what_config_json_says(wan: State, tmp_path: Path) -> None:
    path = save(tmp_path / "wan.safetensors", {**wan, f"{matrices(wan)[0]}.weight": CODES})
    with pytest.raises(CheckpointError, match="codes without scales .blocks.0.attn1.to_q.weight in uint8."):
        read_checkpoint(path)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fancy4"}}))
    with pytest.raises(CheckpointError, match="is quantised: fancy4, which is not read here"):
        read_checkpoint(path)


@pytest.mark.parametrize(("module", "name"), [("torchao", "torchao"), ("hqq", "HQQ")])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_tensor_subclasses(
    module: str, name: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = types.ModuleType(module)
    foreign.Codes = type("Codes", (), {"__module__": module})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, foreign)
    torch.save({"a": foreign.Codes()}, tmp_path / "wan.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=f"wan.pt is quantised: {name}, which is not read here"):
        read_checkpoint(tmp_path / "wan.pt")
