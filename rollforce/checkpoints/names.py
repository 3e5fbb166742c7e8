"""Names of public Wan weights: the original ones and those of diffusers and transformers, which are ours.

One table per family. In a template {n} is a number, {qkv} q k or v, {w} weight or bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice, product
from typing import TypeVar

from rollforce.errors import CheckpointError

T = TypeVar("T")
Table = tuple[tuple[str, str], ...]  # original, ours

FIELDS = {"n": r"\d+", "qkv": "q|k|v", "qkvo": "q|k|v|o", "qk": "q|k", "kv": "k|v", "w": "weight|bias"}

TRANSFORMER: Table = (
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
    ("blocks.{n}.self_attn.norm_{qk}.weight", "blocks.{n}.attn1.norm_{qk}.weight"),
    ("blocks.{n}.cross_attn.{qkv}.{w}", "blocks.{n}.attn2.to_{qkv}.{w}"),
    ("blocks.{n}.cross_attn.o.{w}", "blocks.{n}.attn2.to_out.0.{w}"),
    ("blocks.{n}.cross_attn.norm_{qk}.weight", "blocks.{n}.attn2.norm_{qk}.weight"),
    ("blocks.{n}.norm3.{w}", "blocks.{n}.norm2.{w}"),  # the only block norm with weights
    ("blocks.{n}.ffn.0.{w}", "blocks.{n}.ffn.net.0.proj.{w}"),
    ("blocks.{n}.ffn.2.{w}", "blocks.{n}.ffn.net.2.{w}"),
)
IMAGE: Table = (  # what the image-to-video transformers have besides
    ("blocks.{n}.cross_attn.{kv}_img.{w}", "blocks.{n}.attn2.add_{kv}_proj.{w}"),
    ("blocks.{n}.cross_attn.norm_k_img.weight", "blocks.{n}.attn2.norm_added_k.weight"),
    ("img_emb.proj.0.{w}", "condition_embedder.image_embedder.norm1.{w}"),
    ("img_emb.proj.1.{w}", "condition_embedder.image_embedder.ff.net.0.proj.{w}"),
    ("img_emb.proj.3.{w}", "condition_embedder.image_embedder.ff.net.2.{w}"),
    ("img_emb.proj.4.{w}", "condition_embedder.image_embedder.norm2.{w}"),
)
FIRST_AND_LAST: Table = (("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),)

_RESIDUAL: Table = (("residual.0.gamma", "norm1.gamma"), ("residual.2.{w}", "conv1.{w}"),
                    ("residual.3.gamma", "norm2.gamma"), ("residual.6.{w}", "conv2.{w}"),
                    ("shortcut.{w}", "conv_shortcut.{w}"))  # fmt: skip
_RESAMPLE: Table = (("resample.1.{w}", "resample.1.{w}"), ("time_conv.{w}", "time_conv.{w}"))
_ATTENTION: Table = (("norm.gamma", "norm.gamma"), ("to_qkv.{w}", "to_qkv.{w}"), ("proj.{w}", "proj.{w}"))
_ENDS: Table = (("conv1.{w}", "conv_in.{w}"), ("head.0.gamma", "norm_out.gamma"), ("head.2.{w}", "conv_out.{w}"))


def _under(original: str, ours: str, table: Table) -> Table:
    return tuple((f"{original}.{left}", f"{ours}.{right}") for left, right in table)


def _half(side: str) -> Table:
    """What encoder and decoder of the autoencoder share."""
    return (*_under(side, side, _ENDS), *_under(f"{side}.middle.0", f"{side}.mid_block.resnets.0", _RESIDUAL),
            *_under(f"{side}.middle.1", f"{side}.mid_block.attentions.0", _ATTENTION),
            *_under(f"{side}.middle.2", f"{side}.mid_block.resnets.1", _RESIDUAL))  # fmt: skip


def _ups() -> Table:
    """The original decoder counts its layers through; diffusers by blocks of three residual layers and a resampling."""
    rows: Table = ()
    for layer in range(15):
        block, place = divmod(layer, 4)
        part, table = ("upsamplers.0", _RESAMPLE) if place == 3 else (f"resnets.{place}", _RESIDUAL)
        rows += _under(f"decoder.upsamples.{layer}", f"decoder.up_blocks.{block}.{part}", table)
    return rows


AUTOENCODER: Table = (("conv1.{w}", "quant_conv.{w}"), ("conv2.{w}", "post_quant_conv.{w}"), *_half("encoder"),
                      *_under("encoder.downsamples.{n}", "encoder.down_blocks.{n}", _RESIDUAL + _RESAMPLE),
                      *_half("decoder"), *_ups())  # fmt: skip
TEXT: Table = (
    ("token_embedding.weight", "shared.weight"),
    ("norm.weight", "encoder.final_layer_norm.weight"),
    ("blocks.{n}.norm1.weight", "encoder.block.{n}.layer.0.layer_norm.weight"),
    ("blocks.{n}.attn.{qkvo}.weight", "encoder.block.{n}.layer.0.SelfAttention.{qkvo}.weight"),
    ("blocks.{n}.pos_embedding.embedding.weight",
     "encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight"),
    ("blocks.{n}.norm2.weight", "encoder.block.{n}.layer.1.layer_norm.weight"),
    ("blocks.{n}.ffn.gate.0.weight", "encoder.block.{n}.layer.1.DenseReluDense.wi_0.weight"),
    ("blocks.{n}.ffn.fc1.weight", "encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight"),
    ("blocks.{n}.ffn.fc2.weight", "encoder.block.{n}.layer.1.DenseReluDense.wo.weight"),
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One kind of Wan weights: its table, and a name that no other family has, original and ours."""

    kind: str
    what: str
    table: Table
    original: str
    ours: str


FAMILIES = (
    Family("transformer", "a Wan transformer", TRANSFORMER + IMAGE + FIRST_AND_LAST, "text_embedding.0.weight",
           "condition_embedder.text_embedder.linear_1.weight"),
    Family("autoencoder", "the Wan autoencoder", AUTOENCODER, "decoder.upsamples.0.residual.0.gamma",
           "decoder.up_blocks.0.resnets.0.norm1.gamma"),
    Family("text", "a UMT5 text encoder", TEXT, "blocks.0.ffn.gate.0.weight",
           "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
)  # fmt: skip
KINDS = {family.kind: family for family in FAMILIES}
TIED = "encoder.embed_tokens.weight"  # transformers' second name for shared.weight
NEVER_USED = re.compile(r"blocks\.\d+\.attn2\.norm_added_q\.weight")  # in the public I2V folders; no code reads it


def recognise(state: Mapping[str, object]) -> tuple[Family, bool] | None:
    """Return the family whose names these are, and whether they are the original ones; None if no family's."""
    for family in FAMILIES:
        if family.original in state or family.ours in state:
            return family, family.original in state
    return None


def to_ours(kind: str, state: Mapping[str, T], file: str = "") -> dict[str, T]:
    """Return weights of a "transformer", "autoencoder" or "text" in our names. CheckpointError, which names their
    `file`, for an unknown name."""
    return rename(state, KINDS[kind].table, KINDS[kind].what, file)


def plain(state: Mapping[str, T]) -> dict[str, T]:
    """Return tensors in our names without what files hold besides: weights never used, an embedding's second name."""
    named = {key: value for key, value in state.items() if not NEVER_USED.fullmatch(key)}
    if (embedding := named.pop(TIED, None)) is not None:
        named.setdefault("shared.weight", embedding)
    return named


def transformer_names(layers: int, image: bool = False) -> list[str]:
    """Return every name, in ours, of a Wan transformer with so many blocks; `image`: of an image-to-video one."""
    rows = TRANSFORMER + (IMAGE if image else ())
    return [name for _, template in rows for name in _expanded(template, layers)]


def _expanded(template: str, layers: int) -> list[str]:
    used = [field for field in FIELDS if "{" + field + "}" in template]
    choices = [[str(n) for n in range(layers)] if field == "n" else FIELDS[field].split("|") for field in used]
    return [template.format(**dict(zip(used, chosen, strict=True))) for chosen in product(*choices)]


def rename(state: Mapping[str, T], table: Table, what: str, file: str = "") -> dict[str, T]:
    """Return `state` under the right-hand names of a table. CheckpointError if it holds names that are not `what`'s."""
    names = {key: translate(key, table) for key in state}
    if unknown := [key for key, name in names.items() if name is None]:
        raise CheckpointError(f"{file}{': ' if file else ''}{len(unknown)} names are not those of {what}, e.g. "
                              f"{first_of(unknown)}.")  # fmt: skip
    return {name: state[key] for key, name in names.items() if name is not None}


def first_of(names: Iterable[str]) -> str:
    """Return the first five names, for messages."""
    return ", ".join(printable(name, 60) for name in islice(names, 5))


def printable(text: str, length: int = 200) -> str:
    """Return a text of a file for messages: cut where it is long, without what no terminal should be sent."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:length])


def translate(name: str, table: Table) -> str | None:
    """Return the right-hand name of a left-hand one; None if no row fits."""
    for pattern, target in _rules(table):
        if match := pattern.fullmatch(name):
            return target.format(**match.groupdict())
    return None


@cache
def _rules(table: Table) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(re.sub(r"\\{(\w+)\\}", _group, re.escape(source))), target) for source, target in table)


def _group(field: re.Match[str]) -> str:
    return f"(?P<{field[1]}>{FIELDS[field[1]]})"
