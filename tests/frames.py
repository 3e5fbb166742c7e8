"""All pictures of a video file, read independently of the library."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import av
import numpy as np


def read_frames(path: Path) -> np.ndarray:
    """Return the pictures, uint8 [F, H, W, 3]; a file that was cut short gives those that are whole."""
    frames = []
    with av.open(str(path)) as container, suppress(av.error.InvalidDataError):
        for frame in container.decode(video=0):
            frames.append(frame.to_ndarray(format="rgb24", src_colorspace=frame.colorspace, dst_colorspace=5))
    assert frames, f"{path} holds no picture"
    return np.stack(frames)
