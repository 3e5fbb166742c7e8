"""A folder that `rollforce.load` and `rollforce render --model` take: weights, settings, card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.text.encoder import TextEncoder
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training.data import Data, WorldClips
from rollforce.training.fsdp import whole_state
from rollforce.training.network import Network
from rollforce.world import FPS


def export(network: Network, folder: Path, data: Data, stream: str, active: bool = True) -> None:
    """Write a trained network, sharded or not, with the autoencoder its data has. All processes call it; the `active`
    one writes."""
    state = whole_state(network)
    if not active:
        return
    text = network.text and TextEncoder(network.text.config)
    whole = Network(VideoTransformer(network.transformer.config), text)
    whole.transformer.make_room({name.removeprefix("transformer."): value for name, value in state.items()})
    whole.load_state_dict(state)
    whole.save(folder)
    if isinstance(data, WorldClips):
        data.autoencoder.save(folder / "autoencoder")
        write_card(folder, name=folder.name, fps=FPS, size=[data.settings.size] * 2, stream=stream)


def assemble(student: Path, autoencoder: Path, folder: Path, **card: Any) -> float:
    """Put the student of one folder and an autoencoder together, transformer in float16; return the megabytes."""
    VideoTransformer.load(student / "transformer").half().save(folder / "transformer")
    TextEncoder.load(student / "text").save(folder / "text")
    TinyAutoencoder.load(autoencoder).save(folder / "autoencoder")
    write_card(folder, **card)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6


def write_card(folder: Path, licence: str = "Apache-2.0", **card: Any) -> None:
    """model.yaml; one that is there stays."""
    path = folder / "model.yaml"
    if not path.exists():
        path.write_text("".join(f"{key}: {value}\n" for key, value in {**card, "licence": licence}.items()))
