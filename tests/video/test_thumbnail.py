"""The still of a video is its middle frame, whatever the video is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rollforce.video.images import read_picture
from rollforce.video.outputs import open_output
from rollforce.video.thumbnail import thumbnail_path, write_thumbnail


@pytest.mark.parametrize("count", [1, 5, 120])
@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a"])
def test_the_still_is_the_frame_in_the_middle(tmp_path: Path, name: str, count: int) -> None:
    levels = np.linspace(0, 240, count).astype(np.uint8)
    with open_output(tmp_path / name, 12, (32, 48)) as video:
        video.write(np.repeat(levels, 32 * 48 * 3).reshape(count, 32, 48, 3))
    path = write_thumbnail(tmp_path / name)
    assert path == thumbnail_path(tmp_path / name) and path.suffix == ".jpg"
    still = read_picture(path)
    assert still.shape == (32, 48, 3) and abs(float(still.mean()) - float(levels[count // 2])) < 5
