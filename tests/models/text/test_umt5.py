"""Wan's text encoder on a random tiny UMT5: transformers' own numbers, the cache, and what is said when parts lack."""

from __future__ import annotations

import gc
import json
import logging
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from public_weights import to_original
from safetensors.torch import load_file, save_file
from tiny_wan import VOCABULARY, make_tokenizer

from rollforce.checkpoints.base_model import find_parts
from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.text import umt5
from rollforce.models.text.umt5 import LENGTH, TIED, PromptCleaner, WanText

transformers = pytest.importorskip("transformers")

DIM = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a text encoder in two shards."""
    folder = tmp_path_factory.mktemp("wan")
    make_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    config = transformers.UMT5Config(vocab_size=VOCABULARY, d_model=DIM, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    encoder = transformers.UMT5EncoderModel(config).eval()
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="8KB")
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder again, to be spoiled."""
    for path in sorted(folder.rglob("*.*")):
        target = tmp_path / "copy" / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


Loads = list[weakref.ref[torch.nn.Module]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """One entry per loading of the weights: the network, as long as it lives."""
    found: Loads = []
    read = umt5.read_weights

    def counting(files: Any, network: torch.nn.Module, *more: Any) -> Any:
        found.append(weakref.ref(network))
        return read(files, network, *more)

    monkeypatch.setattr(umt5, "read_weights", counting)
    return found


def alive(network: weakref.ref[torch.nn.Module]) -> bool:
    gc.collect()
    return network() is not None


def by_transformers(folder: Path, prompt: str, **model: Any) -> torch.Tensor:
    """The reference's way: tokens padded to 512, mask given, rows from the prompt's length on zeroed."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    encoder = transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder", **model).eval()
    fed = tokenizer([prompt], padding="max_length", max_length=512, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = encoder(fed.input_ids, fed.attention_mask).last_hidden_state.float()
    out[:, int(fed.attention_mask.sum()) :] = 0
    return out


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a red ball over green hills", "", "ball " * 600], ids=["usual", "empty", "long"])
def test_vectors_are_those_of_transformers(folder: Path, tmp_path: Path, prompt: str) -> None:
    vectors = WanText.load(folder, cache=tmp_path).encode([prompt])
    assert vectors.shape == (1, LENGTH, DIM) and vectors.dtype == torch.float32
    assert torch.equal(vectors, by_transformers(folder, prompt))
    assert vectors[0, 0].abs().max() > 0  # even the empty prompt has its end mark


def test_padding_is_zero(folder: Path, tmp_path: Path) -> None:
    vectors = WanText.load(folder, cache=tmp_path).encode(["a red ball", ""])
    assert vectors[0, :4].abs().amin(dim=1).max() > 0 and not vectors[0, 4:].any()
    assert not vectors[1, 1:].any()


def test_company_changes_no_bit(folder: Path, tmp_path: Path) -> None:
    prompts = ["a red ball", "the blue star over the sea", "", "a red ball"]
    together = WanText.load(folder, cache=tmp_path / "one").encode(prompts)
    alone = WanText.load(folder, cache=tmp_path / "other")
    for vectors, prompt in zip(together, prompts, strict=True):
        assert torch.equal(vectors, alone.encode([prompt])[0])


def test_runs_in_the_dtype_of_the_files_or_the_one_asked_for(folder: Path, copy: Path, tmp_path: Path) -> None:
    prompt = "the blue star"
    asked = WanText.load(folder, cache=tmp_path, dtype=torch.bfloat16).encode([prompt])
    expected = by_transformers(folder, prompt, dtype=torch.bfloat16)
    assert torch.equal(asked, expected)
    for path in (copy / "text_encoder").glob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path, {"format": "pt"})
    assert torch.equal(WanText.load(copy, cache=tmp_path).encode([prompt]), expected)
    assert not torch.equal(WanText.load(folder, cache=tmp_path).encode([prompt]), expected)


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight"])
def test_either_name_of_the_word_table_will_do(folder: Path, copy: Path, tmp_path: Path, name: str) -> None:
    weights = {k: v for path in (copy / "text_encoder").glob("*.safetensors") for k, v in load_file(path).items()}
    for path in (copy / "text_encoder").glob("model*"):
        path.unlink()
    weights[name] = weights.pop("shared.weight")
    save_file(weights, copy / "text_encoder" / "model.safetensors")
    vectors = WanText.load(copy, cache=tmp_path / "one").encode(["a star"])
    assert torch.equal(vectors, WanText.load(folder, cache=tmp_path / "other").encode(["a star"]))


@pytest.mark.parametrize("declared", ["T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast"])
def test_the_tokenizer_file_is_used_as_it_stands(copy: Path, tmp_path: Path, declared: str) -> None:
    """Wan's folder declares a T5Tokenizer; with that AutoTokenizer of transformers 5 forgets the file's normaliser."""
    path = copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": declared}))
    text = WanText.load(copy, cache=tmp_path)
    wide, plain = text.encode(["a red ball，the sea", "a red ball,the sea"])
    assert torch.equal(wide, plain)


def test_the_size_of_wan(copy: Path, tmp_path: Path) -> None:
    """UMT5-XXL of Wan 2.1 on no memory: 242 weights, 5.68 billion parameters, 4096 channels; Wan reads 512 tokens."""
    config = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    path = copy / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    text = WanText.load(copy, cache=tmp_path)
    assert (text.dim, text.length) == (4096, 512)
    weights = text.empty().state_dict()
    del weights[TIED[1]]
    assert len(weights) == 242 and sum(weight.numel() for weight in weights.values()) == 5_680_910_336


def test_original_files_become_the_same_encoder(folder: Path, tmp_path: Path) -> None:
    """models_t5_umt5-xxl-enc-bf16.pth and google/umt5-xxl/, laid out as `rollforce convert` does."""
    sizes = json.loads((folder / "text_encoder" / "config.json").read_text())
    sizes |= {"d_model": 64, "d_kv": 16, "num_heads": 4}  # as for the original, the width tells the heads
    torch.manual_seed(0)
    encoder = transformers.UMT5EncoderModel(transformers.UMT5Config.from_dict(sizes)).bfloat16()
    weights = {name: weight for name, weight in encoder.state_dict().items() if name != TIED[1]}
    (tmp_path / "base").mkdir()
    torch.save(to_original("text", weights), tmp_path / "base" / "models_t5_umt5-xxl-enc-bf16.pth")
    make_tokenizer(tmp_path / "base" / "google" / "umt5-xxl")
    (tmp_path / "base" / "Wan2.1_VAE.pth").write_bytes(b"not looked at")
    for part in find_parts(tmp_path / "base"):
        if part.name != "vae":
            part.place(tmp_path / "out")
    encoder.save_pretrained(tmp_path / "expected" / "text_encoder")
    make_tokenizer(tmp_path / "expected" / "tokenizer")
    vectors = WanText.load(tmp_path / "out", cache=tmp_path / "cache").encode(["a red ball"])
    assert torch.equal(vectors, by_transformers(tmp_path / "expected", "a red ball", dtype=torch.bfloat16))


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_cleaning() -> None:
    clean = PromptCleaner()
    assert clean("  a  red\n\tball \u3000 bounces ") == "a red ball bounces"
    assert clean("salt &amp;amp; pepper") == "salt & pepper"
    assert clean("&lt;b&gt;") == "<b>"
    assert clean("") == ""


def test_without_ftfy_it_says_so_once_and_only_where_it_matters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    clean = PromptCleaner()
    assert clean("a red ball") == "a red ball" and not caplog.records
    assert clean("a “red” ball") == "a “red” ball" and clean("“b”") == "“b”"
    assert len(caplog.records) == 1 and "pip install ftfy" in caplog.text


def test_with_ftfy_broken_characters_are_mended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ftfy:
        @staticmethod
        def fix_text(text: str) -> str:
            return text.replace("schÃ¶n", "schön")

    monkeypatch.setitem(sys.modules, "ftfy", Ftfy)
    assert PromptCleaner()("a  schÃ¶n ball") == "a schön ball"


def test_prompts_that_differ_in_dirt_only_share_their_vectors(folder: Path, tmp_path: Path, loads: Loads) -> None:
    text = WanText.load(folder, cache=tmp_path)
    assert torch.equal(text.encode(["a red ball"]), text.encode([" a   red ball\n"])) and len(loads) == 1


@pytest.mark.parametrize("warm", [False, True], ids=["encoded", "cached"])
def test_a_long_prompt_is_cut_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, warm: bool
) -> None:
    prompts = ["a red ball", "ball " * 504 + "the blue star over the sea a red hills " + "ball " * 218]
    if warm:
        WanText.load(folder, cache=tmp_path).encode(prompts)
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        WanText.load(folder, cache=tmp_path).encode(prompts)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1, said
    assert said[0].startswith('Prompt 2 has 732 tokens; only the first 512 are used (cut at "...')
    assert said[0].endswith('over the sea a").') or said[0].endswith('the blue star over the sea a").')


def test_a_prompt_of_just_512_tokens_is_not_too_long(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = WanText.load(folder, cache=tmp_path).encode(["ball " * 511])
    assert not caplog.records and vectors[0, 511].abs().max() > 0


def test_words_and_what_is_no_text(folder: Path, tmp_path: Path) -> None:
    text = WanText.load(folder, cache=tmp_path)
    assert text.words == ()
    text.check("Ein Küken, 雪, \U0001f600, zebra-striped &c.")
    text.check("")
    for call in (text.check, lambda prompt: text.encode([prompt])):
        with pytest.raises(ConfigError, match="at place 2"):
            call("a \ud83d ball")


# -- the cache --------------------------------------------------------------------------------------------------------


def test_a_cached_prompt_loads_nothing(folder: Path, tmp_path: Path, loads: Loads, monkeypatch: Any) -> None:
    first = WanText.load(folder, cache=tmp_path).encode(["a red ball", "", "a red ball"])
    assert len(loads) == 1 and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it now fails
    again = WanText.load(folder, cache=tmp_path)
    assert torch.equal(again.encode(["a red ball", "", "a red ball"]), first) and len(loads) == 1
    with pytest.raises(ConfigError, match="pip install transformers"):
        again.encode(["a blue ball"])


def test_weights_go_after_use_unless_kept(folder: Path, tmp_path: Path, loads: Loads) -> None:
    text = WanText.load(folder, cache=tmp_path / "one")
    for prompt in ("a", "red", "ball"):
        text.encode([prompt])
        assert not alive(loads[-1])
    kept = WanText.load(folder, cache=tmp_path / "other", keep=True)
    assert not loads[3:]
    for prompt in ("a", "red", "ball"):
        kept.encode([prompt])
    assert len(loads) == 3 + 1 and alive(loads[-1])
    kept.release()
    assert not alive(loads[-1])


def test_weights_go_even_if_encoding_fails(folder: Path, tmp_path: Path, loads: Loads, monkeypatch: Any) -> None:
    text = WanText.load(folder, cache=tmp_path)
    text.encode(["a"])

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(transformers.UMT5EncoderModel, "forward", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            text.encode(["red"])
    assert len(loads) == 2 and not alive(loads[-1])
    with ThreadPoolExecutor(1) as pool:  # a lock that stayed shut would keep another thread waiting
        assert pool.submit(text.encode, ["red"]).result(timeout=60).shape == (1, LENGTH, DIM)


def test_what_is_cached_belongs_to_one_encoder(folder: Path, copy: Path, tmp_path: Path, loads: Loads) -> None:
    """A fine-tune has the same config, names and sizes; a longer vocabulary or another dtype is another encoder too."""
    prompt, known = ["a red ball"], WanText.load(folder, cache=tmp_path)
    assert WanText.load(copy, cache=tmp_path).fingerprint == known.fingerprint  # where it lies does not matter
    vectors = known.encode(prompt)
    for path in (copy / "text_encoder").glob("*.safetensors"):
        save_file({k: v + 0.1 for k, v in load_file(path).items()}, path, {"format": "pt"})
    tuned = WanText.load(copy, cache=tmp_path)
    assert tuned.fingerprint != known.fingerprint
    assert not torch.equal(tuned.encode(prompt), vectors) and len(loads) == 2
    (copy / "tokenizer" / "tokenizer.json").write_text((copy / "tokenizer" / "tokenizer.json").read_text() + " ")
    assert WanText.load(copy).fingerprint != tuned.fingerprint
    assert WanText.load(folder, dtype=torch.bfloat16).fingerprint != known.fingerprint


@pytest.mark.parametrize("size", [0, 5, 100, -1], ids=["empty", "header cut", "header cut later", "last byte lost"])
def test_a_truncated_file_is_encoded_again(
    folder: Path, tmp_path: Path, loads: Loads, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    vectors = WanText.load(folder, cache=tmp_path).encode(["a red ball"])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:size])
    for _ in range(2):
        assert torch.equal(WanText.load(folder, cache=tmp_path).encode(["a red ball"]), vectors) and len(loads) == 2
    assert [record.getMessage().endswith("encoded again") for record in caplog.records] == [True]


def test_a_foreign_file_in_the_cache_is_not_believed(folder: Path, tmp_path: Path, loads: Loads) -> None:
    vectors = WanText.load(folder, cache=tmp_path).encode(["a red ball"])
    (path,) = tmp_path.iterdir()
    save_file({"something": torch.zeros(3)}, path)
    assert torch.equal(WanText.load(folder, cache=tmp_path).encode(["a red ball"]), vectors)
    save_file({"rows": torch.zeros(3, DIM + 1)}, path, {"tokens": "3", "cut": ""})
    assert torch.equal(WanText.load(folder, cache=tmp_path).encode(["a red ball"]), vectors)
    assert len(loads) == 3


def test_a_folder_that_cannot_be_written_costs_one_warning(
    folder: Path, tmp_path: Path, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    text = WanText.load(folder, cache=tmp_path / "file" / "text")
    for _ in range(2):
        for prompt in ("a red ball", "a blue star"):
            assert text.encode([prompt]).shape == (1, LENGTH, DIM)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "ROLLFORCE_CACHE" in caplog.text
    assert len(loads) == 2  # held in memory instead


def test_threads_share_one_encoder(folder: Path, tmp_path: Path, loads: Loads) -> None:
    prompts = ["a red ball", "a blue star", "the sea", ""] * 4
    expected = WanText.load(folder, cache=tmp_path / "one").encode(prompts)
    loads.clear()
    text = WanText.load(folder, cache=tmp_path / "other", keep=True)
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(lambda prompt: text.encode([prompt])[0], prompts))
    assert torch.equal(torch.stack(vectors), expected) and len(loads) == 1


# -- folders that lack something --------------------------------------------------------------------------------------


def test_parts_that_lack_are_named_at_once(folder: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"text_encoder/config.json is missing.*rollforce convert"):
        WanText.load(tmp_path / "nowhere")
    shard = sorted((copy / "text_encoder").glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"not whole: {shard.name} missing"):
        WanText.load(copy)
    shard.write_bytes(content)
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer/tokenizer.json is missing"):
        WanText.load(copy)


def test_another_encoder_is_refused(copy: Path) -> None:
    path = copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_type": "clip_text_model"}))
    with pytest.raises(CheckpointError, match="'clip_text_model'; Wan reads text with 'umt5'"):
        WanText.load(copy)
    path.write_text("{not json")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        WanText.load(copy)


def test_weights_that_do_not_fit_are_named(copy: Path, tmp_path: Path) -> None:
    path = copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    for change, said in (
        ({"num_layers": 3}, "missing, first: encoder.block.2"),
        ({"num_layers": 1}, "unexpected, first: encoder.block.1"),
        ({"d_kv": 8}, rf"{name}: checkpoint \[16, 16\], config \[32, 16\]"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=said):
            WanText.load(copy, cache=tmp_path).encode(["a"])
    path.write_text(json.dumps(config))
    shard = sorted((copy / "text_encoder").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="fetch it again"):
        WanText.load(copy, cache=tmp_path).encode(["a"])


def test_a_tokenizer_that_cannot_be_read(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer"):
        WanText.load(copy, cache=tmp_path).encode(["a"])
