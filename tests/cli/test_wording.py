"""What prompts are shown as, on the command line: said before it renders, kept in the record, the same again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_model import make_model_folder
from typer.testing import CliRunner

from rollforce.cli.main import app

BALL = "a red ball bounces over green hills by day"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("small"), world=True)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLLFORCE_CACHE", str(tmp_path / "cache"))


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["render", *words])
    assert result.exit_code == code, result.output
    return result.output


def wording(name: str) -> dict[str, str]:
    return json.loads(Path(name).read_text())["request"]["wording"]


class Translator(BaseHTTPRequestHandler):
    """Makes a blue star of whatever it is asked."""

    calls = 0

    def do_POST(self) -> None:
        Translator.calls += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "a blue star"}}]}).encode())

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Translator.calls = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Translator) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_short_prompt_is_completed_said_and_recorded(folder: Path) -> None:
    output = run("a ball", "--at", "1s:two hearts", "-s", "2", "--seed", "1", "-o", "a.mp4", "--model", str(folder))
    assert f'"a ball" is shown as "{BALL}"' in output and '"two hearts" is shown as' in output
    assert wording("a.json")["a ball"] == BALL
    change = f"1s:{wording('a.json')['two hearts']}"
    run(BALL, "--at", change, "-s", "2", "--seed", "1", "-o", "b.mp4", "--model", str(folder))
    assert wording("b.json") == {} and Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    told = json.loads(Path("a.json").read_text())
    told["request"]["wording"]["a ball"] = "a blue star circles over the sea at night"  # as another version had it
    Path("a.json").write_text(json.dumps(told))
    run("--from", "a.json", "-o", "c.mp4")
    assert wording("c.json") == told["request"]["wording"] and Path("c.mp4").read_bytes() != Path("a.mp4").read_bytes()


def test_what_was_stopped_goes_on(folder: Path) -> None:
    Path("p.txt").write_text("a ball\na heart\n")
    words = ("--prompts", "p.txt", "--out", "made", "-s", "1", "--model", str(folder))
    run(*words)
    assert "2 of 2 videos are complete and kept" in run(*words, "--keep")


def test_prompts_and_changes_are_handed_to_an_endpoint_once(folder: Path, url: str) -> None:
    Path("p.jsonl").write_text('{"prompt": "eine Katze", "at": [{"seconds": 1, "prompt": "un chien"}]}\n')
    words = ("--prompts", "p.jsonl", "-s", "2", "--model", str(folder), "--enhance", url)
    run(*words, "--out", "one")
    run(*words, "--out", "two")
    shown = "a blue star circles over green hills by day"
    record = next(Path("one").glob("0000*.json"))
    assert Translator.calls == 2 and wording(str(record)) == {"eine Katze": shown, "un chien": shown}
    run("--from", str(record), "-o", "again.mp4")
    assert Translator.calls == 2 and Path("again.mp4").read_bytes() == record.with_suffix(".mp4").read_bytes()


def test_an_endpoint_that_is_not_there_is_said_before_anything_is_made(folder: Path) -> None:
    output = run("a ball", "-o", "a.mp4", "--model", str(folder), "--enhance", "http://127.0.0.1:9/v1", code=2)
    assert "cannot be reached" in output and not list(Path().glob("a.*"))
    assert "needs --enhance URL" in run("a ball", "--enhance-model", "x", code=2)
