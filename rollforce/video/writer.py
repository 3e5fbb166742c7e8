"""Video files that can be watched while they grow: fragmented MP4, or WebM in clusters, written chunk by chunk.

    with VideoWriter(Path("ball.mp4"), fps=12, size=(64, 64), scale=4) as video:
        for chunk in session.stream(seconds=20):
            video.write(chunk.frames)

A process that is killed leaves a playable file, which another may go on with. The same frames and settings give the
same bytes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from rollforce.errors import ConfigError, ShapeError
from rollforce.video.containers import open_container
from rollforce.video.sound import SoundTrack
from rollforce.video.values import SIDE, check_count

log = logging.getLogger(__name__)

# empty_moov: the header comes first and needs no later repair. frag_keyframe: what is written is complete by itself.
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
_AT_ONCE = {"max_interleave_delta": "1"}  # microseconds: a picture does not wait for sound
_BT709 = 1  # the number of ITU-R BT.709 in H.264's colour fields


@dataclass(frozen=True)
class VideoCodec:
    """How pictures become bytes. `quality` is H.264's CRF: 0 is lossless, 16 looks so, 28 is small; VP9's, which goes
    to 63, is in proportion."""

    name: Literal["libx264", "mpeg4", "libvpx-vp9"] = "libx264"
    quality: int = 16
    preset: str = "veryfast"
    keyframe_s: float = 0.5
    enlarge: Literal["smooth", "pixels"] = "smooth"

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= 51:
            raise ConfigError(f"quality {self.quality} is outside 0..51 (0 lossless, 16 looks so, 28 small).")
        if self.keyframe_s <= 0:
            raise ConfigError(f"keyframe_s must be above 0 seconds, got {self.keyframe_s}.")


def available(codec: VideoCodec, path: Path = Path("video.mp4")) -> VideoCodec:
    """Return `codec`, or what the kind of file needs in its place, or its nearest relative that this FFmpeg can write
    (with a logged warning). ConfigError if there is none."""
    webm = path.suffix.lower() == ".webm"
    if webm and "libvpx-vp9" not in av.codecs_available:
        raise ConfigError(f"{path}: this FFmpeg cannot write VP9, which .webm needs. Take .mp4, or pip install -U av")
    if webm != (codec.name == "libvpx-vp9"):
        codec = replace(codec, name="libvpx-vp9" if webm else "libx264")
    if codec.name in av.codecs_available:
        return codec
    log.warning("this FFmpeg has no %s: writing mpeg4, which is larger and plays in fewer browsers", codec.name)
    return replace(codec, name="mpeg4")


def default_scale(size: tuple[int, int], shorter: int = 256) -> int:
    """Return the whole number by which a small picture's shorter side becomes at least `shorter` pixels."""
    return max(1, -(-shorter // min(size)))


def check_frames(frames_FHWC: np.ndarray, size: tuple[int, int]) -> None:
    """ShapeError unless these are frames, uint8 [F, H, W, 3], of `size` (height, width)."""
    if frames_FHWC.dtype != np.uint8 or frames_FHWC.shape[1:] != (*size, 3):
        raise ShapeError(f"frames must be uint8 [F, {size[0]}, {size[1]}, 3], "
                         f"got {frames_FHWC.dtype} {list(frames_FHWC.shape)}.")


class Enlarger:
    """Makes frames of `size` (height, width) `scale` times as large, in FFmpeg's hands. ConfigError for a bad scale."""

    def __init__(self, size: tuple[int, int], scale: int, enlarge: str, pixels: str = "yuv420p") -> None:
        check_count(scale, "scale", most=SIDE // max(size), remedy=f"A video's sides have at most {SIDE} pixels.")
        self.height, self.width = (side * scale for side in size)
        self._pixels = pixels
        self._how = Interpolation.LANCZOS if enlarge == "smooth" else Interpolation.POINT
        self._reformatter = VideoReformatter()  # kept: to set one up takes ten times longer than to use it

    def __call__(self, frame_HWC: np.ndarray) -> Any:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        colours = Colorspace.ITU709 if self._pixels == "yuv420p" else None
        return self._reformatter.reformat(frame, width=self.width, height=self.height, format=self._pixels,
                                          dst_colorspace=colours, interpolation=self._how)  # fmt: skip


class VideoWriter:
    """One growing video file, .mp4 or .webm. `size` is (height, width) of the frames; the picture is `scale` times as
    large.

    `after`: go on behind that many frames of the video that is there, which are copied as they are; until they have
    all arrived in the new file it grows beside the old one, and then takes its place. Any number of frames is fine:
    no frame is coded by later ones, and what comes behind begins with a key frame. `sound` is written along, into MP4.
    `file`: where the bytes go in place of `path`, such as a pipe.

    Raises ShapeError for sizes the codec cannot hold and for frames of another size, ConfigError if there are fewer
    than `after` frames, OSError when the disk is full."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int], *, scale: int = 1,
                 codec: VideoCodec | None = None, after: int = 0, sound: SoundTrack | None = None,
                 file: BinaryIO | None = None) -> None:  # fmt: skip
        self.path, self.fps, self.size, self.scale = Path(path), fps, size, scale
        if file is None and self.path.suffix.lower() not in (".mp4", ".webm"):
            raise ConfigError(f"{path}: a video that can be gone on with is .mp4 or .webm.")
        self.codec, self._sound = available(codec or VideoCodec(), self.path), sound
        self._rate = Fraction(fps).limit_denominator(1001)
        self._gop = max(1, round(float(fps) * self.codec.keyframe_s))
        self.frames = self._safe = self._key = 0
        self._after = after
        self._enlarge = Enlarger(size, scale, self.codec.enlarge)
        height, width = self._enlarge.height, self._enlarge.width
        if (height % 2 or width % 2) and self.codec.name != "libvpx-vp9":
            raise ShapeError(f"{width}x{height}: H.264 needs even sides. Use an even scale, such as --scale 2.")
        self._place = self.path.with_name(f"{self.path.name}.part") if after else self.path  # where it grows
        self._container: Any = self._open(file or str(self._place))
        self._stream = self._add_stream()
        if sound is not None:
            sound.add_to(self._container)
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
        check_frames(frames_FHWC, self.size)
        for frame_HWC in frames_FHWC:
            picture = self._enlarge(frame_HWC)
            picture.pts, picture.time_base = self.frames, 1 / self._rate
            for packet in self._stream.encode(picture):
                self._mux(packet)
            self.frames += 1
        if self._place != self.path and self._safe >= self._after:
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

    def _open(self, place: BinaryIO | str) -> Any:
        if self.codec.name != "libvpx-vp9":
            options = _FRAGMENTED | (_AT_ONCE if self._sound else {})
            return av.open(place, "w", format="mp4", options=options)
        whole_ms = int(1000 * self._gop / float(self._rate)) - 2  # then the next cluster begins: with the key frame
        options = {"cluster_time_limit": str(max(1, whole_ms)), "flush_packets": "1", "fflags": "+bitexact"}
        return av.open(place, "w", format="webm", options=options)

    def _add_stream(self) -> Any:
        stream = self._container.add_stream(self.codec.name, rate=self._rate)
        stream.height, stream.width = self._enlarge.height, self._enlarge.width
        stream.pix_fmt, context = "yuv420p", stream.codec_context
        context.thread_count = 1  # one thread: the same bytes on every machine, and the model keeps the other cores
        context.gop_size = self._gop
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        quality = self.codec.quality
        if self.codec.name == "libx264":  # no key frames at scene cuts: they would end fragments early
            stream.options = {"crf": str(quality), "preset": self.codec.preset, "tune": "zerolatency",
                              "sc_threshold": "0"}  # fmt: skip
        elif self.codec.name == "libvpx-vp9":
            context.bit_rate = 0
            stream.options = {"crf": str(quality * 63 // 51), "deadline": "realtime", "cpu-used": "8",
                              "lag-in-frames": "0", "keyint_min": str(self._gop)}  # fmt: skip
        else:
            stream.options = dict.fromkeys(("qmin", "qmax"), str(max(1, quality // 6)))
        return stream

    def _mux(self, packet: Any) -> None:
        """Write a coded picture, and the sound up to its end before it."""
        if self._sound is not None:
            for part in self._sound.read((self.frames + 1) / self.fps):
                self._container.mux(part)
        key = packet.is_keyframe
        self._container.mux(packet)
        if key:  # which ends the fragment before it; with sound, once it is itself written
            self._safe, self._key = self._key if self._sound else self.frames, self.frames

    def _copy(self, count: int) -> None:
        """The first `count` frames of the old file, as they were coded."""
        self._container.start_encoding()
        with open_container(self.path) as old:
            source = old.streams.video[0]
            # MP4 has the length of a unit before it, encoders a start code, and the muxer takes what the encoder says
            whole = BitStreamFilterContext("h264_mp4toannexb" if self.codec.name == "libx264" else "null", source)
            for packet in whole_packets(old, source, count):
                for part in whole.filter(packet):
                    part.stream = self._stream
                    self._mux(part)
                self.frames += 1
        self._safe = 0
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
