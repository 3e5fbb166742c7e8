"""A network as training knows it: the transformer, and the text encoder where it has one of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rollforce.config import build, resource
from rollforce.models.text.encoder import TextConfig, TextEncoder
from rollforce.models.transformer.transformer import Condition, TransformerConfig, VideoTransformer
from rollforce.training.data import Batch


class Network(nn.Module):
    """Transformer and text encoder (None: texts come as embeddings)."""

    def __init__(self, transformer: VideoTransformer, text: TextEncoder | None) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text

    @classmethod
    def fresh(cls, name: str, vocabulary: dict[str, tuple[str, ...]] | None) -> Network:
        """Random weights: configs/model/NAME.yaml, and a text encoder for `vocabulary` if there is one."""
        config = build(TransformerConfig, resource(f"configs/model/{name}.yaml"))
        text = TextEncoder(TextConfig(dict(vocabulary), text_dim=config.text_dim)) if vocabulary else None
        return cls(VideoTransformer(config), text)

    @classmethod
    def load(cls, folder: Path) -> Network:
        """transformer/ and, if it is there, text/ of a folder, as float32."""
        text = TextEncoder.load(folder / "text") if (folder / "text").is_dir() else None
        return cls(VideoTransformer.load(folder / "transformer").float(), text)

    def save(self, folder: Path) -> None:
        """What `load` reads."""
        self.transformer.save(folder / "transformer")
        if self.text is not None:
            self.text.save(folder / "text")

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def vectors(self, batch: Batch) -> Tensor:
        """Text vectors of a batch, [B, L, D]; with gradient if the text encoder learns."""
        if batch.text_BLD is not None:
            return batch.text_BLD.to(self.device)
        assert self.text is not None, "this data has no embeddings and this network no text encoder"
        return self.text(self.text.numbers(batch.prompts))

    def free(self, text_BLD: Tensor) -> Tensor:
        """Text vectors of no wish, for guidance, in the shape of `text_BLD`."""
        if self.text is None:
            return torch.zeros_like(text_BLD)
        return self.text(self.text.numbers([""] * len(text_BLD))).detach()

    def condition(self, batch: Batch) -> Condition:
        """What the transformer needs to know of a batch's texts."""
        return self.transformer.condition(self.vectors(batch))
