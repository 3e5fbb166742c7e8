"""VideoTransformer: the Wan 2.1 diffusion transformer, at any size. One class is teacher, critic and student.

Parameter names are exactly those of diffusers' `WanTransformer3DModel` (Apache-2.0), so its folders load strictly; the
original Wan names are mapped in `weights.py`. Architecture: Wan technical report (2025), section 4.2.

What makes it stream: noise is given per latent, positions are any integers, and self-attention asks a `Memory` for the
past. With `memory=None` all latents see each other (or what `mask` allows).

Precision: linears and attention run in the dtype of the weights; norms, modulation and residual gates in float32. The
released Self Forcing students were trained with all of it in bfloat16: `float32_islands = False` gives that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollforce import rope
from rollforce.attention import Kernel, kernel
from rollforce.errors import CheckpointError, ConfigError, ShapeError
from rollforce.models.block import Block, modulated, table
from rollforce.types import Grid, KVBlock

TIME_SCALE = 1000.0  # the backbone was trained on timesteps 0..1000; everything else speaks sigma in [0, 1]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes, in the words of diffusers' config.json. Width = num_attention_heads * attention_head_dim."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    ffn_dim: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        if self.attention_head_dim % 2:
            raise ConfigError(
                f"attention_head_dim {self.attention_head_dim} must be even: RoPE turns pairs of channels."
            )
        if self.patch_size[0] != 1 or self.patch_size[1] != self.patch_size[2]:
            raise ConfigError(f"patch_size {self.patch_size} must be (1, p, p): a latent is the unit of time.")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch(self) -> int:
        return self.patch_size[1]


WAN_1_3B = TransformerConfig(num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960)
WAN_14B = TransformerConfig(num_attention_heads=40, attention_head_dim=128, num_layers=40, ffn_dim=13824)


@dataclass(frozen=True)
class Condition:
    """A prompt as the transformer needs it: cross-attention keys and values of every layer, each [B, N, L_text, K]."""

    layers: tuple[KVBlock, ...]

    @property
    def batch(self) -> int:
        return self.layers[0].key.shape[0]


class Memory(Protocol):
    """One call's window on the past (see cache.Memory)."""

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Attention output [B, N, L, K] of this call's queries over what each of them may see."""


def _before(block: Block, *inputs: Any) -> tuple[Tensor, KVBlock, tuple[Tensor, ...]]:
    return block.before(*inputs)


def _after(block: Block, *inputs: Any) -> Tensor:
    return block.after(*inputs)


Halves = tuple[Callable[..., Any], Callable[..., Any]]
HALVES: Halves = (_before, _after)
"""What lies between attention calls, as it is; a model may have it compiled or checkpointed instead."""


class MLP(nn.Module):
    """Two linears with an activation between, under diffusers' names."""

    def __init__(self, inside: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inside, width), nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x.to(self.linear_1.weight.dtype))))


class ConditionEmbedder(nn.Module):
    """Noise level and text, brought to the width of the transformer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = MLP(config.freq_dim, config.width, nn.SiLU())
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = MLP(config.text_dim, config.width, nn.GELU(approximate="tanh"))

    def time(self, sigma_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding [B, T, D] and block modulation [B, T, 6, D] of each latent's noise level."""
        embedding = self.time_embedder(sinusoid(TIME_SCALE * sigma_BT.double(), self.freq_dim))
        return embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))


def sinusoid(time_BT: Tensor, channels: int) -> Tensor:
    """cos then sin of the timestep at geometrically falling frequencies: float32 [B, T, channels]."""
    half = channels // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=time_BT.device) / half)
    angle = time_BT[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()


class VideoTransformer(nn.Module):
    """velocity = model(x, sigma, index, condition[, memory])."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv3d(config.in_channels, width, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks: Sequence[Block] = nn.ModuleList(
            [Block(width, config.num_attention_heads, config.ffn_dim, config.eps) for _ in range(config.num_layers)]
        )  # type: ignore[assignment]
        self.scale_shift_table = nn.Parameter(table(2, width))
        self.proj_out = nn.Linear(width, config.out_channels * config.patch**2)
        self.attend: Kernel = kernel("sdpa")
        self.float32_islands = True
        self.halves: Halves = HALVES

    def compile_blocks(self, **options: Any) -> None:
        """Compile what lies between attention calls (torch.compile; needs a C++ compiler on a CPU)."""
        self.halves = (torch.compile(_before, **options), torch.compile(_after, **options))

    def checkpoint_blocks(self) -> None:
        """Keep no activations of what lies between attention calls; compute them again in the backward pass."""
        from torch.utils.checkpoint import checkpoint

        before, after = self.halves
        again = partial(checkpoint, use_reentrant=False)
        self.halves = (partial(again, before), partial(again, after))

    def set_attention(self, name: str) -> None:
        """Choose the attention kernel by name; ConfigError lists what exists."""
        self.attend = kernel(name)

    def condition(self, text_BLD: Tensor) -> Condition:
        """Cross-attention keys and values of a text embedding [B, L_text, text_dim], once per prompt.

        Wan attends to all text positions, zero padding included: pad before calling.
        """
        text = self.condition_embedder.text_embedder(text_BLD)
        return Condition(tuple(block.text(text) for block in self.blocks))

    def forward(
        self,
        x_BTCHW: Tensor,
        sigma_BT: Tensor,
        index_T: Tensor,
        condition: Condition,
        memory: Memory | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, T, C, H, W] of noisy latents.

        Args: `sigma_BT` noise in [0, 1] of each latent; `index_T` stream position of each latent (any integers);
        `memory` what self-attention sees of the past (None: only this call); `mask` additive [L, L], without memory.
        """
        rows, columns = self._geometry(x_BTCHW)
        angle = rope.angles(index_T.to(x_BTCHW.device), rows, columns, self.config.attention_head_dim)
        embedding, modulation = self.condition_embedder.time(sigma_BT)
        x = self._patches(x_BTCHW)
        if self.float32_islands:
            x, embedding, modulation = x.float(), embedding.float(), modulation.float()
        before, after = self.halves
        for layer, block in enumerate(self.blocks):
            query, own, mod = before(block, x, modulation, angle)
            if memory is None:
                attended = self.attend(query, own.key, own.value, mask)
            else:
                attended = memory.attend(layer, query, own, self.attend)
            x = after(block, x, attended, mod, condition.layers[layer], self.attend)
        shift, scale = (self.scale_shift_table.to(embedding.dtype).unsqueeze(1) + embedding.unsqueeze(2)).unbind(2)
        x = self.proj_out(modulated(x, shift, scale, self.config.eps).to(self.proj_out.weight.dtype))
        return self._latents(x, x_BTCHW.shape).to(x_BTCHW.dtype)

    def _geometry(self, x_BTCHW: Tensor) -> tuple[int, int]:
        channels, height, width = x_BTCHW.shape[2:]
        if channels != self.config.in_channels:
            raise ShapeError(f"latents have {channels} channels; this model takes {self.config.in_channels}.")
        grid = Grid(channels, height, width, self.config.patch)
        return grid.rows, grid.columns

    def _patches(self, x_BTCHW: Tensor) -> Tensor:
        """The patch embedding as one matmul: a convolution whose stride is its kernel."""
        batch, latents, channels, height, width = x_BTCHW.shape
        p = self.config.patch
        x = x_BTCHW.reshape(batch, latents, channels, height // p, p, width // p, p).permute(0, 1, 3, 5, 2, 4, 6)
        weight = self.patch_embedding.weight
        return F.linear(x.flatten(4).flatten(1, 3).to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)

    def _latents(self, x_BLD: Tensor, shape: torch.Size) -> Tensor:
        batch, latents, _, height, width = shape
        p = self.config.patch
        x = x_BLD.reshape(batch, latents, height // p, width // p, p, p, self.config.out_channels)
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, latents, self.config.out_channels, height, width)

    def save(self, folder: Path) -> None:
        """Write config.json and safetensors, as diffusers lays a transformer folder out."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "_class_name": "WanTransformer3DModel",
            **asdict(self.config),
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> VideoTransformer:
        """Read a folder written by `save` or by diffusers. CheckpointError if it is not one."""
        from safetensors.torch import load_file

        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no transformer: config.json is missing.")
        raw = json.loads((folder / "config.json").read_text())
        names = TransformerConfig.__dataclass_fields__
        with torch.device("meta"):
            model = cls(TransformerConfig(**{name: value for name, value in raw.items() if name in names}))
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True, assign=True)
        return model
