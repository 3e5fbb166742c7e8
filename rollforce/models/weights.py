"""Key maps between the public names of Wan weights: the original ones and those of diffusers, which are ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from rollforce.errors import CheckpointError

T = TypeVar("T")

# One table, read in both directions: original Wan name, diffusers name.
# {n} block, {qkv} q k or v, {qk} q or k, {w} weight or bias.
WAN_AND_DIFFUSERS: tuple[tuple[str, str], ...] = (
    ("patch_embedding.{w}", "patch_embedding.{w}"),
    ("text_embedding.0.{w}", "condition_embedder.text_embedder.linear_1.{w}"),
    ("text_embedding.2.{w}", "condition_embedder.text_embedder.linear_2.{w}"),
    ("time_embedding.0.{w}", "condition_embedder.time_embedder.linear_1.{w}"),
    ("time_embedding.2.{w}", "condition_embedder.time_embedder.linear_2.{w}"),
    ("time_projection.1.{w}", "condition_embedder.time_proj.{w}"),
    ("head.head.{w}", "proj_out.{w}"),
    ("head.modulation", "scale_shift_table"),
    ("blocks.{n}.modulation", "blocks.{n}.scale_shift_table"),
    ("blocks.{n}.self_attn.{qkv}.{w}", "blocks.{n}.attn1.to_{qkv}.{w}"),
    ("blocks.{n}.self_attn.o.{w}", "blocks.{n}.attn1.to_out.0.{w}"),
    ("blocks.{n}.self_attn.norm_{qk}.{w}", "blocks.{n}.attn1.norm_{qk}.{w}"),
    ("blocks.{n}.cross_attn.{qkv}.{w}", "blocks.{n}.attn2.to_{qkv}.{w}"),
    ("blocks.{n}.cross_attn.o.{w}", "blocks.{n}.attn2.to_out.0.{w}"),
    ("blocks.{n}.cross_attn.norm_{qk}.{w}", "blocks.{n}.attn2.norm_{qk}.{w}"),
    ("blocks.{n}.norm3.{w}", "blocks.{n}.norm2.{w}"),  # the only block norm with weights
    ("blocks.{n}.ffn.0.{w}", "blocks.{n}.ffn.net.0.proj.{w}"),
    ("blocks.{n}.ffn.2.{w}", "blocks.{n}.ffn.net.2.{w}"),
)
FIELDS = {"n": r"\d+", "qkv": "q|k|v", "qk": "q|k", "w": "weight|bias"}


def from_wan(state: Mapping[str, T]) -> dict[str, T]:
    """Original Wan names (also inside Self Forcing, LongLive, ... checkpoints) to ours. CheckpointError if unknown."""
    return _rename(state, WAN_AND_DIFFUSERS)


def to_wan(state: Mapping[str, T]) -> dict[str, T]:
    """Our names to the original Wan names."""
    return _rename(state, tuple((ours, wan) for wan, ours in WAN_AND_DIFFUSERS))


def _rename(state: Mapping[str, T], table: tuple[tuple[str, str], ...]) -> dict[str, T]:
    rules = [(_pattern(source), target) for source, target in table]
    renamed: dict[str, T] = {}
    unknown: list[str] = []
    for key, value in state.items():
        found = next(((match, target) for pattern, target in rules if (match := pattern.fullmatch(key))), None)
        if found is None:
            unknown.append(key)
        else:
            renamed[found[1].format(**found[0].groupdict())] = value
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} names are not those of a Wan transformer, e.g. {', '.join(unknown[:5])}."
        )
    return renamed


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    for name, choices in FIELDS.items():
        escaped = escaped.replace(re.escape("{" + name + "}"), f"(?P<{name}>{choices})")
    return re.compile(escaped)
