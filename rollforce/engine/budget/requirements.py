"""Bytes of every part of a stream, from sizes alone: nothing is allocated to find out.

The figures are those of eager code with a fused attention kernel; the workspaces of libraries (cuBLAS, cuDNN) are not
known and not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from rollforce.cache.kv_cache import KVCache, LatentGroup
from rollforce.engine.budget.model_sizes import (
    ModelSizes,
    TaehvDecoding,
    TinyDecoding,
    WanDecoding,
    matrices_of,
    parameters_of,
)
from rollforce.engine.settings import StreamSettings
from rollforce.models.autoencoder.tiling import Tiling, mosaic
from rollforce.models.runtime.choices import check_choice
from rollforce.models.transformer.transformer import Grid, TransformerConfig
from rollforce.video.size import check_size

When = Literal["always", "stream", "prompt"]
PRUNED = WanDecoding(base_dim=24, parameters=8_035_003)  # LightX2V's lightvaew2_1
PLACES = 2  # blocks that offloading keeps room for: one in work, one on its way (models/runtime/offload.py)


@dataclass(frozen=True)
class MemoryPart:
    """Bytes on the device, and when they are there: always, while streaming, or while a prompt is encoded."""

    name: str
    bytes: int
    note: str = ""
    when: When = "always"


@dataclass(frozen=True)
class MemorySetup:
    """A stream whose memory is asked for. `loaded`: the weights are on the device already and count no more.
    `small`: a decoder in TAEHV's format draws in the place of the full one; `pruned`: the full one with a quarter of
    its channels does."""

    sizes: ModelSizes
    stream: StreamSettings
    size: tuple[int, int]  # height, width of a picture
    dtype: torch.dtype
    device: torch.device
    offload: tuple[str, ...] = ()
    quantize: str | None = None
    tiling: Tiling | None = None
    loaded: bool = False
    small: bool = False
    pruned: bool = False

    def __post_init__(self) -> None:
        check_choice("offload", self.offload)
        check_choice("quantize", self.quantize)
        self.grid  # noqa: B018  refuse now a size that no latents have

    @property
    def grid(self) -> Grid:
        """Latent geometry of the picture. ShapeError if the size does not fit."""
        stride, patch = self.sizes.decoding.stride, self.sizes.transformer.patch
        check_size(self.size, stride * patch, f" (autoencoder stride {stride} x patch {patch})")
        return Grid(self.sizes.transformer.out_channels, self.size[0] // stride, self.size[1] // stride, patch)

    @property
    def drawing(self) -> WanDecoding | TaehvDecoding | TinyDecoding:
        """Sizes of the decoder that draws."""
        return PRUNED if self.pruned else TaehvDecoding() if self.small else self.sizes.decoding

    @property
    def window(self) -> int | None:
        """Latents of the memory's window; None if it has none."""
        return next((tier.latents for tier in self.stream.cache if tier.role == "window"), None)

    def with_window(self, latents: int) -> MemorySetup:
        """The same with a window of `latents`. ConfigError if there is none, or it would be shorter than a chunk."""
        return dataclasses.replace(self, stream=self.stream.with_window(latents))


def busiest(found: tuple[MemoryPart, ...]) -> tuple[MemoryPart, ...]:
    """Return the parts that are there when most is: while streaming, or while a prompt is encoded."""
    at = [tuple(part for part in found if part.when in ("always", when)) for when in ("stream", "prompt")]
    return max(at, key=lambda some: sum(part.bytes for part in some))


def needs(found: tuple[MemoryPart, ...]) -> int:
    """Return the most bytes that are there at once, if no prompt is new while streaming."""
    return sum(part.bytes for part in busiest(found))


def needs_with_prompt(found: tuple[MemoryPart, ...]) -> int:
    """Return the bytes while a prompt is encoded beside a stream that goes on."""
    return sum(part.bytes for part in found)


def parts(setup: MemorySetup) -> tuple[MemoryPart, ...]:
    """Return all parts of a stream, weights first. Those of zero bytes are left out."""
    weights = () if setup.loaded else tuple(_weights(setup))
    return tuple(part for part in (*weights, *_streaming(setup)) if part.bytes)


def _weights(setup: MemorySetup) -> Iterator[MemoryPart]:
    sizes, item = setup.sizes, setup.dtype.itemsize
    other = item if sizes.follows_dtype else 4
    yield from _text(setup)
    note = f"{sizes.parameters / 1e6:.0f} M parameters{f', {setup.quantize}' if setup.quantize else ''}"
    yield MemoryPart("transformer", transformer_bytes(setup), note)
    drawing = sizes.decoding.parameters + (setup.drawing.parameters if setup.small or setup.pruned else 0)
    yield MemoryPart("autoencoder", drawing * other, f"{drawing / 1e6:.0f} M parameters")


def _text(setup: MemorySetup) -> Iterator[MemoryPart]:
    """The bundled text encoder stays; Wan's comes for a prompt that is new, to the device or else to the CPU."""
    sizes, on_cpu = setup.sizes, setup.device.type == "cpu"
    if not sizes.follows_dtype:
        yield MemoryPart("text encoder", sizes.text * 4, f"{sizes.text / 1e6:.1f} M parameters")
    elif on_cpu or "text" not in setup.offload:
        item = sizes.text_item if on_cpu else setup.dtype.itemsize
        note = f"{sizes.text / 1e9:.2f} B parameters, for a prompt only"
        yield MemoryPart("text encoder", sizes.text * item, note, "prompt")


def transformer_bytes(setup: MemorySetup) -> int:
    """Return the bytes of the transformer's weights on the device.

    One per number of the blocks' matrices when quantised, and a float32 scale per row; with offloaded blocks those in
    work only."""
    config, item = setup.sizes.transformer, setup.dtype.itemsize
    full = setup.sizes.parameters * item
    if setup.quantize is not None:
        numbers, rows = matrices_of(config)
        full += 4 * rows - numbers * (item - 1)
    if "blocks" not in setup.offload or setup.device.type == "cpu" or config.num_layers <= PLACES:
        return full
    ends = parameters_of(dataclasses.replace(config, num_layers=0)) * item
    return ends + (full - ends) * PLACES // config.num_layers


def _streaming(setup: MemorySetup) -> Iterator[MemoryPart]:
    config, grid, layout = setup.sizes.transformer, setup.grid, setup.stream.layout.build()
    item = setup.dtype.itemsize
    kept, gathered = memory_bytes(setup)
    held = " or ".join(str(sum(tier.latents for tier in tiers)) for tiers in setup.stream.memories)
    yield MemoryPart("KV cache", kept, f"{held} latents and {max(layout.slots, layout.shift)} in flight", "stream")
    text = 2 * config.num_layers * setup.sizes.text_len * config.width * item
    yield MemoryPart("text keys", text, f"{setup.sizes.text_len} tokens", "stream")
    latents = layout.slots + (layout.shift if setup.stream.stepping.ride else 0)
    busy = activation_bytes(config, latents, grid.tokens_per_latent, item, gathered, setup.stream.float32_islands)
    yield MemoryPart("activations", busy, f"{latents} latents of {grid.tokens_per_latent} tokens in a call", "stream")
    yield from _decoding(setup)


def _decoding(setup: MemorySetup) -> Iterator[MemoryPart]:
    grid, sizes = setup.grid, setup.sizes
    item = setup.dtype.itemsize if sizes.follows_dtype else 4
    other = setup.small or setup.pruned  # which know no tiles
    tiling = setup.tiling if sizes.follows_dtype and not other else None
    drawing = setup.drawing
    tiles = mosaic(grid.height, grid.width, tiling, sizes.decoding.stride)
    tile = (tiles.rows.length, tiles.columns.length)
    kept = 1 if tiling is not None and tiling.host else len(tiles)
    note = f"{len(tiles)} tiles{', in host memory but one' if tiling and tiling.host else ''}" if len(tiles) > 1 else ""
    yield MemoryPart("decoder features", kept * drawing.features(*tile, item), note, "stream")
    yield MemoryPart("decoding", drawing.activations(*tile, item), "one latent, beside the next call", "stream")


def memory_bytes(setup: MemorySetup) -> tuple[int, int]:
    """Return the bytes of the full KV cache, and the most that one layer gathers where what it sees is not one slice.

    A memory on the meta device, which holds nothing, walks through commits until it repeats itself."""
    config, grid, settings = setup.sizes.transformer, setup.grid, setup.stream
    shape = config.shape(grid)
    cache = settings.memory(shape, setup.dtype, "meta")
    if isinstance(cache, KVCache):
        return _walk(cache, settings)
    layout = settings.layout.build()
    groups = [_walk(part, settings) for part in cache.parts.values()]
    own = (layout.slots + layout.shift) * config.width * grid.tokens_per_latent * setup.dtype.itemsize
    picked = 4 * own  # query, key, value of a group's heads, and what all groups return
    return sum(kept for kept, _ in groups), picked + max(gathered for _, gathered in groups)


def _walk(cache: KVCache, settings: StreamSettings) -> tuple[int, int]:
    layout, stepping, shape = settings.layout.build(), settings.stepping, cache.shape
    sizes = [2 * torch.Size(shape.of(layer, shape.tokens)).numel() * cache.dtype.itemsize
             for layer in range(shape.layers)]  # fmt: skip
    moved: set[str] = set()
    gathered = 0
    for chunk in range((cache.capacity + max(layout.slots, layout.shift)) // layout.shift + 3):
        start = chunk * layout.shift
        for group in (LatentGroup(start, layout.shift, stepping.commit, commit=True),
                      LatentGroup(start + layout.shift, layout.slots, stepping.denoise)):  # fmt: skip
            view = cache.view(group)
            moved |= {region for region, move in view.moves if move}
            seen = len(view.slots) + (view.region.filled if view.region else 0) + group.latents
            gathered = max(gathered, 0 if view.dense else seen * max(sizes))
            if group.commit:
                cache.adopt(cache.plan(start, layout.shift).after)
    masters = sum(tier.latents for tier in cache.tiers if tier.kind in moved - cache.arena.masters.keys())
    return cache.bytes + masters * sum(sizes) // 2, gathered


def activation_bytes(config: TransformerConfig, latents: int, tokens: int, item: int, gathered: int = 0,
                     islands: bool = True) -> int:  # fmt: skip
    """Return the most bytes alive during one call of the transformer without gradient, its weights and memory aside.

    In a block, per token and channel (the weights' dtype = `item` bytes): the residual before and after self-attention
    (each 4 bytes if norms and residuals are in float32: `islands`), query, key, value and what they attended to, the
    query of cross-attention; then the feed-forward's input and twice its hidden layer. Where that is narrow, turning a
    query by RoPE in float32 takes more, with what the block before left behind. While attending: the residual, query,
    key, value, two copies of the result, and what was gathered of the past."""
    hidden = config.ffn_dim / config.width
    casts = 0 if item == 4 else 4 + item
    residual = 4 if islands else item
    feed_forward, turning = 2 * residual + 6 * item + 2 * item * hidden, residual + 8 + 8 * item + casts
    attending = residual + 5 * item
    length = latents * tokens
    angles = 4 * config.attention_head_dim * length
    return angles + max(int(length * config.width * max(feed_forward, turning)),
                        length * config.width * attending + gathered)  # fmt: skip
