"""Windows: their noise, and who sees whom in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rollforce.errors import ConfigError
from rollforce.training.noise_patterns import PATTERNS, ChunkGroup, draw_level_per_video, draw_rolling, visibility_mask


@pytest.mark.parametrize("kind", sorted(PATTERNS))
def test_rolling_windows_are_as_a_stream_sees_them(kind: str) -> None:
    ladder = (1.0, 0.9, 0.75, 0.5)
    groups = PATTERNS[kind]
    n = draw_rolling(np.random.default_rng(0), 64, groups, 3, 2, ladder)
    assert n.sigma_BT.shape == (64, 15) and n.mask is not None and n.mask.shape == (30, 30)
    at = 0
    for group in groups:
        clean = n.sigma_BT[:, at : at + 3 * group.clean]
        noisy = n.sigma_BT[:, at + 3 * group.clean : at + 3 * (group.clean + group.noisy)]
        assert not clean.any() and bool((noisy > 0).all())
        assert bool((noisy.diff(dim=1) >= 0).all())
        if not group.clean:  # half of the streams that fill stand exactly on the noisiest levels of the ladder
            top = torch.tensor(sorted(ladder)[-group.noisy :]).repeat_interleave(3)
            assert 15 < int(torch.isclose(noisy, top).all(1).sum()) < 50
        at += 3 * (group.clean + group.noisy)
    assert torch.equal(n.weight_T, (n.sigma_BT[0] > 0).float())


def test_who_sees_whom() -> None:
    seen = visibility_mask((ChunkGroup(2, 1), ChunkGroup(0, 2)), 1).int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]


def test_together_spreads_levels() -> None:
    sigma = draw_level_per_video(np.random.default_rng(0), 8, 5).sigma_BT
    assert torch.equal(sigma[:, :1].expand(-1, 5), sigma)
    unshifted = sigma[:, 0] / (3 - 2 * sigma[:, 0])
    assert torch.equal((unshifted * 8).floor(), torch.arange(8.0))  # one level in each eighth


def test_a_window_of_more_noisy_chunks_than_levels_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"4 noisy chunks needs .* has 2: choose another noising\.stream"
    ):
        draw_rolling(np.random.default_rng(0), 1, PATTERNS["past"], 3, 2, (1.0, 0.5))
