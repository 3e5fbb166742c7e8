"""Prompts rewritten by a language model behind an OpenAI-compatible chat endpoint, each of them asked for once.

    Enhancer("http://localhost:11434/v1", "qwen3").rewrite("a koi pond")

What came of a prompt is kept in $ROLLFORCE_CACHE/prompts (~/.cache/rollforce/prompts). The key that an endpoint may
want is read from $ROLLFORCE_ENHANCE_KEY; it goes nowhere but there, encrypted unless that is this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from rollforce.errors import ConfigError
from rollforce.models.text.text_cache import cache_folder

log = logging.getLogger(__name__)
KEY = "ROLLFORCE_ENHANCE_KEY"
LONGEST = 4000  # characters of an answer that a prompt may have
LARGEST = 1_000_000  # bytes of an answer that are read
LOCAL = ("localhost", "127.0.0.1", "::1")
TASK = ("Rewrite the user's prompt for a text-to-video model: one paragraph of at most 80 words that says what is "
        "seen, how it moves, where it is, and the light. Keep every thing that the prompt names, and its language. "
        "Answer with the prompt alone.")  # fmt: skip
SMALL_TASK = ("Rewrite the user's prompt as one sentence for a video model that knows only these words: {words}. Name "
              "one thing, or two joined by 'and', each with a colour, a shape and a motion; then the place and the "
              "time of day. Use no other word. Example: a red ball bounces over green hills by day. Answer with the "
              "sentence alone.")  # fmt: skip


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is for the endpoint that was named, not for where that points to."""

    def redirect_request(self, *words: Any) -> None:
        return None


@dataclass(frozen=True)
class Enhancer:
    """An endpoint: `url` is its base (.../v1) or ends with /chat/completions; `model` is what it calls its model.

    ConfigError for a URL that cannot be one."""

    url: str
    model: str | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f"--enhance {self.url!r} is no address of a chat endpoint; it is like "
                              "http://localhost:11434/v1.")  # fmt: skip
        if parts.username or parts.password:
            raise ConfigError(f"--enhance has a password in its address, which records would show: set {KEY} instead.")
        if os.environ.get(KEY) and parts.scheme == "http" and parts.hostname not in LOCAL:
            raise ConfigError(f"--enhance {self.url!r} would send {KEY} unencrypted: use https, or unset it.")

    @property
    def endpoint(self) -> str:
        """The address that prompts are sent to."""
        url = self.url.rstrip("/")
        return url if url.endswith("/chat/completions") else f"{url}/chat/completions"

    def rewrite(self, prompt: str, words: Sequence[str] = ()) -> str:
        """Return a prompt rewritten, the same each time. `words`: those that the video model knows, if not all.

        ConfigError if the endpoint cannot be reached, refuses, or answers otherwise than a chat endpoint."""
        task = SMALL_TASK.format(words=", ".join(words)) if words else TASK
        question = {"model": self.model or "default", "temperature": 0, "seed": 0, "messages": [
            {"role": "system", "content": task}, {"role": "user", "content": prompt}]}  # fmt: skip
        name = hashlib.sha256(json.dumps([self.endpoint, question]).encode()).hexdigest()
        path = cache_folder().with_name("prompts") / f"{name}.json"
        if (kept := _read(path)) is not None:
            return kept
        answer = self._tidy(self._ask(question))
        _write(path, {"prompt": prompt, "url": self.url, "model": self.model, "answer": answer})
        return answer

    def _ask(self, question: dict[str, Any]) -> Any:
        """Return what the endpoint says: the text of its first choice."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        try:
            request = urllib.request.Request(self.endpoint, json.dumps(question).encode(), headers)
            opener = urllib.request.build_opener(_NoRedirects)
            with opener.open(request, timeout=self.timeout_s) as answer:
                content = answer.read(LARGEST)
            return json.loads(content)["choices"][0]["message"]["content"]
        except HTTPError as error:
            said = f"answers {error.code} {error.reason}{_excerpt(error)}", _remedy(error.code)
        except TimeoutError:
            said = f"did not answer within {self.timeout_s:g} s", "Is it still loading its model?"
        except (OSError, HTTPException) as error:
            said = f"cannot be reached ({getattr(error, 'reason', None) or error})", "Is it running?"
        except (ValueError, LookupError, TypeError):
            said = "does not answer as a chat endpoint does", "Its address often ends with /v1."
        raise self._refuse(*said)

    def _tidy(self, answer: Any) -> str:
        """Return an answer as one line, without thoughts and quotation marks."""
        text = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL) if isinstance(answer, str) else ""
        text = " ".join(text.split()).strip("\"'“”")
        if not text or len(text) > LONGEST:
            said = f"answers with {len(text)} characters; a prompt has 1 to {LONGEST}"
            raise self._refuse(said, "Try another model.")
        return text

    def _refuse(self, what: str, remedy: str) -> ConfigError:
        return ConfigError(f"--enhance: {self.endpoint} {what}. {remedy} Without --enhance prompts stay as they are.")


def _remedy(code: int) -> str:
    if code in (401, 403):
        return f"Set {KEY} to a key that it accepts."
    return "Name a model that it has: --enhance-model." if code in (400, 404, 422) else "Try again later."


def _excerpt(error: HTTPError) -> str:
    with suppress(OSError, HTTPException):
        if text := " ".join(error.read(300).decode(errors="replace").split()):
            return f" ({text})"
    return ""


def _read(path: Path) -> str | None:
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))["answer"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return answer if isinstance(answer, str) and answer else None


def _write(path: Path, entry: dict[str, Any]) -> None:
    """Keep an answer; a disk that refuses costs time, not the render."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        log.warning("%s cannot be written (%s): this prompt is sent again next time", path, error.strerror)
