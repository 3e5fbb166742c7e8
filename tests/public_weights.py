"""Random weights of tiny Wan parts, and the forms in which the public ships such weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rollforce.checkpoints.names import KINDS, rename

State = dict[str, Tensor]
SIZES = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "ffn_dim": 32, "text_dim": 8,
         "freq_dim": 16, "in_channels": 16, "out_channels": 16}  # fmt: skip
IMAGE = {"in_channels": 36, "image_dim": 10, "added_kv_proj_dim": 24}
AUTOENCODER = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 2, 4, 4]}
TEXT = {"vocab_size": 30, "d_model": 8, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3,
        "relative_attention_num_buckets": 7, "feed_forward_proj": "gated-gelu"}  # fmt: skip
LORA_TARGETS = {"blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.1.cross_attn.o": "blocks.1.attn2.to_out.0",
                "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj", "time_projection.1": "condition_embedder.time_proj"}
"""Layers that a LoRA turns: the original names, and ours."""


def to_original(kind: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Our names to the original ones: the inverse of `names.to_ours`."""
    return rename(state, tuple((ours, original) for original, ours in KINDS[kind].table), KINDS[kind].what)


def wan_transformer(**sizes: Any) -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(**{**SIZES, **sizes})


def wan_autoencoder(**sizes: Any) -> nn.Module:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**{**AUTOENCODER, **sizes})


def umt5(**sizes: Any) -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**{**TEXT, **sizes}))


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "transformer": wan_transformer, "autoencoder": wan_autoencoder, "text": umt5}


def random_state(module: nn.Module, seed: int = 0) -> State:
    """Its state dict with every number drawn anew, so that no two tensors are alike; without tied second names."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(value.shape, generator=generator) for key, value in module.state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)
    return state


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def fsdp(state: Mapping[str, Tensor]) -> State:
    """Names as FSDP leaves them around and inside the outer module of Self Forcing's code."""
    return {f"model._fsdp_wrapped_module.{key.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module.')}": value
            for key, value in state.items()}  # fmt: skip


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def lora_of(state: State, modules: list[str], rank: int = 4) -> State:
    """A random LoRA under plain names of `state`'s own."""
    made = {}
    for n, module in enumerate(modules):
        weight, draw = state[f"{module}.weight"], torch.Generator().manual_seed(n)
        made[f"{module}.lora_A.weight"] = torch.randn(rank, *weight.shape[1:], generator=draw)
        made[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=draw)
    return made


def write_original(folder: Path, seed: int = 0, shards: int = 1) -> dict[str, State]:
    """An original Wan folder, all parts tiny; their states in our names."""
    states = {kind: random_state(make(), seed) for kind, make in MAKERS.items()}
    folder.mkdir(parents=True)
    save_sharded(to_original("transformer", states["transformer"]), folder, "diffusion_pytorch_model", shards)
    sizes = {"model_type": "t2v", "_class_name": "WanModel", "dim": 24, "num_heads": 2, "eps": 1e-6}
    (folder / "config.json").write_text(json.dumps(sizes))
    torch.save(to_original("autoencoder", states["autoencoder"]), folder / "Wan2.1_VAE.pth")
    torch.save(to_original("text", states["text"]), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").write_text("{}")
    return states


def write_diffusers(folder: Path, seed: int = 0, **sizes: Any) -> dict[str, State]:
    """The same model as diffusers and transformers write it, with a pipeline's index."""
    states = {}
    for name, kind in (("transformer", "transformer"), ("vae", "autoencoder"), ("text_encoder", "text")):
        module = MAKERS[kind](**(sizes if kind == "transformer" else {}))
        states[kind] = random_state(module, seed)
        module.load_state_dict(states[kind], strict=kind != "text")
        module.save_pretrained(folder / name)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "WanPipeline", "tokenizer": ["transformers", "T5Tokenizer"]}))  # fmt: skip
    return states


def save_sharded(state: State, folder: Path, stem: str, shards: int) -> None:
    """As the hub has them: {stem}.safetensors, or numbered files and an index."""
    names = [f"{stem}-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    names = names if shards > 1 else [f"{stem}.safetensors"]
    keys = list(state)
    for n, name in enumerate(names):
        save_file({key: state[key].contiguous() for key in keys[n::shards]}, folder / name)
    if shards > 1:
        where = {key: names[n % shards] for n, key in enumerate(keys)}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
