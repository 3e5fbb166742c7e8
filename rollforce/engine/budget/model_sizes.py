"""How large a model's parts are, from its configs and the headers of its files: no weight is read.

A model is a bundled name, a folder (ours, diffusers' or the original Wan layout), or the name of a file in
configs/model, which stands for the public Wan model of that size: UMT5-XXL, transformer, Wan 2.1 autoencoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rollforce.checkpoints.headers import read_header
from rollforce.checkpoints.parts import in_our_words
from rollforce.checkpoints.safetensors_folder import STEM, find_weights, read_json, shards_of
from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.video.values import check_path

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
        """Pixels per latent pixel, in each direction."""
        return 2 ** (len(self.dim_mult) - 1)

    def features(self, height: int, width: int, itemsize: int) -> int:
        """Return the bytes that a stream keeps between latents: the last two inputs of every causal layer."""
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
        """Return the most bytes alive while one latent is drawn, beyond `features`.

        The last stage decides: all frames of a latent at full size. Per number there: input and shortcut of a
        residual block, the features coming and going, and either a norm in float32 or a padded copy."""
        frames = 2 ** sum(self.temperal_downsample)
        widest = frames * self.base_dim * self.dim_mult[0] * height * width * self.stride**2
        return widest * (14 if itemsize == 2 else 26)


@dataclass(frozen=True)
class TaehvDecoding:
    """Sizes of a small decoder in TAEHV's format, which draws in the place of the full one."""

    stride: int = 8
    parameters: int = 11_315_539

    def features(self, height: int, width: int, itemsize: int) -> int:
        """Return the bytes that a stream keeps between latents: a frame for each of 3 blocks at 3 resolutions."""
        return 3 * (256 + 4 * 128 + 16 * 64) * height * width * itemsize

    def activations(self, height: int, width: int, itemsize: int) -> int:
        """Return the most bytes alive while one latent is drawn: two layers of 64 channels, four full-size frames."""
        frames, channels = 4, 64
        return 2 * frames * channels * self.stride**2 * height * width * itemsize * 21 // 20


@dataclass(frozen=True)
class TinyDecoding:
    """Sizes of the bundled autoencoder's decoder; it always runs in float32."""

    config: AutoencoderConfig
    parameters: int

    @property
    def stride(self) -> int:
        """Pixels per latent pixel, in each direction."""
        return self.config.patch

    def features(self, height: int, width: int, itemsize: int) -> int:
        """Return the bytes that a stream keeps between latents."""
        c = self.config
        return 4 * height * width * (c.blocks * c.memory * c.width + 4 * c.width_mid + 16 * c.width_high)

    def activations(self, height: int, width: int, itemsize: int) -> int:
        """Return the most bytes alive while one latent is drawn, beyond `features`: those to come, and pictures in
        four forms or seven layers of the finest drawing block."""
        c = self.config
        finest, picture = 7 * 16 * c.width_high, c.patch_values * 17 // 4
        return self.features(height, width, itemsize) + 4 * height * width * max(finest, picture)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model that are known before it is loaded. Parameters are counts; `text` 0 means no text encoder,
    `text_item` is how many bytes one of its numbers has in the files."""

    name: str
    transformer: TransformerConfig
    decoding: WanDecoding | TinyDecoding
    text: int
    text_len: int
    stream: str
    size: tuple[int, int] = WAN_SIZE  # height, width
    counted: int | None = field(default=None, repr=False)  # transformer parameters in the files; None: by the config
    text_item: int = 2
    changes: tuple[str, ...] = ()  # of the card, to its stream

    @property
    def parameters(self) -> int:
        """Parameters of the transformer."""
        return self.counted or parameters_of(self.transformer)

    @property
    def follows_dtype(self) -> bool:
        """Whether text encoder and autoencoder take on the transformer's dtype; the bundled ones stay float32."""
        return isinstance(self.decoding, WanDecoding)


@lru_cache(maxsize=8)
def _parts_of(config: TransformerConfig) -> tuple[int, int, int, int]:
    """Parameters of a transformer without its blocks and of one block, numbers and rows of that block's matrices.

    They are those of real modules on the meta device, which holds nothing."""
    with torch.device("meta"):
        model = VideoTransformer(dataclasses.replace(config, num_layers=1))
    block = model.blocks[0]
    weights = [part.weight for part in block.modules() if isinstance(part, nn.Linear)]
    count = sum(tensor.numel() for tensor in block.parameters())
    whole = sum(tensor.numel() for tensor in model.parameters())
    return whole - count, count, sum(w.numel() for w in weights), sum(w.shape[0] for w in weights)


def parameters_of(config: TransformerConfig) -> int:
    """Return how many parameters a VideoTransformer has."""
    ends, block, _, _ = _parts_of(config)
    return ends + config.num_layers * block


def matrices_of(config: TransformerConfig) -> tuple[int, int]:
    """Return how many numbers the weight matrices of all blocks hold, which are quantised, and how many rows."""
    *_, numbers, rows = _parts_of(config)
    return config.num_layers * numbers, config.num_layers * rows


def sizes_of(model: str | Path) -> ModelSizes:
    """Return the sizes of a bundled model, a folder, a hub id or a config's name. ConfigError or CheckpointError."""
    from rollforce.checkpoints.catalog import bundled
    from rollforce.checkpoints.hub import fetch, is_repository
    from rollforce.config import build, resource  # here, so that sizes are known where no settings files can be read

    name = str(check_path(model, "model"))
    configs = {path.stem: path for path in resource("configs/model").glob("*.yaml")}
    if name in bundled():
        return _of_folder(name, resource(f"assets/{name}"))
    if Path(model).is_dir():
        return _of_folder(name, Path(model))
    if is_repository(model):
        return _of_folder(name, fetch(name, CONFIGS))
    if name not in configs:
        known = ", ".join(sorted({*bundled(), *configs}))
        raise ConfigError(f"There is no model {name!r}. Give a folder, a hub id, or one of: {known}.")
    config = build(TransformerConfig, configs[name])
    return ModelSizes(name, config, WanDecoding(), UMT5_XXL, WAN_TEXT, "rolling_forcing")


def _read_headers(folder: Path, stem: str) -> tuple[int, int]:
    """Return how many numbers and how many bytes the weights hold that are loaded from `folder`: of several variants
    one is. Packed weights count as what they are packed in."""
    file = find_weights(folder, stem)
    if file is None or any(not shard.is_file() for shard in shards_of(file)):
        return 0, 0
    tensors = read_header(file).tensors.values()
    return sum(tensor.numel() for tensor in tensors), sum(tensor.nbytes for tensor in tensors)


# -- folders ---------------------------------------------------------------------------------------------------------


def _of_folder(name: str, folder: Path) -> ModelSizes:
    from rollforce.checkpoints.catalog import CARD, Card
    from rollforce.config import build

    card = build(Card, folder / CARD) if (folder / CARD).is_file() else None
    transformer, counted = _transformer(folder)
    text, text_len, text_item = _text(folder)
    return ModelSizes(name, transformer, _decoding(folder), text, text_len,
                      stream=card.stream if card else "rolling_forcing", size=card.size if card else WAN_SIZE,
                      counted=counted or None, text_item=text_item, changes=card.changes if card else ())  # fmt: skip


def _transformer(folder: Path) -> tuple[TransformerConfig, int]:
    """Sizes, and the parameters in the files (0 if there are no safetensors)."""
    for place in (folder / "transformer", folder):
        raw = in_our_words(read_json(place / "config.json", {}))
        if "num_attention_heads" in raw:
            return _pick(TransformerConfig, raw), _read_headers(place, STEM["transformer"])[0]
    raise CheckpointError(f"{folder} holds no transformer: transformer/config.json is missing. Name a "
                          "model's folder, such as rollforce convert makes.")  # fmt: skip


def _text(folder: Path) -> tuple[int, int, int]:
    """Parameters of the text encoder, 0 if there is none; the length of a text; bytes of a number in its files."""
    ours = read_json(folder / "text" / "config.json", {})
    if ours:
        return _read_headers(folder / "text", STEM["text"])[0], int(ours["text_len"]), 2
    numbers, size = _read_headers(folder / "text_encoder", STEM["text"])
    public = (folder / "text_encoder").is_dir() or any(folder.glob("models_t5_*"))
    return numbers or (UMT5_XXL if public else 0), WAN_TEXT, max(2, round(size / numbers)) if numbers else 2


def _decoding(folder: Path) -> WanDecoding | TinyDecoding:
    ours = read_json(folder / "autoencoder" / "config.json", {})
    if ours:
        from rollforce.models.autoencoder.tiny import AutoencoderConfig

        return TinyDecoding(_pick(AutoencoderConfig, ours), _read_headers(folder / "autoencoder", "model")[0])
    counted = _read_headers(folder / "vae", STEM["autoencoder"])[0] or None
    return _pick(WanDecoding, read_json(folder / "vae" / "config.json", {}) | {"parameters": counted})


def _pick(cls: Any, raw: Mapping[str, Any]) -> Any:
    """Return a `cls` of those entries of a config.json that it has fields for; null is the default."""
    from rollforce.config import build

    return build(cls, {name: raw[name] for name in cls.__dataclass_fields__ if raw.get(name) is not None})
