"""What a student takes from its base model (autoencoder, text encoder, tokenizer), brought to diffusers' layout."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollforce.checkpoints.decoders import WAN_5B
from rollforce.checkpoints.parts import BUILDERS, Part, read_part
from rollforce.checkpoints.read import ORIGINAL, expect, read_checkpoint
from rollforce.checkpoints.safetensors_folder import STEM, find_weights, read_json, shards_of, write_json, write_shards
from rollforce.checkpoints.shapes import autoencoder_config_of, text_config_of
from rollforce.checkpoints.vocabulary import write_tokenizer
from rollforce.errors import CheckpointError, stand_in

KINDS = {"vae": "autoencoder", "text_encoder": "text"}
REQUIRED = ("vae", "text_encoder", "tokenizer")
CLASSES = {"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"],
           "text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"],
           "scheduler": ["diffusers", "UniPCMultistepScheduler"], "image_encoder": ["transformers", "CLIPVisionModel"],
           "image_processor": ["transformers", "CLIPImageProcessor"]}  # fmt: skip
HUB_PATTERNS = (  # what to download of a base: everything but its transformer's weights
    "model_index.json", "config.json", "transformer/config.json", "vae/*", "text_encoder/*", "tokenizer/*",
    "scheduler/*", "image_encoder/*", "image_processor/*", ORIGINAL["autoencoder"], ORIGINAL["text"],
    "google/umt5-xxl/*",
)  # fmt: skip
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5"}
FILES = {  # where, and what parts are called as single files; of several the first
    "autoencoder": tuple((place, name) for name in (ORIGINAL["autoencoder"], "*[Ww]an*2.1*[Vv][Aa][Ee]*.safetensors",
                                                    "*[Ww]an*2_1*[Vv][Aa][Ee]*.safetensors", "lightvaew2_1.*")
                         for place in (".", "vae")),
    "text": tuple((place, name) for name in (ORIGINAL["text"], "umt5*xxl*.safetensors", "umt5*xxl*.gguf",
                                             "models_t5*.safetensors")
                  for place in (".", "text_encoders", "clip")),
}  # fmt: skip
VOCABULARY = 20_000_000  # bytes of a tokenizer.json, about
LINKED = 1_000_000  # bytes: larger files are hard-linked where the disk allows, smaller ones copied
UMT5 = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", "dense_act_fn": "gelu_new", "is_gated_act": True,
        "is_encoder_decoder": True, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
        "tie_word_embeddings": False}  # fmt: skip


@dataclass(frozen=True)
class ModelPart:
    """One folder of the diffusers layout, and where it comes from: a folder, or an original file of `kind`; a
    tokenizer also from the vocabulary inside a file of a text encoder."""

    name: str
    source: Path
    kind: str | None = None

    @property
    def bytes(self) -> int:
        return VOCABULARY if self.kind == "tokenizer" else sum(path.stat().st_size for path in _files(self.source))

    def facts(self) -> Part | None:
        """Read what an autoencoder or a text encoder is, from its settings and headers; None for another part."""
        kind = KINDS.get(self.name)
        if kind is None:
            return None
        if self.kind is None:
            return read_part(self.source, kind)
        if self.source.name.startswith("Wan2.2_VAE"):  # of the 5B model: its names are no others' here
            return Part(kind, self.source, WAN_5B, channels=48)
        state = expect(read_checkpoint(self.source, self.kind), self.kind).state
        told = read_json(self.source / "config.json", {}) if self.source.is_dir() else {}
        return BUILDERS[kind](self.source, state, told or ({"model_type": "umt5"} if kind == "text" else {}))

    def has_words(self) -> bool:
        """Whether a tokenizer's folder, or file, has a vocabulary."""
        names = ("tokenizer.json", "spiece.model")
        return self.kind == "tokenizer" or any((self.source / name).is_file() for name in names)

    def linkable(self, folder: Path) -> bool:
        """Whether it takes no room in `folder`: taken as it is, from the same disk."""
        return self.kind is None and self.source.stat().st_dev == folder.stat().st_dev

    def place(self, folder: Path) -> None:
        """Make `folder`/{name}: link what is laid out as diffusers does, translate what is not."""
        target = folder / self.name
        if self.kind is None:
            for path in _files(self.source):
                _take(path, target / path.relative_to(self.source))
            return
        if self.kind == "tokenizer":
            write_tokenizer(read_checkpoint(self.source, "text").vocabulary, target, self.source.name)
            return
        state = expect(read_checkpoint(self.source, self.kind), self.kind).state
        write_shards(state, target, STEM[self.kind])
        config = text_config_of(state) | UMT5 if self.kind == "text" else autoencoder_config_of(state)
        class_name = {} if self.kind == "text" else {"_class_name": CLASSES["vae"][1]}
        own = read_json(self.source / "config.json", {}) if self.source.is_dir() else {}
        write_json(own or class_name | config, target / "config.json")


def find_parts(base: Path, teacher: bool = False, image: bool = False) -> tuple[ModelPart, ...]:
    """Return the parts in a base model's folder, diffusers' or original. CheckpointError names what is missing.
    `teacher`: with the scheduler, without which no pipeline of diffusers runs the model; `image`: an image-to-video
    model, which needs the image encoder as well."""
    if not base.is_dir():
        raise CheckpointError(f"--base {base}: there is no such folder. Give a base model's folder or its hub id, "
                              "such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers.")  # fmt: skip
    names = [name for name in CLASSES if name != "transformer" and (teacher or name != "scheduler")]
    folders = (_laid_out(base / name) for name in names if (base / name).is_dir())
    parts = {part.name: part for part in (*_original(base), *filter(None, folders))}
    wanted = (*REQUIRED, "image_encoder") if image else REQUIRED
    if missing := [name for name in wanted if name not in parts]:
        raise CheckpointError(f"--base {base} holds no {', no '.join(missing)}. A base is a diffusers folder (vae/, "
                              "text_encoder/, tokenizer/; for image to video image_encoder/), an original Wan folder "
                              "(Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/), or a folder with "
                              "ComfyUI's files (vae/wan_2.1_vae.safetensors, text_encoders/umt5_xxl_*.safetensors; if "
                              "that holds no spiece_model, tokenizer/ of `hf download google/umt5-xxl`).")
    if told := next(filter(None, (stand_in(path) for part in parts.values() for path in _files(part.source))), ""):
        raise CheckpointError(f"--base {base}: {told}")
    return tuple(parts[name] for name in names if name in parts)


def settings_of(base: Path) -> dict[str, Any]:
    """Return the config.json of a base model's transformer, {} without one."""
    return read_json(base / "transformer" / "config.json", {}) or read_json(base / "config.json", {})


def _laid_out(folder: Path) -> ModelPart | None:
    """A part's folder as diffusers lays it out; to be written anew if its weights are codes, or have names (a variant,
    .bin) that are not looked for when a model is loaded. None for a folder of other things, such as ComfyUI's vae/."""
    kind = KINDS.get(folder.name)
    if kind is None:
        return ModelPart(folder.name, folder)
    if (found := find_weights(folder, STEM[kind])) is None:
        return None
    usual = found.name.removesuffix(".index.json") == f"{STEM[kind]}.safetensors"
    plain = expect(read_checkpoint(folder, kind), kind).format == "safetensors"
    return ModelPart(folder.name, folder, None if usual and plain else kind)


def _original(base: Path) -> list[ModelPart]:
    """Parts that are files: of an original Wan folder, of ComfyUI's models folder, or of one that holds its files."""
    found = [ModelPart(name, path, kind) for name, kind in KINDS.items()
             for path in [path for place, words in FILES[kind] for path in sorted((base / place).glob(words))][:1]]
    tokenizer = base / "google" / "umt5-xxl"
    if tokenizer.is_dir():
        return [*found, ModelPart("tokenizer", tokenizer)]
    inside = (part.source for part in found if part.name == "text_encoder" and part.source.suffix == ".safetensors")
    return found + [ModelPart("tokenizer", path, "tokenizer") for path in inside
                    if read_checkpoint(path, "text").vocabulary]  # fmt: skip


def _files(source: Path) -> list[Path]:
    """The files of a part: no hidden ones, no second variant of its weights, and no pickles beside safetensors."""
    if source.is_file():
        return [source]
    files = [path for path in sorted(source.rglob("*")) if path.is_file()
             and not any(part.startswith(".") for part in path.relative_to(source).parts)]  # fmt: skip
    chosen = find_weights(source, STEM[KINDS[source.name]]) if source.name in KINDS else None
    if chosen is None:
        safe = any(path.suffix == ".safetensors" for path in files)
        return [path for path in files if not safe or path.suffix not in WEIGHTS - {".safetensors"}]
    weights = {chosen, *shards_of(chosen)}
    return [path for path in files if path in weights
            or (path.suffix not in WEIGHTS and ".safetensors." not in path.name)]


def _take(source: Path, target: Path) -> None:
    """Hard-link weights (a hub's cache holds links: to what they lead to), copy settings, which people edit."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size >= LINKED:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another disk, or one without hard links
            pass
    shutil.copyfile(source, target)
