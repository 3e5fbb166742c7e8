"""Where training data comes from: the tiny world, rendered as it is needed, or a folder of encoded clips.

What a draw returns is a pure function of (seed, step, part): a run that is stopped and resumed, or shared out among
processes, sees the same data. `fingerprint` names the data: a checkpoint goes on only with data of the same name.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rollforce.config import resource
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.autoencoder.wan import WanAutoencoder
from rollforce.training.recipes import AnyData, Latents, World
from rollforce.world.caption import caption
from rollforce.world.processes import Renderers
from rollforce.world.render import render
from rollforce.world.scenes import Scene, sample_scene

RENDERED_AHEAD = 2048  # clips that renderers make before they are opened
TEST_SEEDS = 10**9  # scenes from this seed on are kept for testing


@dataclass(frozen=True)
class Batch:
    """Clean latents float32 [B, T, C, h, w] (or None where only prompts were asked for) and what they show.

    `text_BLD`: embeddings, where the data brings its own; else the network's text encoder reads the prompts."""

    latents_BTCHW: Tensor | None
    prompts: tuple[str, ...]
    text_BLD: Tensor | None = None


class Data(Protocol):
    """Endless training data. `latent`: C, h, w."""

    @property
    def latent(self) -> tuple[int, int, int]: ...
    @property
    def fingerprint(self) -> str: ...
    def draw(self, step: int, part: int, count: int, latents: int) -> Batch: ...
    def prompts(self, step: int, part: int, count: int) -> Batch: ...
    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        """The last picture that these latents show, as the first latent of a video: [B, 1, C, h, w]."""
        ...


def open_data(settings: AnyData, seed: int = 0, held_out: bool = False) -> Data:
    """The data that `settings` describe. `held_out`: what training never sees (the world only)."""
    if isinstance(settings, World):
        return WorldClips(settings, seed, held_out)
    return LatentFolder(settings, seed)


class WorldClips:
    """Windows of captioned latents of the tiny world, from scenes rendered by seed and encoded once; nothing on disk.

    `held_out`: only attribute combinations that training never sees."""

    def __init__(
        self, settings: World, seed: int = 0, held_out: bool = False, autoencoder: TinyAutoencoder | None = None
    ) -> None:
        self.settings, self.seed, self.held_out = settings, seed, held_out
        self.autoencoder = autoencoder or TinyAutoencoder.load(path_of(settings.autoencoder))
        self._slots: OrderedDict[int, int] = OrderedDict()  # clip -> where in the store, longest unused first
        # One block for all clips, filled as they come. Small tensors that stay, between large ones that go, would
        # leave the heap in pieces: 15 GB after 1,200 steps.
        self._store = torch.empty(settings.kept, settings.latents, *self.latent, dtype=torch.float16)
        self._renderers: Renderers[np.ndarray] | None = None
        if settings.workers:
            assert autoencoder is None, "renderers load the autoencoder by its name"
            self._renderers = Renderers(partial(rendered, settings, held_out), settings.workers)

    @property
    def latent(self) -> tuple[int, int, int]:
        config = self.autoencoder.config
        return config.channels, self.settings.size // config.patch, self.settings.size // config.patch

    @property
    def fingerprint(self) -> str:
        """Of the world's pixels and captions and of the encoder."""
        latents, scene = self._encoded(0), self.scene(0)
        return digest([latents.numpy().tobytes(), caption(scene, 0).encode()])

    def clip(self, number: int) -> Tensor:
        """All latents of one clip: float16 [T, C, h, w], in place until `kept` others have been asked for."""
        if number in self._slots:
            self._slots.move_to_end(number)
            return self._store[self._slots[number]]
        others = self._renderers
        latents = self._encoded(number) if others is None else torch.from_numpy(others.take(number))
        full = len(self._slots) == self.settings.kept
        slot = self._slots.popitem(last=False)[1] if full else len(self._slots)
        self._slots[number] = slot
        self._store[slot] = latents
        return self._store[slot]

    @torch.no_grad()
    def _encoded(self, number: int) -> Tensor:
        start = number * 131 % 4096  # scenes are endless: begin anywhere
        frames = self.settings.latents * self.autoencoder.config.frames
        video = render(self.scene(number), start, frames, self.settings.size)
        return self.autoencoder.encode(torch.from_numpy(video)[None])[0].half()

    def scene(self, number: int) -> Scene:
        """The scene of one clip."""
        return self._scene((TEST_SEEDS if self.held_out else 0) + number)

    def _scene(self, seed: int) -> Scene:
        two, rng = self.settings.two, np.random.default_rng([seed, 2])
        count = None if two is None else 1 + int(rng.random() < two)
        return sample_scene(seed, count=count, held_out=self.held_out, alike=rng.random() < self.settings.alike)

    def draw(self, step: int, part: int, count: int, latents: int) -> Batch:
        """`count` windows of `latents` latents and their captions, for `part` of training step `step`.

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
        return Batch(torch.stack(windows), tuple(prompts))

    def prompts(self, step: int, part: int, count: int) -> Batch:
        """Captions of scenes that no clip need exist for."""
        rng = np.random.default_rng([self.seed, step, part, 1])
        numbers = [int(n) for n in rng.integers(2**31, size=count)]
        return Batch(None, tuple(caption(self._scene(n), n + 1) for n in numbers))

    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        return self.autoencoder.image_latent(latents_BTCHW)

    def full_captions(self, count: int) -> list[str]:
        """Captions that leave nothing out, of the first `count` scenes."""
        return [caption(self.scene(i), i, full=True) for i in range(count)]


@cache
def _clips(settings: World, held_out: bool) -> WorldClips:
    return WorldClips(replace(settings, workers=0, kept=1), held_out=held_out)


def rendered(settings: World, held_out: bool, number: int) -> np.ndarray:
    """One clip of `WorldClips`, in another process: float16 [T, C, h, w]."""
    return _clips(settings, held_out)._encoded(number).numpy()


class LatentFolder:
    """Encoded clips on disk: clip-*.safetensors with `latents` [T, C, h, w] and `text` [L, D], and data.json.

    Written by `write_latents`. An empty text (guidance) is all zeros. ConfigError if the folder holds no data."""

    def __init__(self, settings: Latents, seed: int = 0) -> None:
        self.settings, self.seed, self.folder = settings, seed, Path(settings.folder)
        self.files = sorted(self.folder.glob("clip-*.safetensors"))
        if not self.files or not (self.folder / "data.json").is_file():
            raise ConfigError(
                f"data.folder {settings.folder!r} holds no encoded clips: expected data.json and clip-*.safetensors, "
                "as rollforce.training.data.write_latents leaves them."
            )
        told = json.loads((self.folder / "data.json").read_text())
        self.fingerprint: str = told["fingerprint"]
        self.latent: tuple[int, int, int] = tuple(told["latent"])
        if told["clips"] != len(self.files):
            raise ConfigError(f"{self.folder}: data.json tells of {told['clips']} clips, there are {len(self.files)}.")

    def draw(self, step: int, part: int, count: int, latents: int) -> Batch:
        """`count` windows; see WorldClips.draw."""
        rng, windows, texts, prompts = np.random.default_rng([self.seed, step, part]), [], [], []
        for _ in range(count):
            clip, text, prompt = self._read(int(rng.integers(len(self.files))))
            if len(clip) < latents:
                raise ConfigError(f"windows of {latents} latents from a clip of {len(clip)} in {self.folder}.")
            at = int(rng.integers(len(clip) - latents + 1))
            windows.append(clip[at : at + latents])
            keep = rng.random() >= self.settings.dropped
            texts.append(text if keep else torch.zeros_like(text))
            prompts.append(prompt if keep else "")
        return Batch(torch.stack(windows).float(), tuple(prompts), torch.stack(texts).float())

    def prompts(self, step: int, part: int, count: int) -> Batch:
        """Texts of drawn clips."""
        rng = np.random.default_rng([self.seed, step, part, 1])
        read = [self._read(int(n)) for n in rng.integers(len(self.files), size=count)]
        return Batch(None, tuple(p for _, _, p in read), torch.stack([t for _, t, _ in read]).float())

    def image_latent(self, latents_BTCHW: Tensor) -> Tensor:
        return self._autoencoder.to(latents_BTCHW.device).image_latent(latents_BTCHW)

    @cached_property
    def _autoencoder(self) -> WanAutoencoder:
        if not self.settings.autoencoder:
            raise ConfigError("data.autoencoder is not set: practice.first=image encodes a picture, and needs a model "
                              "folder with vae/.")
        return WanAutoencoder.load(path_of(self.settings.autoencoder)).requires_grad_(False)

    def _read(self, number: int) -> tuple[Tensor, Tensor, str]:
        from safetensors import safe_open

        with safe_open(self.files[number], "pt") as file:
            return file.get_tensor("latents"), file.get_tensor("text"), (file.metadata() or {}).get("prompt", "")


def write_latents(folder: Path, clips: Iterable[tuple[Tensor, Tensor, str]]) -> str:
    """Write (latents [T, C, h, w], text [L, D], prompt) clips as a LatentFolder reads them; return the fingerprint."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    digests: list[bytes] = []
    latent: tuple[int, ...] = ()
    count = 0
    for count, (latents, text, prompt) in enumerate(clips, 1):
        tensors = {"latents": latents.contiguous(), "text": text.contiguous()}
        path = folder / f"clip-{count - 1:06d}.safetensors"
        save_file(tensors, path, metadata={"prompt": prompt})
        digests.append(hashlib.sha256(path.read_bytes()).digest())
        latent = tuple(latents.shape[1:])
    fingerprint = digest(digests)
    told = {"fingerprint": fingerprint, "clips": count, "latent": latent}
    (folder / "data.json").write_text(json.dumps(told) + "\n")
    return fingerprint


def digest(parts: Iterable[bytes]) -> str:
    """A short name of some bytes."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()[:16]


def path_of(name: str) -> Path:
    """A path as given, or a shipped file of that name."""
    return Path(name) if Path(name).exists() else resource(name)
