"""ComfyUI's quantised files against comfy-kitchen's own numbers, and what is said of those that are not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from goldens import FORWARD, cases, close, read
from public_weights import MAKERS, State, prefixed, random_state, to_original
from safetensors.torch import load_file
from weight_formats import comfy_int8, fp8_scaled, golden_tensors, golden_velocity, matrices, save

from rollforce.checkpoints.comfy_quant import hadamard
from rollforce.checkpoints.lazy_tensor import LazyTensor
from rollforce.checkpoints.names import to_ours
from rollforce.checkpoints.read import read_checkpoint
from rollforce.checkpoints.safetensors_folder import write_shards
from rollforce.errors import CheckpointError


@pytest.fixture(scope="module")
def wan() -> State:
    """Tiny weights under the original names, of a width in which a rotation fits."""
    return to_original("transformer", random_state(MAKERS["transformer"](attention_head_dim=16, ffn_dim=64)))


@pytest.mark.parametrize("path", cases("comfy_quant"))
def test_golden_files(path: Path) -> None:
    spec, tensors = read(path)
    for name, file in spec["files"].items():
        kind = name.split("_")[0]
        found = read_checkpoint(path.with_name(file))
        assert found.kind == "transformer" and "ComfyUI" in found.format
        for key, value in to_ours("transformer", golden_tensors(tensors, f"dequant.{kind}.")).items():
            close(found.state[key], value, 2e-6, f"{name}/{key}")
        close(golden_velocity(spec["config"], found.state, tensors), tensors[f"out.{kind}"], FORWARD, name)


@pytest.mark.parametrize(("change", "form"), [
    (fp8_scaled, "ComfyUI fp8_scaled"),
    (lambda state: prefixed(fp8_scaled(state), "model.diffusion_model."), "ComfyUI fp8_scaled"),
    (comfy_int8, "ComfyUI comfy_quant (int8)"),
    (lambda state: {key: value for key, value in comfy_int8(state).items() if "comfy_quant" not in key},
     "scaled weights (int8)"),
])  # fmt: skip
def test_forms(change: object, form: str, wan: State, tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path / "wan.safetensors", change(wan)))  # type: ignore[operator]
    assert found.format == form
    ours = to_ours("transformer", wan)
    assert found.state.keys() == ours.keys()
    for key, value in ours.items():
        assert (found.state[key].float() - value).abs().max() <= 0.04 * value.abs().max(), key


@pytest.mark.parametrize("under", [False, True])
def test_rotated_groups_are_turned_back(under: bool, wan: State, tmp_path: Path) -> None:
    flags = {"convrot": True, "convrot_groupsize": 16}
    turned = dict(wan)
    for name in matrices(wan):
        groups = wan[f"{name}.weight"].unflatten(1, (-1, 16))
        turned[f"{name}.weight"] = (groups @ hadamard(16).T).flatten(1)
    made = comfy_int8(turned, **({"params": flags} if under else flags))
    found = read_checkpoint(save(tmp_path / "wan.safetensors", made))
    assert found.format == "ComfyUI comfy_quant (int8, int8_convrot)"
    for key, value in to_ours("transformer", wan).items():
        assert (found.state[key].float() - value).abs().max() <= 0.02 * value.abs().max(), key


def test_the_rotation_is_the_regular_one() -> None:
    for size in (4, 16, 256):
        matrix = hadamard(size)
        assert torch.equal(matrix, matrix.T) and torch.allclose(matrix @ matrix, torch.eye(size), atol=1e-6)
    assert torch.allclose(hadamard(64).sum(0), torch.ones(64))  # regular: equal sums, unlike Sylvester's


def test_codes_are_decoded_when_used_and_stored_in_bfloat16(wan: State, tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path / "wan.safetensors", fp8_scaled(wan)))
    lazy = [key for key, value in found.state.items() if isinstance(value, LazyTensor)]
    assert len(lazy) == len(matrices(wan))
    write_shards(found.state, tmp_path / "out", "model")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for key, value in found.state.items():
        assert stored[key].dtype == (torch.bfloat16 if key in lazy else value.dtype)
        assert torch.equal(stored[key], value.to(stored[key].dtype))


def broken(wan: State, name: str, **changes: object) -> State:
    return {**comfy_int8(wan), **{f"{matrices(wan)[0]}.{key}": value for key, value in changes.items()}}


@pytest.mark.parametrize(("changes", "words"), [
    ({"comfy_quant": b'{"format": "nvfp4"}'}, "comfy_quant file of the format nvfp4, which is not read here. Take"),
    ({"comfy_quant": b'{"format": "mxfp8"}'}, "format mxfp8"),
    ({"comfy_quant": b'{"form'}, "what it says of its quantisation is damaged"),
    ({"comfy_quant": b"[1, 2]"}, "what it says of its quantisation is damaged"),
    ({"comfy_quant": b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 24}'}, "in groups of 24;"),
    ({"comfy_quant": b'{"format": "int8_tensorwise", "convrot": true}'}, "in groups of 256; a power of 4"),
    ({"weight_scale": torch.ones(5)}, r"a scale \[5\] of torch.float32 does not fit a weight"),
    ({"weight_scale": torch.ones(2, dtype=torch.int32)}, "does not fit a weight"),
    ({"weight": torch.zeros(32, 32, dtype=torch.uint8)}, "holds codes in torch.uint8, with a scale"),
])  # fmt: skip
def test_what_is_not_read(changes: dict[str, object], words: str, wan: State, tmp_path: Path) -> None:
    made = {key: torch.tensor(list(value), dtype=torch.uint8) if isinstance(value, bytes) else value
            for key, value in changes.items()}  # fmt: skip
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(save(tmp_path / "wan.safetensors", broken(wan, "", **made)))


def test_metadata_and_lost_weights(wan: State, tmp_path: Path) -> None:
    plain = {key: value for key, value in comfy_int8(wan).items() if "comfy_quant" not in key}
    told = {"layers": {name: {"format": "int8_tensorwise"} for name in matrices(wan)}}
    metadata = {"_quantization_metadata": json.dumps(told)}
    assert "int8" in read_checkpoint(save(tmp_path / "wan.safetensors", plain, metadata)).format
    del plain[f"{matrices(wan)[1]}.weight"]
    with pytest.raises(CheckpointError, match=f"holds a scale of {matrices(wan)[1]} and no"):
        read_checkpoint(save(tmp_path / "wan.safetensors", plain, metadata))
