"""The facts of a model's parts, from settings and the heads of files alone: no weight is read.

    model = read_model(folder)
    obstacles(model)                    # obstacles.py: why these parts cannot stream together
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rollforce.checkpoints.decoders import BUNDLED, CHANNELS, WAN, WAN_5B, find_decoder
from rollforce.checkpoints.headers import WeightHeader, read_header
from rollforce.checkpoints.origin import CARD, model_folder_of
from rollforce.checkpoints.releases import is_expert
from rollforce.checkpoints.safetensors_folder import STEM, find_weights, read_json
from rollforce.checkpoints.shapes import HEAD, SIZES, autoencoder_config_of, config_of, text_config_of
from rollforce.errors import CheckpointError

FAMILIES = {"": WAN, "AutoencoderKLWan": WAN, "AutoencoderKLHunyuanVideo": "HunyuanVideo",
            "AutoencoderKLCogVideoX": "CogVideoX", "AutoencoderKLLTXVideo": "LTX-Video",
            "AutoencoderKLMochi": "Mochi"}  # fmt: skip
LOADABLE = {"", "fp8"}  # how the weights of a transformer may be packed to be loaded as they are


@dataclass(frozen=True)
class Part:
    """One part of a model: `kind` transformer, autoencoder, text or decoder; `family` whose latents it reads or makes.

    `channels` of a latent, `inputs` of what a transformer reads (more, if it also reads pictures), `text_width` of the
    vectors that it reads or makes, `quantised` how its weights are packed, "" if they are plain; `faults` what is wrong
    with the part by itself, in sentences."""

    kind: str
    path: Path
    family: str = ""
    class_name: str = ""
    channels: int | None = None
    inputs: int | None = None
    blocks: int | None = None
    heads: int | None = None
    width: int | None = None
    text_width: int | None = None
    image: bool = False
    quantised: str = ""
    faults: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """What people call a transformer of this width, such as 1.3B; "" if it has no such name."""
        return SIZES.get(self.width or 0, "")


@dataclass(frozen=True)
class ModelParts:
    """What there is of a model; None or False is what is missing. `experts`: how many transformers it takes."""

    name: str
    transformer: Part | None
    autoencoder: Part | None
    text: Part | None
    tokenizer: bool
    decoder: Part | None = None
    experts: int = 1
    made_here: bool = False  # a folder that `rollforce convert` or training made


# -- reading -----------------------------------------------------------------------------------------------------------


def read_model(folder: Path, decoder: str | Path | None = None, weights: bool = True) -> ModelParts:
    """Read the facts of a model's folder, ours or of diffusers' layout. `decoder`: a file that is to draw; `weights`
    False where only settings were fetched. CheckpointError if a file is damaged or no file of weights."""
    own = (folder / "text").is_dir() or (folder / "autoencoder").is_dir()
    place = {"autoencoder": "autoencoder", "text": "text"} if own else {"autoencoder": "vae", "text": "text_encoder"}
    tokens = ("tokenizer.json", "spiece.model")
    return ModelParts(
        name=str(folder), transformer=read_part(folder / "transformer", "transformer", weights),
        autoencoder=read_part(folder / place["autoencoder"], "autoencoder", weights),
        text=read_part(folder / place["text"], "text", weights),
        tokenizer=own or not weights or any((folder / "tokenizer" / name).is_file() for name in tokens),
        decoder=None if decoder is None else decoder_part(decoder), experts=experts_in(folder),
        made_here=(folder / CARD).is_file())  # fmt: skip


def read_part(place: Path, kind: str, weights: bool = True) -> Part | None:
    """Read the facts of a part's folder, None if it is not there. CheckpointError as in `read_model`."""
    if not (place / "config.json").is_file():
        return None
    config = read_json(place / "config.json")
    file = find_weights(place, "model" if place.name in ("text", "autoencoder") else STEM[kind]) if weights else None
    if weights and file is None:
        lost = f"{place} holds no weights ({STEM[kind]}.safetensors, or shards of it): fetch them again."
        return BUILDERS[kind](place, None, config, "", (lost,))
    header = read_header(file) if file else None
    return BUILDERS[kind](place, _named(header, kind) if header else None, config, header.quantised if header else "")


def _named(header: WeightHeader, kind: str) -> Mapping[str, Tensor] | None:
    """Weights of a public part under our names; None for those of the bundled model, which has settings of its own."""
    found = header.ours()
    if found is not None and found[0] != kind:
        raise CheckpointError(f"{header.path} holds a {found[0]}; the weights of a {kind} are needed there.")
    return None if found is None else found[1]


def experts_of(file: Path) -> int:
    """Count the transformers of the model that a file or a folder of weights is, or is one expert, of."""
    file = file.expanduser().absolute()
    folder = file if file.is_dir() else file.parent
    inside = file.is_dir() or folder.name.startswith("transformer")
    return 2 if is_expert(file) or (inside and experts_in(model_folder_of(folder)) > 1) else 1


def experts_in(folder: Path) -> int:
    """Count the transformers that a model's folder needs: two in Wan 2.2 A14B, which changes them on the way."""
    second = read_json(folder / "model_index.json", {}).get("transformer_2")
    pair = all((folder / f"{half}_noise_model").is_dir() for half in ("high", "low"))
    return 2 if (second and second[0]) or (folder / "transformer_2").is_dir() or pair else 1


def transformer_part(path: Path, state: Mapping[str, Tensor] | None, config: Mapping[str, Any], quantised: str = "",
                     faults: tuple[str, ...] = ()) -> Part:  # fmt: skip
    """Tell the facts of a transformer from its weights' shapes (under our names), else from its config.json."""
    told = in_our_words(config)
    facts = {**told, **(measure(state, told) if state else {})}
    heads, each = facts.get("num_attention_heads"), facts.get("attention_head_dim")
    channels = facts.get("out_channels") or facts.get("in_channels") or 16
    packing = quantised if quantised not in LOADABLE else ""
    packing = packing or str((config.get("quantization_config") or {}).get("quant_method", ""))
    return Part("transformer", path, _family_of(channels), str(config.get("_class_name", "")), channels,
                facts.get("in_channels") or 16, facts.get("num_layers"), heads,
                (heads and each and heads * each) or facts.get("width"),
                facts.get("text_dim", 4096), facts.get("image_dim") is not None, packing,
                (*faults, *_differences(path, told, facts, TOLD["transformer"])))  # fmt: skip


def autoencoder_part(path: Path, state: Mapping[str, Tensor] | None, config: Mapping[str, Any], quantised: str = "",
                     faults: tuple[str, ...] = ()) -> Part:  # fmt: skip
    """Tell the facts of an autoencoder, Wan's or the bundled one."""
    if "channels" in config and "z_dim" not in config:
        return Part("autoencoder", path, BUNDLED, channels=int(config["channels"]), faults=faults)
    folded = bool(config.get("is_residual")) or config.get("patch_size") not in (None, 1)
    measured = autoencoder_config_of(state) if state and not folded else {}
    z_dim = (state["post_quant_conv.weight"].shape[0] if state and "post_quant_conv.weight" in state
             else config.get("z_dim", config.get("latent_channels", 16)))  # fmt: skip
    name = str(config.get("_class_name", ""))
    family = WAN_5B if folded else FAMILIES.get(name, name)
    return Part("autoencoder", path, family, name, int(z_dim), quantised=quantised,
                faults=(*faults, *_differences(path, config, measured | {"z_dim": z_dim}, TOLD["autoencoder"]),
                        *_moments(path, config, int(z_dim))))  # fmt: skip


def text_part(path: Path, state: Mapping[str, Tensor] | None, config: Mapping[str, Any], quantised: str = "",
              faults: tuple[str, ...] = ()) -> Part:  # fmt: skip
    """Tell the facts of a text encoder, UMT5 or the bundled one."""
    if "text_dim" in config:
        return Part("text", path, BUNDLED, text_width=int(config["text_dim"]), faults=faults)
    measured = text_config_of(state) if state else {}
    kind = str(config.get("model_type", "")) if _is_umt5(state) else "t5"
    packing = quantised or str((config.get("quantization_config") or {}).get("quant_method", ""))
    return Part("text", path, "UMT5" if kind == "umt5" else kind, (config.get("architectures") or [""])[0],
                blocks=measured.get("num_layers", config.get("num_layers")), quantised=packing,
                text_width=measured.get("d_model", config.get("d_model")),
                faults=(*faults, *_differences(path, config, measured, TOLD["text"])))  # fmt: skip


def _is_umt5(state: Mapping[str, Tensor] | None) -> bool:
    """Whether weights have what tells UMT5 from T5: positions in every block, not in the first alone."""
    bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    return not state or bias in state or not any(name.startswith("encoder.block.1.") for name in state)


def decoder_part(file: str | Path) -> Part:
    """Tell the facts of a small decoder's file, which need not be here. CheckpointError if its name tells nothing."""
    path = Path(file).expanduser()
    state = read_header(path).tensors if path.is_file() else None
    known = find_decoder(path, state)
    return Part("decoder", path, known.family, channels=known.channels)


BUILDERS = {"transformer": transformer_part, "autoencoder": autoencoder_part, "text": text_part}
TOLD = {"transformer": ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "text_dim",
                        "ffn_dim"),
        "autoencoder": ("z_dim", "base_dim"), "text": ("d_model", "num_layers", "num_heads", "vocab_size")}  # fmt: skip


def in_our_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a transformer in diffusers' words, also where the original release wrote them."""
    told = dict(config)
    if "dim" in told and told.get("num_heads"):
        told |= {"num_attention_heads": told["num_heads"], "attention_head_dim": told["dim"] // told["num_heads"],
                 "in_channels": told.get("in_dim"), "out_channels": told.get("out_dim")}  # fmt: skip
    return {name: value for name, value in told.items() if value is not None}


def measure(state: Mapping[str, Tensor], told: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the settings of a transformer. Its heads are those that are told, if they are of this width, else of 128
    channels; where neither can be, they are left out and `width` is there instead."""
    heads, each = told.get("num_attention_heads"), told.get("attention_head_dim")
    width = state["patch_embedding.weight"].shape[0] if "patch_embedding.weight" in state else 0
    if (heads and each and heads * each == width) or width % HEAD == 0:
        return config_of(state, heads if heads and each and heads * each == width else None)
    unknown = ("num_attention_heads", "attention_head_dim")
    measured = {name: value for name, value in config_of(state, 1).items() if name not in unknown}
    return measured | {"width": width}


def _family_of(channels: int) -> str:
    return next((family for family, count in CHANNELS.items() if count == channels), "")


def _differences(path: Path, told: Mapping[str, Any], found: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Where a part's settings differ from what its weights are."""
    return [f"{path / 'config.json'} says {name} {told[name]}, and the weights beside it have {found[name]}: they are "
            "not of one model. Fetch the folder again." for name in names
            if told.get(name) is not None and name in found and told[name] != found[name]]  # fmt: skip


def _moments(path: Path, config: Mapping[str, Any], channels: int) -> list[str]:
    return [f"{path / 'config.json'}: {name} has {len(config[name])} numbers, but latents have {channels} channels."
            for name in ("latents_mean", "latents_std")
            if name in config and len(config[name]) != channels]  # fmt: skip
