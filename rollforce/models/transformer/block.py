"""One block of the Wan transformer, under diffusers' names.

It is entered by three doors, because self-attention between them belongs to whoever holds the past: `text` once per
prompt, then `before` and `after`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import Kernel, KVBlock


class RMSNorm(nn.Module):
    """RMS norm over the whole width (all heads together), in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Projections of one attention. What is attended to is not its business.

    `image`: with projections of their own for the tokens of an image (cross-attention of Wan's I2V models)."""

    def __init__(self, width: int, heads: int, eps: float, image: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = RMSNorm(width, eps), RMSNorm(width, eps)
        if image:
            self.add_k_proj, self.add_v_proj = nn.Linear(width, width), nn.Linear(width, width)
            self.norm_added_k = RMSNorm(width, eps)

    def query(self, x_BLD: Tensor) -> Tensor:
        return self._heads(self.norm_q(self.to_q(x_BLD)))

    def key_value(self, x_BLD: Tensor) -> KVBlock:
        return KVBlock(self._heads(self.norm_k(self.to_k(x_BLD))), self._heads(self.to_v(x_BLD)))

    def image_key_value(self, x_BLD: Tensor) -> KVBlock:
        return KVBlock(self._heads(self.norm_added_k(self.add_k_proj(x_BLD))), self._heads(self.add_v_proj(x_BLD)))

    def out(self, x_BNLK: Tensor) -> Tensor:
        return self.to_out[0](x_BNLK.transpose(1, 2).flatten(2))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GELULinear(nn.Module):
    """First half of the feed-forward: linear, then GELU."""

    def __init__(self, width: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate=self.approximate)


class FeedForward(nn.Module):
    def __init__(self, inside: int, hidden: int, outside: int, approximate: str = "tanh") -> None:
        super().__init__()
        first = GELULinear(inside, hidden, approximate)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(hidden, outside)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the first and last modulated by the noise level of each latent."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float, image: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.attn1, self.attn2 = Attention(width, heads, eps), Attention(width, heads, eps, image)
        self.norm2 = nn.LayerNorm(width, eps)
        self.ffn = FeedForward(width, hidden, width)
        self.scale_shift_table = nn.Parameter(table(6, width))

    def text(self, text_BLD: Tensor, image_BLD: Tensor | None = None) -> tuple[KVBlock, ...]:
        """Return cross-attention keys and values of a prompt: of its text, and of an image-to-video model's image."""
        text = self.attn2.key_value(text_BLD)
        return (text,) if image_BLD is None else (text, self.attn2.image_key_value(image_BLD))

    def before(self, x_BLD: Tensor, modulation_BT6D: Tensor, angle: Tensor) -> tuple[Tensor, KVBlock, Sequence[Tensor]]:
        """Return query, keys and values of self-attention, turned by RoPE, and this block's modulation for `after`."""
        mod = (self.scale_shift_table.to(modulation_BT6D.dtype) + modulation_BT6D).unbind(2)
        normed = modulated(x_BLD, mod[0], mod[1], self.eps).to(self.attn1.to_q.weight.dtype)
        own = self.attn1.key_value(normed)
        query = rope.rotate(self.attn1.query(normed), angle)
        return query, KVBlock(rope.rotate(own.key, angle), own.value), mod

    def after(self, x_BLD: Tensor, attended: Tensor, mod: Sequence[Tensor], given: tuple[KVBlock, ...],
              attend: Kernel) -> Tensor:  # fmt: skip
        """Run the rest of the block: residual of self-attention, cross-attention, feed-forward. `given`: what
        cross-attention sees, the text and perhaps an image; each has its own softmax, results add up."""
        x = gated(x_BLD, self.attn1.out(attended), mod[2])
        dtype, weight, bias = self.norm2.weight.dtype, self.norm2.weight.to(x.dtype), self.norm2.bias.to(x.dtype)
        query = self.attn2.query(F.layer_norm(x, x.shape[-1:], weight, bias, self.eps).to(dtype))
        seen = attend(query, given[0].key, given[0].value, None)
        for image in given[1:]:
            seen = seen + attend(query, image.key, image.value, None)
        x = x + self.attn2.out(seen).to(x.dtype)
        return gated(x, self.ffn(modulated(x, mod[3], mod[4], self.eps).to(dtype)), mod[5])


def table(rows: int, width: int) -> Tensor:
    """Return a modulation table [1, rows, width] at its start."""
    # Filled in place: a division on the meta device would import the compiler, two seconds of every start.
    return nn.init.trunc_normal_(torch.empty(1, rows, width), std=width**-0.5)


def modulated(x_BLD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, eps: float) -> Tensor:
    """Normalise without weights, then apply each latent's own shift and (1 + scale)."""
    normed = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps).unflatten(1, (shift_BTD.shape[1], -1))
    return torch.addcmul(shift_BTD.unsqueeze(2), normed, 1 + scale_BTD.unsqueeze(2)).flatten(1, 2)


def gated(x_BLD: Tensor, update_BLD: Tensor, gate_BTD: Tensor) -> Tensor:
    """Return x + update * gate, with one gate per latent."""
    latents = (gate_BTD.shape[1], -1)
    update = update_BLD.to(x_BLD.dtype).unflatten(1, latents)
    return torch.addcmul(x_BLD.unflatten(1, latents), update, gate_BTD.unsqueeze(2)).flatten(1, 2)


TIME_SCALE = 1000.0  # the backbone was trained on timesteps 0..1000; everything else speaks sigma in [0, 1]


class MLP(nn.Module):
    """Two linears with an activation between."""

    def __init__(self, inside: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inside, width), nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x.to(self.linear_1.weight.dtype))))


class ImageEmbedder(nn.Module):
    """Tokens of an image (of CLIP, before its last layer) brought to the width of the transformer; norms in float32."""

    def __init__(self, inside: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(inside), nn.LayerNorm(width)
        self.ff = FeedForward(inside, inside, width, approximate="none")

    def forward(self, image_BLD: Tensor) -> Tensor:
        return self._normed(self.norm2, self.ff(self._normed(self.norm1, image_BLD)))

    @staticmethod
    def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        weight, bias = norm.weight, norm.bias
        return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), norm.eps).to(weight.dtype)


class ConditionEmbedder(nn.Module):
    """Noise level, text and, if `image_dim` is given, an image, brought to the width of the transformer."""

    def __init__(self, width: int, freq_dim: int, text_dim: int, image_dim: int | None) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = MLP(freq_dim, width, nn.SiLU())
        self.time_proj = nn.Linear(width, 6 * width)
        self.text_embedder = MLP(text_dim, width, nn.GELU(approximate="tanh"))
        if image_dim is not None:
            self.image_embedder = ImageEmbedder(image_dim, width)

    def time(self, sigma_BT: Tensor, streams: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Embed each latent's noise level: [B, T, D], and the modulation of blocks [B, T, 6, D].

        `streams`: latents of each stream in the call. Each is embedded by itself: up to three rows, a library makes a
        matrix product in another order than that of more, and a stream's last digits would tell who is beside it."""
        if streams is not None:
            each = [self.time(sigma) for sigma in sigma_BT.split(list(streams), dim=1)]
            return torch.cat([one for one, _ in each], dim=1), torch.cat([other for _, other in each], dim=1)
        embedding = self.time_embedder(sinusoid(TIME_SCALE * sigma_BT.double(), self.freq_dim))
        return embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))


def sinusoid(time_BT: Tensor, channels: int) -> Tensor:
    """Return cos then sin of the timestep at geometrically falling frequencies: float32 [B, T, channels]."""
    half = channels // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=time_BT.device) / half)
    angle = time_BT[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float()
