"""Eight-bit weights: small, near the model, and composed with LoRAs, devices and conditions of images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lora_files import make_lora, velocity
from tiny_transformer import TINY, tiny_transformer
from torch import nn

from rollforce.engine.budget.model_sizes import matrices_of
from rollforce.errors import ConfigError
from rollforce.models.runtime import lora, quantize
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
