"""How a model runs on a machine: attention kernel, LoRAs, how weights are stored, what waits off the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import NAMES
from rollforce.models.transformer.transformer import VideoTransformer


@dataclass(frozen=True)
class RuntimeOptions:
    """What changes speed, memory or the last digits, but not what is streamed.

    `attention`: a name of attention.py; `loras`: files to bake in, each FILE or FILE=SCALE (live ones: models/lora.py);
    `quantize`: how the blocks' weights are stored; `offload`: `text` encodes prompts on the CPU, `blocks` leaves the
    transformer's blocks there until they are needed; `tiling`: decode in tiles; `decoder`: a file
    in TAEHV's format that decodes in the autoencoder's place; `compile`: the blocks
    (torch.compile), or those as CUDA graphs.
    """

    attention: str = "sdpa"
    loras: tuple[str, ...] = ()
    quantize: Literal["int8", "fp8"] | None = None
    offload: tuple[str, ...] = ()
    tiling: bool = False
    decoder: str | None = None
    compile: Literal["blocks", "graphs"] | None = None

    def __post_init__(self) -> None:
        if self.attention not in NAMES:
            raise ConfigError(f"attention {self.attention!r} is not known. Use one of: {', '.join(NAMES)}.")
        if self.quantize not in (None, "int8", "fp8"):
            raise ConfigError(f"quantize {self.quantize!r} is not known. Use int8 or fp8.")
        if self.compile not in (None, "blocks", "graphs"):
            raise ConfigError(f"compile {self.compile!r} is not known. Use blocks or graphs.")
        for what in self.offload:
            if what not in ("text", "blocks"):
                raise ConfigError(f"offload {what!r} is not known. Use text or blocks.")
        files = [("lora", split_lora(lora)[0]) for lora in self.loras]
        for name, path in [*files, *([("decoder", Path(self.decoder))] if self.decoder else [])]:
            if not path.exists():
                raise ConfigError(f"--{name} {path} does not exist.")

    def set_up(
        self, transformer: VideoTransformer, device: torch.device, dtype: torch.dtype, masked: bool = False
    ) -> VideoTransformer:
        """Make a transformer that lies on the CPU run so, on `device`. ConfigError or CheckpointError.

        `masked`: attention must know masks."""
        transformer = transformer.to(dtype=dtype)
        for lora in self.loras:
            _bake(transformer, lora)
        if self.quantize:
            from rollforce.models.runtime import quantize

            quantize.check(self.quantize, device)
            quantize.quantise(transformer, self.quantize)  # on the CPU: the device never holds the whole
        if self.compile:
            transformer.compile_blocks(graphs=self.compile == "graphs")
        if "blocks" in self.offload:
            from rollforce.models.runtime.offload import offload

            offload(transformer, device)
        else:
            transformer = transformer.to(device)
        transformer.set_attention(self.attention, masked)
        return transformer


def split_lora(lora: str) -> tuple[Path, float]:
    """FILE or FILE=SCALE."""
    file, equals, scale = lora.rpartition("=")
    if not equals:
        return Path(lora), 1.0
    try:
        return Path(file), float(scale)
    except ValueError as error:
        raise ConfigError(f"--lora {lora}: {scale!r} is not a scale; write FILE or FILE=0.8.") from error


def _bake(transformer: VideoTransformer, lora: str) -> None:
    from rollforce.checkpoints.read import expect, read_checkpoint
    from rollforce.models.runtime.lora import merge

    path, scale = split_lora(lora)
    merge(transformer, expect(read_checkpoint(path), "lora").state, scale)
