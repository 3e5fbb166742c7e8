"""What is measured: the published streams of Wan students, at Wan's sizes or shrunk for a small machine. Data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rollforce.cache.policies import Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Stepping
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.errors import ConfigError
from rollforce.models.transformer.transformer import WAN_1_3B, WAN_14B, Grid, TransformerConfig
from rollforce.video.size import check_size, parse_size

STRIDE, FRAMES = 8, 4  # pixels and frames of a Wan latent
TEXT = 512  # tokens
MODELS = {"wan-1.3b": WAN_1_3B, "wan-14b": WAN_14B}
FOUR = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Case:
    """One stream. `published` and `target` are those of 832x480 on one H200, in frames a second; 0 is none."""

    name: str
    stream: StreamSettings
    published: float = 0.0
    target: float = 0.0
    chunks: int = 20


def _chunkwise(levels: tuple[float, ...], sink: int, budget: int) -> StreamSettings:
    sight = Visibility(budget, positions="absolute")
    tiers = (Sink(sink), Window(budget - 3 - sink)) if sink else (Window(budget - 3),)
    return StreamSettings(LayoutSettings("chunkwise", 3, levels, 5.0), tiers, Stepping(sight, sight), False)


ROLLING = StreamSettings(LayoutSettings("rolling", 3, (1.0, 0.8, 0.6, 0.4, 0.2), 5.0), (Sink(3), Window(18)),
                         Stepping(Visibility(21), Visibility(21, (), "absolute")), False)  # fmt: skip
CASES = {case.name: case for case in (
    Case("rolling5", ROLLING, 15.8, 30),  # Rolling Forcing
    Case("chunk4", _chunkwise(FOUR, 0, 21), 17.0, 33),  # Self Forcing
    Case("longlive", _chunkwise(FOUR, 3, 12), 20.7, 48),
    Case("chunk2", _chunkwise((1.0, 0.5), 3, 12), 45.7, 80),
    Case("forever", _chunkwise((1.0, 0.5), 3, 12), chunks=10_000))}


@dataclass(frozen=True)
class Setting:
    """Where and how a case runs. `size`: (height, width) in pixels. `ride`: the clean pass rides with the next tick."""

    config: TransformerConfig
    size: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    attention: str = "sdpa"
    compile: bool = False
    graphs: bool = False
    ride: bool = True
    quantize: str | None = None
    text: int = TEXT

    @property
    def grid(self) -> Grid:
        height, width = self.size
        return Grid(self.config.out_channels, height // STRIDE, width // STRIDE, self.config.patch)


def parse_cases(names: str) -> list[Case]:
    """Return the cases of a comma-separated list; `all` are the four streams, without `forever`."""
    wanted = [name for name in CASES if name != "forever"] if names == "all" else names.split(",")
    for name in wanted:
        if name not in CASES:
            raise ConfigError(f"case {name!r} is not known. Use all, or some of: {', '.join(CASES)}.")
    return [CASES[name] for name in wanted]


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Return "832x480,1280x720" (width x height) as [(480, 832), (720, 1280)]."""
    sizes = [parse_size(part) for part in text.split(",")]
    for size in sizes:
        check_size(size, 16)
    return sizes


def shrink(config: TransformerConfig, size: tuple[int, int], by: int) -> tuple[TransformerConfig, tuple[int, int]]:
    """Return a smaller model and picture of the same kind: layers, heads, hidden width and sides divided by `by`."""
    if by == 1:
        return config, size
    low = {"num_attention_heads": 1, "num_layers": 2, "ffn_dim": 64, "text_dim": 64}
    small = replace(config, **{name: max(least, getattr(config, name) // by) for name, least in low.items()})
    height, width = (max(16, side // by // 16 * 16) for side in size)
    return small, (height, width)
