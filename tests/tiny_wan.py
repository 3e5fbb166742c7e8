"""A whole tiny Wan 2.1 base with random weights, as diffusers lays it out: it knows a handful of words."""

from __future__ import annotations

from pathlib import Path

import torch
from public_weights import AUTOENCODER, SIZES

WORDS = ("a", "red", "blue", "ball", "star", "bounces", "over", "green", "hills", "the", "sea")
LETTERS = "abcdefghijklmnopqrstuvwxyz&;<>.,'"
VOCABULARY = 4 + len(LETTERS) + len(WORDS)


def make_tokenizer(folder: Path) -> None:
    """A small Unigram vocabulary that ends a text with </s>, as UMT5's does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *((letter, -5.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces + [(f"▁{word}", -2.0) for word in WORDS], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def make_wan_folder(folder: Path) -> Path:
    """Write transformer/, vae/, text_encoder/, tokenizer/ and model_index.json into `folder`."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    text = UMT5Config(vocab_size=VOCABULARY, d_model=SIZES["text_dim"], d_kv=4, d_ff=24, num_layers=2, num_heads=2,
                      feed_forward_proj="gated-gelu")  # fmt: skip
    WanTransformer3DModel(**SIZES).save_pretrained(folder / "transformer")
    AutoencoderKLWan(**AUTOENCODER).save_pretrained(folder / "vae")
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    make_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return folder
