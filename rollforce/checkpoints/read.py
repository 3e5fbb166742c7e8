"""The one door to public weights: any file or folder of a Wan model or of a student of it, in our names.

    checkpoint = read_checkpoint("self_forcing_dmd.pt")        # .state, .kind, .causal, .where, .config

Known: diffusers folders (sharded or not), the original Wan files, students' .pt files, LoRAs. Tensors are
memory-mapped: reading costs nothing until they are used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rollforce.checkpoints import pickles
from rollforce.checkpoints.json_files import read_json
from rollforce.checkpoints.lora_names import adapter_settings, is_lora, lora_to_ours, with_alpha
from rollforce.checkpoints.names import FAMILIES, plain, recognise, to_ours
from rollforce.checkpoints.safetensors_folder import STEM, metadata_of, read_shards, shards_of
from rollforce.errors import CheckpointError

PARTS = {"transformer": ("transformer",), "autoencoder": ("vae", "autoencoder"), "text": ("text_encoder",)}
ORIGINAL = {"transformer": "diffusion_pytorch_model*", "autoencoder": "*VAE*.pth", "text": "models_t5*.pth"}
WHAT = {**{family.kind: family.what for family in FAMILIES}, "lora": "a LoRA"}
GENERIC = re.compile(r"diffusion_pytorch_model.*|transformer|vae|autoencoder|text_encoder|snapshots|[0-9a-f]{40}|")
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
STREAM_CLASS = "RollforceStream"
"""_class_name in the model_index.json of a student's folder; diffusers' WanPipeline is the bidirectional model."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names (those of diffusers and transformers), memory-mapped where the file allows.

    `kind` transformer, autoencoder, text or lora; `causal` True for a student that streams, False for a bidirectional
    model, None where the file does not tell; `where` the container the weights were in, such as "generator_ema", or
    ""; `config` the config.json beside the weights, {} without one.
    """

    state: dict[str, Tensor] = field(repr=False)
    kind: str
    causal: bool | None
    where: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The last part of its path that says something, for messages."""
        path = self.path.absolute()
        telling = (each.name for each in (path, *path.parents) if not GENERIC.fullmatch(each.name))
        return next(telling, self.path.name).rsplit("--", 1)[-1]  # a hub's cache: models--owner--name


def read_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """Read weights from a file or a folder. `kind`: which part of a folder with several (else its transformer).

    Raises CheckpointError if there is nothing, if it is not a Wan model's, if it is damaged, or if it is a pickle that
    would have to run code.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no file or folder {path}.{_near(path)}")
    source = _inside(path, kind) if path.is_dir() else path
    where, state, wrapped = _tensors(source)
    config = read_json(source.parent / "config.json", {})
    if is_lora(state):
        config = {**read_json(source.parent / "adapter_config.json", {}), **adapter_settings(metadata_of(source))}
        lora = with_alpha(lora_to_ours(state, path.name), config, path.name)
        return Checkpoint(lora, "lora", None, where, path, config)
    found = recognise(state)
    if found is None:
        raise CheckpointError(
            f"{path.name} is none of {', '.join(WHAT.values())}. Its first names: {', '.join(list(state)[:5])}."
        )
    family, original = found
    state = to_ours(family.kind, state) if original else plain(state)
    causal = None
    if family.kind == "transformer":
        causal = True if where in pickles.GENERATORS or wrapped else _causal(source, config, original)
    return Checkpoint(state, family.kind, causal, where, path, config)


def expect(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """Return `checkpoint`, if it is of this kind. Else CheckpointError says what it is."""
    if checkpoint.kind != kind:
        remedy = " Give it as --lora, beside the model it was trained on." if checkpoint.kind == "lora" else ""
        raise CheckpointError(
            f"{checkpoint.name!r} is {WHAT[checkpoint.kind]}; {WHAT[kind]} is needed here.{remedy}"
        )
    return checkpoint


def teacher_refusal(name: str) -> str:
    """Return what to say where a bidirectional model is asked to stream."""
    return (f"{name!r} is a bidirectional teacher: it cannot stream. Use a causal student, or distil one: "
            "train/causal.py, then train/distill.py.")  # fmt: skip


def raw_advice(path: str | Path) -> str:
    """Return what to say where a file is given instead of a model folder."""
    path = Path(path)
    held = path.name
    if path.suffix in PICKLES:
        held = pickles.describe(pickles.read_pickle(path), path.name)
    else:
        held = f"{path.name} is a file of weights, not a model folder"
    return f"{held}. Convert once: rollforce convert {path} --base Wan-AI/Wan2.1-T2V-1.3B-Diffusers --out FOLDER"


def _inside(folder: Path, kind: str | None) -> Path:
    """The weights' file or index in a folder that holds a part, or in one that holds a model."""
    for part in PARTS[kind or "transformer"]:
        if (folder / part).is_dir():
            return _one(folder / part, kind)
    return _one(folder, kind)


def _one(folder: Path, kind: str | None) -> Path:
    if kind in ORIGINAL and kind != "transformer" and (found := sorted(folder.glob(ORIGINAL[kind]))):
        return found[0]
    stems = dict.fromkeys([STEM[kind]] if kind else [*STEM.values()])
    for stem in stems:
        for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
            if (folder / name).is_file():
                return folder / name
    found = sorted(folder.glob("*.safetensors")) or sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if not found:
        raise CheckpointError(f"{folder} holds no weights: no .safetensors, .pt or .pth file.")
    if len({tuple(shards_of(path)) for path in found}) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise CheckpointError(f"{folder} holds {len(found)} files of weights ({names}). Give the one you want.")
    return found[0]


def _tensors(source: Path) -> tuple[str, dict[str, Tensor], bool]:
    """Container, tensors under bare names, and whether a student's own outer module `model.` was around them."""
    if source.suffix in PICKLES:
        where, state = pickles.unpack(pickles.read_pickle(source), source.name)
        wrapped = all(key.startswith("model.") for key in state)
        return where, pickles.stripped(state, source.name), wrapped
    if source.suffix == ".safetensors" or source.name.endswith(".index.json"):
        return "", pickles.stripped(read_shards(shards_of(source)), source.name), False
    raise CheckpointError(
        f"{source.name}: weights are read from .safetensors, {', '.join(sorted(PICKLES))} and folders of them."
    )


def _causal(source: Path, config: Mapping[str, Any], original: bool) -> bool | None:
    """Whether a transformer from safetensors, or bare, is known to stream or known not to."""
    outer = source.parent.parent
    pipeline = str(read_json(outer / "model_index.json", {}).get("_class_name", ""))
    if pipeline == STREAM_CLASS or config.get("_class_name") == "CausalWanModel" or (outer / "model.yaml").is_file():
        return True
    if pipeline.startswith("Wan") or config.get("_class_name") == "WanModel":
        return False
    return False if original and source.name.startswith(STEM["transformer"]) else None


def _near(path: Path) -> str:
    there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=3)
    return f" Nearest: {', '.join(near)}." if near else ""
