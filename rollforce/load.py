"""From a model's name, folder or YAML file to a Model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rollforce.config import build, resource
from rollforce.errors import CheckpointError, ConfigError
from rollforce.machine import threads_for
from rollforce.models.autoencoder import TinyAutoencoder
from rollforce.models.text import TextEncoder
from rollforce.models.transformer import VideoTransformer
from rollforce.model import Model
from rollforce.session import Session
from rollforce.settings import StreamSettings
from rollforce.types import Chunk

log = logging.getLogger(__name__)
CARD = "model.yaml"


@dataclass(frozen=True)
class Card:
    """A model folder's model.yaml: what it is, how it wants to be streamed (`stream`: a preset in configs/stream)."""

    name: str
    licence: str
    fps: int
    size: tuple[int, int]  # height, width
    stream: str


def bundled() -> tuple[str, ...]:
    """Names of the models that ship with rollforce."""
    return tuple(sorted(path.parent.name for path in resource("assets").glob(f"*/{CARD}")))


def presets() -> tuple[str, ...]:
    """Names of the stream presets that ship with rollforce."""
    return tuple(sorted(path.stem for path in resource("configs/stream").glob("*.yaml")))


def load(
    model: str | Path = "tiny",
    *,
    stream: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
) -> Model:
    """Load a model: a bundled name or a local folder.

    Args: `stream` a preset name or a YAML file (default: the one the model was trained for); `overrides` such as
    "layout.levels=[1,0.75]"; `device` auto, cpu, cuda, cuda:1, mps; `dtype` auto, float32, bfloat16, float16;
    `threads` of the CPU (default: one for a small model, else torch's own number).
    Raises ConfigError or CheckpointError before anything is computed.
    """
    folder = _folder(model)
    card = build(Card, folder / CARD)
    settings = build(StreamSettings, _preset(stream or card.stream), overrides=overrides)
    place, number = _device(device), _dtype(dtype, _device(device))
    log.info("model %s, licence %s", card.name, card.licence)
    transformer = VideoTransformer.load(folder / "transformer").to(place, number)
    text, autoencoder = TextEncoder.load(folder / "text"), TinyAutoencoder.load(folder / "autoencoder")
    for part in (transformer, text, autoencoder):
        part.eval().requires_grad_(False)
    parameters = sum(tensor.numel() for part in (transformer, text, autoencoder) for tensor in part.parameters())
    return Model(
        name=card.name, licence=card.licence, fps=card.fps, size=card.size, transformer=transformer,
        text=text.to(place), autoencoder=autoencoder.to(place), stream_settings=settings,
        fingerprint=_fingerprint(folder), threads=threads or threads_for(parameters, place),
    )  # fmt: skip


def stream(
    prompt: str,
    seconds: float | None = None,
    *,
    model: str | Path | Model = "tiny",
    seed: int = 0,
    size: tuple[int, int] | None = None,
    preset: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[np.ndarray]:
    """Frames, uint8 [H, W, 3], each as soon as it exists; endless unless `seconds` is given."""
    loaded = model if isinstance(model, Model) else load(model, stream=preset, overrides=overrides)
    session = loaded.session(prompt, seed=seed, size=size)
    return _frames(session, session.stream(seconds))


def _frames(session: Session, chunks: Iterator[Chunk]) -> Iterator[np.ndarray]:
    with session:
        for chunk in chunks:
            yield from chunk.frames


def _folder(model: str | Path) -> Path:
    if isinstance(model, str) and model in bundled():
        return resource(f"assets/{model}")
    folder = Path(model)
    if (folder / CARD).is_file():
        return folder
    if folder.is_dir():
        raise CheckpointError(f"{folder} is a folder without {CARD}: not a rollforce model.")
    raise ConfigError(
        f"There is no model {str(model)!r}. Bundled: {', '.join(bundled()) or 'none'}. "
        f"Or give a folder that holds {CARD}."
    )


def _preset(stream: str | Path) -> Path:
    path = Path(stream)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"There is no stream file {path}.")
        return path
    if str(stream) not in presets():
        raise ConfigError(
            f"There is no stream preset {str(stream)!r}. Presets: {', '.join(presets())}. Or give a YAML file."
        )
    return resource(f"configs/stream/{stream}.yaml")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known. Use auto, cpu, cuda, cuda:1 or mps.") from error
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= here.get(device.type, 0):
        raise ConfigError(f"device {name!r} is not here, or torch {torch.__version__} cannot use it. Try auto.")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"dtype {name!r} is not known. Use auto, {', '.join(known)}.")
    return known[name]


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
