"""Where training data comes from: the tiny world, rendered as it is needed, or a folder of encoded clips.

What a draw returns is a pure function of (seed, step, part): a run that is stopped and resumed, or shared out among
processes, sees the same data. `fingerprint` names the data: a checkpoint goes on only with data of the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from rollforce.checkpoints.outputs import write_whole
from rollforce.config import resource
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.autoencoder.wan import WanAutoencoder
from rollforce.training.recipes import AnyData, Latents, World, check_positive
from rollforce.video.values import check_path
from rollforce.world.caption import caption
from rollforce.world.processes import Renderers
from rollforce.world.render import render
from rollforce.world.scenes import Scene, sample_scene

RENDERED_AHEAD = 2048  # clips that renderers make before they are opened
TEST_SEEDS = 10**9  # scenes from this seed on are kept for testing
SEARCHED = 4 * 10**9  # bytes of clips that are read through before the first step, where no index tells of them
_NOT_FINITE = "{} holds numbers that are not finite: write the folder anew without it."


@dataclass(frozen=True)
class TrainingBatch:
    """Clean latents float32 [B, T, C, h, w] (None where only prompts were asked for), the prompts they show, and, of
    data that brings its own, their embeddings; else the network's text encoder reads the prompts."""

    latents_BTCHW: Tensor | None
    prompts: tuple[str, ...]
    text_BLD: Tensor | None = None


class Data(Protocol):
    """Endless training data."""

    @property
    def latent(self) -> tuple[int, int, int]:
        """The shape of one latent, (C, h, w); of most, where sizes differ."""

    @property
    def fingerprint(self) -> str:
        """A short name of everything that a draw can return."""

    def draw(self, step: int, part: int, count: int, latents: int) -> TrainingBatch:
        """Return `count` windows of `latents` latents and their texts, for `part` of training step `step`."""

    def prompts(self, step: int, part: int, count: int) -> TrainingBatch:
        """Return `count` texts, without latents, for `part` of training step `step`."""

    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        """Return the last picture that these latents show, as the first latent of a video: [B, 1, C, h, w]."""


def open_data(settings: AnyData, seed: int) -> Data:
    """Open the data that `settings` describe. ConfigError if they do not fit what is there."""
    return WorldClips(settings, seed) if isinstance(settings, World) else LatentFolder(settings, seed)


class WorldClips:
    """Windows of captioned latents of the tiny world, rendered by seed and encoded once. `held_out`: only of attribute
    combinations that training never sees. ConfigError for settings without a clip."""

    def __init__(self, settings: World, seed: int = 0, held_out: bool = False,
                 autoencoder: TinyAutoencoder | None = None) -> None:  # fmt: skip
        check_positive(settings, "clips", "opened", "latents", "kept", where="data.")
        self.settings, self.seed, self.held_out = settings, seed, held_out
        self.autoencoder = autoencoder or TinyAutoencoder.load(path_of(settings.autoencoder))
        self._slots: OrderedDict[int, int] = OrderedDict()  # clip -> where in the store, longest unused first
        # One block for all clips, filled as they come. Small tensors that stay, between large ones that go, would
        # leave the heap in pieces: 15 GB after 1,200 steps.
        self._store = torch.empty(settings.kept, settings.latents, *self.latent, dtype=torch.float16)
        self._renderers: Renderers[np.ndarray] | None = None
        if settings.workers and autoencoder is None:  # renderers load theirs by its name
            self._renderers = Renderers(partial(render_clip, settings, held_out), settings.workers)

    @property
    def latent(self) -> tuple[int, int, int]:
        """The shape of one latent, (C, h, w)."""
        side = self.settings.size // self.autoencoder.config.patch
        return self.autoencoder.config.channels, side, side

    @property
    def fingerprint(self) -> str:
        """A short name of the world's pixels and captions and of the encoder."""
        return digest([self._encode(0).numpy().tobytes(), caption(self.scene(0), 0).encode()])

    def clip(self, number: int) -> Tensor:
        """Return all latents of one clip: float16 [T, C, h, w], in place until `kept` others have been asked for."""
        if number in self._slots:
            self._slots.move_to_end(number)
            return self._store[self._slots[number]]
        latents = torch.from_numpy(self._renderers.take(number)) if self._renderers else self._encode(number)
        full = len(self._slots) == self.settings.kept
        self._slots[number] = slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
        return self._store[slot].copy_(latents)

    @torch.no_grad()
    def _encode(self, number: int) -> Tensor:
        frames = self.settings.latents * self.autoencoder.config.frames
        start = number * 131 % 4096  # scenes are endless: begin anywhere
        video = render(self.scene(number), start, frames, self.settings.size)
        return self.autoencoder.encode(torch.from_numpy(video)[None])[0].half()

    def scene(self, number: int) -> Scene:
        """Return the scene of one clip."""
        return self._scene((TEST_SEEDS if self.held_out else 0) + number)

    def _scene(self, seed: int) -> Scene:
        two, rng = self.settings.two, np.random.default_rng([seed, 2])
        count = None if two is None else 1 + int(rng.random() < two)
        return sample_scene(seed, count=count, held_out=self.held_out, alike=rng.random() < self.settings.alike)

    def draw(self, step: int, part: int, count: int, latents: int) -> TrainingBatch:
        """Return `count` windows of `latents` latents and their captions, for `part` of training step `step`.

        Windows start at any latent of a clip; each draw words its caption afresh or drops it."""
        s = self.settings
        if latents > s.latents:
            raise ConfigError(f"windows of {latents} latents from clips of {s.latents}: raise data.latents.")
        rng = np.random.default_rng([self.seed, step, part])
        opened = min(s.clips, s.opened + int(step * s.per_step))
        if self._renderers:
            self._renderers.reach(min(s.clips, opened + RENDERED_AHEAD))
        windows, prompts = [], []
        for _ in range(count):
            number = int(rng.integers(opened))
            at = int(rng.integers(s.latents - latents + 1))
            windows.append(self.clip(number)[at : at + latents].float())
            wording, keep = int(rng.integers(2**31)), rng.random() >= s.dropped
            prompts.append(caption(self.scene(number), wording) if keep else "")
        return TrainingBatch(torch.stack(windows), tuple(prompts))

    def prompts(self, step: int, part: int, count: int) -> TrainingBatch:
        """Return captions of `count` scenes, for which no clip need exist."""
        rng = np.random.default_rng([self.seed, step, part, 1])
        numbers = rng.integers(2**31, size=count).tolist()
        return TrainingBatch(None, tuple(caption(self._scene(n), n + 1) for n in numbers))

    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        """Return the last picture that these latents show, as a first latent: [B, 1, C, h, w]."""
        return self.autoencoder.image_latent(latents_BTCHW)

    def full_captions(self, count: int) -> list[str]:
        """Return captions that leave nothing out, of the first `count` scenes."""
        return [caption(self.scene(i), i, full=True) for i in range(count)]


@cache
def _clips(settings: World, held_out: bool) -> WorldClips:
    return WorldClips(replace(settings, workers=0, kept=1), held_out=held_out)


def render_clip(settings: World, held_out: bool, number: int) -> np.ndarray:
    """Return one clip of `WorldClips`, made in another process: float16 [T, C, h, w]."""
    return _clips(settings, held_out)._encode(number).numpy()


class LatentFolder:
    """Encoded clips on disk: clip-*.safetensors with `latents` [T, C, h, w] and `text` [L, D], and data.json.

    train/encode.py makes such a folder of videos, `write_latents` of tensors. All windows of a draw have one size. An
    empty text (guidance) is all zeros. ConfigError names a clip that is cut off, not finite or of another size."""

    def __init__(self, settings: Latents, seed: int = 0) -> None:
        self.settings, self.seed, self.folder = settings, seed, Path(settings.folder)
        self.files = sorted(self.folder.glob("clip-*.safetensors"))
        index = _read_index(self.folder, len(self.files))
        self.fingerprint: str = index["fingerprint"]
        self.latent: tuple[int, int, int] = tuple(index["latent"])
        self._text_length: int = index.get("text_length", 0)
        self._shapes: list[list[int]] = []
        self._sizes: list[list[int]] = index.get("sizes", [index["latent"]])
        self.text_width = 0  # of a token's vector
        for path in self.files:
            self._look(path)
            if path.name in index.get("not_finite", ()):
                raise ConfigError(_NOT_FINITE.format(path))
        if "not_finite" not in index:
            self._search_broken()

    def _look(self, path: Path) -> None:
        """Check what the header of a clip says, before the first step. ConfigError."""
        with _open_clip(path) as file:
            latents, text = (file.get_slice(name).get_shape() for name in ("latents", "text"))
        if len(latents) != 4 or latents[1:] not in self._sizes:
            raise ConfigError(f"{path} holds latents of {latents[1:]}, not {self._sizes[0]}: write the folder anew.")
        self.text_width = self.text_width or (text[-1] if text else 0)
        if len(text) != 2 or text[1] != self.text_width:
            raise ConfigError(f"{path} holds a text of {text}, not [tokens, {self.text_width}]: write the folder anew.")
        self._shapes.append(latents)

    def _search_broken(self) -> None:
        """Read clips, up to SEARCHED bytes, for numbers that are not finite; those left are read as they are drawn."""
        read = 0
        for number, path in enumerate(self.files):
            if (read := read + path.stat().st_size) > SEARCHED:
                break
            self._read(number)

    def draw(self, step: int, part: int, count: int, latents: int) -> TrainingBatch:
        """Return `count` windows of `latents` latents and their texts, all of the size of the first one drawn."""
        if (shortest := min(self._shapes))[0] < latents:
            raise ConfigError(f"windows of {latents} latents from a clip of {shortest[0]}, "
                              f"{self.files[self._shapes.index(shortest)]}: encode longer clips, or train on less.")
        rng, windows, texts, prompts = np.random.default_rng([self.seed, step, part]), [], [], []
        pool: Sequence[int] = range(len(self.files))
        for place in range(count):
            number = pool[int(rng.integers(len(pool)))]
            if place == 0 and len(self._sizes) > 1:
                pool = [n for n in pool if self._shapes[n][1:] == self._shapes[number][1:]]
            clip, text, prompt = self._read(number)
            at = int(rng.integers(len(clip) - latents + 1))
            windows.append(clip[at : at + latents])
            keep = rng.random() >= self.settings.dropped
            texts.append(text if keep else torch.zeros_like(text))
            prompts.append(prompt if keep else "")
        return TrainingBatch(torch.stack(windows).float(), tuple(prompts), torch.stack(texts))

    def prompts(self, step: int, part: int, count: int) -> TrainingBatch:
        """Return the texts of `count` drawn clips, without latents."""
        rng = np.random.default_rng([self.seed, step, part, 1])
        read = [self._read(int(n)) for n in rng.integers(len(self.files), size=count)]
        return TrainingBatch(None, tuple(p for _, _, p in read), torch.stack([t for _, t, _ in read]))

    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        """Return the last picture that these latents show, as the first latent of a video: [B, 1, C, h, w]."""
        return self._autoencoder.to(latents_BTCHW.device).image_latent(latents_BTCHW)

    @cached_property
    def _autoencoder(self) -> WanAutoencoder:
        if not self.settings.autoencoder:
            raise ConfigError("data.autoencoder is not set: practice.first=image encodes a picture, and needs a model "
                              "folder with vae/.")
        return WanAutoencoder.load(path_of(self.settings.autoencoder)).requires_grad_(False)

    def _read(self, number: int) -> tuple[Tensor, Tensor, str]:
        with _open_clip(self.files[number]) as file:
            latents, text = file.get_tensor("latents"), file.get_tensor("text").float()
            prompt = (file.metadata() or {}).get("prompt", "")
        if not bool(latents.isfinite().all() and text.isfinite().all()):
            raise ConfigError(_NOT_FINITE.format(self.files[number]))
        return latents, F.pad(text, (0, 0, 0, max(0, self._text_length - len(text)))), prompt


def _read_index(folder: Path, clips: int) -> dict[str, Any]:
    """Return what data.json says. ConfigError if it does not fit the number of clips."""
    path = folder / "data.json"
    try:
        index = dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): write the folder anew.") from error
    if not clips or index.get("clips") != clips:
        raise ConfigError(f"data.folder {str(folder)!r} holds no encoded clips, or not all of them: data.json tells of "
                          f"{index.get('clips', 0)}, there are {clips}. train/encode.py makes them of videos (run it "
                          "to its end), rollforce.training.data.write_latents of tensors.")
    if missing := [name for name in ("fingerprint", "latent") if name not in index]:
        raise ConfigError(f"{path} is damaged: it does not say {' and '.join(missing)}. Write the folder anew.")
    return index


@contextmanager
def _open_clip(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            if missing := {"latents", "text"} - set(file.keys()):
                raise ConfigError(f"{path} has no {' and no '.join(sorted(missing))}: it is no clip. Encode it again.")
            yield file
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): copy it again, or encode it again.") from error


def write_latents(folder: Path, clips: Iterable[tuple[Tensor, Tensor, str]]) -> str:
    """Write (latents [T, C, h, w], text [L, D], prompt) clips as a LatentFolder reads them; return the fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    digests, broken, latent = list[bytes](), list[str](), tuple[int, ...]()
    for number, (latents, text, prompt) in enumerate(clips):
        path = folder / f"clip-{number:06d}.safetensors"
        digests.append(write_clip(path, latents, text, prompt))
        latent = latent or tuple(latents.shape[1:])
        broken += [] if bool(latents.isfinite().all()) else [path.name]
    index = {"fingerprint": digest(digests), "clips": len(digests), "latent": latent, "not_finite": broken}
    write_whole(folder / "data.json", json.dumps(index).encode())
    return digest(digests)


def write_clip(path: Path, latents: Tensor, text: Tensor, prompt: str) -> bytes:
    """Write one clip, latents [T, C, h, w] and text [L, D], and return the SHA-256 of its file."""
    content = save({"latents": latents.contiguous(), "text": text.contiguous()}, {"prompt": prompt})
    write_whole(path, content)
    return hashlib.sha256(content).digest()


def digest(parts: Iterable[bytes]) -> str:
    """Return a short name of some bytes: 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def path_of(name: str) -> Path:
    """Return a path as given, or that of the shipped file of this name. ConfigError if there is neither."""
    return Path(name) if check_path(name, "the folder").exists() else resource(name)
