"""Tiles cover a picture, overlap enough, and their weights add up."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollforce.models.autoencoder.tiling import Tiling, cover, mosaic


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 200), tile=st.integers(1, 40), data=st.data())
def test_tiles_cover_and_overlap(size: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    found = cover(size, tile, overlap)
    assert found.length == min(size, tile)
    assert found.starts[0] == 0 and found.starts[-1] + found.length == size
    steps = [b - a for a, b in zip(found.starts, found.starts[1:], strict=False)]
    assert all(0 < step <= tile - overlap for step in steps)
    assert len(found.starts) == 1 or (len(found.starts) - 1) * (tile - overlap) + tile - size < tile - overlap


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 60), tile=st.integers(2, 20), scale=st.integers(1, 3), data=st.data())
def test_weights_add_up_to_one(size: int, tile: int, scale: int, data: st.DataObject) -> None:
    found = cover(size, tile, data.draw(st.integers(0, tile // 2)))
    total, count = torch.zeros(size * scale), torch.zeros(size * scale)
    weights = found.weights(scale)
    for start, row in zip(found.starts, weights, strict=True):
        total[start * scale : (start + found.length) * scale] += row
        count[start * scale : (start + found.length) * scale] += 1
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
    alone = count == 1
    assert torch.equal(total[alone], torch.ones_like(total[alone])), "a tile alone is not changed"
    assert (weights > 0).all()


def test_blending_tiles_of_a_picture_gives_the_picture() -> None:
    picture = torch.randn(1, 2, 3, 24, 40)
    tiles = mosaic(12, 20, Tiling(64, 32), stride=8)
    assert len(tiles) == 2 * 4 and tiles.size == (12, 20)
    again = tiles.blend((picture[..., ys, xs] for ys, xs in tiles.places(2)), 2)
    assert torch.allclose(again, picture, atol=1e-6)


def test_ramps_are_smooth() -> None:
    left = cover(12, 8, 4).weights(8)[0]
    assert torch.all(left[:32] == 1) and torch.all(left.diff() <= 0) and left.diff().abs().max() < 0.04
