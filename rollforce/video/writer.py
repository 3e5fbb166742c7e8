"""Video files that can be watched while they grow: fragmented MP4, written chunk by chunk.

    with VideoWriter(Path("ball.mp4"), fps=12, size=(64, 64), scale=4) as video:
        for chunk in session.stream(seconds=20):
            video.write(chunk.frames)

A process that is killed leaves a playable file, which another may go on with. The same frames and settings give the
same bytes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from rollforce.errors import ConfigError, ShapeError
from rollforce.video.values import SIDE, check_count

log = logging.getLogger(__name__)

# empty_moov: the header comes first and needs no later repair. frag_keyframe: what is written is complete by itself.
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
_BT709 = 1  # the number of ITU-R BT.709 in H.264's colour fields


@dataclass(frozen=True)
class VideoCodec:
    """How pictures become bytes. `quality` is H.264's CRF: 0 is lossless, 16 looks so, 28 is small."""

    name: Literal["libx264", "mpeg4"] = "libx264"
    quality: int = 16
    preset: str = "veryfast"
    keyframe_s: float = 0.5
    enlarge: Literal["smooth", "pixels"] = "smooth"

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 51:
            raise ConfigError(f"quality {self.quality} is outside 0..51 (0 lossless, 16 looks so, 28 small).")
        if self.keyframe_s <= 0:
            raise ConfigError(f"keyframe_s must be above 0 seconds, got {self.keyframe_s}.")


def available(codec: VideoCodec) -> VideoCodec:
    """Return `codec`, or its nearest relative that this FFmpeg can write (with a logged warning)."""
    if codec.name in av.codecs_available:
        return codec
    log.warning("this FFmpeg has no %s: writing mpeg4, which is larger and plays in fewer browsers", codec.name)
    return replace(codec, name="mpeg4")


def default_scale(size: tuple[int, int], shorter: int = 256) -> int:
    """Return the whole number by which a small picture's shorter side becomes at least `shorter` pixels."""
    return max(1, -(-shorter // min(size)))


def check_output(path: Path, overwrite: bool = False) -> None:
    """Raise ConfigError if a video cannot be written to `path`; cheap, so that it is asked before a model is loaded."""
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"{path}: only .mp4 can be written. Try {path.with_suffix('.mp4')}.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it, such as {path / 'video.mp4'}.")
    check_folder(path.parent)
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; use --overwrite to replace it, or -o for another name.")


def check_folder(folder: Path) -> None:
    """Raise ConfigError if no file can be made in `folder`: tried, because permissions alone do not tell."""
    if not folder.exists():
        raise ConfigError(f"the folder {folder} does not exist: mkdir -p {folder}")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}. Choose another place with -o.") from error


class VideoWriter:
    """One growing video file. `size` is (height, width) of the frames; the picture is `scale` times as large.

    `after`: go on behind that many frames of the video that is there, which are copied as they are; until they have
    all arrived in the new file it grows beside the old one, and then takes its place. Any number of frames is fine:
    no frame is coded by later ones, and what comes behind begins with a key frame.

    Raises ShapeError for sizes the codec cannot hold and for frames of another size, ConfigError if there are fewer
    than `after` frames, OSError when the disk is full."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], *, scale: int = 1,
                 codec: VideoCodec | None = None, after: int = 0) -> None:
        self.path, self.fps, self.size, self.scale = Path(path), fps, size, scale
        self.codec = available(codec or VideoCodec())
        self._rate = Fraction(fps).limit_denominator(1001)
        self.frames = self._safe = 0
        check_count(scale, "scale", most=SIDE // max(size), remedy=f"A video's sides have at most {SIDE} pixels.")
        height, width = (side * scale for side in size)
        if height % 2 or width % 2:
            raise ShapeError(f"{width}x{height}: H.264 needs even sides. Use an even scale, such as --scale 2.")
        self._place = self.path.with_suffix(".mp4.part") if after else self.path  # where it grows
        self._container: Any = av.open(str(self._place), "w", format="mp4", options=_FRAGMENTED)
        self._stream = self._add_stream()
        self._reformatter = VideoReformatter()  # kept: to set one up takes ten times longer than to use it
        if after:
            self._copy(after)

    @property
    def safe(self) -> int:
        """Frames that are in the file whatever happens to this process: those before the newest key frame."""
        return self._safe if self._place == self.path else 0

    @property
    def seconds(self) -> float:
        """Length of what was written."""
        return self.frames / self.fps

    def write(self, frames_FHWC: np.ndarray) -> None:
        """Append uint8 frames [F, H, W, 3]; when this returns they are in the file (a key frame's worth may lag)."""
        if frames_FHWC.dtype != np.uint8 or frames_FHWC.shape[1:] != (*self.size, 3):
            raise ShapeError(f"frames must be uint8 [F, {self.size[0]}, {self.size[1]}, 3], "
                             f"got {frames_FHWC.dtype} {list(frames_FHWC.shape)}.")
        for frame_HWC in frames_FHWC:
            for packet in self._stream.encode(self._picture(frame_HWC)):
                self._container.mux(packet)
                if packet.is_keyframe:  # which ends the fragment before it
                    self._safe = self.frames
            self.frames += 1
        if self._place != self.path and self._safe:
            self._move()

    def close(self) -> None:
        """Finish the file; a second call does nothing."""
        if self._container is None:
            return
        container, self._container = self._container, None
        with closing(container):
            container.mux(self._stream.encode())
            self._safe = self.frames
        if self._place != self.path:
            self._move()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _add_stream(self) -> Any:
        stream = self._container.add_stream(self.codec.name, rate=self._rate)
        stream.height, stream.width = (side * self.scale for side in self.size)
        stream.pix_fmt, context = "yuv420p", stream.codec_context
        context.thread_count = 1  # one thread: the same bytes on every machine, and the model keeps the other cores
        context.gop_size = max(1, round(float(self.fps) * self.codec.keyframe_s))
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if self.codec.name == "libx264":
            stream.options = {"crf": str(self.codec.quality), "preset": self.codec.preset, "tune": "zerolatency"}
        else:
            stream.options = dict.fromkeys(("qmin", "qmax"), str(max(1, self.codec.quality // 6)))
        return stream

    def _picture(self, frame_HWC: np.ndarray) -> Any:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        smooth = Interpolation.LANCZOS if self.codec.enlarge == "smooth" else Interpolation.POINT
        picture = self._reformatter.reformat(frame, width=self._stream.width, height=self._stream.height,
                                             format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=smooth)
        picture.pts, picture.time_base = self.frames, 1 / self._rate
        return picture

    def _copy(self, count: int) -> None:
        """The first `count` frames of the old file, as they were coded."""
        self._container.start_encoding()
        with av.open(str(self.path)) as old:
            source = old.streams.video[0]
            # MP4 has the length of a unit before it, encoders a start code, and the muxer takes what the encoder says
            whole = BitStreamFilterContext("h264_mp4toannexb" if self.codec.name == "libx264" else "null", source)
            for packet in whole_packets(old, source, count):
                for part in whole.filter(packet):
                    part.stream = self._stream
                    self._container.mux(part)
                self.frames += 1
        if self.frames < count:
            self._container.close()
            self._place.unlink()
            raise ConfigError(f"{self.path} has {self.frames} frames, and {count} are needed to go on behind them: "
                              "it is not the file that was being made.")  # fmt: skip

    def _move(self) -> None:
        """Take the old file's place."""
        try:
            os.replace(self._place, self.path)
        except PermissionError:  # Windows moves no open file: at the end, then
            if self._container is None:
                raise
        else:
            self._place = self.path


def whole_packets(container: Any, stream: Any, count: int) -> Iterator[Any]:
    """Yield the first `count` coded pictures of a video; fewer if it was cut short."""
    with suppress(av.error.InvalidDataError):
        for packet in islice(container.demux(stream), count):
            if packet.size == 0 or packet.is_corrupt:  # an empty one says that it is over
                return
            yield packet
