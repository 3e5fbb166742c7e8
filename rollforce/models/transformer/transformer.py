"""VideoTransformer: the Wan 2.1 diffusion transformer, at any size. One class is teacher, critic and student.

Parameter names are exactly those of diffusers' `WanTransformer3DModel` (Apache-2.0), so its folders load strictly; the
original Wan names are mapped in checkpoints/names.py. Architecture: Wan technical report (2025), section 4.2.

What makes it stream: noise is given per latent, positions are any integers, and self-attention asks a `Memory` for the
past. With `memory=None` all latents see each other (or what `mask` allows).

Precision: linears and attention run in the dtype of the weights; norms, modulation and residual gates in float32. The
released Self Forcing students were trained with all of it in bfloat16: `float32_islands = False` gives that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rollforce.checkpoints import model_folder
from rollforce.checkpoints.safetensors_folder import LIMIT
from rollforce.errors import CheckpointError, ConfigError, ShapeError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import Kernel, KVBlock, KVShape, kernel
from rollforce.models.transformer.block import Block, ConditionEmbedder, modulated, table
from rollforce.video.size import check_size


@dataclass(frozen=True)
class Grid:
    """Latent geometry: one latent is `channels` x `height` x `width`, cut into square patches of `patch`."""

    channels: int
    height: int
    width: int
    patch: int = 2

    def __post_init__(self) -> None:
        check_size((self.height, self.width), self.patch, ", the patch", "latent ")

    @property
    def rows(self) -> int:
        return self.height // self.patch

    @property
    def columns(self) -> int:
        return self.width // self.patch

    @property
    def tokens_per_latent(self) -> int:
        return self.rows * self.columns


@runtime_checkable
class LearnedTier(Protocol):
    """A tier that has weights: they are the transformer's, under `policy.` and the tier's kind."""

    @property
    def kind(self) -> str: ...
    def weights(self, layers: int, width: int) -> tuple[int, ...]:
        """Return their shape in a transformer of so many layers, with heads of `width` channels. They start at 0."""


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
    image_dim: int | None = None  # channels of image tokens that cross-attention takes beside the text (Wan I2V)
    added_kv_proj_dim: int | None = None  # what their projections take: the width of the transformer

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        if self.attention_head_dim % 2:
            raise ConfigError(f"attention_head_dim {self.attention_head_dim} must be even: RoPE turns pairs of "
                              "channels.")  # fmt: skip
        if self.patch_size[0] != 1 or self.patch_size[1] != self.patch_size[2]:
            raise ConfigError(f"patch_size {self.patch_size} must be (1, p, p): a latent is the unit of time.")
        if self.added_kv_proj_dim != (None if self.image_dim is None else self.width):
            raise ConfigError(f"added_kv_proj_dim {self.added_kv_proj_dim} must be the width, {self.width}, with "
                              f"image_dim {self.image_dim}, and None without one.")  # fmt: skip

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch(self) -> int:
        return self.patch_size[1]

    @classmethod
    def read(cls, folder: Path) -> TransformerConfig:
        """Read a folder's config.json. CheckpointError if it describes no such transformer; ConfigError names a field
        that asks for something else."""
        sizes = model_folder.read_config(folder, {field.name for field in fields(cls)})
        try:
            return cls(**sizes)
        except TypeError as error:
            raise CheckpointError(f"{folder / 'config.json'} does not describe a transformer: {error}.") from error

    def shape(self, grid: Grid, batch: int = 1) -> KVShape:
        """Return the sizes of a memory of `batch` streams of latents on this grid."""
        return KVShape(self.num_layers, batch, self.num_attention_heads, grid.tokens_per_latent,
                     self.attention_head_dim, grid.columns)  # fmt: skip


WAN_1_3B = TransformerConfig(num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960)
WAN_14B = TransformerConfig(num_attention_heads=40, attention_head_dim=128, num_layers=40, ffn_dim=13824)
WAN_I2V_14B = replace(WAN_14B, in_channels=36, image_dim=1280, added_kv_proj_dim=5120)


@dataclass(frozen=True)
class Condition:
    """A prompt as the transformer needs it: of every layer, cross-attention keys and values, each [B, N, L, K], of the
    text and, for an image-to-video model, of the image."""

    layers: tuple[tuple[KVBlock, ...], ...]

    @property
    def batch(self) -> int:
        return self.layers[0][0].key.shape[0]


class Memory(Protocol):
    """One call's window on the past (see cache/kv_cache.py)."""

    def attend(self, layer: int, query: Tensor, own: KVBlock, attend: Kernel) -> Tensor:
        """Return the attention output [B, N, L, K] of this call's queries over what each of them may see."""

    def across(self, attend: Kernel) -> Kernel:
        """Return the kernel for this call's cross-attention."""


def _before(block: Block, *inputs: Any) -> tuple[Tensor, KVBlock, Sequence[Tensor]]:
    return block.before(*inputs)  # the block's own attribute, which FSDP replaces


def _after(block: Block, *inputs: Any) -> Tensor:
    return block.after(*inputs)


Halves = tuple[Callable[..., Any], Callable[..., Any]]
HALVES: Halves = (_before, _after)
"""What lies between attention calls, as it is; a model may have it compiled or checkpointed instead."""

Visit = Callable[[Sequence[Block]], Iterator[Block]]
"""How a call goes through the blocks: one after the other; offload.py brings each to the device on the way."""


def _one_replay(blocks: Sequence[Block]) -> Iterator[Block]:
    """A call of the model is one step of its CUDA graphs: what an earlier call returned may be overwritten."""
    torch.compiler.cudagraph_mark_step_begin()
    return iter(blocks)


class VideoTransformer(nn.Module):
    """velocity = model(x, sigma, index, condition[, memory])."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, image = config.width, config.image_dim is not None
        self.patch_embedding = nn.Conv3d(config.in_channels, width, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(width, config.freq_dim, config.text_dim, config.image_dim)
        sizes = (width, config.num_attention_heads, config.ffn_dim, config.eps, image)
        self.blocks: Sequence[Block] = nn.ModuleList(Block(*sizes) for _ in range(config.num_layers))  # type: ignore[assignment]
        self.scale_shift_table = nn.Parameter(table(2, width))
        self.proj_out = nn.Linear(width, config.out_channels * config.patch**2)
        self.attend: Kernel = kernel("sdpa")
        self.float32_islands = True
        self.halves: Halves = HALVES
        self.visit: Visit = iter
        self.policy = nn.ParameterDict()  # weights of tiers of memory, by their kind; most have none

    def learn(self, tiers: Iterable[object]) -> None:
        """Give those tiers that have weights theirs, as zeros: to begin with they change nothing."""
        for tier in self.unlearned(tiers):
            shape = tier.weights(self.config.num_layers, self.config.attention_head_dim)
            like = self.scale_shift_table
            self.policy[tier.kind] = nn.Parameter(like.new_zeros(shape), requires_grad=like.requires_grad)

    def unlearned(self, tiers: Iterable[object]) -> list[LearnedTier]:
        """Return the tiers that have weights which this transformer does not hold."""
        return [tier for tier in tiers if isinstance(tier, LearnedTier) and tier.kind not in self.policy]

    def make_room(self, weights: Mapping[str, Tensor]) -> None:
        """Hold weights for those tiers that have some in a state dict, to be loaded next."""
        for name in (name for name in weights if name.startswith("policy.")):
            self.policy[name.removeprefix("policy.")] = nn.Parameter(torch.empty(weights[name].shape))

    def compile_blocks(self, graphs: bool = False, **options: Any) -> None:
        """Compile what lies between attention calls (torch.compile, and its options; needs a C++ compiler on a CPU).

        `graphs`: replay it as CUDA graphs, one per number of latents in a call. Attention stays outside, where the past
        grows. torch keeps 8 shapes (torch._dynamo.config.recompile_limit) and runs further ones uncompiled."""
        if graphs:
            options = {"mode": "reduce-overhead", "dynamic": False, **options}
            self.visit = _one_replay
        self.halves = (torch.compile(_before, **options), torch.compile(_after, **options))

    def checkpoint_blocks(self) -> None:
        """Keep no activations of what lies between attention calls; compute them again in the backward pass."""
        from torch.utils.checkpoint import checkpoint

        before, after = self.halves
        again = partial(checkpoint, use_reentrant=False)
        self.halves = (partial(again, before), partial(again, after))

    def set_attention(self, name: str, masked: bool = False) -> None:
        """Choose the attention kernel by name, once the model is on its device; `masked`: it must know masks.
        ConfigError lists what exists, or says why this one cannot be used here and what to do."""
        self.attend = kernel(name, self.device, self.proj_out.weight.dtype, masked)

    @property
    def device(self) -> torch.device:
        """Where latents are computed (blocks may wait elsewhere: see offload.py)."""
        return self.scale_shift_table.device

    def condition(self, text_BLD: Tensor, image_BLD: Tensor | None = None) -> Condition:
        """Return cross-attention keys and values of a text embedding [B, L_text, text_dim], once per prompt.

        Wan attends to all text positions, zero padding included: pad before calling. An image-to-video model takes the
        tokens of its image too: [B, L_image, image_dim]."""
        text = self.condition_embedder.text_embedder(text_BLD)
        self._check_image(image_BLD)
        image = None if image_BLD is None else self.condition_embedder.image_embedder(image_BLD)
        return Condition(tuple(block.text(text, image) for block in self.visit(self.blocks)))

    def forward(self, x_BTCHW: Tensor, sigma_BT: Tensor, index_T: Tensor, condition: Condition,
                memory: Memory | None = None, mask: Tensor | None = None, phase_T: Tensor | None = None,
                streams: Sequence[int] | None = None) -> Tensor:  # fmt: skip
        """Return the velocity [B, T, C, H, W] of noisy latents.

        Args: `sigma_BT` noise in [0, 1] of each latent; `index_T` stream position of each latent (any integers);
        `memory` what self-attention sees of the past (None: only this call); `mask` additive, without memory, [L, L] or
        what broadcasts to [B, N, L, L]; `phase_T` see rope.angles; `streams` how many of the latents are of each
        stream, in a call for several."""
        rows, columns = self._geometry(x_BTCHW)
        angle = rope.angles(index_T.to(x_BTCHW.device), rows, columns, self.config.attention_head_dim, phase_T)
        embedding, modulation = self.condition_embedder.time(sigma_BT, streams)
        x = self._patches(x_BTCHW)
        if self.float32_islands:
            x, embedding, modulation = x.float(), embedding.float(), modulation.float()
        before, after = self.halves
        across = self.attend if memory is None else memory.across(self.attend)
        for layer, block in enumerate(self.visit(self.blocks)):
            query, own, mod = before(block, x, modulation, angle)
            if memory is None:
                attended = self.attend(query, own.key, own.value, mask)
            else:
                attended = memory.attend(layer, query, own, self.attend)
            x = after(block, x, attended, mod, condition.layers[layer], across)
        shift, scale = (self.scale_shift_table.to(embedding.dtype).unsqueeze(1) + embedding.unsqueeze(2)).unbind(2)
        x = self.proj_out(modulated(x, shift, scale, self.config.eps).to(self.proj_out.weight.dtype))
        return self._latents(x, x_BTCHW.shape).to(x_BTCHW.dtype)

    def _geometry(self, x_BTCHW: Tensor) -> tuple[int, int]:
        channels, height, width = x_BTCHW.shape[2:]
        if channels != self.config.in_channels:
            given = self.config.in_channels - self.config.out_channels
            parts = f" ({self.config.out_channels} noisy and {given} of what is given)" if given else ""
            raise ShapeError(f"latents have {channels} channels; this model takes {self.config.in_channels}{parts}.")
        patch = self.config.patch
        if height % patch or width % patch:
            Grid(channels, height, width, patch)  # says what would fit
        return height // patch, width // patch

    def _check_image(self, image_BLD: Tensor | None) -> None:
        channels = self.config.image_dim
        if image_BLD is None and channels is not None:
            raise ConfigError(f"this is an image-to-video model: give the tokens of an image, [B, L, {channels}].")
        if image_BLD is not None and channels is None:
            raise ConfigError("this model takes no image tokens (its image_dim is None). Leave them out.")
        if image_BLD is not None and (image_BLD.dim() != 3 or image_BLD.shape[-1] != channels):
            raise ShapeError(f"image tokens are {list(image_BLD.shape)}; this model takes [B, L, {channels}].")

    def _patches(self, x_BTCHW: Tensor) -> Tensor:
        """The patch embedding as one matmul: a convolution whose stride is its kernel."""
        p, weight = self.config.patch, self.patch_embedding.weight
        x = rearrange(x_BTCHW, "b t c (h p) (w q) -> b (t h w) (c p q)", p=p, q=p)
        return F.linear(x.to(weight.dtype), weight.flatten(1), self.patch_embedding.bias)

    def _latents(self, x_BLD: Tensor, shape: torch.Size) -> Tensor:
        p, (rows, columns) = self.config.patch, (side // self.config.patch for side in shape[3:])
        return rearrange(x_BLD, "b (t h w) (p q c) -> b t c (h p) (w q)", h=rows, w=columns, p=p, q=p)

    def save(self, folder: Path, limit: int = LIMIT) -> None:
        """Write config.json and safetensors of at most `limit` bytes, as diffusers lays a transformer folder out."""
        model_folder.write_folder(folder, asdict(self.config), self.state_dict(), limit)

    @classmethod
    def load(cls, folder: Path) -> VideoTransformer:
        """Read a folder written by `save` or by diffusers, in the dtype of its files, which are mapped, not copied.
        CheckpointError if it is not one or does not fit; ConfigError names a field that asks for something else."""
        config = TransformerConfig.read(folder)
        with torch.device("meta"):
            model = cls(config)
            weights = model_folder.read_weights(folder)
            model.make_room(weights)
        model_folder.adopt(model, weights, str(folder))
        return model
