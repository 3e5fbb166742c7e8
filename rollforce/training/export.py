"""A folder that `rollforce.load` and `rollforce render --model` take: weights, settings, card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rollforce.checkpoints.catalog import CARD, Card, preset_file
from rollforce.config import build, to_dict
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.text.encoder import TextEncoder
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training.data import Data, WorldClips
from rollforce.training.fsdp import whole_state
from rollforce.training.network import Network
from rollforce.world import FPS


def export(network: Network, folder: Path, data: Data, stream: str, changes: Sequence[str] = (),
           active: bool = True) -> None:  # fmt: skip
    """Write a trained network, sharded or not, with the autoencoder its data has, and the stream it was trained for: a
    preset and the `changes` to it. All processes must call this; the `active` one writes."""
    state = whole_state(network)
    if not active:
        return
    whole = Network(VideoTransformer(network.transformer.config), network.text and TextEncoder(network.text.config))
    whole.transformer.make_room({name.removeprefix("transformer."): value for name, value in state.items()})
    whole.load_state_dict(state)
    whole.save(folder)
    if isinstance(data, WorldClips):
        data.autoencoder.save(folder / "autoencoder")
        size = data.settings.size
        write_card(folder, Card(folder.name, "Apache-2.0", FPS, (size, size), stream, tuple(changes)))


def changes_for(stream: str, layout: LayoutSettings) -> tuple[str, ...]:
    """Return the overrides under which the preset `stream` has this layout."""
    preset = to_dict(build(StreamSettings, preset_file(stream)).layout)
    return tuple(f"layout.{key}={json.dumps(value)}" for key, value in to_dict(layout).items() if value != preset[key])


def assemble(student: Path, autoencoder: Path, folder: Path, card: Card) -> float:
    """Put the student of one folder and an autoencoder together, transformer in float16; return the megabytes.

    A card that is there stays."""
    VideoTransformer.load(student / "transformer").half().save(folder / "transformer")
    TextEncoder.load(student / "text").save(folder / "text")
    TinyAutoencoder.load(autoencoder).save(folder / "autoencoder")
    if not (folder / CARD).exists():
        write_card(folder, card)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6


def write_card(folder: Path, card: Card) -> None:
    """Write model.yaml. A stream without changes is written without the key, as folders have had it from the start."""
    import yaml

    told = to_dict(card)
    keys = ("name", "fps", "size", "stream", *(["changes"] if card.changes else []), "licence")
    content = {key: told[key] for key in keys}
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)
    (folder / CARD).write_text(text, encoding="utf-8")
