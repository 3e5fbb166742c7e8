"""Contact sheets: rows of videos, columns of moments."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from einops import rearrange, repeat

GAP = 2
LABEL_HEIGHT = 14


def contact_sheet(videos: Sequence[np.ndarray], moments: Sequence[int] | int = 8, labels: Sequence[str] = (),
                  zoom: int = 1, heads: Sequence[str] = ()) -> np.ndarray:
    """Return one picture of `videos` (each uint8 [F, H, W, 3], equal H and W): a row each, a column per moment.
    `moments`: frame numbers, or how many, spread over each video. `labels` are written above the rows, `heads` over the
    columns. `zoom` repeats pixels. The result is uint8 [rows, columns, 3]."""
    rows = []
    for number, video in enumerate(videos):
        at = np.linspace(0, len(video) - 1, moments).round().astype(int) if isinstance(moments, int) else moments
        tiles = repeat(video[np.asarray(at)], "f h w rgb -> f (h y) (w x) rgb", y=zoom, x=zoom)
        row = np.concatenate([np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for tile in tiles], 1)
        rows.append(np.concatenate([_label(labels[number], row.shape[1]), row]) if labels else row)
    if heads:
        widths = [part.shape[0] for part in np.array_split(rows[0][0], len(heads))]
        rows.insert(0, np.concatenate([_label(*head) for head in zip(heads, widths, strict=True)], 1))
    return np.concatenate(rows)


def pack_frames(video: np.ndarray, moments: int) -> str:
    """Return `moments` frames spread over uint8 [F, H, W, 3] as text: a PNG in base64."""
    import imageio.v3 as iio

    tiles = video[np.linspace(0, len(video) - 1, moments).round().astype(int)]
    strip = rearrange(tiles, "frames height width rgb -> (frames height) width rgb")
    return base64.b64encode(iio.imwrite("<bytes>", strip, extension=".png")).decode()


def unpack_frames(text: str, moments: int) -> np.ndarray:
    """Return the frames that `pack_frames` made text of: uint8 [moments, H, W, 3]."""
    import imageio.v3 as iio

    return rearrange(iio.imread(base64.b64decode(text)), "(frames height) width rgb -> frames height width rgb",
                     frames=moments)  # fmt: skip


def _label(text: str, width: int) -> np.ndarray:
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, LABEL_HEIGHT), "white")
    ImageDraw.Draw(strip).text((2, 1), text, fill="black")
    return np.asarray(strip)
