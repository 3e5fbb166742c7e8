"""What the transformer is told besides latents: noise level, text, perhaps an image; under diffusers' names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollforce.models.transformer.block import FeedForward

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
