"""Load a model by its name, folder or hub id; `stream` frames from one in a single call."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from rollforce.checkpoints.catalog import CARD, Card, bundled, preset_file
from rollforce.checkpoints.decoders import KnownDecoder, find_decoder
from rollforce.checkpoints.obstacles import check
from rollforce.checkpoints.parts import read_model
from rollforce.config import build, resource
from rollforce.engine.settings import StreamSettings
from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.autoencoder.interface import Autoencoder, ClipAutoencoder, PairedAutoencoder
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.runtime.choices import pick_device, pick_dtype
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.text.encoder import Text, TextEncoder
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.streaming.bundle import threads_for
from rollforce.streaming.events import Chunk
from rollforce.streaming.model import Model
from rollforce.streaming.session import Session
from rollforce.video.values import (
    check_kind,
    check_path,
    check_picture_size,
    check_prompt,
    check_seconds,
    check_seed,
    check_texts,
    check_threads,
)

if TYPE_CHECKING:
    from rollforce.models.autoencoder.wan import WanAutoencoder

log = logging.getLogger(__name__)
HUB_PARTS = (CARD, "model_index.json", "README.md", "transformer/*", "text/*", "autoencoder/*", "text_encoder/*",
         "tokenizer/*", "vae/*", "image_encoder/*")  # fmt: skip
WHOLE, END = 256_000_000, 4_000_000  # bytes: files up to WHOLE are hashed whole, of larger ones both ends


def load(model: str | Path = "tiny", *, stream: str | Path | None = None, overrides: Sequence[str] = (),
         window: int | None = None, device: str = "auto", dtype: str = "auto", threads: int | None = None,
         running: RuntimeOptions | None = None, size: tuple[int, int] | None = None) -> Model:  # fmt: skip
    """Load a model: a bundled name, a local folder (ours or of diffusers' layout), or a hub id.

    Args: `stream` a preset name or a YAML file (default: the one the model was trained for); `overrides` such as
    "layout.levels=[1,0.75]"; `window` latents that the memory's window holds; `device` auto, cpu, cuda, cuda:1, mps;
    `dtype` auto, float32, bfloat16, float16; `threads` of the CPU (default: one for a small model, else torch's own
    number); `running` attention kernel, LoRAs, quantised weights, offloading; `size` (height, width) of the streams to
    come, if not the model's own: whether it can be, and fits, is said before weights are read.
    Raises ConfigError, CheckpointError, or DoesNotFit before anything is computed."""
    overrides = check_texts(overrides, "overrides", "layout.levels=[1,0.75]")
    threads = None if threads is None else check_threads(threads)
    place = _choose_device(device)
    number = pick_dtype(dtype, place)
    running = RuntimeOptions() if running is None else running
    check_kind(running, RuntimeOptions, "running", "a RuntimeOptions")
    folder, card = find_model(model, stream, running.tiling, running.decoder)
    settings = _read_settings(card, stream, overrides, window)
    log.info("model %s, licence %s", card.name, card.licence)
    _check_fits(folder, settings, place, number, running, card.size if size is None else size)
    transformer = running.set_up(VideoTransformer.load(folder / "transformer"), place, number, settings.masked)
    for tier in transformer.unlearned(settings.tiers):
        log.warning("model %s was not trained with %s: its weights are zeros, so it adds nothing", card.name, tier.kind)
    transformer.float32_islands = settings.float32_islands
    text = _load_text(folder, torch.device("cpu") if "text" in running.offload else place, number)
    autoencoder = _load_autoencoder(folder, place, number, running)
    parts = [part.eval().requires_grad_(False) for part in (transformer, text, autoencoder)
             if isinstance(part, nn.Module)]  # fmt: skip
    parameters = sum(tensor.numel() for part in parts for tensor in part.parameters())
    return Model(name=card.name, licence=card.licence, fps=card.fps, size=card.size, transformer=transformer, text=text,
                 autoencoder=autoencoder, stream_settings=settings, fingerprint=_fingerprint(folder),
                 threads=threads or threads_for(parameters, place), running=running, device=place)  # fmt: skip


@dataclass(frozen=True)
class StreamOrigin:
    """What a stream comes from: the model's card, the stream's settings, and a sha256 over the weights."""

    card: Card
    settings: StreamSettings
    fingerprint: str


def read_origin(model: str | Path, stream: str | Path | None = None, overrides: Sequence[str] = (),
                window: int | None = None) -> StreamOrigin:  # fmt: skip
    """Return what `load` with these arguments would stream from. Nothing is loaded; errors are those of `load`."""
    folder, card = find_model(model, stream)
    return StreamOrigin(card, _read_settings(card, stream, overrides, window), _fingerprint(folder))


def stream(prompt: str, seconds: float | None = None, *, model: str | Path | Model = "tiny", seed: int | None = 0,
           size: tuple[int, int] | None = None, preset: str | Path | None = None,
           overrides: Sequence[str] = ()) -> Iterator[np.ndarray]:  # fmt: skip
    """Yield frames, uint8 [H, W, 3], each as soon as it exists; endless unless `seconds` is given. `seed` None draws
    one. ConfigError for what cannot be used, before a model is loaded for it."""
    check_prompt(prompt)
    if seconds is not None:
        check_seconds(seconds, endless=True)
    if seed is not None:
        check_seed(seed)
    if size is not None:
        check_picture_size(size)
    loaded = model if isinstance(model, Model) else load(model, stream=preset, overrides=overrides)
    session = loaded.session(prompt, seed=seed, size=size)
    return _yield_frames(session, session.stream(seconds))


def _yield_frames(session: Session, chunks: Iterator[Chunk]) -> Iterator[np.ndarray]:
    with session:
        for chunk in chunks:
            yield from chunk.frames


def find_model(model: str | Path, stream: str | Path | None, tiling: bool = False, decoder: str | None = None,
               fetched: Sequence[str] = HUB_PARTS) -> tuple[Path, Card]:  # fmt: skip
    """Return a model's folder and its card, after comparing all its parts: what comes back can stream.

    Args: `decoder` a file that is to draw, `tiling` whether in tiles; `fetched` which of a hub's files to download;
    where those are settings only, weights are not looked at.
    Raises ConfigError or CheckpointError with everything that is in the way."""
    folder = _find_folder(model, fetched)
    card = _read_card(folder, stream)
    if (decoder or tiling) and (folder / "autoencoder").is_dir():
        raise ConfigError("--decoder and --tiling are for Wan's autoencoder; this model's is small itself: leave "
                          "them out.")
    check(read_model(folder, decoder, weights=fetched is HUB_PARTS or Path(model).is_dir()))
    TransformerConfig.read(folder / "transformer")
    return folder, card


def _find_folder(model: str | Path, fetched: Sequence[str]) -> Path:
    """Return the folder of a bundled model, a local one, or one fetched from the hub. ConfigError if there is none."""
    from rollforce.checkpoints.hub import fetch, is_repository
    from rollforce.checkpoints.read import expect, raw_advice, read_checkpoint

    if isinstance(model, str) and model in bundled():
        return resource(f"assets/{model}")
    folder = check_path(model, "model")
    if folder.is_file():
        expect(read_checkpoint(folder), "transformer")  # what cannot be converted is not sent there
        raise CheckpointError(raw_advice(folder))
    if is_repository(model):
        folder = fetch(str(model), fetched)
    if (folder / CARD).is_file() or (folder / "model_index.json").is_file():
        return folder
    if folder.is_dir():
        raise CheckpointError(f"{folder} is a folder without {CARD} or model_index.json: not a model. What is it? "
                              f"rollforce identify {folder}")  # fmt: skip
    raise ConfigError(f"There is no model {str(model)!r}. Bundled: {', '.join(bundled()) or 'none'}. Or give a folder "
                      f"that holds {CARD}, or a hub id (owner/name).")  # fmt: skip


def _read_card(folder: Path, stream: str | Path | None) -> Card:
    """Return a folder's card; a diffusers folder has none, and streams only if it is said how (`stream`)."""
    from rollforce.checkpoints.read import teacher_refusal

    if (folder / CARD).is_file():
        return build(Card, folder / CARD)
    if stream is None:
        raise CheckpointError(f"{teacher_refusal(folder.name)} If it is a causal student, say how it was trained to "
                              "stream: --stream self_forcing, for one.")  # fmt: skip
    log.warning("%s has no %s: taken for a Wan student at 832x480, 16 fps; its licence is not known", folder, CARD)
    return Card(name=folder.name, licence="unknown", fps=16, size=(480, 832), stream=str(stream))


def _read_settings(card: Card, stream: str | Path | None, overrides: Sequence[str],
                   window: int | None) -> StreamSettings:  # fmt: skip
    changes = card.changes if stream is None else ()  # those of the preset that the model was trained for
    preset = preset_file(card.stream if stream is None else stream)
    settings = build(StreamSettings, preset, overrides=(*changes, *overrides))
    return settings if window is None else settings.with_window(window)


def _load_text(folder: Path, device: torch.device, dtype: torch.dtype) -> Text:
    if (folder / "text").is_dir():
        return TextEncoder.load(folder / "text").to(device)
    from rollforce.models.text.umt5 import WanText

    return WanText.load(folder, device=device, dtype=dtype if device.type == "cuda" else None)


def _load_autoencoder(folder: Path, device: torch.device, dtype: torch.dtype, running: RuntimeOptions) -> Autoencoder:
    if (folder / "autoencoder").is_dir():
        return TinyAutoencoder.load(folder / "autoencoder").to(device)
    from rollforce.models.autoencoder.tiling import Tiling
    from rollforce.models.autoencoder.wan import WanAutoencoder

    full = WanAutoencoder.load(folder / "vae", dtype, Tiling() if running.tiling else None).to(device)
    if running.decoder is None:
        return full
    small = _load_decoder(running.decoder, find_decoder(running.decoder), full, dtype).to(device)
    if (small.channels, small.stride, small.frames) != (full.channels, full.stride, full.frames):
        raise CheckpointError(f"{running.decoder} decodes other latents than those of {folder / 'vae'}.")
    return PairedAutoencoder(full, small)


def _load_decoder(file: str, known: KnownDecoder, full: WanAutoencoder, dtype: torch.dtype) -> ClipAutoencoder:
    """A small decoder in TAEHV's format, or the full autoencoder with fewer channels inside (LightX2V's lightvae)."""
    from rollforce.models.autoencoder.taehv import TaehvAutoencoder
    from rollforce.models.autoencoder.wan import WanAutoencoder

    if known.pruned:
        return WanAutoencoder.load(file, dtype)
    return TaehvAutoencoder.load(file, dtype, None if known.normalised else full.moments)


def _check_fits(folder: Path, settings: StreamSettings, device: torch.device, dtype: torch.dtype,
                running: RuntimeOptions, size: tuple[int, int]) -> None:  # fmt: skip
    from rollforce.engine.budget.fit import check_fits
    from rollforce.engine.budget.model_sizes import sizes_of
    from rollforce.engine.budget.requirements import MemorySetup
    from rollforce.models.autoencoder.tiling import Tiling

    known = find_decoder(running.decoder) if running.decoder else None
    pruned = known is not None and known.pruned
    check_fits(MemorySetup(sizes_of(folder), settings, check_picture_size(size), dtype, device, running.offload,
                     running.quantize, Tiling() if running.tiling else None, small=known is not None and not pruned,
                     pruned=pruned))  # fmt: skip


def _choose_device(name: str) -> torch.device:
    device = pick_device(name)
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= here.get(device.type, 0):
        raise ConfigError(f"device {name!r} is not here, or torch {torch.__version__} cannot use it. Try auto.")
    return device


def _fingerprint(folder: Path) -> str:
    """Return a sha256 over all weights; large files count by their size and their ends (header, last tensors)."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        if (size := path.stat().st_size) <= WHOLE:
            digest.update(path.read_bytes())
            continue
        with path.open("rb") as file:
            digest.update(f"{size}".encode() + file.read(END))
            file.seek(-END, 2)
            digest.update(file.read())
    return digest.hexdigest()
