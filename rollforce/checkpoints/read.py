"""The one door to public weights: any file or folder of a Wan model or of a student of it, in our names.

    checkpoint = read_checkpoint("self_forcing_dmd.pt")        # .state, .kind, .causal, .where, .config

Known: diffusers folders (sharded or not), the original Wan files, students' .pt files, LoRAs. Tensors are
memory-mapped: reading costs nothing until they are used.
"""

from __future__ import annotations

import difflib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from rollforce.checkpoints.lora_names import adapter_settings, is_lora, lora_to_ours, with_alpha
from rollforce.checkpoints.names import FAMILIES, plain, recognise, to_ours
from rollforce.checkpoints.origin import Causality, causality_of
from rollforce.checkpoints.releases import GENERIC
from rollforce.checkpoints.safetensors_folder import STEM, find_weights, metadata_of, read_json, read_shards, shards_of
from rollforce.errors import CheckpointError

PARTS = {"transformer": ("transformer",), "autoencoder": ("vae", "autoencoder"), "text": ("text_encoder",)}
ORIGINAL = {"transformer": "diffusion_pytorch_model*", "autoencoder": "*VAE*.pth", "text": "models_t5*.pth"}
WHAT = {**{family.kind: family.what for family in FAMILIES}, "lora": "a LoRA"}
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names (those of diffusers and transformers), memory-mapped where the file allows.

    `kind` transformer, autoencoder, text or lora; `causal` True for a student that streams, False for a bidirectional
    model, None where nothing tells, and `known` says how it is known; `where` the container the weights were in, such
    as "generator_ema", or ""; `config` the config.json beside the weights, {} without one."""

    state: dict[str, Tensor] = field(repr=False)
    kind: str
    causal: bool | None
    where: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    known: Causality = field(default=Causality(None, ""))

    @property
    def name(self) -> str:
        """The last part of its path that says something, for messages."""
        path = self.path.absolute()
        telling = (each.name for each in (path, *path.parents) if not GENERIC.fullmatch(each.name))
        return next(telling, self.path.name).rsplit("--", 1)[-1]  # a hub's cache: models--owner--name


def read_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """Read weights from a file or a folder. `kind`: which part of a folder with several (else its transformer).

    Raises CheckpointError if there is nothing, if it is not a Wan model's, if it is damaged, or if it is a pickle that
    would have to run code."""
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no file or folder {path}.{_near(path)}")
    source = _inside(path, kind) if path.is_dir() else path
    where, state = _tensors(source)
    config = read_json(source.parent / "config.json", {})
    if is_lora(state):
        config = {**read_json(source.parent / "adapter_config.json", {}), **adapter_settings(metadata_of(source))}
        lora = with_alpha(lora_to_ours(state, path.name), config, path.name)
        return Checkpoint(lora, "lora", None, where, path, config)
    if (found := recognise(state)) is None:
        raise CheckpointError(f"{path.name} is none of {', '.join(WHAT.values())}. Its first names: "
                              f"{', '.join(list(state)[:5])}.")  # fmt: skip
    family, original = found
    state = to_ours(family.kind, state) if original else plain(state)
    known = causality_of(source, config, original) if family.kind == "transformer" else Causality(None, "")
    return Checkpoint(state, family.kind, known.value, where, path, config, known)


def expect(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """Return `checkpoint`, if it is of this kind. Else CheckpointError says what it is."""
    if checkpoint.kind != kind:
        remedy = " Give it as --lora, beside the model it was trained on." if checkpoint.kind == "lora" else ""
        raise CheckpointError(f"{checkpoint.name!r} is {WHAT[checkpoint.kind]}; {WHAT[kind]} is needed here.{remedy}")
    return checkpoint


def teacher_refusal(name: str, by: str = "") -> str:
    """Return what to say where a bidirectional model is asked to stream; `by`: how it is known to be one."""
    known = f" ({by})" if by else ""
    return (f"{name!r} is a bidirectional teacher: it cannot stream{known}. Use a causal student, or distil one: "
            "train/causal.py, then train/distill.py.")  # fmt: skip


def raw_advice(path: str | Path) -> str:
    """Return what to say where a file is given instead of a model folder."""
    path = Path(path)
    held = f"{path.name} is a file of weights, not a model folder"
    if path.suffix in PICKLES:
        held = describe(read_pickle(path), path.name)
    return f"{held}. Convert once: rollforce convert {path} --base Wan-AI/Wan2.1-T2V-1.3B-Diffusers --out FOLDER"


def _inside(folder: Path, kind: str | None) -> Path:
    """The weights' file or index in a folder that holds a part, or in one that holds a model."""
    parts = (folder / part for part in PARTS[kind or "transformer"])
    return _one(next((part for part in parts if part.is_dir()), folder), kind)


def _one(folder: Path, kind: str | None) -> Path:
    if kind in ORIGINAL and kind != "transformer" and (found := sorted(folder.glob(ORIGINAL[kind]))):
        return found[0]
    for stem in [STEM[kind]] if kind else STEM.values():
        if (found_one := find_weights(folder, stem)) is not None:
            return found_one
    found = sorted(folder.glob("*.safetensors")) or sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if not found:
        raise CheckpointError(f"{folder} holds no weights: no .safetensors, .pt or .pth file.")
    if len({tuple(shards_of(path)) for path in found}) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise CheckpointError(f"{folder} holds {len(found)} files of weights ({names}). Give the one you want.")
    return found[0]


def _tensors(source: Path) -> tuple[str, dict[str, Tensor]]:
    """Container, and tensors under bare names."""
    if source.suffix in PICKLES:
        where, state = unpack(read_pickle(source), source.name)
        return where, stripped(state, source.name)
    if source.suffix == ".safetensors" or ".safetensors.index." in source.name:
        return "", stripped(read_shards(shards_of(source)), source.name)
    raise CheckpointError(f"{source.name}: weights are read from .safetensors, {', '.join(sorted(PICKLES))} and "
                          "folders of them.")  # fmt: skip


def _near(path: Path) -> str:
    there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=3)
    return f" Nearest: {', '.join(near)}." if near else ""


# -- files before any name is translated: which part to take, and what to strip of names -------------------------------


T = TypeVar("T")

GENERATORS = ("generator_ema", "generator", "model")  # of students' training code; the average is the better model
CONTAINERS = (*GENERATORS, "generator_lora", "lora", "state_dict")
WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}  # segments anywhere in a name
PREFIXES = {"model", "module", "base_model", "diffusion_model", "generator", "transformer"}  # only in front


def read_pickle(path: Path) -> Any:
    """Read a .pt or .pth as plain containers of tensors, memory-mapped where its format allows; no code is run."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError) as error:
        found = re.search(r"GLOBAL ([\w.]+)|(?:class|global|call to) ([\w.]+\.[\w.]+)", str(error))
        if found is None:
            raise CheckpointError(f"{path.name} is damaged, or is not a file that torch.save wrote.") from error
        raise CheckpointError(f"{path.name} is a pickle; loading with weights_only=True failed (object "
                              f"{found[1] or found[2]}). Refusing: it could run code. Ask for a safetensors file, or "
                              "save its tensors alone with torch.save.") from error  # fmt: skip
    except RuntimeError as error:  # torch's word for a cut-off zip
        if "PytorchStreamReader" not in str(error) and "archive" not in str(error):
            raise
        raise CheckpointError(f"{path.name} is damaged or not complete: {str(error).splitlines()[0]}") from error


def unpack(content: Any, name: str) -> tuple[str, dict[str, Tensor]]:
    """Return the state dict inside what a pickle held, and the word of the container it was in ("" if in none)."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, not a state dict.")
    for word in CONTAINERS:
        inside = content.get(word)
        if isinstance(inside, Mapping) and (tensors := tensors_of(inside)):
            return word, tensors
    if bare := tensors_of(content):
        return "", bare
    words = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
    raise CheckpointError(f"{name} holds {words}: none of {', '.join(CONTAINERS)}, and no tensors of its own.")


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def stripped(state: Mapping[str, T], name: str) -> dict[str, T]:
    """Return a state dict under names without what FSDP, DDP, torch.compile, peft and outer modules put around them."""
    clean: dict[str, T] = {}
    for key, value in state.items():
        short = strip(key)
        if short in clean:
            raise CheckpointError(f"{name} holds {short} twice, once as {key}: two models in one state dict.")
        clean[short] = value
    return clean


def strip(key: str) -> str:
    segments = [segment for segment in key.split(".") if segment not in WRAPPERS]
    while len(segments) > 1 and segments[0] in PREFIXES:
        segments = segments[1:]
    return ".".join(segments)


def describe(content: Any, name: str) -> str:
    """Say what a pickle holds, in a few words: "sf.pt holds generator, critic (FSDP prefixes)"."""
    if not isinstance(content, Mapping):
        return f"{name} holds a {type(content).__name__}"
    words = [str(key) for key, value in content.items() if isinstance(value, Mapping)]
    held = ", ".join(words[:8]) if words else f"{len(tensors_of(content))} bare tensors"
    inner = (str(key) for value in content.values() if isinstance(value, Mapping) for key in value)
    wrapped = any(not WRAPPERS.isdisjoint(key.split(".")) for key in inner)
    return f"{name} holds {held}{' (FSDP prefixes)' if wrapped else ''}"
