"""LoRA files of the tiny transformer, and what shows that one is at work."""

from __future__ import annotations

import torch
from tiny_transformer import TINY
from torch import Tensor

from rollforce.engine.rollout import index_range
from rollforce.models.transformer.transformer import VideoTransformer

State = dict[str, Tensor]
TARGETS = ("blocks.0.attn1.to_q", "blocks.0.attn2.to_k", "blocks.1.attn1.to_out.0", "blocks.1.ffn.net.0.proj",
           "condition_embedder.time_proj", "proj_out")  # fmt: skip


def make_lora(model: VideoTransformer, seed: int = 0, rank: int = 3, targets: tuple[str, ...] = TARGETS) -> State:
    """A LoRA file in our names; every second module with an alpha of its own."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for i, module in enumerate(targets):
        rows, columns = model.get_submodule(module).weight.shape
        state[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=draw) * columns**-0.5
        state[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=draw) * 0.3
        if i % 2:
            state[f"{module}.alpha"] = torch.tensor(float(rank + i))
    return state


def make_all_kinds(model: VideoTransformer, seed: int = 0) -> State:
    """A LoRA that also changes what no branch can: a bias with its pair, DoRA, norms, modulation, patches, a whole
    weight."""
    draw = torch.Generator().manual_seed(seed)
    whole = ("blocks.0.attn1.norm_q.weight", "blocks.1.norm2.bias", "blocks.1.scale_shift_table", "scale_shift_table",
             "patch_embedding.bias", "blocks.1.attn2.to_v.weight")  # fmt: skip
    state = make_lora(model, seed)
    state |= {f"{name}.diff": torch.randn(model.get_parameter(name).shape, generator=draw) * 0.2 for name in whole}
    state[f"{TARGETS[0]}.lora_B.bias"] = torch.randn(model.config.width, generator=draw)
    state[f"{TARGETS[2]}.dora_scale"] = torch.rand(model.config.width, 1, generator=draw) + 0.5
    size = model.patch_embedding.weight.shape
    state["patch_embedding.lora_A.weight"] = torch.randn(2, *size[1:], generator=draw) * 0.2
    state["patch_embedding.lora_B.weight"] = torch.randn(size[0], 2, 1, 1, 1, generator=draw)
    return state


@torch.no_grad()
def velocity(model: VideoTransformer) -> Tensor:
    """What the model says of one fixed clip."""
    draw = torch.Generator().manual_seed(7)
    x, text = torch.randn(1, 3, 4, 4, 6, generator=draw), torch.randn(1, 5, TINY.text_dim, generator=draw)
    dtype = model.proj_out.weight.dtype
    return model(x.to(dtype), torch.full((1, 3), 0.5), index_range(0, 3), model.condition(text))
