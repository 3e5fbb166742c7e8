"""Settings of a model, measured from the shapes of its tensors, and whether tensors fit a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor, nn

from rollforce.checkpoints.names import transformer_names
from rollforce.errors import CheckpointError

HEAD = 128  # of every public Wan transformer; a state dict does not tell
SIZES = {1536: "1.3B", 5120: "14B"}  # width -> what people call it
BLOCKS = {1536: 30, 3072: 30, 5120: 40}  # width -> blocks of every public Wan transformer of it
UMT5_BLOCKS = {4096: 24}


def config_of(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """Measure the settings of a transformer, in diffusers' words, from its tensors in our names.

    `heads`: else width / 128. The keys image_dim, added_kv_proj_dim and pos_embed_seq_len are there only if the
    weights are those of an image-to-video transformer. Raises CheckpointError if a tensor to measure is missing."""
    patch = _shape(state, "patch_embedding.weight")
    width = patch[0]
    if heads is None and width % HEAD:
        raise CheckpointError(f"width {width} is not a multiple of {HEAD}: say how many heads this transformer has.")
    heads = heads or width // HEAD
    if width % heads:
        raise CheckpointError(f"width {width} cannot be split into {heads} heads.")
    config = {"num_attention_heads": heads, "attention_head_dim": width // heads, "num_layers": blocks_of(state),
              "ffn_dim": _shape(state, "blocks.0.ffn.net.0.proj.weight")[0], "in_channels": patch[1],
              "out_channels": _shape(state, "proj_out.weight")[0] // prod(patch[2:]),
              "text_dim": _shape(state, "condition_embedder.text_embedder.linear_1.weight")[1],
              "freq_dim": _shape(state, "condition_embedder.time_embedder.linear_1.weight")[1],
              "patch_size": tuple(patch[2:])}  # fmt: skip
    image = "condition_embedder.image_embedder"
    if f"{image}.norm1.weight" in state:
        config["image_dim"] = _shape(state, f"{image}.norm1.weight")[0]
        config["added_kv_proj_dim"] = _shape(state, "blocks.0.attn2.add_k_proj.weight")[1]
    if f"{image}.pos_embed" in state:
        config["pos_embed_seq_len"] = _shape(state, f"{image}.pos_embed")[1]
    return config


def autoencoder_config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measure the settings of diffusers' AutoencoderKLWan from its tensors, which hold no means and deviations."""
    width = _shape(state, "encoder.conv_in.weight")[0]
    ups = _count(state, "decoder.up_blocks.")
    widths = [_shape(state, f"decoder.up_blocks.{up}.resnets.0.conv1.weight")[0] for up in reversed(range(ups))]
    timed = [f"decoder.up_blocks.{up}.upsamplers.0.time_conv.weight" in state for up in reversed(range(ups - 1))]
    return {"base_dim": width, "z_dim": _shape(state, "post_quant_conv.weight")[0],
            "dim_mult": [each // width for each in widths], "num_res_blocks": 2, "attn_scales": [],
            "temperal_downsample": timed, "dropout": 0.0}  # fmt: skip


def text_config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Measure the settings of transformers' UMT5EncoderModel from its tensors."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    vocabulary, width = _shape(state, "shared.weight")
    buckets, heads = _shape(state, f"{attention}.relative_attention_bias.weight")
    _check_blocks(_count(state, "encoder.block."), UMT5_BLOCKS.get(width), "this text encoder")
    return {"vocab_size": vocabulary, "d_model": width, "d_kv": _shape(state, f"{attention}.q.weight")[0] // heads,
            "d_ff": _shape(state, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
            "num_layers": _count(state, "encoder.block."), "num_heads": heads,
            "relative_attention_num_buckets": buckets, "feed_forward_proj": "gated-gelu"}  # fmt: skip


def blocks_of(state: Mapping[str, Any]) -> int:
    """Count the transformer blocks: one more than the largest number."""
    return _count(state, "blocks.")


def check_whole(state: Mapping[str, Tensor], name: str, blocks: int | None = None) -> None:
    """Raise CheckpointError unless all blocks are there with equal shapes, and nothing that no Wan transformer has.
    `blocks`: how many a config.json says there are; else as many as every public transformer of this width has."""
    _check_blocks(blocks_of(state), blocks or BLOCKS.get(_shape(state, "patch_embedding.weight")[0]), name)
    image = "condition_embedder.image_embedder.norm1.weight" in state
    wanted = transformer_names(blocks_of(state), image)
    extra = [each for each in state if not each.endswith("image_embedder.pos_embed")]
    _refuse_names(set(wanted) - state.keys(), set(extra) - set(wanted), name)
    for each in wanted:
        if each.startswith("blocks."):
            rest = each.split(".", 2)[2]
            first = _shape(state, f"blocks.0.{rest}")
            if _shape(state, each) != first:
                raise CheckpointError(f"{name}/{each}: {_shape(state, each)}, but block 0 has {first}: not one model.")


def same_shape(state: Mapping[str, Tensor], model: nn.Module, what: str = "transformer") -> None:
    """Raise CheckpointError unless `state` has exactly the names and shapes of `model`, perhaps on the meta device. A
    tensor that a module holds under two names (transformers' tied embedding) is wanted under one of them."""
    known: dict[int, str] = {}
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict(keep_vars=True).items()
              if known.setdefault(id(tensor), key) == key or key in state}  # fmt: skip
    if differing := [key for key, shape in wanted.items() if key in state and tuple(state[key].shape) != shape]:
        raise CheckpointError(_differing(state, wanted, differing, what))
    _refuse_names(wanted.keys() - state.keys(), state.keys() - wanted.keys(), what)


def _differing(state: Mapping[str, Tensor], wanted: Mapping[str, Any], differing: list[str], what: str) -> str:
    """One tensor in numbers, and the reason if it is one of the usual ones; then the names of more."""
    told = next((key for key in differing if key.endswith("attn1.to_q.weight")), differing[0])
    here, there = tuple(state[told].shape), wanted[told]
    if told.endswith("attn1.to_q.weight"):
        told, here, there = told.removesuffix(".weight"), here[:1], there[:1]
    sizes = [", ".join(map(str, shape)) if len(shape) == 1 else str(list(shape)) for shape in (here, there)]
    text = f"{what}/{told}: checkpoint {sizes[0]}, config {sizes[1]}"
    if SIZES.get(here[0], "") and SIZES.get(there[0], "") and here[0] != there[0]:
        text += f": this is a {SIZES[here[0]]} file in a {SIZES[there[0]]} config"
    elif told == "patch_embedding.weight" and here[0] == there[0]:
        use = defaultdict(lambda: "neither text nor image to video", {16: "text to video", 36: "image to video"})
        text += f": this file takes {here[1]} channels ({use[here[1]]}), the config {there[1]} ({use[there[1]]})"
    return f"{text}. Shapes differ in {len(differing)} tensors, first: {', '.join(differing[:5])}."


def _refuse_names(missing: set[str], unexpected: set[str], what: str) -> None:
    found = [f"{len(names)} {word}, first: {', '.join(sorted(names)[:5])}"
             for word, names in (("missing", missing), ("unexpected", unexpected)) if names]  # fmt: skip
    if found:
        raise CheckpointError(f"{what}: these weights do not fit. {'; '.join(found)}.")


def _check_blocks(found: int, wanted: int | None, name: str) -> None:
    """A state dict that was cut off looks like a smaller model."""
    if wanted is not None and found < wanted:
        raise CheckpointError(f"{name} holds {found} of {wanted} blocks: the last {wanted - found} are missing. It is "
                              "not complete, or one of several shards: fetch it again.")  # fmt: skip


def _count(state: Mapping[str, Any], prefix: str) -> int:
    words = {key.removeprefix(prefix).split(".", 1)[0] for key in state if key.startswith(prefix)}
    numbers = sorted(int(word) for word in words if word.isdecimal())
    if numbers != list(range(len(numbers))) or not numbers:
        absent = next((n for n, number in enumerate(numbers) if n != number), 0)
        raise CheckpointError(f"these weights are not whole: there is no {prefix}{absent}.")
    return len(numbers)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(f"these weights are not whole: there is no {name}.")
    return tuple(state[name].shape)
