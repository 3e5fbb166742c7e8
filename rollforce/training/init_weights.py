"""How a transformer starts: an initialisation that already knows what every video model has to learn first.

1. What comes in can go out: the patch embedding writes the noisy latents into the first channels of the width and the
   output reads them there, so that the best linear denoiser is a matter of the final modulation only.
2. Gates are open and the linears behind them silent.
3. Each head begins with a prior over relative position, written into the biases and norms of queries and keys, where
   RoPE turns constant vectors into functions of distance: the same place at any time, the same place nearby in time,
   the same latent, and one head without prior.

Nothing here changes the architecture; training may unlearn all of it.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from rollforce.models.transformer import rope
from rollforce.models.transformer.block import Attention, Block
from rollforce.models.transformer.transformer import VideoTransformer

# One row per head: {axis: {number of the RoPE pair: amplitude}}; heads beyond the table have no prior.
PRIORS: tuple[dict[str, dict[int, float]], ...] = (
    {"row": {0: 6.5, 1: 2.0}, "column": {0: 6.5, 1: 2.0}},
    {"row": {0: 6.5, 1: 2.0}, "column": {0: 6.5, 1: 2.0}, "time": {2: 7.0}},
    {"time": {0: 6.0, 1: 6.0, 2: 4.0}},
)
CONTENT = 0.5  # weight of what queries and keys say about content, at the start


@torch.no_grad()
def initialise(model: VideoTransformer, positions: bool = True) -> None:
    """Initialise `model` in place. `positions`: with the prior over relative position."""
    _pass_through(model)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.scale_shift_table[:, (2, 5)] = 1.0
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        if positions:
            _position_prior(block.attn1)
    nn.init.normal_(model.condition_embedder.time_proj.weight, std=0.01)
    nn.init.zeros_(model.condition_embedder.time_proj.bias)


def _pass_through(model: VideoTransformer) -> None:
    weight = model.patch_embedding.weight  # [D, C, 1, p, p]
    values = weight[0].numel()
    if values > len(weight) or model.config.in_channels != model.config.out_channels:
        return
    nn.init.normal_(weight, std=values**-0.5)
    order = torch.arange(values).view(weight.shape[1:])
    flat = weight.flatten(1)
    flat[:values] = torch.eye(values)
    for parameter in (model.patch_embedding.bias, model.proj_out.weight, model.proj_out.bias):
        assert parameter is not None
        nn.init.zeros_(parameter)
    leaving = rearrange(order, "channel 1 row column -> (row column channel)")  # as the output is ordered
    model.proj_out.weight[torch.arange(values), leaving] = 0.3


def _position_prior(attention: Attention) -> None:
    head_dim = attention.to_q.weight.shape[0] // attention.heads
    time, space, _ = rope.split(head_dim)
    begin = {"time": 0, "row": time, "column": time + space}
    amplitude = torch.zeros(attention.heads * head_dim)
    for head, axes in enumerate(PRIORS[: attention.heads]):
        for axis, pairs in axes.items():
            for pair, value in pairs.items():
                amplitude[head * head_dim + begin[axis] + 2 * pair] = value
    fixed = amplitude > 0
    for linear, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        linear.bias.copy_(fixed.float())
        linear.weight[fixed] *= 0.1
        loud = linear.weight.square().sum(1) + linear.bias.square()  # of unit inputs
        norm.weight.copy_(torch.where(fixed, amplitude * loud.mean().sqrt(), torch.tensor(CONTENT)))
