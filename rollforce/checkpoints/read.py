"""The one door to public weights: any file or folder of a Wan model or of a student of it, in our names.

    checkpoint = read_checkpoint("self_forcing_dmd.pt")        # .state, .kind, .causal, .where, .config

Known: diffusers folders (sharded or not, variants, .bin), the original Wan files, students' .pt files and folders of
torch.distributed.checkpoint, ComfyUI's fp8_scaled and comfy_quant, GGUF, LoRAs. Tensors are memory-mapped, or decoded
whenever they are used: reading costs nothing until then.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rollforce.checkpoints.comfy_quant import dequantise, is_scaled
from rollforce.checkpoints.containers import describe, state_dicts, stripped, unpack
from rollforce.checkpoints.distributed import METADATA, read_distributed
from rollforce.checkpoints.lora_names import is_lora, lora_to_ours
from rollforce.checkpoints.lora_settings import describe_lora, read_settings, with_alpha
from rollforce.checkpoints.names import FAMILIES, first_of, plain, recognise, to_ours
from rollforce.checkpoints.origin import Causality, causality_of
from rollforce.checkpoints.pickles import SUFFIXES, read_pickle
from rollforce.checkpoints.releases import GENERIC
from rollforce.checkpoints.safetensors_folder import STEM, find_weights, read_json, shards_of
from rollforce.checkpoints.unread import refuse_codes, refuse_quantised
from rollforce.checkpoints.weight_file import WeightFile, read_files
from rollforce.errors import CheckpointError, stand_in

PARTS = {"transformer": ("transformer",), "autoencoder": ("vae", "autoencoder"), "text": ("text_encoder",)}
ORIGINAL = {"transformer": "diffusion_pytorch_model*", "autoencoder": "*VAE*.pth", "text": "models_t5*.pth"}
WHAT = {**{family.kind: family.what for family in FAMILIES}, "lora": "a LoRA"}
SPIECE = "spiece_model"  # SentencePiece's vocabulary, which ComfyUI puts among the weights of a text encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names (those of diffusers and transformers), memory-mapped where the file allows.

    `kind` transformer, autoencoder, text or lora; `causal` True for a student that streams, False for a bidirectional
    model, None where nothing tells, and `known` says how it is known; `where` the container the weights were in, such
    as "generator_ema", or ""; `config` the config.json beside the weights, {} without one (of a LoRA: what is said
    about it); `format` what the file is, in words, such as "ComfyUI fp8_scaled" or "GGUF (Q4_K, Q8_0)"; `others` the
    state dicts that were not taken; `vocabulary` the SentencePiece model that ComfyUI's text encoders hold, b"" without
    one; `about` what a LoRA is, in a line, with its rank, its alpha and where that was read, else ""."""

    state: dict[str, Tensor] = field(repr=False)
    kind: str
    causal: bool | None
    where: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    known: Causality = field(default=Causality(None, ""))
    format: str = "safetensors"
    others: tuple[str, ...] = ()
    vocabulary: bytes = field(default=b"", repr=False)
    about: str = ""

    @property
    def name(self) -> str:
        """The last part of its path that says something, for messages."""
        path = self.path.absolute()
        telling = (each.name for each in (path, *path.parents) if not GENERIC.fullmatch(each.name))
        return next(telling, self.path.name).rsplit("--", 1)[-1]  # a hub's cache: models--owner--name


def read_checkpoint(path: str | Path, kind: str | None = None, container: str | None = None) -> Checkpoint:
    """Read weights from a file or a folder. `kind`: which part of a folder with several (else its transformer);
    `container`: which of several state dicts, such as "generator" (else an average over training, if there is one).

    Raises CheckpointError if there is nothing, if it is not a Wan model's, if it is damaged, if it is quantised in a
    way that is not read here, or if it is a pickle that would have to run code."""
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no file or folder {path}.{_near(path)}")
    source = _inside(path, kind) if path.is_dir() else path
    found = read_distributed(source.parent) if source.name == METADATA else read_files(shards_of(source))
    where, others, state = _choose(found, source.name, container)
    if is_lora(state):
        raw = lora_to_ours(state, path.name)
        settings, place = read_settings(source, found.metadata, raw)
        lora = with_alpha(raw, settings, path.name)
        about = describe_lora(raw, lora, place)
        return Checkpoint(lora, "lora", None, where, path, settings, format=found.format, others=others, about=about)
    config = read_json(source.parent / "config.json", {})
    state, form, vocabulary = _plain_numbers(state, found, path.name)
    if (known := recognise(state)) is None:
        raise CheckpointError(f"{path.name} is none of {', '.join(WHAT.values())}. Its first names: "
                              f"{first_of(state)}.")  # fmt: skip
    family, original = known
    state = to_ours(family.kind, state, path.name) if original else plain(state)
    refuse_codes(state, config, path.name)
    origin = causality_of(source, config, original) if family.kind == "transformer" else Causality(None, "")
    return Checkpoint(state, family.kind, origin.value, where, path, config, origin, form, others, vocabulary)


def _choose(found: WeightFile, name: str, container: str | None) -> tuple[str, tuple[str, ...], dict[str, Tensor]]:
    """The state dict to take, under bare names, with the word of its container, and what else there was."""
    state: dict[str, Tensor]
    where, state = unpack(found.content, name, container)
    others = tuple(each for each in state_dicts(found.content, name) if each != where)
    if others:
        log.info("%s: %s is taken, not %s", name, where or "what is in no container", ", ".join(map(repr, others)))
    return where, others, stripped(state, name)


def _plain_numbers(state: dict[str, Tensor], found: WeightFile, name: str) -> tuple[dict[str, Tensor], str, bytes]:
    """Weights as numbers, decoded when they are used, the format in words, and a vocabulary that was among them."""
    refuse_quantised(state, name)
    vocabulary = state.pop(SPIECE, None)
    spiece = b"" if vocabulary is None else bytes(vocabulary.flatten().tolist())
    if not is_scaled(state):
        return state, found.format, spiece
    return *dequantise(state, found.metadata, name), spiece


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
    if told := stand_in(path):
        return told
    held = f"{path.name} is a file of weights, not a model folder"
    if path.suffix in SUFFIXES:
        held = describe(read_pickle(path), path.name)
    return f"{held}. Convert once: rollforce convert {path} --base Wan-AI/Wan2.1-T2V-1.3B-Diffusers --out FOLDER"


def _inside(folder: Path, kind: str | None) -> Path:
    """The weights' file or index in a folder that holds a part, or in one that holds a model."""
    parts = (folder / part for part in PARTS[kind or "transformer"])
    return _one(next((part for part in parts if part.is_dir()), folder), kind)


def _one(folder: Path, kind: str | None) -> Path:
    if (folder / METADATA).is_file():
        return folder / METADATA
    if kind in ORIGINAL and kind != "transformer" and (found := sorted(folder.glob(ORIGINAL[kind]))):
        return found[0]
    for stem in dict.fromkeys([STEM[kind]] if kind else STEM.values()):
        if known := find_weights(folder, stem):
            return known
    found = [path for suffixes in ({".safetensors"}, SUFFIXES, {".gguf"}) for path in sorted(folder.iterdir())
             if path.suffix in suffixes]  # fmt: skip
    found = [path for path in found if path.suffix == found[0].suffix or {path.suffix, found[0].suffix} <= SUFFIXES]
    if not found:
        raise CheckpointError(f"{folder} holds no weights: no .safetensors, .pt, .pth or .gguf file.")
    if len({tuple(shards_of(path)) for path in found}) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise CheckpointError(f"{folder} holds {len(found)} files of weights ({names}). Give the one you want.")
    return found[0]




def _near(path: Path) -> str:
    there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=3)
    return f" Nearest: {', '.join(near)}." if near else ""
