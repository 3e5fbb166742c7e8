"""Codec: numbers in few bits. KIVI's asymmetric codes (Liu et al. 2024, arXiv 2402.02750) and 8-bit floats.

Numbers are cut into blocks of some tokens by some channels. A block of 2, 4 or 8 bits keeps its lowest value and a
step; a block of fp8 (e4m3) keeps a step only. KIVI's two cuts: keys 1 channel x many tokens, values 1 token x many
channels. Lowest value and step are float16, and rounded outwards, so that no number lies outside its block's codes
and |x - decoded| <= step / 2 holds for the step as it is kept. Codes are packed into bytes.

Deviations from KIVI's release: a block of one value has a step of 2^-24 instead of 0 (there 0 / 0 = NaN); outward
rounding, where the release rounds both to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

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
