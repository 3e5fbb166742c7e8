"""Videos with captions become a latent folder: cut into clips of equal length, encoded once, with their text vectors.

Every clip is a file of its own, written whole, under a name made of its video's name, size and caption; a journal tells
which videos are done. So a process that was killed goes on, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from rollforce.checkpoints.outputs import hold, write_whole
from rollforce.errors import ConfigError, RollforceError
from rollforce.models.autoencoder.interface import PATCH, Autoencoder
from rollforce.models.text.encoder import Text
from rollforce.training.data import digest, write_clip
from rollforce.video.images import Fit, fit_picture, read_clip
from rollforce.video.size import check_size

JOURNAL = "videos.jsonl"  # the settings, then a line for each video


@dataclass(frozen=True)
class CaptionedVideo:
    """One video: its name within its folder, its file, and its caption ("" if there is none)."""

    name: str
    path: Path
    caption: str

    @property
    def key(self) -> str:
        """A short name that another caption, or another file under this name, would not have."""
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        size = sum(file.stat().st_size for file in files if file.is_file())
        return digest([f"{self.name}\0{size}\0{self.caption}".encode(errors="surrogateescape")])


@dataclass(frozen=True)
class EncodeSettings:
    """Clips of `latents` latents at `fps` frames per second. A video is scaled to the one of `sizes`, (height, width)
    in pixels, that is nearest to its own shape, and cropped, padded or stretched to it, as `fit` says."""

    fps: float
    sizes: tuple[tuple[int, int], ...]
    latents: int = 21
    fit: Fit = "crop"


@dataclass(frozen=True)
class EncodedVideo:
    """What became of a video: how many clips of what size (height, width), or why it was skipped. `trouble` is what
    ended its reading early, `left_s` the seconds at its end that fill no clip."""

    key: str
    name: str
    clips: int = 0
    size: tuple[int, ...] = ()
    skipped: str = ""
    trouble: str = ""
    left_s: float = 0.0
    digest: str = ""


class FolderEncoder:
    """Encodes videos into a latent folder, and keeps what an earlier run with the same settings has made there.

    `model` names the weights. ConfigError for settings that cannot be, or if the folder was begun with others or holds
    something else; ShapeError for sizes that the autoencoder cannot have."""

    def __init__(self, videos: Sequence[CaptionedVideo], folder: Path, autoencoder: Autoencoder, text: Text,
                 settings: EncodeSettings, model: str = "") -> None:  # fmt: skip
        self.folder, self.autoencoder, self.text, self.settings = folder, autoencoder, text, settings
        if settings.latents < 1 or not 0 < settings.fps < 1000:
            raise ConfigError(f"latents {settings.latents}, fps {settings.fps:g}: both must be above 0.")
        for size in settings.sizes:
            check_size(size, autoencoder.stride * PATCH, f" (autoencoder stride {autoencoder.stride} x patch {PATCH})")
        self.frames = autoencoder.first_frames + (settings.latents - 1) * autoencoder.frames  # of a clip
        self._head = json.loads(json.dumps({**asdict(settings), "model": model}))
        self.videos = {video.key: video for video in videos}
        self._look()

    def _look(self) -> None:
        """Find what is done, and what is to do."""
        names = {video.name for video in self.videos.values() if video.path.exists()}  # others' clips stay
        finished = (self.folder / "data.json").is_file()  # then what was skipped is tried again
        self.done = {key: done for key, done in _read_journal(self.folder, self._head).items()
                     if (key in self.videos or done.name not in names) and (done.clips or not finished)}
        self.todo = [video for key, video in self.videos.items() if key not in self.done]

    def run(self) -> Iterator[EncodedVideo]:
        """Encode what is not done yet; yield how far a video is after each of its clips. A bad one never stops it.

        ConfigError if nothing could be encoded or another process encodes into this folder, OSError if it cannot be
        written: run it again once it can."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold(self.folder / JOURNAL):
            self._look()  # another process may have been here
            yield from self._run()

    def _run(self) -> Iterator[EncodedVideo]:
        self._write_journal()
        for video in self.todo:
            (self.folder / "data.json").unlink(missing_ok=True)
            state = yield from self._encode_video(video)
            self.done[state.key] = state
            with (self.folder / JOURNAL).open("a") as file:
                file.write(json.dumps(asdict(state)) + "\n")
            yield state
        self._write_index()

    def _encode_video(self, video: CaptionedVideo) -> Generator[EncodedVideo, None, EncodedVideo]:
        """Cut one video into clips and write those that are not there; yield its state after each, return the last."""
        state, trouble, digests = EncodedVideo(video.key, video.name), list[str](), list[bytes]()
        if not video.caption:
            return replace(state, skipped="no caption")
        try:
            text = self._encode_text(video.caption)
        except ConfigError as error:
            return replace(state, skipped="caption not understood", trouble=str(error).partition("\n")[0])
        rest = self._read_frames(video.path, trouble)
        while len(frames := list(islice(rest, self.frames))) == self.frames:
            path = self.folder / _clip_name(state.key, state.clips)
            if not path.is_file():
                latents = self._encode_frames(frames)
                if not bool(latents.isfinite().all()):
                    trouble.append("its latents are not finite in this dtype: encode it in float32")
                    break
                write_clip(path, latents, text, video.caption)
            digests.append(hashlib.sha256(path.read_bytes()).digest())
            yield (state := replace(state, clips=state.clips + 1, size=frames[0].shape[:2], digest=digest(digests)))
        skipped = "" if state.clips else "unreadable" if trouble else "too short"
        return replace(state, skipped=skipped, trouble="".join(trouble), left_s=len(frames) / self.settings.fps)

    @torch.no_grad()
    def _encode_text(self, caption: str) -> Tensor:
        """Return text vectors [L, D] without the zeros at their end, in bfloat16 where that holds them exactly."""
        text = self.text.encode([caption])[0].float().cpu()
        text = text[: 1 + int(text.any(dim=1).nonzero().max())] if text.any() else text[:1]
        short = text.bfloat16()
        return short if torch.equal(short.float(), text) else text

    def _read_frames(self, path: Path, trouble: list[str]) -> Iterator[np.ndarray]:
        """Yield the frames of a video at the size nearest to its shape; what ends it early is told in `trouble`."""
        size: tuple[int, int] | None = None
        try:
            for picture in read_clip(path, self.settings.fps, "file"):
                shape = picture.shape[0] / picture.shape[1]
                size = size or min(self.settings.sizes, key=lambda size: abs(math.log(size[0] / size[1] / shape)))
                yield fit_picture(picture, size, self.settings.fit)
        except (RollforceError, av.error.FFmpegError, OSError, ValueError, TypeError, ArithmeticError) as error:
            trouble.append(str(error).partition("\n")[0].replace(f"file={path} ", "").rstrip("."))

    @torch.no_grad()
    def _encode_frames(self, frames: list[np.ndarray]) -> Tensor:
        """Return the latents of one clip, float16 [T, C, h, w], made one by one."""
        encoder = self.autoencoder.encoder()
        cuts = [0, *range(self.autoencoder.first_frames, self.frames + 1, self.autoencoder.frames)]
        parts = [encoder.encode(np.stack(frames[start:stop])) for start, stop in pairwise(cuts)]
        return torch.cat(parts, dim=1)[0].half().cpu()

    def _write_index(self) -> None:
        """Write the whole journal and data.json of all clips, and remove files that are none of them."""
        self._write_journal()
        done, stride = [self.done[key] for key in sorted(self.done) if self.done[key].clips], self.autoencoder.stride
        if not done:
            raise ConfigError("no video could be encoded: each was skipped for its own reason.")
        names = {_clip_name(video.key, number) for video in done for number in range(video.clips)}
        for path in [*self.folder.glob("clip-*"), *self.folder.glob("*.part")]:
            if path.name not in names:
                path.unlink(missing_ok=True)
        sizes = Counter((self.autoencoder.channels, *(side // stride for side in video.size))
                        for video in done for _ in range(video.clips))  # fmt: skip
        index = {"fingerprint": digest(video.digest.encode() for video in done), "clips": len(names),
                 "latent": sizes.most_common(1)[0][0], "sizes": sorted(sizes),
                 "text_length": len(self.text.encode([""])[0])}  # fmt: skip
        write_whole(self.folder / "data.json", json.dumps(index).encode())

    def _write_journal(self) -> None:
        lines = [self._head, *(asdict(self.done[key]) for key in sorted(self.done))]
        write_whole(self.folder / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _clip_name(key: str, number: int) -> str:
    return f"clip-{key}-{number:05d}.safetensors"


def _holds_files(folder: Path) -> bool:
    return any(path.suffix != ".lock" for path in folder.iterdir())


def _read_journal(folder: Path, settings: Mapping[str, Any]) -> dict[str, EncodedVideo]:
    """Return what was done, by key. A last line that was cut off in writing is left out."""
    path, lines = folder / JOURNAL, list[dict[str, Any]]()
    if not path.is_file() and folder.exists() and not (folder.is_dir() and not _holds_files(folder)):
        raise ConfigError(f"{folder} is a file or holds other files: choose another folder for the clips.")
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    before = lines[0] if lines else settings
    if other := [f"{name} {before.get(name)}, now {new}" for name, new in settings.items() if before.get(name) != new]:
        raise ConfigError(f"{folder} was begun with {'; '.join(other)}: give the same, or choose another folder.")
    return {line["key"]: EncodedVideo(**{**line, "size": tuple(line["size"])}) for line in lines[1:]}
