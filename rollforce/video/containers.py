"""Video files as people have them: read by FFmpeg, by time, shown as players show them.

Turned as the container says, with square pixels, over black where transparent, HDR for a common screen; what cannot be
decoded is left out, and said."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from rollforce.errors import ConfigError
from rollforce.video.clips import Timed, say
from rollforce.video.colour import TRANSFERS, map_picture
from rollforce.video.stills import over_black

log = logging.getLogger(__name__)

ERRORS = (av.error.FFmpegError, OSError, ValueError, IndexError)
_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave transparency out
_MATRICES = (1, 4, 7, 9)  # BT.709, FCC, SMPTE 240M, BT.2020, as H.273 and swscale number them
_UNREADABLE = {14: "ICtCp", 15: "Dolby Vision's IPT"}  # colour spaces, as H.273 and FFmpeg number them
_GAP_S = 600.0  # times that jump by more, or back, are a cut, not a picture that stands so long
_QUARTERS = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))  # display matrices, turned clockwise
_WIDEST = 8  # pixels wider or higher than that many times are a mistake of the file


def read_container(path: Path, name: str) -> Iterator[Timed]:
    """Yield the pictures of a video file, upright, as they come. ConfigError if none can be read."""
    try:
        container = open_container(path)
    except ERRORS as error:
        raise ConfigError(f"{name}={path} cannot be read as a video.") from error
    with container:
        streams = [stream for stream in container.streams.video if stream.codec_context is not None]
        if not streams:
            raise ConfigError(f"{name}={path} cannot be read as a video: there are no pictures in it.")
        stream, damage, seen = streams[0], list[str](), 0
        view, clock = None, _Clock(stream)
        for frame in _decode(container, stream, damage):
            view = view or _View.of(frame, stream, path, name)
            time = clock.read(frame)
            if not seen:
                say(path, *view.words(), *clock.words())
            seen += 1
            yield Timed(time, clock.step, partial(view.draw, frame))
        if not seen:
            raise ConfigError(f"{name}={path} cannot be read as a video: none of its pictures can be decoded.")
        _warn_of_damage(path, len(damage), clock.now + clock.step, container)


def open_container(path: Path) -> Any:
    """Return a video file, opened by FFmpeg; of an .mp4 that was cut within the head of a fragment, which FFmpeg
    refuses as a whole, what comes before that. Raises what PyAV raises."""
    try:
        return av.open(str(path))
    except (av.error.InvalidDataError, av.error.EOFError):
        end = _end_of_boxes(path)
        if not 0 < end < path.stat().st_size:
            raise
        return av.open(_Head(path, end))


class _Head(io.FileIO):
    """A file as if it ended earlier."""

    def __init__(self, path: Path, end: int) -> None:
        super().__init__(path)
        self._end = end

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        rest = max(0, self._end - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest)) or b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(*((self._end + offset, 0) if whence == 2 else (offset, whence)))


def _end_of_boxes(path: Path) -> int:
    """Return where the last whole box of an .mp4 ends; 0 if it is none."""
    size, end = path.stat().st_size, 0
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8 and (length := int.from_bytes(head[:4])) >= 8 and head[4:].isalnum():
            if end + length > size:
                break
            end += length
            file.seek(end)
    return end


def container_seconds(path: Path) -> float | None:
    """Return how long a video file is: as it says, else by its packets; None if it is none."""
    with suppress(*ERRORS), open_container(path) as container:
        if container.duration:
            return container.duration / av.time_base
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        times = [float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None]
        step = 1 / float(_rate(stream))
        return (max(times) - min(times) + step) if times else len(packets) * step or None
    return None


def _rate(stream: Any) -> Fraction:
    """Return the frames per second of a video, by what it says or FFmpeg guesses."""
    return stream.average_rate or getattr(stream, "guessed_rate", None) or stream.base_rate or Fraction(25)


class _Clock:
    """Times of pictures from the first on, in seconds: their own, else one `step` behind the one before."""

    def __init__(self, stream: Any) -> None:
        self.rate = _rate(stream)
        self.step = 1 / float(self.rate)
        self.now, self.blind = -self.step, False
        self.offset: float | None = None

    def read(self, frame: Any) -> float:
        stamp = frame.dts if frame.pts is None else frame.pts
        ahead = self.now + self.step
        if stamp is None or frame.time_base is None:
            self.blind, self.now = True, ahead
            return ahead
        time = float(stamp * frame.time_base)
        offset = ahead - time if self.offset is None else self.offset
        if not self.now <= time + offset <= self.now + _GAP_S:
            offset = ahead - time
        self.now, self.offset = time + offset, offset
        return self.now

    def words(self) -> list[str]:
        return [f"no time stamps, so taken for {float(self.rate):g} fps"] if self.blind else []


@dataclass(frozen=True)
class _View:
    """How the pictures of a video are to be shown: size in square pixels (width, height) before they are turned."""

    stored: tuple[int, int]
    size: tuple[int, int]
    matrix: tuple[int, int, int, int]
    alpha: bool
    transfer: int
    reformatter: VideoReformatter

    @classmethod
    def of(cls, frame: Any, stream: Any, path: Path, name: str) -> _View:
        if space := _UNREADABLE.get(int(frame.colorspace)):
            raise ConfigError(f"{name}={path} has colours in {space}, which cannot be shown here: export it as SDR, "
                              "HDR10 or HLG.")  # fmt: skip
        alpha = any(part.is_alpha for part in frame.format.components)
        transfer = int(getattr(frame, "color_trc", None) or stream.codec_context.color_trc or 0)
        return cls((frame.width, frame.height), _square(frame, stream), _matrix(frame), alpha, transfer,
                   VideoReformatter())  # fmt: skip

    def draw(self, frame: Any) -> np.ndarray:
        """Return a picture as it is to be seen, uint8 [H, W, 3]."""
        pixels = to_rgb(frame, self.size, "rgba" if self.alpha else "rgb24", self.reformatter)
        picture_HWC = over_black(pixels)[0] if self.alpha else pixels
        if curve := TRANSFERS.get(self.transfer):
            picture_HWC = map_picture(picture_HWC, curve)
        return np.ascontiguousarray(_turn(picture_HWC, self.matrix))

    def words(self) -> list[str]:
        """Return what is done to the pictures."""
        turned = ["turned upright"] if self.matrix != (1, 0, 0, 1) else []
        square = [f"pixels made square: {'x'.join(map(str, self.size))}"] if self.size != self.stored else []
        over = ["transparent parts over black"] if self.alpha else []
        curve = TRANSFERS.get(self.transfer)
        return [*turned, *square, *over, *([f"HDR ({curve}) brought to SDR"] if curve else [])]


def to_rgb(frame: Any, size: tuple[int, int], pixels: str, reformatter: VideoReformatter) -> np.ndarray:
    """Return a frame as RGB of `size` (width, height), by the matrix that it says, else BT.601; `pixels` is rgb24 or
    rgba."""
    source = int(frame.colorspace) if int(frame.colorspace) in _MATRICES else Colorspace.ITU601
    other = Colorspace.ITU601 if source == Colorspace.ITU709 else Colorspace.ITU709
    # RGB has no matrix, but PyAV 14.1 looks at that of the source only where the two differ
    return reformatter.reformat(frame, *size, pixels, src_colorspace=source, dst_colorspace=other,
                                src_color_range=frame.color_range).to_ndarray()  # fmt: skip


def _decode(container: Any, stream: Any, damage: list[str]) -> Iterator[Any]:
    """Yield the frames that can be decoded; `damage` gets what goes wrong."""
    own, packets = _alpha_decoder(stream), container.demux(stream)
    while True:
        try:
            if (packet := next(packets, None)) is None:
                return
            frames = (own or stream).decode(packet if packet.size or own is None else None)
        except ERRORS as error:
            damage.append(str(error))
            continue
        yield from frames


def _alpha_decoder(stream: Any) -> Any:
    """Return a decoder that knows of transparency where FFmpeg's own does not, else None."""
    name = _ALPHA.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    return av.CodecContext.create(name, "r")


def _square(frame: Any, stream: Any) -> tuple[int, int]:
    """Return width and height in square pixels, never fewer than there are."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
    if not 1 / _WIDEST <= aspect <= _WIDEST:
        aspect = 1
    return round(frame.width * max(aspect, 1)), round(frame.height / min(aspect, 1))


def _matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return signs of the display matrix [[a, b], [c, d]], to the nearest quarter turn: the picture's x goes by (a, b)
    and its y by (c, d), right and down."""
    try:
        side = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 knows not all kinds of side data (EXIF), and then gives none; this is without mirrors
        return _QUARTERS[round(frame.rotation / -90) % 4]
    if side is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(side), "<i4")[[0, 1, 3, 4]].astype(np.float64)
    lying = abs(values[0]) < abs(values[1])
    a, b, c, d = (int(sign) for sign in np.sign(values * ([0, 1, 1, 0] if lying else [1, 0, 0, 1])))
    return (a, b, c, d) if (b and c if lying else a and d) else (1, 0, 0, 1)


def _turn(picture_HWC: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    a, b, c, d = matrix
    if b:
        picture_HWC = picture_HWC.transpose(1, 0, 2)
    return picture_HWC[:: b or d, :: c or a]


def _warn_of_damage(path: Path, damaged: int, seconds: float, container: Any) -> None:
    """Say what of a file was left out, or is not there."""
    said = (container.duration or 0) / av.time_base
    if damaged:
        log.warning("%s is damaged: %d of its parts cannot be decoded and are left out", path, damaged)
    elif said > seconds + 1:
        log.warning("%s is cut off: it has %.1f of the %.1f seconds that it says", path, seconds, said)
