"""What ships with rollforce, and the card that every model folder has: how it wants to be streamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rollforce.checkpoints.origin import CARD as CARD
from rollforce.config import resource
from rollforce.errors import ConfigError
from rollforce.video.values import check_path


@dataclass(frozen=True)
class Card:
    """A model folder's model.yaml: what it is, its `size` (height, width) in pixels, and the preset in configs/stream
    (or YAML file) that it wants to be streamed with, under `changes` such as "layout.levels=[1, 0.5]"."""

    name: str
    licence: str
    fps: int
    size: tuple[int, int]
    stream: str
    changes: tuple[str, ...] = ()


def bundled() -> tuple[str, ...]:
    """Return the names of the models that ship with rollforce."""
    return tuple(sorted(path.parent.name for path in resource("assets").glob(f"*/{CARD}")))


def presets() -> tuple[str, ...]:
    """Return the names of the stream presets that ship with rollforce."""
    return tuple(sorted(path.stem for path in resource("configs/stream").glob("*.yaml")))


def preset_file(stream: str | Path) -> Path:
    """Return the file of a stream preset, or the YAML file itself. ConfigError lists the presets."""
    path = check_path(stream, "stream")
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"There is no stream file {path}.")
        return path
    if str(stream) not in presets():
        raise ConfigError(f"There is no stream preset {str(stream)!r}. Presets: {', '.join(presets())}. Or give a YAML "
                          "file.")  # fmt: skip
    return resource(f"configs/stream/{stream}.yaml")
