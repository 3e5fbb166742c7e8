"""Coded: the past in few bits (KIVI, Liu et al. 2024, arXiv 2402.02750; also 8-bit integers and 8-bit floats).

It stands last behind a plain window, which is KIVI's residual: [sink, window, coded]. Sink and newest latents stay
exact, what falls is coded once and never again, and decoded at each call, one layer at a time. So memory is
    4 bits: (4 + 32 / group) + (4 + 32 / channels) bits for a key and a value,
which for the bundled model (16 tokens a latent, 48 channels a head) is 10.7 of 32 in bfloat16: 3.0 x less, and 6.0 x
less than float32; for Wan with group 60 and channels 128, 8.8 of 32: 3.6 x less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from rollforce.cache.commit_plan import Candidates, Role, check_lowest
from rollforce.cache.region import BiasedKV, Evicted, LayerCommit, Placement
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVShape


@dataclass(frozen=True)
class Quantized:
    """Keeps the newest `latents` that fall to it, in codes of `bits` (fp8: e4m3, a step per head and token; none: as
    they are, which is a second window).

    A key's channel shares its lowest value and step (float16 each) over `group` tokens of a latent, a value over
    `channels` of its head; None: all of them. KIVI groups 32 to 128 of either.

    Deviations from KIVI: a group never spans latents, so nothing waits for a group to fill; keys are coded without
    their rotary position, which is put back on reading (`rotated`: with it, as KIVI does). Rotation turns what is
    nearly constant in a channel into waves. On keys of the bundled model, group 16, relative error of keys as they
    come / without the rotation of time / without all of it: 2 bits .163 / .163 / .080, 4 bits .038 / .038 / .016,
    8 bits .0023 / .0023 / .0009. Within a latent time is one angle, so taking out time alone changes nothing.
    Latents of a stream that sees 54 latents so differ from those of plain memory, after 12 s, by 1.4 % with 4 bits
    (`rotated`: 6.6 %), 7 % with 2, .1 % with 8, 3 % with fp8. Values per channel would err by .6 as much as per token,
    at 6 instead of 4.7 bits; they are coded per token as KIVI's."""

    latents: int
    bits: Bits = 4
    group: int | None = None
    channels: int | None = None
    rotated: bool = False
    kind: Literal["coded"] = "coded"
    role: ClassVar[Role] = "past"

    def __post_init__(self) -> None:
        check_lowest(self, latents=1, group=1, channels=1)

    def keep(self, held: Candidates) -> tuple[int, ...]:
        return held.indices[-self.latents :]

    def codecs(self, shape: KVShape) -> tuple[KIVICodec, KIVICodec]:
        """Return how keys and how values are stored. ConfigError where groups do not divide what they group."""
        if self.bits == "fp8":
            return (KIVICodec("fp8", 1, shape.width),) * 2
        group = _divisor("group", self.group, shape.tokens, "tokens of a latent")
        channels = _divisor("channels", self.channels, shape.width, "channels of a head")
        return KIVICodec(self.bits, group, 1), KIVICodec(self.bits, 1, channels)

    def region(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> QuantizedRegion:
        return QuantizedRegion(self, shape, dtype, device)


def _divisor(name: str, value: int | None, whole: int, what: str) -> int:
    if value is None:
        return whole
    if whole % value:
        fitting = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        raise ConfigError(f"coded.{name} {value} does not divide the {whole} {what}. Use one of: {fitting}.")
    return value


class QuantizedRegion:
    """A ring of coded latents in each layer: codes [B, N, latents, ...]."""

    def __init__(self, tier: Quantized, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> None:
        self.latents, self.shape, self.dtype, self.device = tier.latents, shape, dtype, torch.device(device)
        self.rotated = tier.rotated or tier.bits == "none"
        self.codecs = tier.codecs(shape)
        self.codes: list[tuple[Codes, ...]] = [
            tuple(codec.room((*shape.of(layer, 0)[:2], tier.latents), shape.tokens, shape.width, dtype, self.device)
                  for codec in self.codecs) for layer in range(shape.layers)
        ]  # fmt: skip
        self.index = [[0] * tier.latents for _ in range(shape.layers)]  # of each slot
        self.next = [0] * shape.layers  # the slot that is written next
        self._angles: dict[tuple[int, ...], Tensor] = {}  # of the last calls; layers share them

    @property
    def bytes(self) -> int:
        """Codes, steps and lowest values."""
        return sum(tensor.nbytes for layer in self.codes for codes in layer for tensor in codes)

    def absorb(self, evicted: Evicted, commit: LayerCommit) -> None:
        layer, tokens, count = commit.layer, self.shape.tokens, len(evicted.indices)
        kept = evicted.indices[-self.latents :]
        block = evicted.block.latents(count - len(kept), count, tokens)
        slots = [(self.next[layer] + i) % self.latents for i in range(len(kept))]
        place = torch.tensor(slots, device=self.device)
        cos, sin = self._angle(kept)
        key = block.key if self.rotated else rope.rotate(block.key.float(), torch.stack([cos, -sin]))
        for codec, codes, x in zip(self.codecs, self.codes[layer], (key, block.value), strict=True):
            for held, new in zip(codes, codec.encode(rearrange(x, "b n (t l) k -> b n t l k", l=tokens)), strict=True):
                held.index_copy_(2, place, new.to(held.dtype))
        for slot, index in zip(slots, kept, strict=True):
            self.index[layer][slot] = index
        self.next[layer] = (self.next[layer] + len(kept)) % self.latents

    def read(self, layer: int, placement: Placement) -> BiasedKV | None:
        key, value = (codec.decode(tuple(part[:, :, : placement.filled] for part in codes)).flatten(2, 3)
                      for codec, codes in zip(self.codecs, self.codes[layer], strict=True))  # fmt: skip
        if not self.rotated:
            stands = tuple(index + placement.move for index in self.index[layer][: placement.filled])
            key = rope.rotate(key, self._angle(stands))
        elif placement.move:
            key = rope.turn(key, placement.move)
        return BiasedKV(key.to(self.dtype), value.to(self.dtype))

    def _angle(self, stands: tuple[int, ...]) -> Tensor:
        """cos and sin [2, L, K / 2] of latents that stand there; where the rows of a latent are not known, of time."""
        if stands not in self._angles:
            columns, tokens, places = self.shape.columns, self.shape.tokens, torch.tensor(stands, device=self.device)
            angle = rope.angles(places, tokens // columns if columns else 1, columns or 1, self.shape.width)
            self._angles[stands] = angle if columns else angle.repeat_interleave(tokens, dim=1)
            while len(self._angles) > ANGLES:
                del self._angles[next(iter(self._angles))]
        return self._angles[stands]

    def state_dict(self) -> dict[str, Any]:
        codes = [[[tensor.clone() for tensor in codes] for codes in layer] for layer in self.codes]
        return {"codes": codes, "index": [list(layer) for layer in self.index], "next": list(self.next)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, saved in zip(self.codes, state["codes"], strict=True):
            for codes, others in zip(mine, saved, strict=True):
                for tensor, other in zip(codes, others, strict=True):
                    tensor.copy_(other)
        self.index = [[int(index) for index in layer] for layer in state["index"]]
        self.next = [int(slot) for slot in state["next"]]


ANGLES = 3  # a call reads before and after it writes, and writes

# -- codes: KIVI (Liu et al. 2024, arXiv 2402.02750) and 8-bit floats --------------------------------------------------


Bits = Literal[2, 4, 8, "fp8", "none"]
Codes = tuple[Tensor, ...]
"""Packed codes, uint8 [..., T, ceil(K * bits / 8)]; then steps and lowest values, float16 [..., T / tokens,
K / channels]."""

STEP = 2.0**-24  # the smallest float16
HALF = 65504.0  # the largest; blocks that reach beyond it are cut off there
LARGEST = 448.0  # the largest of e4m3


@dataclass(frozen=True)
class KIVICodec:
    """Codes of `bits` in blocks of `tokens` x `channels`. `none` keeps numbers as they are."""

    bits: Bits
    tokens: int
    channels: int

    def room(self, lead: tuple[int, ...], tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> Codes:
        """Return zeros in the shape of the codes of [*lead, tokens, width]."""
        if self.bits == "none":
            return (torch.zeros(*lead, tokens, width, dtype=dtype, device=device),)
        bits = 8 if self.bits == "fp8" else self.bits
        code = torch.zeros(*lead, tokens, -(-width * bits // 8), dtype=torch.uint8, device=device)
        blocks = (*lead, tokens // self.tokens, width // self.channels)
        count = 1 if self.bits == "fp8" else 2
        return (code, *(torch.zeros(blocks, dtype=torch.float16, device=device) for _ in range(count)))

    def encode(self, x: Tensor) -> Codes:
        """Encode numbers [..., T, K]."""
        if self.bits == "none":
            return (x,)
        blocks = self._cut(x.float())
        if self.bits == "fp8":
            step = _up(blocks.abs().amax((-3, -1), keepdim=True) / LARGEST)
            return (self._joined((blocks / step).to(torch.float8_e4m3fn)).view(torch.uint8), self._flat(step))
        levels = 2**self.bits - 1
        low = _down(blocks.amin((-3, -1), keepdim=True))
        step = _up((blocks.amax((-3, -1), keepdim=True) - low) / levels)
        code = ((blocks - low) / step).round().clamp(0, levels).to(torch.uint8)
        return pack(self._joined(code), self.bits), self._flat(step), self._flat(low)

    def decode(self, codes: Codes) -> Tensor:
        """Decode to float32 [..., T, K] (`none`: as they came)."""
        if self.bits == "none":
            return codes[0]
        step = codes[1].float()[..., :, None, :, None]
        if self.bits == "fp8":
            return self._joined(self._cut(codes[0].view(torch.float8_e4m3fn).float()) * step)
        width = self.channels * codes[1].shape[-1]
        numbers = self._cut(unpack(codes[0], self.bits)[..., :width].float())
        return self._joined(numbers.mul_(step).add_(codes[2][..., :, None, :, None]))

    def _cut(self, x: Tensor) -> Tensor:
        """[..., T, K] -> [..., T / tokens, tokens, K / channels, channels]."""
        return rearrange(x, "... (t l) (k c) -> ... t l k c", l=self.tokens, c=self.channels)

    @staticmethod
    def _joined(blocks: Tensor) -> Tensor:
        return rearrange(blocks, "... t l k c -> ... (t l) (k c)")

    @staticmethod
    def _flat(per_block: Tensor) -> Tensor:
        return per_block[..., 0, :, 0].half()


def pack(code: Tensor, bits: int) -> Tensor:
    """Pack numbers below 2^bits, uint8 [..., K], into bytes [..., ceil(K * bits / 8)], the first one lowest."""
    per = 8 // bits
    parts = F.pad(code, (0, -code.shape[-1] % per)).unflatten(-1, (-1, per)).unbind(-1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], start=1):
        packed |= part << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack`, in whole bytes."""
    mask = 2**bits - 1
    return torch.stack([(packed >> place) & mask for place in range(0, 8, bits)], dim=-1).flatten(-2)


def _down(x: Tensor) -> Tensor:
    """The nearest float16 that is not above x, as float32. float16 are ordered as their bits, but for the sign."""
    x = x.clamp(-HALF, HALF)
    near = x.half()
    bits = near.view(torch.int16)
    below = torch.where(near > 0, bits - 1, torch.where(near < 0, bits + 1, -32767)).to(torch.int16).view(torch.float16)
    return torch.where(near.float() > x, below, near).float()


def _up(x: Tensor) -> Tensor:
    """The nearest float16 that is not below x, and a step at least."""
    return -_down(-x.clamp(min=STEP))
