"""Wan's text encoder, UMT5-XXL, through transformers: prompts in, [B, 512, 4096] out, zero behind the last token.

Five billion parameters for a few hundred vectors: they are loaded when a prompt is not in the cache, used, and let go
again. With all prompts cached neither the weights, nor the tokenizer, nor transformers itself is touched.
"""

from __future__ import annotations

import hashlib
import html
import logging
import re
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from rollforce.checkpoints.comfy_quant import is_scaled
from rollforce.checkpoints.origin import CARD
from rollforce.checkpoints.safetensors_folder import find_weights, read_json, shards_of
from rollforce.checkpoints.shapes import same_shape
from rollforce.checkpoints.unread import refuse_quantised
from rollforce.errors import CheckpointError, ConfigError, stand_in
from rollforce.models.text.text_cache import CachedText, TextCache

log = logging.getLogger(__name__)
LENGTH = 512  # tokens that Wan reads of a prompt, the end mark among them


class WanText:
    """A text encoder in a diffusers folder. Obeys `Text`: `words`, `check`, `encode`. Safe to use from threads."""

    words: tuple[str, ...] = ()  # any word may be used
    length = LENGTH

    def __init__(self, folder: Path, shards: Sequence[Path], cache: TextCache, *, device: str | torch.device = "cpu",
                 dtype: torch.dtype | None = None, keep: bool = False) -> None:  # fmt: skip
        self.folder, self.shards, self.cache = folder, tuple(shards), cache
        self.device, self.dtype, self.keep = torch.device(device), dtype, keep
        self.config: dict[str, Any] = read_json(folder / ENCODER / "config.json")
        self._model: Any = None
        self._tokenizer: Any = None
        self._lock = threading.Lock()
        self._cleaner = PromptCleaner()

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None,
             cache: str | Path | None = None, keep: bool = False) -> WanText:  # fmt: skip
        """Open the encoder in `folder`/text_encoder with `folder`/tokenizer; no weight is read yet.

        Args: `device` where prompts are encoded and vectors handed out; `dtype` to run in (None: that of the files);
        `cache` a folder (None: $ROLLFORCE_CACHE/text or ~/.cache/rollforce/text); `keep` the weights once loaded.
        Raises CheckpointError if a part is missing or is another encoder."""
        folder = Path(folder)
        shards = weight_files(folder)
        found = WanText(folder, shards, TextCache(cache), device=device, dtype=dtype, keep=keep)
        kind = found.config.get("model_type")
        if kind != "umt5":
            raise CheckpointError(f"{folder / ENCODER / 'config.json'} describes {kind!r}; Wan reads text with 'umt5'.")
        if not any((folder / TOKENIZER / name).is_file() for name in ("tokenizer.json", "spiece.model")):
            raise CheckpointError(f"no tokenizer in {folder}: {TOKENIZER}/tokenizer.json is missing. {remedy(folder)}")
        return found

    def check(self, prompt: str) -> None:
        """Raise ConfigError for what is no text; everything else can be encoded, the empty prompt too."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"the prompt holds {prompt[error.start]!r} at place {error.start}, half of a character: "
                              "remove it.") from error  # fmt: skip

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as text vectors, float32 [B, 512, D], on `device`, one at a time."""
        for prompt in prompts:
            self.check(prompt)
        known = self._encoded(cleaned := [self._cleaner(prompt) for prompt in prompts])
        for number, encoded in enumerate((known[prompt] for prompt in cleaned), start=1):
            if encoded.tokens > self.length:
                log.warning('Prompt %d has %d tokens; only the first %d are used (cut at "...%s").',
                            number, encoded.tokens, self.length, encoded.cut)  # fmt: skip
        rows = [known[prompt].rows_LD.to(self.device, torch.float32) for prompt in cleaned]
        return torch.stack([F.pad(each, (0, 0, 0, self.length - each.shape[0])) for each in rows])

    @property
    def dim(self) -> int:
        """Channels of a text vector."""
        return int(self.config["d_model"])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what decides the vectors: settings, vocabulary, weights (headers, sizes and samples), dtype."""
        digest = hashlib.sha256(f"{self.length} {self.dtype}".encode())
        small = [path for path in sorted((self.folder / TOKENIZER).iterdir()) if path.suffix in (".json", ".model")]
        for path in (self.folder / ENCODER / "config.json", *small):
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        for path in self.shards:
            sample(path, digest)
        return digest.hexdigest()

    def release(self) -> None:
        """Let the weights go, if they are in memory."""
        if self._model is None:
            return
        self._model = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.info("text encoder let go")

    def _encoded(self, prompts: Sequence[str]) -> dict[str, CachedText]:
        """Every prompt from the cache, or encoded now with one loading of the weights for all."""
        found = {prompt: known for prompt in prompts if (known := self._cached(prompt)) is not None}
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if not missing:
            return found
        with self._lock:
            try:
                for prompt in missing:  # another thread may have encoded it meanwhile
                    found[prompt] = self._cached(prompt) or self._run(prompt)
            finally:
                if not self.keep:
                    self.release()
        return found

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{self.fingerprint}\0{self.length}\0{prompt}".encode()).hexdigest()

    def _cached(self, prompt: str) -> CachedText | None:
        known = self.cache.read(self._key(prompt))
        return known if known is not None and known.rows_LD.shape[1:] == (self.dim,) else None

    @torch.no_grad()
    def _run(self, prompt: str) -> CachedText:
        """As the reference: padded to 512 tokens, padding masked; only the rows of real tokens are handed on."""
        tokenizer = self._ready_tokenizer()
        whole = tokenizer(prompt, add_special_tokens=True, verbose=False)["input_ids"]
        fed = tokenizer(prompt, add_special_tokens=True, padding="max_length", padding_side="right", truncation=True,
                        max_length=self.length, return_attention_mask=True, return_tensors="pt")  # fmt: skip
        if self._model is None:
            self._model = self._load()
        mask = fed["attention_mask"].to(self.device)
        out = self._model(input_ids=fed["input_ids"].to(self.device), attention_mask=mask).last_hidden_state
        cut = ""
        if len(whole) > self.length:
            cut = tokenizer.decode(whole[self.length - 9 : self.length - 1], skip_special_tokens=True).strip()
        encoded = CachedText(out[0, : int(mask.sum())].cpu(), len(whole), cut)
        self.cache.write(self._key(prompt), encoded)
        return encoded

    def _ready_tokenizer(self) -> Any:
        """tokenizer.json as it stands. AutoTokenizer of transformers 5 would build a T5Tokenizer from its words alone,
        because the folder says so, and lose its normaliser: full-width commas would become unknown words."""
        if self._tokenizer is None:
            folder, transformers = self.folder / TOKENIZER, _transformers()
            whole = (folder / "tokenizer.json").is_file()
            reader = transformers.PreTrainedTokenizerFast if whole else transformers.AutoTokenizer
            try:
                self._tokenizer = reader.from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}") from error
        return self._tokenizer

    def empty(self) -> Any:
        """Build the network on the meta device: names and sizes, no memory."""
        transformers = _transformers()
        with torch.device("meta"):
            return transformers.UMT5EncoderModel(transformers.UMT5Config.from_dict(self.config))

    def _load(self) -> Any:
        """The network with the weights of the files: mapped, not read, where they stay on the CPU in their dtype."""
        began, model = time.perf_counter(), self.empty()
        state = read_weights(self.shards, model, self.device, self.dtype)
        model.load_state_dict(state, strict=True, assign=True)
        log.info("text encoder loaded onto %s in %.1f s", self.device, time.perf_counter() - began)
        return model.eval().requires_grad_(False)


class PromptCleaner:
    """The reference's cleaning of a prompt: broken characters mended, HTML unescaped twice, one space between words."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, prompt: str) -> str:
        return re.sub(r"\s+", " ", html.unescape(html.unescape(self._mended(prompt)))).strip()

    def _mended(self, prompt: str) -> str:
        try:
            import ftfy  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError:
            if not self._said and ("&" in prompt or not prompt.isascii()):  # else ftfy would change nothing
                self._said = True
                log.warning("ftfy is not installed: curly quotes and broken characters in prompts stay, and vectors "
                            "may differ a little from those of Wan's own code. Remedy: pip install ftfy")  # fmt: skip
            return prompt
        return str(ftfy.fix_text(prompt))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("Wan's text encoder needs transformers, which is not installed: pip install transformers."
                          ) from error  # fmt: skip
    return transformers


# -- the files of an encoder: which there are, what they hold, what tells them from others -----------------------------


ENCODER, TOKENIZER = "text_encoder", "tokenizer"
TIED = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one table; files hold either or both
SAMPLES, SAMPLE = 16, 4096  # of each weight file: pieces and their bytes that go into the fingerprint


def remedy(folder: Path) -> str:
    """Return what to do for a model folder that lacks its text encoder or tokenizer."""
    if (folder / CARD).is_file():
        return "The folder was made here and has lost it: copy it from its base, or make the folder again."
    return "A model folder in diffusers' layout holds text_encoder/ and tokenizer/; `rollforce convert` makes one."


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files. CheckpointError names what is missing."""
    where = folder / ENCODER
    if not (where / "config.json").is_file():
        raise CheckpointError(f"no text encoder in {folder}: {ENCODER}/config.json is missing. {remedy(folder)}")
    found = find_weights(where, "model")
    if found is not None and ".bin" in found.name:
        raise CheckpointError(f"the text encoder in {where} is a pickle ({found.name}): `rollforce convert` makes a "
                              "model folder with safetensors of it.")  # fmt: skip
    shards = shards_of(found or where / "model.safetensors")
    missing = [path.name for path in shards if not path.is_file()]
    if missing or not shards:
        what = ", ".join(missing) or "every weight file"
        raise CheckpointError(f"the text encoder in {where} is not whole: {what} missing. {remedy(folder)}")
    return shards


def sample(path: Path, digest: Any) -> None:
    """Hash header, size and a few pieces, which takes no time: the weights of a fine-tune differ in these."""
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        digest.update(file.read(min(header, size)))
        for number in range(SAMPLES):
            file.seek(max(0, header + (size - header - SAMPLE) * number // max(1, SAMPLES - 1)))
            digest.update(file.read(SAMPLE))


def read_weights(files: Sequence[Path], network: nn.Module, device: torch.device,
                 dtype: torch.dtype | None) -> dict[str, Tensor]:  # fmt: skip
    """Read all weights by name, on `device` in `dtype` (None: their own; those for the CPU are mapped, not read).
    CheckpointError if their names or sizes are not those of `network`."""
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                state |= {name: _cast(name, file.get_tensor(name), dtype) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(stand_in(path) or f"{path} cannot be read ({error}): fetch it again.") from error
    refuse_quantised(state, files[0].name)
    if is_scaled(state):
        raise CheckpointError(f"{files[0]} holds ComfyUI's codes: `rollforce convert` makes a model folder with "
                              "bfloat16 of them.")  # fmt: skip
    for one, other in (TIED, TIED[::-1]):
        if one in state and other not in state:
            state[other] = state[one]
    same_shape(state, network, str(files[0].parent))
    return state


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The feed-forward's way out overflows in float16: UMT5 keeps it in float32. No product is made of 8-bit floats."""
    dtype = dtype or (torch.bfloat16 if tensor.is_floating_point() and tensor.itemsize == 1 else tensor.dtype)
    return tensor.to(torch.float32 if dtype == torch.float16 and name.endswith("wo.weight") else dtype)
