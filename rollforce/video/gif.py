"""GIF files, written picture by picture: each with the 256 colours that suit it best."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np

from rollforce.errors import ConfigError
from rollforce.video.writer import Enlarger, VideoCodec, check_frames

FASTEST = 50  # pictures a second: browsers show what says it is faster at 10


def check_rate(path: Path, fps: float) -> None:
    """Raise ConfigError if this is a GIF, and GIFs cannot show so many frames a second."""
    if path.suffix.lower() == ".gif" and fps > FASTEST:
        raise ConfigError(f"{path}: a GIF shows at most {FASTEST} pictures a second, not {fps:g}. Take .mp4 or .webm.")


class GifWriter:
    """One growing GIF that repeats for ever; see VideoWriter. Times are whole hundredths of a second, so that of 12
    pictures a second each stands for 8 or 9. It cannot be gone on with. ConfigError above 50 frames a second."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], *, scale: int = 1,
                 codec: VideoCodec | None = None) -> None:  # fmt: skip
        self.path, self.fps, self.size, self.scale, self.frames = Path(path), fps, size, scale, 0
        check_rate(self.path, fps)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._enlarge = Enlarger(size, scale, (codec or VideoCodec()).enlarge, "rgb24")
        self._source, self._sink = self._build_graph()
        self._container: Any = av.open(str(path), "w", format="gif", options={"flush_packets": "1"})
        self._stream = self._container.add_stream("gif", rate=self._rate)
        self._stream.height, self._stream.width = self._enlarge.height, self._enlarge.width
        self._stream.pix_fmt = "pal8"

    @property
    def safe(self) -> int:
        """Frames that are in the file whatever happens: the muxer holds back one, whose length is not known yet."""
        return self.frames if self._container is None else max(0, self.frames - 1)

    @property
    def seconds(self) -> float:
        """Length of what was written."""
        return self.frames / self.fps

    def write(self, frames_FHWC: np.ndarray) -> None:
        """Append uint8 frames [F, H, W, 3]."""
        check_frames(frames_FHWC, self.size)
        for frame_HWC in frames_FHWC:
            picture = self._enlarge(frame_HWC)
            picture.pts, picture.time_base = self.frames, 1 / self._rate
            self._source.push(picture)
            self._container.mux(self._stream.encode(self._sink.pull()))
            self.frames += 1

    def close(self) -> None:
        """Finish the file; a second call does nothing."""
        if self._container is not None:
            container, self._container = self._container, None
            with closing(container):
                container.mux(self._stream.encode())

    def _build_graph(self) -> tuple[Any, Any]:
        """Return both ends of what reduces a picture to its own palette, with a pattern that does not crawl."""
        graph = av.filter.Graph()
        source = graph.add_buffer(width=self._enlarge.width, height=self._enlarge.height, format="rgb24",
                                  time_base=1 / self._rate)  # fmt: skip
        split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        use, sink = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        self._graph = graph
        return source, sink

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
