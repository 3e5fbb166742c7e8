"""What training measures of its videos."""

from __future__ import annotations

import pytest
import torch

from rollforce.training.validation import border_ratio, psnr


def test_checks() -> None:
    truth = torch.zeros(1, 8, 2, 2, 3)
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)
    video = torch.tensor([0.0, 1, 2, 3, 6, 7, 8, 9])[None, :, None, None, None].expand(1, 8, 2, 2, 3)
    assert border_ratio(video, 4) == pytest.approx(3.0)
