"""What a conversion will make: the checked plan, and the texts of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rollforce.load import Card
from rollforce.models import parts
from rollforce.models.families import Release
from rollforce.models.shards import bytes_of
from rollforce.models.weights import STREAM_CLASS, Checkpoint


@dataclass(frozen=True)
class Conversion:
    """Everything that was checked before a byte is written."""

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    parts: tuple[parts.Part, ...]
    lora: Checkpoint | None
    out: Path
    card: Card
    origin: str  # of the parts
    release: Release | None
    dtype: torch.dtype | None
    teacher: bool
    warnings: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.checkpoint.state.values())

    @property
    def bytes(self) -> int:
        """What it will take on the disk of `out`."""
        own = sum(bytes_of(tensor, self.dtype) for tensor in self.checkpoint.state.values())
        return own + sum(part.bytes for part in self.parts if not part.linkable(existing(self.out)))

    def summary(self) -> list[str]:
        """What it is and what will be made, in lines for a person."""
        checkpoint, config = self.checkpoint, self.config
        where = f" ({checkpoint.where})" if checkpoint.where else ""
        lora = f" with {self.lora.path.name}" if self.lora else ""
        known = f", {self.release.name}: {self.release.page}" if self.release else ""
        stream = "a teacher: no stream" if self.teacher else f"stream {self.card.stream}"
        return [
            f"{checkpoint.path.name}{where}{lora}: {self.parameters / 1e9:.2f} billion parameters, "
            f"{config['num_layers']} blocks of width {config['num_attention_heads'] * config['attention_head_dim']}",
            f"licence {self.card.licence}{known}",
            f"{', '.join(part.name for part in self.parts)} from {self.origin}",
            f"{self.out}: {self.bytes / 1e9:.2f} GB, {self.card.size[1]}x{self.card.size[0]}, {stream}",
        ]


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(each for each in (folder, *folder.parents) if each.exists())


def index_of(conversion: Conversion) -> dict[str, Any]:
    """model_index.json: the parts by the class names of diffusers and transformers."""
    image = "image_dim" in conversion.config
    pipeline = "WanImageToVideoPipeline" if image else "WanPipeline"
    there = [part.name for part in conversion.parts]
    classes = parts.CLASSES | _classes_named(conversion)
    return {
        "_class_name": pipeline if conversion.teacher else STREAM_CLASS,
        "transformer": classes["transformer"],
        **{name: classes[name] for name in there},
    }


def _classes_named(conversion: Conversion) -> dict[str, Any]:
    """How the base's own index names its parts: its scheduler and tokenizer may be of other classes."""
    index = conversion.parts[0].source.parent / "model_index.json"
    named = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    return {name: named[name] for name in ("scheduler", "tokenizer", "image_processor") if name in named}


def readme_of(conversion: Conversion) -> str:
    """README.md: licence, origin and use, with the head that the hub reads."""
    card, release, checkpoint = conversion.card, conversion.release, conversion.checkpoint
    free = card.licence == "Apache-2.0"
    where = f", `{checkpoint.where}`" if checkpoint.where else ""
    lora = f"\n- LoRA, baked in: `{conversion.lora.path.name}`" if conversion.lora else ""
    page = f" ({release.name}, {release.page})" if release else ""
    licence = "license: apache-2.0" if free else f"license: other\nlicense_name: {json.dumps(card.licence)}"
    use = f'```\nrollforce render "a koi pond" --model {card.name}\n```\nStream preset: `{card.stream}`.'
    if conversion.teacher:
        use = "A bidirectional model: a teacher to distil from; it cannot stream."
    return f"""---
{licence}
library_name: rollforce
pipeline_tag: text-to-video
base_model: {json.dumps(conversion.origin)}
---
# {card.name}

{conversion.parameters / 1e9:.2f} billion parameters, {card.size[1]} x {card.size[0]} at {card.fps} fps.

{use}

## Licence

{card.licence}{page}

## Origin

- transformer: `{checkpoint.path.name}`{where}{lora}
- {", ".join(part.name for part in conversion.parts)}: {conversion.origin}

Made by `rollforce convert`: names changed, numbers not{", but for the LoRA" if lora else ""}\
{f"; stored as {str(conversion.dtype).removeprefix('torch.')}" if conversion.dtype else ""}.
"""
