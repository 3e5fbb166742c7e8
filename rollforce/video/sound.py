"""The sound of a clip, carried over into a video that shows its pictures at the same times: as AAC."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np

from rollforce.video.containers import ERRORS

log = logging.getLogger(__name__)

_RATE, _BLOCK = 48_000, 1024  # samples a second, and in a packet


def has_sound(path: Path) -> bool:
    """Return whether a file holds sound that can be decoded."""
    with suppress(*ERRORS), av.open(str(path)) as container:
        return bool(container.streams.audio) and container.streams.audio[0].codec_context is not None
    return False


def find_sound(clip: str | None, into: Path, start: float, seconds: float, unfit: str = "") -> SoundTrack | None:
    """Return the sound of a clip for a video that is written to `into`, or None if there is none to carry over, or it
    is `unfit` for the words given. What is done is logged."""
    if clip is None or not has_sound(Path(clip)):
        return None
    if into.suffix.lower() not in (".mp4", "") or into.is_dir() or "aac" not in av.codecs_available:
        log.info("%s: its sound is left out, which is carried over into .mp4 only", Path(clip).name)
        return None
    if unfit:
        log.info("%s: its sound is left out, which %s", Path(clip).name, unfit)
        return None
    log.info("%s: its sound is carried over", Path(clip).name)
    return SoundTrack(Path(clip), start, seconds)


class SoundTrack:
    """The sound of a clip from `start` seconds behind its first picture on, for `seconds`, read as it is needed."""

    def __init__(self, path: Path, start: float = 0.0, seconds: float = float("inf")) -> None:
        self.path, self.start, self.seconds = path, start, seconds
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None

    def behind(self, seconds: float) -> SoundTrack | None:
        """Return what comes after its first `seconds`, to be read anew, or None if that is nothing."""
        left = self.seconds - seconds
        return SoundTrack(self.path, self.start + seconds, left) if left > 0 else None

    def add_to(self, container: Any) -> None:
        """Add a stream for it to a container that is being written."""
        with av.open(str(self.path)) as clip:
            layout = "mono" if clip.streams.audio[0].codec_context.channels == 1 else "stereo"
        stream = container.add_stream("aac", rate=_RATE, layout=layout)
        self._packets = self._encode(stream, layout)
        self._next = next(self._packets, None)

    def read(self, until: float) -> Iterator[Any]:
        """Yield the packets that begin before `until` seconds and were not yet read."""
        while self._next is not None and float(self._next.pts * self._next.time_base) < until:
            packet, self._next = self._next, next(self._packets, None)
            yield packet

    def _encode(self, stream: Any, layout: str) -> Iterator[Any]:
        """Yield coded packets from 0 s on: the first of the coder holds only what it needs to begin."""
        for number, samples in enumerate(self._blocks(layout)):
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = _RATE, number * _BLOCK
            yield from (packet for packet in stream.encode(frame) if packet.pts >= 0)
        yield from (packet for packet in stream.encode(None) if packet.pts >= 0)

    def _blocks(self, layout: str) -> Iterator[np.ndarray]:
        """Yield float32 [channels, 1024] without a gap, the last one filled up with silence."""
        held = np.empty((1 if layout == "mono" else 2, 0), np.float32)
        for samples in self._samples(layout):
            held = np.concatenate([held, samples], axis=1)
            while held.shape[1] >= _BLOCK:
                yield np.ascontiguousarray(held[:, :_BLOCK])
                held = held[:, _BLOCK:]
        if held.shape[1]:
            yield np.pad(held, ((0, 0), (0, _BLOCK - held.shape[1])))

    def _samples(self, layout: str) -> Iterator[np.ndarray]:
        """Yield float32 [channels, n] from `start` on: gaps are silent, what overlaps is left out."""
        at, end = 0, self.seconds * _RATE
        for time, samples in self._decode(layout):
            place = round(time * _RATE)
            samples = samples[:, max(0, at - place) :]
            silence = min(max(0, place - at), int(min(end, 1e9)) - at)
            if silence and at < end:
                yield np.zeros((len(samples), silence), np.float32)
                at += silence
            samples = samples[:, : int(min(end - at, 1e9))]
            at += samples.shape[1]
            yield samples
            if at >= end:
                return

    def _decode(self, layout: str) -> Iterator[tuple[float, np.ndarray]]:
        """Yield seconds behind `start` and float32 [channels, n] of what can be decoded."""
        with av.open(str(self.path)) as clip:
            stream, first = clip.streams.audio[0], _first_picture(clip)
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=_RATE)
            time = 0.0
            try:
                for frame in clip.decode(stream):
                    time = time if frame.time is None else frame.time - first - self.start
                    for part in resampler.resample(frame):
                        samples = part.to_ndarray()
                        yield time, samples
                        time += samples.shape[1] / _RATE
            except ERRORS as error:
                log.warning("the sound of %s ends at %.1f s, where it is damaged: %s", self.path, time, error)


def _first_picture(clip: Any) -> float:
    """Return when the first picture of a clip is shown, in its own time."""
    video = clip.streams.video[0]
    return float(video.start_time * video.time_base) if video.start_time is not None else 0.0
