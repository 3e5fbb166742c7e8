"""A network as training knows it: the transformer, and the text encoder where it has one of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from rollforce.config import build, resource
from rollforce.engine import flow
from rollforce.engine.flow import linear, shift_level
from rollforce.errors import ConfigError
from rollforce.models.text.encoder import TextConfig, TextEncoder
from rollforce.models.transformer import rope
from rollforce.models.transformer.block import Attention, Block
from rollforce.models.transformer.transformer import Condition, TransformerConfig, VideoTransformer
from rollforce.training.data import TrainingBatch


class Network(nn.Module):
    """A transformer and its text encoder (None: texts come as embeddings)."""

    def __init__(self, transformer: VideoTransformer, text: TextEncoder | None) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text

    @classmethod
    def create(cls, name: str, vocabulary: dict[str, tuple[str, ...]] | None) -> Network:
        """Return random weights for configs/model/NAME.yaml, with a text encoder for `vocabulary` if there is one."""
        config = build(TransformerConfig, resource(f"configs/model/{name}.yaml"))
        text = TextEncoder(TextConfig(dict(vocabulary), text_dim=config.text_dim)) if vocabulary else None
        return cls(VideoTransformer(config), text)

    @classmethod
    def load(cls, folder: Path) -> Network:
        """Read transformer/ and, if it is there, text/ of a folder, as float32. ConfigError without transformer/."""
        if not (folder / "transformer").is_dir():
            raise ConfigError(f"{folder} has no transformer/: name a model folder, or what a run wrote to --export.")
        text = TextEncoder.load(folder / "text") if (folder / "text").is_dir() else None
        return cls(VideoTransformer.load(folder / "transformer").float(), text)

    def save(self, folder: Path) -> None:
        """Write what `load` reads."""
        self.transformer.save(folder / "transformer")
        if self.text is not None:
            self.text.save(folder / "text")

    @property
    def device(self) -> torch.device:
        """The device of the transformer's weights."""
        return next(self.transformer.parameters()).device

    def check_latent(self, name: str, latent: tuple[int, int, int]) -> None:
        """ConfigError if this network, called `name`, cannot read latents of C, h, w."""
        config = self.transformer.config
        channels, height, width = latent
        if channels != config.in_channels or height % config.patch or width % config.patch:
            raise ConfigError(
                f"the data's latents have {channels} channels of {height} x {width}, and the {name} reads "
                f"{config.in_channels} channels in patches of {config.patch} x {config.patch}: it belongs to another "
                "autoencoder. Set data to what this network was trained on, or choose another network.")

    def check_text(self, name: str, width: int) -> None:
        """ConfigError if this network, called `name`, cannot read vectors of this width for a text's tokens."""
        if width != (known := self.transformer.config.text_dim):
            raise ConfigError(f"the data's texts have vectors of {width} numbers, and the {name} reads {known}: they "
                              "are of another text encoder. Encode the clips for this network, or choose another.")

    def clean_latents(self, batch: TrainingBatch) -> Tensor:
        """Return the latents [B, T, C, h, w] of a batch that was drawn with some, on this network's device."""
        assert batch.latents_BTCHW is not None
        return batch.latents_BTCHW.to(self.device)

    def tokens_per_latent(self, latent: Sequence[int]) -> int:
        """How many tokens a latent [..., h, w] becomes."""
        return latent[-2] * latent[-1] // self.transformer.config.patch**2

    def vectors(self, batch: TrainingBatch) -> Tensor:
        """Return the text vectors of a batch, [B, L, D]; with gradient if the text encoder learns.

        ConfigError if the data brings no embeddings and this network has no text encoder."""
        if batch.text_BLD is not None:
            return batch.text_BLD.to(self.device)
        if self.text is None:
            raise ConfigError("the data brings prompts without embeddings, and the network has no text encoder to read "
                              "them: take a network folder with text/, or data.kind=latents, which brings embeddings.")
        return self.text(self.text.numbers(batch.prompts))

    def empty_vectors(self, text_BLD: Tensor) -> Tensor:
        """Return the text vectors of empty prompts, for guidance, in the shape of `text_BLD`."""
        if self.text is None:
            return torch.zeros_like(text_BLD)
        return self.text(self.text.numbers([""] * len(text_BLD))).detach()

    def condition(self, batch: TrainingBatch) -> Condition:
        """Return what the transformer needs to know of a batch's texts."""
        return self.transformer.condition(self.vectors(batch))


def tabulate_networks(networks: Mapping[str, nn.Module], optimised: Sequence[str], processes: int = 1) -> str:
    """Return a table of each network's parameters and memory; an optimised one also holds gradients and two moments in
    float32. `processes`: over how many the weights are sharded."""
    lines = [f"{'network':12s}{'parameters':>14s}{'weights':>11s}{'+ training':>12s}"]
    total = 0.0
    for name, network in networks.items():
        count = sum(p.numel() for p in network.parameters())
        weights = sum(p.nbytes for p in network.parameters()) / processes
        training = 12 * count / processes if name in optimised else 0.0
        total += weights + training
        lines.append(f"{name:12s}{count:14,d}{_format_bytes(weights):>11s}"
                     f"{_format_bytes(training) if training else '':>12s}")
    where = f" on each of {processes} processes" if processes > 1 else ""
    return "\n".join([*lines, f"{'in all':12s}{'':14s}{_format_bytes(total):>11s}{where}, without activations"])


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


# -- what training has come to: samples of a teacher, errors, borders --------------------------------------------------


@torch.no_grad()
def sample(network: Network, noise_BTCHW: Tensor, prompts: Sequence[str], scale: float, steps: int,
           shift: float = 3.0) -> Tensor:  # fmt: skip
    """Return videos [B, T, C, h, w] of prompts by Euler's method, all latents together, guided (losses.guide)."""
    x, index = noise_BTCHW, torch.arange(noise_BTCHW.shape[1], device=noise_BTCHW.device)
    wished, free = (network.condition(TrainingBatch(None, tuple(p))) for p in (prompts, [""] * len(prompts)))
    for now, later in pairwise([*(shift_level(s, shift) for s in linear(steps)), 0.0]):
        sigma = torch.full(x.shape[:2], now, device=x.device)
        base = network.transformer(x, sigma, index, free)
        velocity = base + scale * (network.transformer(x, sigma, index, wished) - base)
        x = flow.euler(x, velocity, sigma, torch.full_like(sigma, later))
    return x


def psnr(video_BFHWC: Tensor, truth_BFHWC: Tensor, weight_BFHW: Tensor | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB of videos in 0..1, over all pixels or weighted ones."""
    error = (video_BFHWC.float() - truth_BFHWC.float()).square().mean(-1)
    if weight_BFHW is not None:
        error = (error * weight_BFHW).sum() / weight_BFHW.sum()
    return -10 * math.log10(float(error.mean()) + 1e-12)


def border_ratio(video_BFHWC: Tensor, every: int) -> float:
    """Return the mean |frame difference| where a latent of `every` frames begins, divided by that inside latents."""
    step = (video_BFHWC[:, 1:].float() - video_BFHWC[:, :-1].float()).abs().mean(dim=(0, 2, 3, 4))
    border = torch.arange(1, video_BFHWC.shape[1]) % every == 0
    return float(step[border].mean() / step[~border].mean())


# -- how a transformer starts: with what every video has in common -----------------------------------------------------

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
        last = nn.ModuleList([block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]])
        for parameter in last.parameters():
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
    weight.flatten(1)[:values] = torch.eye(values)
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
    for projection, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        projection.bias.copy_(fixed.float())
        projection.weight[fixed] *= 0.1
        loud = projection.weight.square().sum(1) + projection.bias.square()  # of unit inputs
        norm.weight.copy_(torch.where(fixed, amplitude * loud.mean().sqrt(), torch.tensor(CONTENT)))
