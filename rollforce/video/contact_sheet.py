"""Contact sheets: rows of videos, columns of moments."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

GAP = 2
LABEL_HEIGHT = 14


def contact_sheet(videos: Sequence[np.ndarray], moments: Sequence[int] | int = 8, labels: Sequence[str] = (),
          zoom: int = 1, heads: Sequence[str] = ()) -> np.ndarray:
    """One picture of `videos` (each uint8 [F, H, W, 3], equal H and W): a row each, a column per moment.

    `moments`: frame numbers, or how many, spread over each video. `labels` are written above the rows if Pillow is
    there, `heads` over the columns. `zoom` repeats pixels. Returns uint8 [rows, columns, 3].
    """
    rows = []
    for number, video in enumerate(videos):
        at = np.linspace(0, len(video) - 1, moments).round().astype(int) if isinstance(moments, int) else moments
        tiles = [np.repeat(np.repeat(video[m], zoom, 0), zoom, 1) for m in at]
        row = np.concatenate([np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for tile in tiles], 1)
        rows.append(np.concatenate([_label(labels[number], row.shape[1]), row]) if labels else row)
    if heads:
        widths = [part.shape[0] for part in np.array_split(rows[0][0], len(heads))]
        rows.insert(0, np.concatenate([_label(*head) for head in zip(heads, widths, strict=True)], 1))
    return np.concatenate(rows)


def packed(video: np.ndarray, moments: int) -> str:
    """`moments` frames spread over uint8 [F, H, W, 3], as text: a PNG in base64. Needs Pillow."""
    from PIL import Image

    tiles = video[np.linspace(0, len(video) - 1, moments).round().astype(int)]
    file = io.BytesIO()
    Image.fromarray(tiles.reshape(-1, *tiles.shape[2:])).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def unpacked(text: str, moments: int) -> np.ndarray:
    """The frames that `packed` made text of: uint8 [moments, H, W, 3]."""
    from PIL import Image

    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    return strip.reshape(moments, -1, *strip.shape[1:])


def _label(text: str, width: int) -> np.ndarray:
    strip = np.full((LABEL_HEIGHT, width, 3), 255, np.uint8)
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        return strip
    image = Image.fromarray(strip)
    ImageDraw.Draw(image).text((2, 1), text, fill=(0, 0, 0))
    return np.asarray(image)
