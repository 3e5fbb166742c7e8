"""Prompts rewritten by a chat endpoint: what is sent, what is kept, and what an endpoint may do wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rollforce.errors import ConfigError
from rollforce.models.text.enhance import Enhancer


class Endpoint(BaseHTTPRequestHandler):
    """Answers with `reply`, after `pause` seconds, and remembers what it was asked."""

    code, reply, pause = 200, "", 0.0
    asked: list[tuple[str, dict[str, Any], str | None]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, question, self.headers["Authorization"]))
        time.sleep(self.pause)
        self.send_response(self.code)
        self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(self.reply.encode())

    def log_message(self, *words: object) -> None:
        pass


def says(content: Any) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("ROLLFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ROLLFORCE_ENHANCE_KEY", raising=False)
    for name, value in (("code", 200), ("reply", says("a koi pond in soft rain")), ("pause", 0.0), ("asked", [])):
        monkeypatch.setattr(Endpoint, name, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_prompt_is_asked_for_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLFORCE_ENHANCE_KEY", "secret")
    assert Enhancer(url, "qwen").rewrite("a pond") == "a koi pond in soft rain"
    assert Enhancer(f"{url}/chat/completions", "qwen").rewrite("a pond") == "a koi pond in soft rain"
    [(path, question, key)] = Endpoint.asked
    assert path == "/v1/chat/completions" and key == "Bearer secret" and question["model"] == "qwen"
    assert question["messages"][1] == {"role": "user", "content": "a pond"}
    Enhancer(url, "other").rewrite("a pond")
    Enhancer(url, "qwen").rewrite("a pond", ("red", "ball"))
    assert len(Endpoint.asked) == 3 and "red, ball" in Endpoint.asked[2][1]["messages"][0]["content"]


def test_what_is_kept_but_damaged_is_asked_for_again(url: str, tmp_path: Path) -> None:
    Enhancer(url).rewrite("a pond")
    [kept] = (tmp_path / "cache" / "prompts").iterdir()
    for damage in ("", "[]", '{"answer": 3}', "\udcff"):
        kept.write_bytes(damage.encode(errors="surrogateescape"))
        assert Enhancer(url).rewrite("a pond") == "a koi pond in soft rain"
    assert len(Endpoint.asked) == 5


def test_thoughts_quotes_and_lines_are_tidied(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "reply", says('<think>\nhm\n</think>\n"A koi pond,\n at night."'))
    assert Enhancer(url).rewrite("a pond") == "A koi pond, at night."


@pytest.mark.parametrize(("code", "reply", "parts"), [
    (401, "no key", ["answers 401", "no key", "Set ROLLFORCE_ENHANCE_KEY"]),
    (404, "", ["answers 404", "--enhance-model"]),
    (500, "", ["answers 500", "later"]),
    (302, "", ["answers 302"]),
    (200, "<html>", ["does not answer as a chat endpoint does", "/v1"]),
    (200, "[]", ["does not answer"]),
    (200, says(None), ["0 characters"]),
    (200, says("x" * 5000), ["5000 characters; a prompt has 1 to 4000"]),
])  # fmt: skip
def test_a_bad_answer_is_refused(url: str, code: int, reply: str, parts: list[str],
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(Endpoint, "code", code)
    monkeypatch.setattr(Endpoint, "reply", reply)
    with pytest.raises(ConfigError) as caught:
        Enhancer(url).rewrite("a pond")
    assert all(part in str(caught.value) for part in [*parts, url]), str(caught.value)


def test_a_slow_or_absent_endpoint_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "pause", 0.5)
    with pytest.raises(ConfigError, match="did not answer within 0.1 s"):
        Enhancer(url, timeout_s=0.1).rewrite("a pond")
    with pytest.raises(ConfigError, match="cannot be reached"):
        Enhancer("http://127.0.0.1:9/v1").rewrite("a pond")


@pytest.mark.parametrize("address", ["", "nope", "file:///etc/passwd", "ftp://x/v1", "http://", "http://[::1", "http://x:99999",
                                     "http://me:secret@x/v1"])  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--enhance"):
        Enhancer(address)


def test_a_key_goes_nowhere_unencrypted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLFORCE_ENHANCE_KEY", "secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        Enhancer("http://example.org/v1")
    Enhancer("https://example.org/v1")
