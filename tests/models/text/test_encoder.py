"""The text encoder: words, padding, independence of company, files."""

from pathlib import Path

import pytest
import torch

from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.text.encoder import TextConfig, TextEncoder, tokenize

WORDS = {"things": ("ball", "star"), "colours": ("red", "blue"), "small words": ("a", "over", "the", "sea")}


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(TextConfig(WORDS, text_dim=16, text_len=6, layers=2, heads=2)).eval()


def test_words_case_and_punctuation() -> None:
    assert tokenize(" A Red BALL, over the sea! ", WORDS) == ["a", "red", "ball", "over", "the", "sea"]
    assert tokenize("", WORDS) == []


def test_unknown_word_gets_a_list_of_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        tokenize("a red bal over the sea", WORDS)
    said = str(caught.value)
    assert '"bal"' in said and 'did you mean "ball"?' in said
    assert all(word in said for words in WORDS.values() for word in words)


def test_too_long(encoder: TextEncoder) -> None:
    with pytest.raises(ConfigError, match=r"7 words.*at most 6"):
        encoder.numbers(["a red ball over the sea a"])


def test_padding_is_zero_and_not_read(encoder: TextEncoder) -> None:
    vectors = encoder.encode(["a red ball", ""])
    assert vectors.shape == (2, 6, 16)
    assert torch.equal(vectors[0, 3:], torch.zeros(3, 16)) and torch.equal(vectors[1], torch.zeros(6, 16))
    before = vectors[0, :3]
    with torch.no_grad():
        encoder.word.weight[0] += 5.0
    assert torch.allclose(encoder.encode(["a red ball"])[0, :3], before, atol=1e-6)


def test_order_of_words_matters(encoder: TextEncoder) -> None:
    one, other = encoder.encode(["red ball blue star", "blue ball red star"])
    assert not torch.allclose(one[1], other[1], atol=1e-3)


def test_company_changes_no_bit(encoder: TextEncoder) -> None:
    prompts = ["a red ball", "the blue star over the sea", "ball"]
    together = encoder.encode(prompts)
    for i, prompt in enumerate(prompts):
        assert torch.equal(together[i], encoder.encode([prompt])[0])
    assert torch.allclose(encoder(encoder.numbers(prompts)), together, atol=1e-5)


def test_saved_and_loaded(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    loaded = TextEncoder.load(tmp_path)
    assert loaded.config == encoder.config
    prompt = ["the blue star over the sea"]
    assert torch.allclose(loaded.encode(prompt), encoder.encode(prompt), atol=1e-2)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        TextEncoder.load(tmp_path)


def test_config_refuses_repeated_words() -> None:
    with pytest.raises(ConfigError, match="once"):
        TextConfig({"a": ("red",), "b": ("red",)})
