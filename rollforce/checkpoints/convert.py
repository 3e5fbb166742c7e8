"""A student's file and its base become one folder in diffusers' layout, which `rollforce.load` opens.

    OUT/model.yaml          what it is and how it streams (ours)
    OUT/model_index.json    the parts by diffusers' and transformers' own class names, so that either loads any part
    OUT/transformer/ vae/ text_encoder/ tokenizer/ ...        OUT/README.md    card with licence and origin

The pipeline of a student is named RollforceStream, which diffusers' DiffusionPipeline refuses; its WanPipeline does
not look at that name, and refuses because no scheduler is there: it would run a causal student as a bidirectional
model and make noise of it. A teacher's folder names WanPipeline, has its scheduler and no model.yaml.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollforce.checkpoints import base_model, hub
from rollforce.checkpoints.catalog import CARD, Card, presets
from rollforce.checkpoints.lazy_tensor import storing_dtype
from rollforce.checkpoints.lora_changes import Change, add_up, changes_of, wide
from rollforce.checkpoints.lora_scale import find_lora
from rollforce.checkpoints.origin import STREAM_CLASS, Origin, origin_of
from rollforce.checkpoints.outputs import hold
from rollforce.checkpoints.read import Checkpoint, expect, read_checkpoint
from rollforce.checkpoints.releases import Release
from rollforce.checkpoints.safetensors_folder import STEM, bytes_of, read_json, write_json, write_shards
from rollforce.checkpoints.shapes import check_whole, config_of
from rollforce.checkpoints.student import check_expert, check_student, check_together
from rollforce.config import to_dict
from rollforce.errors import ConfigError
from rollforce.video.size import check_size

log = logging.getLogger(__name__)
FPS = 16  # of every Wan 2.1 model
SIZE = (480, 832)  # height, width
STREAM = "self_forcing"  # of a student that no name tells
UNKNOWN = "unknown"


@dataclass(frozen=True)
class BakedLora:
    """A LoRA to bake in: its file, what it changes of the transformer, and how many times that is added."""

    checkpoint: Checkpoint
    scale: float
    changes: Mapping[str, tuple[Change, ...]]

    def __str__(self) -> str:
        return self.checkpoint.path.name + (f" at {self.scale:g}" if self.scale != 1 else "")


@dataclass(frozen=True)
class Conversion:
    """Everything that was checked before a byte is written."""

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    parts: tuple[base_model.ModelPart, ...]
    loras: tuple[BakedLora, ...]
    out: Path
    card: Card
    base: str
    origin: Origin  # of the transformer
    dtype: torch.dtype | None
    teacher: bool
    warnings: tuple[str, ...]

    @property
    def release(self) -> Release | None:
        """The release that the transformer is of, if one is known."""
        return self.origin.release

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.checkpoint.state.values())

    @property
    def bytes(self) -> int:
        """What it will take on the disk of `out`."""
        dtypes = self.dtypes
        own = sum(bytes_of(tensor, dtypes[key]) for key, tensor in self.checkpoint.state.items())
        return own + sum(part.bytes for part in self.parts if not part.linkable(existing(self.out)))

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """In which dtype each tensor is stored; what a LoRA changes is never rounded to eight bits."""
        changed = {name for lora in self.loras for name in lora.changes}
        return {key: self.dtype or (wide(storing_dtype(tensor)) if key in changed else storing_dtype(tensor))
                for key, tensor in self.checkpoint.state.items()}  # fmt: skip

    def merge(self, group: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return some of the transformer's tensors with all that the LoRAs change of them, each rounded once."""
        terms = {key: [(lora.scale, change) for lora in self.loras for change in lora.changes.get(key, ())]
                 for key in group}  # fmt: skip
        dtypes = self.dtypes
        return {key: add_up(tensor, terms[key], dtypes[key]) if terms[key] else tensor for key, tensor in group.items()}

    def summary(self) -> list[str]:
        """Say what it is and what will be made, in lines for a person."""
        checkpoint, config = self.checkpoint, self.config
        where = f" ({checkpoint.where})" if checkpoint.where else ""
        others = f"; it also holds {', '.join(checkpoint.others)} (--container)" if checkpoint.others else ""
        lora = f" with {', '.join(map(str, self.loras))}" if self.loras else ""
        origin = self.origin
        known = f", {origin.release.name}: {origin.release.page} ({origin.release_by})" if origin.release else ""
        stream = "a teacher: no stream" if self.teacher else f"stream {self.card.stream}"
        return [
            f"{checkpoint.path.name}{where}{lora}: {self.parameters / 1e9:.2f} billion parameters, "
            f"{config['num_layers']} blocks of width {config['num_attention_heads'] * config['attention_head_dim']}, "
            f"{checkpoint.format}{others}",
            *(f"{lora}: {lora.checkpoint.about}" for lora in self.loras),
            f"licence {self.card.licence}{known}",
            f"{', '.join(part.name for part in self.parts)} from {self.base}",
            f"{self.out}: {self.bytes / 1e9:.2f} GB, {self.card.size[1]}x{self.card.size[0]}, {stream}",
        ]


def existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(each for each in (folder, *folder.parents) if each.exists())


def prepare(file: str | Path, base: str | Path, out: str | Path, *, lora: str | Path | Sequence[str | Path] = (),
            name: str | None = None, licence: str | None = None, stream: str | None = None,
            size: tuple[int, int] | None = None, dtype: torch.dtype | None = None, teacher: bool = False,
            overwrite: bool = False, container: str | None = None) -> Conversion:  # fmt: skip
    """Read and check everything, write nothing.

    Args: `file` a transformer in any public form (see `read_checkpoint`); `base` a folder or a hub id that has the
    other parts; `lora` baked into the weights, each FILE or FILE=SCALE; `name`, `licence`, `stream` and `size` (height,
    width) for the card, else known from the file's name; `dtype` to store (None: as in the file, codes as bfloat16, and
    in bfloat16 what a LoRA changes of eight bits); `teacher` allows a bidirectional model; `container` which of several
    state dicts in the file.
    Raises CheckpointError, ConfigError, or OSError where the disk is too full."""
    if teacher and stream is not None:
        raise ConfigError("--teacher and --stream: a teacher has no stream. Use one of them.")
    check_expert(Path(file))
    checkpoint = expect(read_checkpoint(file, "transformer", container), "transformer")
    check_student(checkpoint, teacher or stream is not None)
    folder = hub.fetch(str(base), base_model.HUB_PATTERNS) if hub.is_repository(base) else Path(base).expanduser()
    image = "condition_embedder.image_embedder.norm1.weight" in checkpoint.state
    found = base_model.find_parts(folder, teacher, image)
    config = _config(checkpoint, base_model.settings_of(folder))
    check_together(checkpoint, config, found, teacher)
    adapters = _baked_loras([lora] if isinstance(lora, str | Path) else lora or (), checkpoint)
    origin = origin_of(Path(file))  # not resolved: a hub's cache links to hashes
    out = Path(out).expanduser()
    card, warnings = _card(checkpoint, origin, name or out.resolve().name, licence, stream, size)
    warnings += _rounding(checkpoint, adapters, dtype)
    conversion = Conversion(checkpoint, config, found, adapters, out, card, str(base), origin, dtype, teacher,
                            warnings)  # fmt: skip
    _check_out(conversion, [Path(file), folder, *(each.checkpoint.path for each in adapters)], overwrite)
    return conversion


def dtype_of(name: str | None) -> torch.dtype | None:
    """Return a dtype to store weights in, by name; None is as they are. ConfigError lists the names."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in known:
        raise ConfigError(f"dtype {name!r} is not known. Use {', '.join(known)}.")
    return known[name] if name else None


def write(conversion: Conversion) -> Path:
    """Write the folder: all of it, or nothing. ConfigError if another process does."""
    out = conversion.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with hold(out, folder=True):
        return _write(conversion, out)


def _write(conversion: Conversion, out: Path) -> Path:
    fresh, old = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("part", "old"))
    try:
        _fill(conversion, fresh)
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    return conversion.out


def _fill(conversion: Conversion, folder: Path) -> None:
    target = folder / "transformer"
    write_shards(conversion.checkpoint.state, target, STEM["transformer"], dtypes=conversion.dtypes,
                 change=conversion.merge if conversion.loras else None)  # fmt: skip
    write_json(dict(conversion.config), target / "config.json")
    for part in conversion.parts:
        log.info("%s from %s", part.name, part.source)
        part.place(folder)
    write_json(index_of(conversion), folder / "model_index.json")
    (folder / "README.md").write_text(readme_of(conversion), encoding="utf-8")
    if not conversion.teacher:
        import yaml

        card = yaml.safe_dump(to_dict(conversion.card), sort_keys=False, allow_unicode=True)
        (folder / CARD).write_text(card, encoding="utf-8")


def _config(checkpoint: Checkpoint, base: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the transformer: measured; what shapes do not tell is the base's, if it is of the same width."""
    told = dict(checkpoint.config) or dict(base)
    heads = told.get("num_attention_heads") or told.get("num_heads")
    width = heads and told.get("dim", heads * told.get("attention_head_dim", 0))
    measured = checkpoint.state.get("patch_embedding.weight")
    if measured is None or width != measured.shape[0]:
        told, heads = {}, None
    config = config_of(checkpoint.state, heads)
    check_whole(checkpoint.state, checkpoint.name, told.get("num_layers"))
    return {"_class_name": base_model.CLASSES["transformer"][1], **config, "patch_size": list(config["patch_size"]),
            "eps": told.get("eps", 1e-6), "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 1024}  # fmt: skip


def _baked_loras(loras: Sequence[str | Path], checkpoint: Checkpoint) -> tuple[BakedLora, ...]:
    """The LoRAs, each FILE or FILE=SCALE, checked: what they change is there and of the same sizes."""
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state.items()}
    adapters = []
    for lora in loras:
        path, scale = find_lora(str(lora))
        found = expect(read_checkpoint(path), "lora")
        adapters.append(BakedLora(found, scale, changes_of(found.state, shapes, name=path.name)))
    return tuple(adapters)


def _rounding(checkpoint: Checkpoint, adapters: Sequence[BakedLora], dtype: torch.dtype | None) -> tuple[str, ...]:
    """What is said where LoRAs change weights of eight bits."""
    names = {name for adapter in adapters for name in adapter.changes}
    coarse = [name for name in names if checkpoint.state[name].dtype.itemsize == 1]
    if dtype is not None or not coarse:
        return ()
    stored = str(checkpoint.state[coarse[0]].dtype).removeprefix("torch.")
    return (f"{len(coarse)} weights that LoRAs change are {stored} in {checkpoint.path.name}: they are stored as "
            "bfloat16, for most of a change is rounded away in eight bits.",)  # fmt: skip


def _card(checkpoint: Checkpoint, origin: Origin, name: str, licence: str | None, stream: str | None,
          size: tuple[int, int] | None) -> tuple[Card, tuple[str, ...]]:  # fmt: skip
    """The card, and what was guessed for it."""
    warnings = []
    shipped = origin.stream if origin.stream in presets() else None
    if licence is None and not origin.licence:
        warnings.append(f"the licence of {checkpoint.path.name} is not known from its name or a card beside it: the "
                        f"card says {UNKNOWN}. Say it with --licence.")  # fmt: skip
    if stream is None and shipped is None:
        warnings.append(f"no preset is known for {checkpoint.path.name}: the card says {STREAM}. Say what it was "
                        "trained for with --stream.")  # fmt: skip
    if checkpoint.causal is None:
        warnings.append(f"{checkpoint.path.name} does not tell whether it is causal: a bidirectional model would "
                        "stream noise.")  # fmt: skip
    if stream is not None and stream not in presets():
        raise ConfigError(f"There is no stream preset {stream!r}. Presets: {', '.join(presets())}.")
    check_size(size or SIZE, 16, " (autoencoder stride 8 x patch 2)")
    card = Card(name, licence or origin.licence or UNKNOWN, FPS, size or SIZE,
                stream or shipped or STREAM)  # fmt: skip
    return card, tuple(warnings)


def _check_out(conversion: Conversion, sources: list[Path], overwrite: bool) -> None:
    out = conversion.out
    if out.exists():
        if not out.is_dir():
            raise ConfigError(f"{out} is a file; --out is the folder to make.")
        if any(out.iterdir()) and not overwrite:
            raise ConfigError(f"{out} exists; use --overwrite, or another name with --out.")
        if any(out.iterdir()) and not (out / "model_index.json").is_file():
            raise ConfigError(f"{out} is not a model folder: it is not overwritten. Use another name with --out.")
        if any(source.resolve().is_relative_to(out.resolve()) for source in sources):
            raise ConfigError(f"{out} holds what it would be made from. Use another name with --out.")
    free = shutil.disk_usage(existing(out)).free
    if conversion.bytes > free:
        raise OSError(errno.ENOSPC, f"{out} needs ~{conversion.bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB free")


def index_of(conversion: Conversion) -> dict[str, Any]:
    """Return model_index.json: the parts by the class names of diffusers and transformers. The base's own index names
    its scheduler and tokenizer, which may be of other classes."""
    named = read_json(conversion.parts[0].source.parent / "model_index.json", {})
    own = {name: named[name] for name in ("scheduler", "tokenizer", "image_processor") if name in named}
    pipeline = "WanImageToVideoPipeline" if "image_dim" in conversion.config else "WanPipeline"
    parts = ("transformer", *(part.name for part in conversion.parts))
    return {"_class_name": pipeline if conversion.teacher else STREAM_CLASS,
            **{name: (base_model.CLASSES | own)[name] for name in parts}}  # fmt: skip


def readme_of(conversion: Conversion) -> str:
    """Return README.md: licence, origin and use, with the head that the hub reads."""
    card, origin, checkpoint = conversion.card, conversion.origin, conversion.checkpoint
    release, known = origin.release, f", {origin.licence_by}" if card.licence == origin.licence else ""
    free = card.licence == "Apache-2.0"
    where = f", `{checkpoint.where}`" if checkpoint.where else ""
    lora = "".join(f"\n- LoRA, baked in: `{each.checkpoint.path.name}`, scale {each.scale:g}; {each.checkpoint.about}"
                   for each in conversion.loras)  # fmt: skip
    page = f" ({release.name}, {release.page})" if release else ""
    licence = "license: apache-2.0" if free else f"license: other\nlicense_name: {json.dumps(card.licence)}"
    use = f'```\nrollforce render "a koi pond" --model {card.name}\n```\nStream preset: `{card.stream}`.'
    if conversion.teacher:
        use = "A bidirectional model: a teacher to distil from; it cannot stream."
    return f"""---
{licence}
library_name: rollforce
pipeline_tag: text-to-video
base_model: {json.dumps(conversion.base)}
---
# {card.name}

{conversion.parameters / 1e9:.2f} billion parameters, {card.size[1]} x {card.size[0]} at {card.fps} fps.

{use}

## Licence

{card.licence}{page}{known}

## Origin

- transformer: `{checkpoint.path.name}`{where}{lora}
- {", ".join(part.name for part in conversion.parts)}: {conversion.base}

Made by `rollforce convert`: names changed, numbers not{", but for the LoRA" if lora else ""}\
{f"; stored as {str(conversion.dtype).removeprefix('torch.')}" if conversion.dtype else ""}.
"""
