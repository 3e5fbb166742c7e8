"""LoRAs: live and merged give peft's formula; scales change in place; what is removed leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import TARGETS, make_all_kinds, make_lora, velocity
from tiny_transformer import tiny_transformer
from torch import Tensor, nn

from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.runtime import lora
from rollforce.models.transformer.transformer import VideoTransformer


def by_hand(model: VideoTransformer, state: dict[str, Tensor], scale: float, alpha: float | None = None) -> None:
    """peft's formula, W + scale * alpha / r * B A, in float64."""
    for module in {name.split(".lora_")[0].removesuffix(".alpha") for name in state}:
        down, up = state[f"{module}.lora_A.weight"].double(), state[f"{module}.lora_B.weight"].double()
        own = float(state.get(f"{module}.alpha", len(down))) if alpha is None else alpha
        weight = model.get_submodule(module).weight
        weight.copy_(weight.double() + scale * own / len(down) * up @ down)


def test_live_and_merged_are_the_formula() -> None:
    for scale, alpha in ((1.0, None), (-0.7, None), (0.5, 12.0)):
        live, merged, hand = (tiny_transformer() for _ in range(3))
        state, before = make_lora(live), velocity(live)
        lora.add(live, "ink", state, scale, alpha)
        lora.merge(merged, state, scale, alpha)
        by_hand(hand, state, scale, alpha)
        torch.testing.assert_close(velocity(live), velocity(hand), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(velocity(merged), velocity(hand), rtol=1e-4, atol=1e-5)
        assert (velocity(hand) - before).abs().max() > 0.05


def test_several_at_once_add_up_and_each_can_go() -> None:
    model, hand = tiny_transformer(), tiny_transformer()
    ink, oil, dot = make_lora(model, 1), make_lora(model, 2, rank=2, targets=TARGETS[1:4]), make_lora(model, 3, rank=1)
    for name, state, scale in (("ink", ink, 1.0), ("oil", oil, 0.5), ("dot", dot, 2.0)):
        lora.add(model, name, state, scale)
    assert lora.scales(model) == {"ink": 1.0, "oil": 0.5, "dot": 2.0}
    lora.remove(model, "oil")
    lora.rescale(model, "dot", -1.0)
    by_hand(hand, ink, 1.0)
    by_hand(hand, dot, -1.0)
    torch.testing.assert_close(velocity(model), velocity(hand), rtol=1e-4, atol=1e-5)


def test_what_is_removed_leaves_no_trace() -> None:
    model = tiny_transformer()
    names, out = [name for name, _ in model.named_modules()], velocity(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora.add(model, "a", make_lora(model, 1))
    lora.add(model, "b", make_lora(model, 2))
    assert list(model.state_dict()) == list(weights)  # also while they are on: a save is of the model alone
    lora.remove(model, "a")
    lora.remove(model, "b")
    assert [name for name, _ in model.named_modules()] == names and lora.scales(model) == {}
    assert not any(isinstance(part, lora.LoraLinear) for part in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(velocity(model), out)


def test_a_scale_of_nothing_is_the_model() -> None:
    model = tiny_transformer()
    out = velocity(model)
    lora.add(model, "ink", make_lora(model))
    lora.rescale(model, "ink", 0.0)
    assert torch.equal(velocity(model), out)


def test_all_kinds_live_are_what_they_are_merged() -> None:
    """Two LoRAs with everything, on and off in any order, scaled in between: each time the model merged anew."""
    model = tiny_transformer()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    files = {"ink": make_all_kinds(model, 1), "oil": make_all_kinds(model, 2)}
    for changes in ({"ink": 0.7}, {"ink": 0.7, "oil": -0.3}, {"ink": 0.0, "oil": 1.0}, {"oil": 1.0}, {"oil": 0.2}):
        for name in lora.scales(model).keys() - changes.keys():
            lora.remove(model, name)
        for name, scale in changes.items():
            if name in lora.scales(model):
                lora.rescale(model, name, scale)
            else:
                lora.add(model, name, files[name], scale)
        assert lora.scales(model) == changes and list(model.state_dict()) == list(before)
        merged = tiny_transformer()
        loras = [(scale, lora.changes_on(merged, files[name], None, name)) for name, scale in changes.items()]
        lora.merge_changes(merged, loras)
        torch.testing.assert_close(velocity(model), velocity(merged), rtol=1e-4, atol=1e-5)
    lora.remove(model, "oil")
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.equal(velocity(model), velocity(tiny_transformer()))


def test_merged_below_a_live_one() -> None:
    """What is merged stays when the LoRA that was on at the time comes off."""
    model, hand = tiny_transformer(), tiny_transformer()
    ink, oil = make_all_kinds(model, 1), make_all_kinds(model, 2)
    lora.add(model, "ink", ink)
    lora.merge(model, oil, 0.5)
    lora.remove(model, "ink")
    lora.merge(hand, oil, 0.5)
    assert all(torch.equal(weight, hand.state_dict()[name]) for name, weight in model.state_dict().items())


def test_many_small_steps_in_half_precision_do_not_drift() -> None:
    model = tiny_transformer().bfloat16()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora.add(model, "ink", make_all_kinds(model), 0.0)
    for step in range(40):
        lora.rescale(model, "ink", step / 17)
    lora.rescale(model, "ink", 0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_weights_in_eight_bits_are_not_written() -> None:
    model = tiny_transformer()
    part = model.get_submodule(TARGETS[2])
    part.weight = nn.Parameter(part.weight.to(torch.float8_e4m3fn), requires_grad=False)
    for change in (lora.merge, lambda model, state: lora.add(model, "ink", state)):
        with pytest.raises(ConfigError, match=f"{TARGETS[2]}.weight is quantised: merge LoRAs first"):
            change(model, make_all_kinds(tiny_transformer()))
        assert lora.scales(model) == {} and type(model.get_submodule(TARGETS[0])) is nn.Linear


def test_half_precision_keeps_scales_exact() -> None:
    model = tiny_transformer().to(torch.bfloat16)
    hand = tiny_transformer()
    state = make_lora(model)
    lora.add(model, "ink", state, 0.123)
    by_hand(hand, state, 0.123)
    part = model.get_submodule(TARGETS[0])
    assert part.down.dtype == torch.bfloat16 and part.strength.dtype == torch.float32
    error = (velocity(model).float() - velocity(hand)).abs().mean() / velocity(hand).abs().mean()
    assert error < 0.03


def test_files_of_other_spellings_and_saved_models(tmp_path: Path) -> None:
    """kohya's names and original module names; and a model whose weights are mapped from a file."""
    tiny_transformer().save(tmp_path)
    model, state = VideoTransformer.load(tmp_path), make_lora(tiny_transformer(), targets=("blocks.0.attn1.to_q",))
    sides = {"A": "lora_down", "B": "lora_up"}
    kohya = {f"lora_unet_blocks_0_self_attn_q.{sides[side]}.weight": state[f"blocks.0.attn1.to_q.lora_{side}.weight"]
             for side in "AB"}
    lora.add(model, "k", kohya)
    live = velocity(model)
    lora.remove(model, "k")
    lora.merge(model, kohya)
    torch.testing.assert_close(velocity(model), live, rtol=1e-4, atol=1e-5)
    assert torch.equal(VideoTransformer.load(tmp_path).blocks[0].attn1.to_q.weight,
                       tiny_transformer().blocks[0].attn1.to_q.weight)  # the file is as it was


def test_compiled_blocks_follow() -> None:
    """Adding and removing are seen by compiled code, and a scale changes without compiling again."""
    compiled, eager = tiny_transformer(), tiny_transformer()
    compiled.compile_blocks(backend="eager", fullgraph=True)
    state = make_lora(eager)
    out = velocity(eager)
    torch.testing.assert_close(velocity(compiled), out)
    for model in (compiled, eager):
        lora.add(model, "ink", state)
    torch.testing.assert_close(velocity(compiled), velocity(eager))
    for model in (compiled, eager):
        lora.rescale(model, "ink", 0.3)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(velocity(compiled), velocity(eager))
    lora.remove(compiled, "ink")
    torch.testing.assert_close(velocity(compiled), out)
    torch.compiler.reset()


def wrong(change: str) -> dict[str, Tensor]:
    state = make_lora(tiny_transformer())
    key = "blocks.0.attn1.to_q.lora_A.weight"
    if change == "side":
        del state[key]
    elif change == "size":
        state[key] = torch.zeros(3, 64)
    elif change == "layer":
        state["blocks.9.attn1.to_q.lora_A.weight"] = state[key]
        state["blocks.9.attn1.to_q.lora_B.weight"] = state["blocks.0.attn1.to_q.lora_B.weight"]
    else:
        state["blocks.0.attn1.to_q.gain"] = state[key]
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("side", None),
        ("size", None),
        ("layer", None),
        ("name", "not those of a LoRA.*to_q.gain"),
    ],
)
def test_a_lora_of_another_model_changes_nothing(change: str, words: str | None) -> None:
    model = tiny_transformer()
    with pytest.raises(CheckpointError, match=words):
        lora.add(model, "ink", wrong(change))
    assert type(model.blocks[0].attn1.to_q) is nn.Linear and type(model.proj_out) is nn.Linear
    with pytest.raises(CheckpointError):
        lora.merge(model, wrong(change))
    assert torch.equal(model.proj_out.weight, tiny_transformer().proj_out.weight)


def test_names_and_scales_are_checked() -> None:
    model = tiny_transformer()
    with pytest.raises(ConfigError, match="no LoRA 'ink' is on the model. There is none"):
        lora.remove(model, "ink")
    lora.add(model, "ink", make_lora(model))
    with pytest.raises(ConfigError, match="'ink' is on the model already"):
        lora.add(model, "ink", make_lora(model))
    with pytest.raises(ConfigError, match="no LoRA 'oil'.*There are: ink"):
        lora.rescale(model, "oil", 1.0)
    with pytest.raises(ConfigError, match="scale of a LoRA is nan"):
        lora.rescale(model, "ink", float("nan"))
