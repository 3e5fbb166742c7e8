"""Eight-bit weights: small, near the model, and composed with LoRAs, devices and conditions of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_files import TARGETS, make_all_kinds, make_lora, velocity
from safetensors.torch import save_file
from tiny_transformer import TINY, tiny_transformer
from torch import nn

from rollforce.engine.budget.model_sizes import matrices_of
from rollforce.errors import ConfigError
from rollforce.models.runtime import lora, quantize
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.transformer.transformer import VideoTransformer

WIDE = replace(TINY, attention_head_dim=64, ffn_dim=512)  # wide enough for the linears to be most of the model


def weight_bytes(model: VideoTransformer) -> int:
    return sum(quantize.stored_bytes(parameter) for parameter in model.parameters())


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError):
        quantize.check("int3", cpu)
    monkeypatch.setattr(quantize.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs torchao, which is not installed: pip install torchao"):
        quantize.quantise(tiny_transformer(), "int8")


@pytest.mark.parametrize(("kind", "allowed"), [("int8", 0.02), ("fp8", 0.06)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_the_model_in_less_room(kind: str, allowed: float, dtype: torch.dtype) -> None:
    pytest.importorskip("torchao")
    model, exact = tiny_transformer(config=WIDE).to(dtype), tiny_transformer(config=WIDE)
    expected, before = velocity(exact), weight_bytes(model)
    quantize.quantise(model, kind)
    numbers, rows = matrices_of(WIDE)
    planned = before - numbers * (dtype.itemsize - 1) + 4 * rows
    assert weight_bytes(model) == pytest.approx(planned, rel=0.01) and weight_bytes(model) < 0.65 * before
    error = (velocity(model).float() - expected).abs().mean() / expected.abs().mean()
    assert 0 < error < allowed
    outside = [part for name, part in model.named_modules() if isinstance(part, nn.Linear) and "blocks" not in name]
    assert outside and not any(quantize.is_quantised(linear.weight) for linear in outside)
    assert all(quantize.is_quantised(part.weight) for block in model.blocks for part in block.modules()
               if isinstance(part, nn.Linear))  # fmt: skip


def test_live_loras_go_on_quantised_weights_and_merged_ones_do_not() -> None:
    pytest.importorskip("torchao")
    model, exact = tiny_transformer(), tiny_transformer()
    state = make_lora(exact)
    quantize.quantise(model, "int8")
    before = velocity(model)
    for each in (model, exact):
        lora.add(each, "ink", state)
    torch.testing.assert_close(velocity(model), velocity(exact), rtol=0.1, atol=0.1)
    lora.remove(model, "ink")
    assert torch.equal(velocity(model), before)
    with pytest.raises(ConfigError, match="is quantised: merge LoRAs first"):
        lora.merge(model, state)


def test_loras_of_a_command_lie_beside_the_eight_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pair too small for the bits is kept whole, live; what can only be merged is merged, with a word."""
    pytest.importorskip("torchao")
    state = make_all_kinds(tiny_transformer())
    gentle = {key: value * 0.01 if ".lora_B." in key else value for key, value in state.items()}
    save_file(gentle, tmp_path / "ink.safetensors")
    options = RuntimeOptions(quantize="int8", loras=(f"{tmp_path}/ink.safetensors=0.5",))
    model, plain = (each.set_up(tiny_transformer(), torch.device("cpu"), torch.float32)
                    for each in (options, RuntimeOptions(loras=options.loras)))  # fmt: skip
    assert list(lora.scales(model).values()) == [0.5] and lora.scales(plain) == {}
    torch.testing.assert_close(velocity(model), velocity(plain), rtol=0.1, atol=0.1)
    assert isinstance(model.get_submodule(TARGETS[0]), lora.LoraLinear)
    for name in ("blocks.0.attn1.norm_q.weight", "blocks.1.scale_shift_table", "patch_embedding.weight"):
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))
    assert "changes 2 whole weights of the blocks" in caplog.text
