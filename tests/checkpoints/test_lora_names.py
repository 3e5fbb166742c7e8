"""LoRAs in all spellings that people hold: what they change, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from public_weights import State, lora_of, random_state, wan_transformer
from safetensors.torch import save_file
from torch import Tensor

from rollforce.checkpoints.lora_names import lora_to_ours, merge_lora
from rollforce.checkpoints.read import read_checkpoint
from rollforce.errors import CheckpointError

Q, OUT, FFN = "blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.2"


@pytest.fixture(scope="module")
def weights() -> State:
    return random_state(wan_transformer())


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def changed(weights: State, lora: State, **options: float) -> State:
    """What a LoRA adds to each parameter that it changes."""
    merged = merge_lora(weights, lora_to_ours(lora, "ink"), **options)
    return {key: merged[key] - weights[key] for key in merged if merged[key] is not weights[key]}


def only(found: State, **wanted: Tensor) -> None:
    assert found.keys() == {key.replace("__", ".") for key in wanted}
    for key, value in wanted.items():
        torch.testing.assert_close(found[key.replace("__", ".")], value, atol=2e-6, rtol=1e-5)


# ---- differences, biases and modulation


DIFFERENCES = {
    "blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
    "blocks.1.norm3.diff_b": "blocks.1.norm2.bias",
    "blocks.1.norm3.w_norm": "blocks.1.norm2.weight",
    "blocks.0.norm2.b_norm": "blocks.0.norm2.bias",
    "blocks.0.diff_m": "blocks.0.scale_shift_table",
    "blocks.1.modulation.diff": "blocks.1.scale_shift_table",
    "head.diff_m": "scale_shift_table",
    "head.modulation.diff": "scale_shift_table",
    "head.head.diff": "proj_out.weight",
    "proj_out.diff_b": "proj_out.bias",
    "patch_embedding.diff": "patch_embedding.weight",
    "time_projection.1.diff_b": "condition_embedder.time_proj.bias",
    "condition_embedder.time_embedder.linear_1.diff": "condition_embedder.time_embedder.linear_1.weight",
    "lora_unet_blocks_1_cross_attn_k.diff_b": "blocks.1.attn2.to_k.bias",
    "lora_unet_blocks_1.diff_m": "blocks.1.scale_shift_table",
    "lycoris_blocks_0_ffn_0.diff": "blocks.0.ffn.net.0.proj.weight",
}


@pytest.mark.parametrize("key", list(DIFFERENCES))
def test_differences(key: str, weights: State, tmp_path: Path) -> None:
    parameter = DIFFERENCES[key]
    values = drawn(*weights[parameter].shape)
    save_file({key: values.half()}, tmp_path / "ink.safetensors")
    file = read_checkpoint(tmp_path / "ink.safetensors")
    assert (file.kind, file.about) == ("lora", "1 whole differences")
    found = changed(weights, file.state, scale=0.4)
    assert list(found) == [parameter]
    torch.testing.assert_close(found[parameter], 0.4 * values.half().float(), atol=1e-6, rtol=1e-5)


def test_a_bias_is_scaled_as_its_pair_and_a_difference_is_not(weights: State) -> None:
    lora = {**lora_of(weights, [Q], rank=4), f"{Q}.lora_B.bias": drawn(24), f"{Q}.diff_b": drawn(24, seed=4),
            f"{Q}.alpha": torch.tensor(2.0)}  # fmt: skip
    product = lora[f"{Q}.lora_B.weight"] @ lora[f"{Q}.lora_A.weight"]
    only(changed(weights, lora, scale=3.0), blocks__0__attn1__to_q__weight=1.5 * product,
         blocks__0__attn1__to_q__bias=1.5 * drawn(24) + 3 * drawn(24, seed=4))  # fmt: skip


SPELLINGS: dict[str, Callable[[str], str]] = {
    "LightX2V": lambda side: f"diffusion_model.blocks.1.cross_attn.o.lora_{side}.weight",
    "OneTrainer": lambda side: f"lora_transformer_blocks_1_attn2_to_out_0.lora_{side}.weight",
    "LyCORIS": lambda side: f"lycoris_blocks_1_cross_attn_o.lora_{side}.weight",
    "musubi": lambda side: f"lora_unet_blocks_1_cross_attn_o.lora_{side}.weight",
    "old diffusers": lambda side: f"transformer.blocks.1.attn2.to_out.0.lora.{side}.weight",
}


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_pairs_with_biases_and_magnitudes(spelling: str, weights: State, tmp_path: Path) -> None:
    """Each spelling, through a file, with a bias on its second matrix."""
    plain, name = lora_of(weights, [OUT], rank=3), SPELLINGS[spelling]
    save_file({name("down"): plain[f"{OUT}.lora_A.weight"], name("up"): plain[f"{OUT}.lora_B.weight"],
               name("up").replace(".weight", ".bias"): drawn(24)}, tmp_path / "ink.safetensors")  # fmt: skip
    found = read_checkpoint(tmp_path / "ink.safetensors")
    assert found.about == "LoRA on 1 modules, rank 3, alpha / rank 1 (alpha not given: taken as the rank), 1 biases"
    only(changed(weights, found.state), blocks__1__attn2__to_out__0__bias=drawn(24),
         blocks__1__attn2__to_out__0__weight=plain[f"{OUT}.lora_B.weight"] @ plain[f"{OUT}.lora_A.weight"])  # fmt: skip


# ---- DoRA


@pytest.mark.parametrize(("name", "shape"), [
    ("dora_scale", (24, 1)), ("dora_scale", (1, 32)), ("lora_magnitude_vector", (24,)),
    ("lora_magnitude_vector.default.weight", (24,))])  # fmt: skip
def test_dora_sets_the_norms(name: str, shape: tuple[int, ...], weights: State) -> None:
    weight, lora = weights[f"{FFN}.weight"], lora_of(weights, [FFN], rank=2)
    sizes = drawn(*shape).abs() + 0.5
    lora |= {f"{FFN}.{name}": sizes, f"{FFN}.alpha": torch.tensor(4.0)}
    full = merge_lora(weights, lora_to_ours(lora, "ink"))[f"{FFN}.weight"]
    whole = weight + 2 * lora[f"{FFN}.lora_B.weight"] @ lora[f"{FFN}.lora_A.weight"]
    axis = 1 if shape[0] == 24 else 0
    torch.testing.assert_close(full.norm(dim=axis), sizes.flatten())
    torch.testing.assert_close(full / full.norm(dim=axis, keepdim=True), whole / whole.norm(dim=axis, keepdim=True))
    for scale in (0.0, 0.25):  # on the line between the weight and the whole
        part = merge_lora(weights, lora_to_ours(lora, "ink"), scale=scale)[f"{FFN}.weight"]
        torch.testing.assert_close(part, weight + scale * (full - weight))


# ---- refused by name


@pytest.mark.parametrize(("key", "kind"), [
    ("lora_unet_blocks_0_self_attn_q.hada_w1_a", "LoHa"), ("diffusion_model.blocks.0.self_attn.q.lokr_w1", "LoKr"),
    ("lycoris_blocks_0_ffn_0.oft_blocks", "OFT"), ("blocks.0.attn1.to_q.boft_R.weight", "BOFT"),
    ("blocks.0.attn1.to_k.ia3_l", r"\(IA\)3"), ("lora_unet_blocks_0_ffn_0.a1.weight", "GLoRA"),
    ("lora_unet_patch_embedding.lora_mid.weight", "Tucker"), ("blocks.0.attn1.to_q.vera_lambda_b", "VeRA"),
    ("diffusion_model.blocks.0.norm3.set_weight", "set_weight")])  # fmt: skip
def test_other_kinds_are_refused_by_name(key: str, kind: str, weights: State, tmp_path: Path) -> None:
    save_file({**lora_of(weights, [Q]), key: torch.zeros(4, 4)}, tmp_path / "ink.safetensors")
    with pytest.raises(CheckpointError, match=f"ink.safetensors is a .*{kind}.*Merge it into its model"):
        read_checkpoint(tmp_path / "ink.safetensors")


@pytest.mark.parametrize(("keys", "words"), [
    (["double_blocks.0.img_attn_qkv.lora_A.weight"], "1 names are not those of a LoRA.*nothing is left out"),
    ([f"{Q}.lora_A.bias"], "not those of a LoRA.*lora_A.bias"),
    (["lora_te1_text_model_encoder.lora_down.weight"], "also changes the text encoder"),
    (["transformer_2.blocks.0.attn1.to_q.lora_A.weight"], "second expert of Wan 2.2"),
    (["proj_out.weight", f"{Q}.base_layer.bias"], "2 whole weights.*merge_and_unload"),
    ([f"{Q}.lora_down.weight"], "twice, as blocks.0.attn1.to_q.lora_A.weight and as"),
    ([f"{OUT}.lora_A.one.weight", f"{OUT}.lora_A.two.weight"], r"several adapters \(one, two"),
])  # fmt: skip
def test_no_name_is_left_out(keys: list[str], words: str, weights: State) -> None:
    with pytest.raises(CheckpointError, match=words):
        lora_to_ours({**lora_of(weights, [Q]), **dict.fromkeys(keys, torch.zeros(4, 4))}, "ink")


@pytest.mark.parametrize(("extra", "words"), [
    ({"proj_out.alpha": torch.tensor(4.0)}, "one side of proj_out"),
    ({f"{OUT}.dora_scale": torch.ones(24, 1)}, "one side of blocks.1.attn2.to_out.0"),
    ({f"{Q}.alpha": torch.tensor(float("nan"))}, "not finite in 1 tensors, e.g. blocks.0.attn1.to_q.alpha"),
    ({f"{Q}.lora_A.weight": torch.full((4, 24), float("inf"))}, "not finite in 1 tensors"),
    ({f"{Q}.alpha": torch.ones(2)}, r"blocks.0.attn1.to_q.alpha is \[2\]; one number"),
    ({f"{Q}.lora_A.weight": torch.ones(24)}, r"lora_A.weight is \[24\]; a matrix"),
    ({f"{Q}.lora_B.weight": torch.ones(24, 4).to(torch.int8)}, "is stored as int8"),
    ({f"{FFN}.lora_A.weight": drawn(2, 32), f"{FFN}.lora_B.weight": drawn(24, 2), f"{FFN}.dora_scale": torch.ones(1)},
     r"is for a weight \[1\]"),
    ({f"{Q}.lora_B.weight": torch.zeros(24, 3)}, r"\[4, 24\] and \[24, 3\], have no common rank"),
    ({f"{Q}.dora_scale": torch.ones(7, 1)}, r"is for a weight \[7, 1\]"),
    ({"blocks.0.norm3.diff": torch.zeros(30)}, r"blocks.0.norm2: the LoRA is for a weight \[30\].*have \[24\]"),
    ({"blocks.0.norm3.diff": torch.tensor(1.0)}, r"is for a weight \[\]"),
    ({"blocks.7.norm3.diff": torch.zeros(24)}, "with 8 blocks or more, where these have 2"),
    ({"blocks.1.cross_attn.k_img.diff_b": torch.zeros(24)}, "reads an image"),
])  # fmt: skip
def test_what_does_not_fit_is_said_in_sizes(extra: State, words: str, weights: State) -> None:
    with pytest.raises(CheckpointError, match=words):
        changed(weights, {**lora_of(weights, [Q]), **extra})


def test_the_model_of_another_size_has_a_name() -> None:
    shapes = {f"{Q}.weight": torch.empty(1536, 1536, device="meta")}
    lora = {f"{Q}.lora_A.weight": torch.zeros(8, 5120), f"{Q}.lora_B.weight": torch.zeros(5120, 8)}
    words = r"\[5120, 5120\] \(14B\), these weights have \[1536, 1536\] \(1.3B\). Sizes differ in 1 of the 1"
    with pytest.raises(CheckpointError, match=words):
        merge_lora(shapes, lora)


@pytest.mark.parametrize(("stored", "wanted"), [
    (torch.float8_e4m3fn, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.float32)])  # fmt: skip
def test_eight_bits_become_bfloat16_where_something_is_added(stored: torch.dtype, wanted: torch.dtype) -> None:
    state = {f"{each}.weight": drawn(24, 24).to(stored) for each in (Q, OUT)}
    merged = merge_lora(state, lora_of({f"{Q}.weight": drawn(24, 24)}, [Q]), scale=0.01)
    assert merged[f"{Q}.weight"].dtype == wanted and merged[f"{OUT}.weight"] is state[f"{OUT}.weight"]
