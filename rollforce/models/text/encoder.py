"""A text encoder for a small language: word embeddings, positions, two transformer layers.

Its vocabulary is data: it stands in config.json as kinds of words ("colours": [...]), and the answer to a word that the
model never learnt lists them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from rollforce.checkpoints.model_folder import load_module, save_module
from rollforce.errors import ConfigError

PAD = 0


@dataclass(frozen=True)
class TextConfig:
    """Sizes and vocabulary. Word number = place in the joined `vocabulary` + 1; number 0 is padding."""

    vocabulary: dict[str, tuple[str, ...]]
    text_dim: int = 128
    text_len: int = 24
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        kinds = {kind: tuple(words) for kind, words in self.vocabulary.items()}
        object.__setattr__(self, "vocabulary", kinds)
        if len(set(self.words)) != len(self.words) or not self.words:
            raise ConfigError("the vocabulary of a text encoder must have words, each of them once")
        if self.text_dim % self.heads:
            raise ConfigError(f"text_dim = {self.text_dim} is not a multiple of heads = {self.heads}")

    @property
    def words(self) -> tuple[str, ...]:
        """All words in the order of their numbers."""
        return tuple(word for kind in self.vocabulary.values() for word in kind)


class Text(Protocol):
    """What a model's text encoder must do: prompts in, vectors for the transformer out."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words that prompts may use; none if any may."""

    def check(self, prompt: str) -> None:
        """Raise ConfigError for a prompt that cannot be encoded."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as text vectors [B, L, D], one at a time: a prompt's bits depend on no other."""


class TextLayer(nn.Module):
    """Pre-norm self-attention and feed-forward; padding is not attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three n k) -> three b n l k", three=3, n=self.heads)
        seen = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask_B11L)
        x_BLD = x_BLD + self.out(rearrange(seen, "b n l k -> b l (n k)"))
        return x_BLD + self.down(F.silu(self.up(self.norm2(x_BLD))))


class TextEncoder(nn.Module):
    """Words to vectors: [B, text_len] word numbers -> [B, text_len, text_dim], zero where there is padding.

    The empty text is all padding, hence all zeros: the condition without a wish that guidance needs."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(len(config.words) + 1, config.text_dim)
        self.position = nn.Parameter(torch.randn(config.text_len, config.text_dim) * 0.3)
        self.layers = nn.ModuleList(TextLayer(config.text_dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.text_dim)
        self.words = config.words
        self._number = {word: i + 1 for i, word in enumerate(config.words)}

    def check(self, prompt: str) -> None:
        self.numbers([prompt])

    def numbers(self, prompts: Sequence[str]) -> Tensor:
        """Return word numbers of each prompt, padded: int64 [B, text_len]. Raises ConfigError for unknown words and for
        prompts of more than text_len words."""
        rows, limit = [], self.config.text_len
        for prompt in prompts:
            words = tokenize(prompt, self.config.vocabulary)
            if len(words) > limit:
                raise ConfigError(f"the prompt has {len(words)} words; this model reads at most {limit}: shorten it")
            rows.append([self._number[word] for word in words] + [PAD] * (limit - len(words)))
        return torch.tensor(rows, dtype=torch.int64, device=self.position.device)

    def forward(self, numbers_BL: Tensor) -> Tensor:
        """Return the text vectors of word numbers, all at once: the training path."""
        real = (numbers_BL != PAD).to(self.position.dtype)
        mask = ((real - 1) * 1e4)[:, None, None]
        x = self.word(numbers_BL) + self.position
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x) * real[..., None]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as text vectors [B, L, D], one at a time: a prompt's bits depend on no other."""
        return torch.cat([self(self.numbers([prompt])) for prompt in prompts])

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors (float16) into `folder`, which is made if it is missing."""
        save_module(self, self.config, folder)

    @classmethod
    def load(cls, folder: str | Path) -> TextEncoder:
        """Read what `save` wrote, as float32, in eval mode. CheckpointError if it is missing or does not fit."""
        return load_module(cls, TextConfig, folder, "text encoder")


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; none for ""."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def tokenize(text: str, vocabulary: Mapping[str, Sequence[str]]) -> list[str]:
    """Split a prompt into words in lower case, without punctuation; none for "". Raises ConfigError for words outside
    `vocabulary` (kind -> words); the message names all of them, and lists what is known."""
    words = split_words(text)
    known = {word for kind in vocabulary.values() for word in kind}
    if unknown := [f'"{word}"{_hint(word, known)}' for word in dict.fromkeys(words) if word not in known]:
        what = "the word" if len(unknown) == 1 else "words"
        raise ConfigError(f"the prompt has {what} {', '.join(unknown)}, which this model never learnt"
                          f"{list_words(vocabulary)}")  # fmt: skip
    return words


def _hint(word: str, known: Collection[str]) -> str:
    near = get_close_matches(word[:30], sorted(each for each in known if len(each) > 2), n=1, cutoff=0.7)
    return f' (did you mean "{near[0]}"?)' if near else ""


def list_words(vocabulary: Mapping[str, Sequence[str]]) -> str:
    """Return the end of a message about words: what is known, a kind on each line."""
    kinds = "\n".join(f"  {kind}: {', '.join(members)}" for kind, members in vocabulary.items())
    return f"\nIt knows these words:\n{kinds}"
