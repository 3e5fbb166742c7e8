"""A network as training knows it: the transformer, and the text encoder where it has one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rollforce.config import build, resource
from rollforce.errors import ConfigError
from rollforce.models.text.encoder import TextConfig, TextEncoder
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
        """Read transformer/ and, if it is there, text/ of a folder, as float32."""
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
        weights = sum(p.numel() * p.element_size() for p in network.parameters()) / processes
        training = 12 * count / processes if name in optimised else 0.0
        total += weights + training
        lines.append(f"{name:12s}{count:14,d}{_format_bytes(weights):>11s}"
                     f"{_format_bytes(training) if training else '':>12s}")
    where = f" on each of {processes} processes" if processes > 1 else ""
    return "\n".join([*lines, f"{'in all':12s}{'':14s}{_format_bytes(total):>11s}{where}, without activations"])


def _format_bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
