"""Large pictures in tiles: where they lie and how their overlaps are blended.

Tiles form a grid and all have one shape, so nothing is compiled twice. Along either axis every pixel belongs to one
tile or lies on the ramp between two; the ramps add up to 1, and where one tile is alone its pixels are untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product

import torch
from torch import Tensor

from rollforce.errors import ConfigError


@dataclass(frozen=True)
class Tiling:
    """Work on pictures larger than `tile` x `tile` pixels in tiles that overlap by at least `overlap` pixels.

    A causal autoencoder holds activations while it works and features between latents. Tiles shrink the activations to
    those of one tile, but have more features in all, because they overlap. So with `host` the features wait in main
    memory and only those of the tile in work are on the device, at the price of two copies per latent; without it,
    tiles save little. The Wan 2.1 decoder in bfloat16, beside its weights, in GB on the device (and in main memory):

        832 x 480    3.7 whole    4.0 in tiles    0.6 (3.7) in tiles with `host`
        1280 x 720   8.6 whole    9.0 in tiles    0.6 (8.7) in tiles with `host`

    Counted from the shapes of its tensors, without what convolutions need to work in. Its encoder needs 0.6 of that."""

    tile: int = 256
    overlap: int = 64
    host: bool = True

    def __post_init__(self) -> None:
        if self.tile < 1 or not 0 <= self.overlap <= self.tile // 2:
            raise ConfigError(f"tiles of {self.tile} pixels with an overlap of {self.overlap}: the overlap must be "
                              f"between 0 and half a tile ({self.tile // 2}).")  # fmt: skip

    def check(self, stride: int) -> None:
        """Raise ConfigError unless tiles and overlaps are whole latent pixels."""
        for name, value in (("tile", self.tile), ("overlap", self.overlap)):
            if value % stride:
                raise ConfigError(f"tiling {name} = {value} is not a multiple of {stride} (autoencoder stride). "
                                  f"Nearest: {value // stride * stride} or {(value // stride + 1) * stride}.")


@dataclass(frozen=True)
class Cover:
    """How tiles of `length` cells cover one axis of `size` cells, with ramps over `ramp` cells."""

    size: int
    length: int
    starts: tuple[int, ...]
    ramp: int

    def weights(self, scale: int) -> Tensor:
        """Return how much every tile counts at each of its pixels, `scale` pixels per cell: [tiles, length * scale].
        Over all tiles the weights of a pixel add up to 1."""
        places = torch.arange(self.length * scale) + 0.5
        raw = torch.ones(len(self.starts), self.length * scale)
        total = torch.zeros(self.size * scale)
        for i, start in enumerate(self.starts):
            if self.ramp and start > 0:
                raw[i] = (places / (self.ramp * scale)).clamp(max=1)
            if self.ramp and start + self.length < self.size:
                raw[i] = torch.minimum(raw[i], places.flip(0) / (self.ramp * scale))
            total[start * scale : (start + self.length) * scale] += raw[i]
        spans = (slice(start * scale, (start + self.length) * scale) for start in self.starts)
        return torch.stack([row / total[span] for row, span in zip(raw, spans, strict=True)])


def cover(size: int, tile: int, overlap: int) -> Cover:
    """Spread the fewest tiles of `tile` cells over `size` cells evenly, so that they overlap by at least `overlap`."""
    if size <= tile:
        return Cover(size, size, (0,), overlap)
    steps = -((tile - size) // (tile - overlap))
    return Cover(size, tile, tuple(i * (size - tile) // steps for i in range(steps + 1)), overlap)


@dataclass(frozen=True)
class Mosaic:
    """The tiles of one picture, in cells: latent pixels, of `scale` x `scale` pixels each in a picture."""

    rows: Cover
    columns: Cover

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in cells."""
        return self.rows.size, self.columns.size

    def places(self, scale: int) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of every tile, in pixels at `scale` per cell."""
        for y, x in product(self.rows.starts, self.columns.starts):
            yield (slice(y * scale, (y + self.rows.length) * scale),
                   slice(x * scale, (x + self.columns.length) * scale))  # fmt: skip

    def blend(self, parts: Iterator[Tensor], scale: int) -> Tensor:
        """Blend the tiles, in the order of `places`, into one picture [..., H, W], float32."""
        if len(self) == 1:
            return next(parts).float()
        weights = product(self.rows.weights(scale), self.columns.weights(scale))
        first = next(parts)
        picture = first.new_zeros(*first.shape[:-2], *(side * scale for side in self.size), dtype=torch.float32)
        for part, (ys, xs), (down, across) in zip(chain([first], parts), self.places(scale), weights, strict=True):
            picture[..., ys, xs] += part.float() * (down[:, None] * across).to(part.device)
        return picture


def mosaic(height: int, width: int, tiling: Tiling | None, stride: int) -> Mosaic:
    """Return tiles of a picture of height x width latent pixels; one tile without `tiling`."""
    tile, overlap = (tiling.tile // stride, tiling.overlap // stride) if tiling else (max(height, width), 0)
    return Mosaic(cover(height, tile, overlap), cover(width, tile, overlap))
