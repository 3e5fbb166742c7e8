"""How large a model's parts are, from its configs and the headers of its files: no weight is read.

A model is a bundled name, a folder (ours, diffusers' or the original Wan layout), or the name of a file in
configs/model, which stands for the public Wan model of that size: UMT5-XXL, transformer, Wan 2.1 autoencoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.transformer.transformer import TransformerConfig

if TYPE_CHECKING:
    from rollforce.models.autoencoder.tiny import AutoencoderConfig

UMT5_XXL = 5_680_910_336  # parameters of the encoder alone
WAN_TEXT = 512  # tokens that Wan reads of a prompt
WAN_SIZE = (480, 832)
CONFIGS = ("*.json", "*/config.json", "model.yaml")  # of a repository on the hub: no weights are downloaded


@dataclass(frozen=True)
class WanDecoding:
    """Sizes of the Wan autoencoder's decoder, in the words of its config.json. Half precision or float32."""

    base_dim: int = 96
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    z_dim: int = 16
    parameters: int = 126_892_531  # encoder included

    @property
    def stride(self) -> int:
        return 2 ** (len(self.dim_mult) - 1)

    def features(self, height: int, width: int, itemsize: int) -> int:
        """Bytes that a stream keeps between latents of height x width: the last two inputs of every causal layer."""
        dims = [self.base_dim * times for times in (self.dim_mult[-1], *reversed(self.dim_mult))]
        seen = self.z_dim + 4 * dims[0]  # the first convolution and the middle; channels per latent pixel
        for stage, (inside, outside) in enumerate(pairwise(dims)):
            first = inside if stage == 0 else inside // 2  # upsampling halves the channels
            channels = first + (2 * self.num_res_blocks + 1) * outside
            last = stage == len(self.dim_mult) - 1
            if last:
                channels += outside  # the last convolution
            elif self.temperal_downsample[-1 - stage]:
                channels += outside  # the one that doubles the frames
            seen += channels * 4**stage
        return 2 * seen * height * width * itemsize

    def activations(self, height: int, width: int, itemsize: int) -> int:
        """Most bytes alive while one latent is drawn, beyond `features`.

        The last stage decides: all frames of a latent at full size. Per number there: input and shortcut of a
        residual block, the features coming and going, and either a norm in float32 or a padded copy."""
        frames = 2 ** sum(self.temperal_downsample)
        widest = frames * self.base_dim * self.dim_mult[0] * height * width * self.stride**2
        return widest * (14 if itemsize == 2 else 26)


@dataclass(frozen=True)
class TaehvDecoding:
    """Sizes of a small decoder in TAEHV's format (models/taehv.py), which draws in the place of the full one."""

    stride: int = 8
    parameters: int = 11_315_539

    def features(self, height: int, width: int, itemsize: int) -> int:
        """Bytes that a stream keeps between latents: a frame of each of three blocks at three resolutions."""
        return 3 * (256 + 4 * 128 + 16 * 64) * height * width * itemsize

    def activations(self, height: int, width: int, itemsize: int) -> int:
        """Most bytes alive while one latent is drawn: two layers of 64 channels for four frames at full size."""
        frames, channels = 4, 64
        return 2 * frames * channels * self.stride**2 * height * width * itemsize * 21 // 20


@dataclass(frozen=True)
class TinyDecoding:
    """Sizes of the bundled autoencoder's decoder; it always runs in float32."""

    config: AutoencoderConfig
    parameters: int

    @property
    def stride(self) -> int:
        return self.config.patch

    def features(self, height: int, width: int, itemsize: int) -> int:
        """Bytes that a stream keeps between latents."""
        c = self.config
        return 4 * height * width * (c.blocks * c.memory * c.width + 4 * c.width_mid + 16 * c.width_high)

    def activations(self, height: int, width: int, itemsize: int) -> int:
        """Most bytes alive while one latent is drawn, beyond `features`: those to come, and pictures in four forms
        or seven layers of the finest drawing block."""
        c = self.config
        finest, picture = 7 * 16 * c.width_high, c.patch_values * 17 // 4
        return self.features(height, width, itemsize) + 4 * height * width * max(finest, picture)


@dataclass(frozen=True)
class ModelSizes:
    """What is known of a model before it is loaded. Parameters are counts; `text` 0 means no text encoder, `text_item`
    is how many bytes one of its numbers has in the files."""

    name: str
    transformer: TransformerConfig
    decoding: WanDecoding | TinyDecoding
    text: int
    text_len: int
    stream: str
    size: tuple[int, int] = WAN_SIZE  # height, width
    counted: int | None = field(default=None, repr=False)  # transformer parameters in the files; None: by the config
    text_item: int = 2

    @property
    def parameters(self) -> int:
        """Of the transformer."""
        return self.counted or parameters_of(self.transformer)

    @property
    def follows_dtype(self) -> bool:
        """Whether text encoder and autoencoder take on the transformer's dtype; the bundled ones stay float32."""
        return isinstance(self.decoding, WanDecoding)


def parameters_of(config: TransformerConfig) -> int:
    """Parameters of a VideoTransformer."""
    width, pixel = config.width, config.patch**2
    ends = _linear(config.in_channels * pixel, width) + _linear(width, config.out_channels * pixel) + 2 * width
    text = _linear(config.text_dim, width) + _linear(width, width)
    time = _linear(config.freq_dim, width) + _linear(width, width) + _linear(width, 6 * width)
    attention = 4 * _linear(width, width) + 2 * width
    feed_forward = _linear(width, config.ffn_dim) + _linear(config.ffn_dim, width)
    blocks = config.num_layers * (2 * attention + feed_forward + 8 * width)
    return ends + text + time + blocks + _image_parameters(config)


def _image_parameters(config: TransformerConfig) -> int:
    """What an image-to-video transformer has besides."""
    width, image = config.width, config.image_dim
    if image is None:
        return 0
    embedder = 2 * image + _linear(image, image) + _linear(image, width) + 2 * width
    return embedder + config.num_layers * (2 * _linear(width, width) + width)


def matrices_of(config: TransformerConfig) -> tuple[int, int]:
    """Numbers in the weight matrices of all blocks, which is what is quantised, and the rows they have."""
    width, hidden = config.width, config.ffn_dim
    return config.num_layers * (8 * width**2 + 2 * width * hidden), config.num_layers * (9 * width + hidden)


def sizes_of(model: str | Path) -> ModelSizes:
    """Sizes of a bundled model, a folder, or a config's name. ConfigError or CheckpointError if it is none of them."""
    name = str(model)
    for folder in (_shipped(f"assets/{name}"), Path(model)):
        if folder is not None and folder.is_dir():
            return _of_folder(name, folder)
    from rollforce.checkpoints.hub import fetch, is_repository
    from rollforce.config import build  # here, so that sizes are known where no settings files can be read

    if is_repository(model):
        return _of_folder(name, fetch(name, CONFIGS))
    config = _shipped(f"configs/model/{name}.yaml")
    if config is None:
        raise ConfigError(
            f"There is no model {name!r}. Give a folder, a hub id, or one of: {', '.join(_known())}."
        )
    return ModelSizes(
        name, build(TransformerConfig, config), WanDecoding(), UMT5_XXL, WAN_TEXT, "rolling_forcing"
    )  # fmt: skip


def header_parameters(folder: Path) -> int:
    """Numbers in all tensors of the safetensors files right in `folder`, from their headers."""
    return sum(prod(entry["shape"]) for entry in _headers(folder))


def header_bytes(folder: Path) -> int:
    """Bytes of the same tensors."""
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in _headers(folder))


def _headers(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from (entry for name, entry in header.items() if name != "__metadata__")


# -- folders ---------------------------------------------------------------------------------------------------------


def _of_folder(name: str, folder: Path) -> ModelSizes:
    card = _card(folder)
    transformer, counted = _transformer(folder)
    return ModelSizes(
        name, transformer, _decoding(folder), *_text(folder), stream=card.get("stream") or "rolling_forcing",
        size=tuple(card.get("size") or WAN_SIZE), counted=counted or None, text_item=_text_item(folder),
    )  # fmt: skip


def _card(folder: Path) -> dict[str, Any]:
    import yaml

    path = folder / "model.yaml"
    card = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return card if isinstance(card, dict) else {}


def _transformer(folder: Path) -> tuple[TransformerConfig, int]:
    """Sizes, and the parameters in the files (0 if there are no safetensors)."""
    for place in (folder / "transformer", folder):
        raw = _json(place / "config.json")
        if "num_attention_heads" in raw:
            names = TransformerConfig.__dataclass_fields__
            config = TransformerConfig(**{key: value for key, value in raw.items() if key in names})
            return config, header_parameters(place)
        if "dim" in raw and "num_heads" in raw:
            return _original(raw), header_parameters(place)
    raise CheckpointError(f"{folder} holds no transformer: transformer/config.json is missing.")


def _original(raw: Mapping[str, Any]) -> TransformerConfig:
    """The config.json of the original Wan release."""
    return TransformerConfig(
        num_attention_heads=raw["num_heads"], attention_head_dim=raw["dim"] // raw["num_heads"],
        num_layers=raw["num_layers"], ffn_dim=raw["ffn_dim"], in_channels=raw.get("in_dim", 16),
        out_channels=raw.get("out_dim", 16), freq_dim=raw.get("freq_dim", 256),
    )  # fmt: skip


def _text(folder: Path) -> tuple[int, int]:
    """Parameters of the text encoder, 0 if there is none, and the length of a text."""
    ours = _json(folder / "text" / "config.json")
    if ours:
        return header_parameters(folder / "text"), int(ours["text_len"])
    if (folder / "text_encoder").is_dir():
        return header_parameters(folder / "text_encoder") or UMT5_XXL, WAN_TEXT
    return (UMT5_XXL if any(folder.glob("models_t5_*")) else 0), WAN_TEXT


def _text_item(folder: Path) -> int:
    """Bytes of a number in the files of a public text encoder."""
    numbers = header_parameters(folder / "text_encoder")
    return max(2, round(header_bytes(folder / "text_encoder") / numbers)) if numbers else 2


def _decoding(folder: Path) -> WanDecoding | TinyDecoding:
    ours = _json(folder / "autoencoder" / "config.json")
    if ours:
        from rollforce.models.autoencoder.tiny import AutoencoderConfig

        names = AutoencoderConfig.__dataclass_fields__
        config = AutoencoderConfig(**{key: value for key, value in ours.items() if key in names})
        return TinyDecoding(config, header_parameters(folder / "autoencoder"))
    raw, default = _json(folder / "vae" / "config.json"), WanDecoding()
    parameters = header_parameters(folder / "vae") if (folder / "vae").is_dir() else 0
    return WanDecoding(
        base_dim=raw.get("base_dim", default.base_dim), dim_mult=tuple(raw.get("dim_mult", default.dim_mult)),
        num_res_blocks=raw.get("num_res_blocks", default.num_res_blocks), z_dim=raw.get("z_dim", default.z_dim),
        temperal_downsample=tuple(raw.get("temperal_downsample", default.temperal_downsample)),
        parameters=parameters or default.parameters,
    )  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    return found if isinstance(found, dict) else {}


def _linear(inside: int, outside: int) -> int:
    return inside * outside + outside


def _shipped(name: str) -> Path | None:
    from rollforce.config import resource

    try:
        return resource(name)
    except ConfigError:
        return None


def _known() -> list[str]:
    from rollforce.config import resource

    bundled = {path.parent.name for path in resource("assets").glob("*/model.yaml")}
    return sorted(bundled | {path.stem for path in resource("configs/model").glob("*.yaml")})
