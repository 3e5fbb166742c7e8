"""How a model runs on a machine: attention kernel, LoRAs, how weights are stored, what waits off the device.

Command lines take these options, their names, defaults and help, from here; so this loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rollforce.checkpoints.lora_scale import find_lora
from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.runtime.choices import CHOICES, check_choice
from rollforce.video.values import check_kind, check_path, check_texts

if TYPE_CHECKING:
    import torch

    from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer


def _option(default: Any, words: str, flag: str = "") -> Any:
    """A field with what a command line says of it; `flag`, if it is not the field's name."""
    return field(default=default, metadata={"help": words, "flag": flag})


@dataclass(frozen=True)
class RuntimeOptions:
    """What changes speed, memory or the last digits, but not what is streamed.

    `attention`: a name of attention.py; `loras`: files to bake in, each FILE or FILE=SCALE (live ones: lora.py;
    beside eight bits, these are live too); `quantize`: how the blocks' weights are stored; `offload`: `text` encodes
    prompts on the CPU, `blocks` leaves the transformer's blocks there until they are needed; `tiling`: decode in tiles;
    `decoder`: a file in TAEHV's format that decodes in the autoencoder's place; `compile`: the blocks (torch.compile),
    or those as CUDA graphs. Raises ConfigError for a choice that is not known and for a file that does not exist."""

    attention: str = _option("sdpa", "Kernel: sdpa, cudnn, flash, sage...")
    loras: tuple[str, ...] = _option((), "FILE or FILE=SCALE to bake in; repeatable.", "--lora")
    quantize: Literal["int8", "fp8"] | None = _option(None, "Weights of the blocks: int8, fp8.")
    offload: tuple[str, ...] = _option((), "What waits on the CPU: text, blocks.")
    tiling: bool = _option(False, "Decode in tiles.")
    decoder: str | None = _option(None, "A small one, TAEHV's format: fast.")
    compile: Literal["blocks", "graphs"] | None = _option(None, "blocks, or graphs on CUDA: slow start.")

    def __post_init__(self) -> None:
        from rollforce.models.transformer.attention import NAMES

        for name, example in (("loras", "film.safetensors=0.8"), ("offload", "text")):
            object.__setattr__(self, name, check_texts(getattr(self, name), name, example))
        if self.decoder is not None:
            check_path(self.decoder, "decoder")
        check_kind(self.tiling, bool, "tiling", "true or false")
        if not isinstance(self.attention, str) or self.attention not in NAMES:
            raise ConfigError(f"attention {self.attention!r} is not known. Use one of: {', '.join(NAMES)}.")
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        for file in self.loras:
            find_lora(file)
        if self.decoder and not Path(self.decoder).exists():
            raise ConfigError(f"--decoder {self.decoder} does not exist.")

    def set_up(self, transformer: VideoTransformer, device: torch.device, dtype: torch.dtype,
               masked: bool = False) -> VideoTransformer:  # fmt: skip
        """Make a transformer that lies on the CPU run so, on `device`. ConfigError or CheckpointError.

        `masked`: attention must know masks."""
        from rollforce.models.runtime import lora, lora_baking

        check_streams(transformer.config, "This")
        adapters = lora_baking.read(self.loras, transformer)  # whose weights are not read yet
        transformer = transformer.to(dtype=dtype)
        beside = lora_baking.bake(transformer, adapters, self.quantize)
        if self.quantize:
            from rollforce.models.runtime import quantize

            quantize.check(self.quantize, device)
            quantize.quantise(transformer, self.quantize)  # on the CPU: the device never holds the whole
        for adapter in beside:
            lora.add(transformer, adapter.name, adapter.state, adapter.scale)
        if self.compile:
            transformer.compile_blocks(graphs=self.compile == "graphs")
        if "blocks" in self.offload:
            from rollforce.models.runtime.offload import offload

            offload(transformer, device)
        else:
            transformer = transformer.to(device)
        transformer.set_attention(self.attention, masked)
        return transformer


def check_streams(config: TransformerConfig, name: str) -> None:
    """CheckpointError for an image-to-video transformer, which reads tokens of an image that no stream here gives."""
    from rollforce.checkpoints.obstacles import image_refusal

    if config.image_dim is not None:
        raise CheckpointError(image_refusal(name))
