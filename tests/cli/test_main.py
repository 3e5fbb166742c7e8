"""The command as a person uses it: on a small model with random weights, through the real engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from frames import read_frames
from PIL import Image
from small_model import make_model_folder
from typer.testing import CliRunner, Result

from rollforce.cli import render
from rollforce.cli.main import app
from rollforce.streaming.session import Session

Run = Callable[..., Result]
PROMPT = "a red ball bounces over the green hills"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `rollforce render ...` in an empty folder with the small model."""
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str, code: int = 0) -> Result:
        chosen = () if {"--model", "--from"} & set(words) else ("--model", str(folder))
        chosen += () if {"--seed", "--from", "--prompts"} & set(words) else ("--seed", "0")
        result = CliRunner().invoke(app, ["render", *words, *chosen], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return result

    return invoke


def record(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def test_a_prompt_becomes_a_video_and_a_record(run: Run) -> None:
    result = run(PROMPT, "--seconds", "2.5", "--seed", "4", "-o", "ball.mp4")
    frames = read_frames(Path("ball.mp4"))
    assert frames.shape == (30, 256, 384, 3)
    told = record("ball.json")
    assert told["request"]["prompt"] == PROMPT and told["request"]["seed"] == 4 and told["request"]["scale"] == 8
    assert told["result"]["frames"] == 30 and told["result"]["interrupted"] is False
    assert told["stream"]["layout"]["kind"] == "rolling" and len(told["model"]["weights_sha256"]) == 64
    for part in ("model small", "2.5 s = 30 frames", "playable while it grows", "first frame", "fps", "real time",
                 "peak memory", "ball.json"):
        assert part in result.output
    assert "drift" not in result.output and told["result"]["drift"] is not None
    assert "last 2 s against first 2 s" in run(PROMPT, "-s", "4", "-o", "longer.mp4").output


def test_a_record_gives_the_same_bytes(run: Run) -> None:
    run(PROMPT, "layout.chunk=2", "--seconds", "3", "--seed", "4", "-o", "ball.mp4", "--scale", "2")
    result = run("--from", "ball.json", "-o", "again.mp4")
    assert Path("again.mp4").read_bytes() == Path("ball.mp4").read_bytes()
    assert "the same bytes as recorded" in result.output
    other = run("--from", "ball.json", "-o", "other.mp4", "--seed", "5")
    assert Path("other.mp4").read_bytes() != Path("ball.mp4").read_bytes()
    assert "not the recorded bytes" in other.output


def test_a_longer_video_begins_with_the_shorter_one(run: Run) -> None:
    run(PROMPT, "-s", "2", "-o", "short.mp4", "--scale", "1")
    run(PROMPT, "-s", "5", "-o", "long.mp4", "--scale", "1")
    assert (read_frames(Path("long.mp4"))[:24] == read_frames(Path("short.mp4"))).all()


def test_a_clip_is_continued_started_from_and_followed(run: Run) -> None:
    run(PROMPT, "--seconds", "2", "-o", "ball.mp4", "--scale", "1")
    clip = read_frames(Path("ball.mp4"))
    Image.fromarray(clip[-1]).save("last.png")
    run(PROMPT, "--video", "ball.mp4", "--seconds", "1", "-o", "longer.mp4", "--scale", "1")
    assert read_frames(Path("longer.mp4")).shape == (24 + 12, 32, 48, 3)  # what was given comes first
    run(PROMPT, "--image", "last.png", "--seconds", "1", "-o", "moving.mp4", "--scale", "1")
    assert len(read_frames(Path("moving.mp4"))) == 4 + 12
    run(PROMPT, "--follow", "ball.mp4", "--strength", "0.5", "-o", "other.mp4", "--scale", "1")
    assert len(read_frames(Path("other.mp4"))) == 24  # as long as what it follows
    told = record("other.json")["request"]
    assert (told["follow"], told["strength"]) == ("ball.mp4", 0.5)
    run("--from", "other.json", "-o", "again.mp4")
    assert Path("again.mp4").read_bytes() == Path("other.mp4").read_bytes()


def test_what_is_followed_repeats(run: Run) -> None:
    run(PROMPT, "--seconds", "1", "-o", "ball.mp4", "--scale", "1")
    told = run(PROMPT, "--follow", "ball.mp4", "--loop", "-s", "2.5s", "-o", "long.mp4", "--scale", "1")
    assert "2.5 s = 30 frames" in told.output and len(read_frames(Path("long.mp4"))) == 30
    assert record("long.json")["request"]["loop"] is True
    assert "the same bytes as recorded" in run("--from", "long.json", "-o", "again.mp4").output
    for words in ((), ("--image", "ball.png"), ("--video", "ball.mp4")):
        Image.fromarray(read_frames(Path("ball.mp4"))[0]).save("ball.png")
        refused = run(PROMPT, "--loop", *words, "-o", "no.mp4", code=2)
        assert "loop repeats what is followed: give the clip with follow (--follow FILE)" in refused.stderr


def test_the_same_frames_play_at_another_rate(run: Run) -> None:
    import av

    run(PROMPT, "--seconds", "0:02", "-o", "slow.mp4", "--scale", "1")
    told = run(PROMPT, "--seconds", "2s", "--fps", "30", "-o", "fast.mp4", "--scale", "1")
    assert "2 s = 24 frames" in told.output and "played at 30 fps" in told.output
    with av.open("fast.mp4") as file:
        assert file.streams.video[0].average_rate == 30
    assert record("fast.json")["result"]["frames_sha256"] == record("slow.json")["result"]["frames_sha256"]
    for fps in ("0", "1000", "nan"):
        refused = run(PROMPT, "--fps", fps, "-o", "no.mp4", code=2)
        assert "fps must be a number of at least 1 and at most 240" in refused.stderr


def test_a_seed_is_drawn_said_and_recorded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = set()
    for name in ("a", "b"):
        words = ["render", PROMPT, "-s", "1", "--scale", "1", "--model", str(folder), "-o", f"{name}.mp4"]
        result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        seeds.add(seed := record(f"{name}.json")["request"]["seed"])
        assert f"seed {seed} ->" in result.output
    assert len(seeds) == 2
    again = CliRunner().invoke(app, ["render", "--from", "a.json", "-o", "c.mp4"], env={"COLUMNS": "200"})
    assert "the same bytes as recorded" in again.output
def test_given_frames_are_counted_apart_and_said(run: Run) -> None:
    run(PROMPT, "--seconds", "2", "-o", "ball.mp4", "--scale", "1")
    said = run(PROMPT, "--video", "ball.mp4", "-s", "1", "-o", "longer.mp4", "--scale", "1").stdout
    for part in ("1 s = 12 new frames of", "behind ball.mp4", "Video: 24 frames (2 s) come first",
                 "36 frames = 3 s of video, 24 of them given,"):  # fmt: skip
        assert part in said
    result = record("longer.json")["result"]
    assert (result["frames"], result["given"]) == (36, 24)
    assert result["denoise_fps"] == pytest.approx(12 / result["denoise_s"], rel=0.01)


def test_an_ending_chooses_what_is_written(run: Run) -> None:
    for name in ("a.webm", "a.gif", "a/"):
        said = run(PROMPT, "-s", "0.5", "--scale", "2", "-o", name, "--thumbnail").stdout
        assert f"-> {name} (playable" in said and "thumbnail" in said
    assert read_frames(Path("a.webm")).shape == read_frames(Path("a.gif")).shape == (6, 64, 96, 3)
    told = sorted(path.name for path in Path("a").iterdir())
    assert told == [*(f"frame-{n:06d}.png" for n in range(6)), "record.jpg", "record.json"]
    assert record("a.webm.json")["request"]["codec"]["name"] == "libvpx-vp9"
    digests = {record(name)["result"]["frames_sha256"] for name in ("a.webm.json", "a.gif.json", "a/record.json")}
    assert len(digests) == 1
    assert "the same bytes as recorded" in run("--from", "a/record.json", "--overwrite").stdout
    assert "the same bytes as recorded" in run("--from", "a.webm.json", "-o", "b.webm").stdout
    Path("c.jpg").write_bytes(b"mine")
    assert "c.jpg exists" in run(PROMPT, "-o", "c.mp4", "--thumbnail", code=2).stderr


def test_a_video_on_stdout_leaves_words_to_stderr(run: Run) -> None:
    result = run(PROMPT, "-s", "0.5", "--scale", "1", "-o", "-")
    assert "6 frames" in result.stderr and "-> stdout" in result.stderr and result.stdout_bytes[4:8] == b"ftyp"
    Path("piped.mp4").write_bytes(result.stdout_bytes)
    assert len(read_frames(Path("piped.mp4"))) == 6
    assert [path.name for path in Path().iterdir()] == ["piped.mp4"]
    assert "leave out --json, --keep" in run(PROMPT, "-o", "-", "--json", "--keep", code=2).stderr


def test_a_reader_that_goes_away_ends_it_quietly(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rollforce", "render", PROMPT, "--model", str(folder), "-o", "-", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(100)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_sound_and_what_is_done_to_a_clip_are_said(run: Run) -> None:
    clip = np.full((24, 48, 64, 3), 90, np.uint8)
    with av.open("clip.mov", "w") as container:
        video, sound = container.add_stream("libx264", rate=12), container.add_stream("aac", rate=48000, layout="mono")
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        for picture in clip:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 96000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        for part in av.AudioResampler("fltp", "mono", 48000, frame_size=1024).resample(frame):
            container.mux(sound.encode(part))
        container.mux(video.encode())
        container.mux(sound.encode())
    for option in ("--video", "--follow"):
        said = run(PROMPT, option, "clip.mov", "-s", "1", "-o", "a.mp4", "--overwrite").stdout
        assert "clip.mov: its sound is carried over" in said and "Video 64x48 cropped to 48x32" in said
        with av.open("a.mp4") as container:
            assert len(container.streams.audio) == 1
    said = run(PROMPT, "--video", "clip.mov", "-s", "1", "-o", "a.gif", "--scale", "1").stdout
    assert "its sound is left out" in said


def test_how_it_runs_is_recorded(run: Run) -> None:
    run(PROMPT, "--seconds", "1", "-o", "a.mp4", "--offload", "blocks", "--attention", "plain", "--window", "6")
    assert record("a.json")["stream"]["cache"] == [{"kind": "window", "latents": 6}]
    running = record("a.json")["request"]["running"]
    assert running["offload"] == ["blocks"] and running["attention"] == "plain"
    run("--from", "a.json", "-o", "b.mp4")
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    assert "Use one of: sdpa" in run(PROMPT, "--attention", "slow", "-o", "c.mp4", code=2).output


def test_json_for_machines_and_quiet(run: Run) -> None:
    told = json.loads(run(PROMPT, "-s", "1", "--json").stdout)
    assert told["video"] == "a-red-ball-bounces-over-the-green-hills.mp4" and told["result"]["frames"] == 12
    assert run(PROMPT, "-s", "1", "--quiet", "-o", "q.mp4").output == ""


def test_many_prompts_are_checked_together_then_made_and_resumed(run: Run) -> None:
    Path("p.jsonl").write_text('{"prompt": "a red ball"}\n{"prompt": "a pink ball"}\n{"prompt": "a car", "id": "c"}\n')
    result = run("--prompts", "p.jsonl", "--out", "made", "-s", "1", code=2)
    assert "p.jsonl:2:" in result.stderr and "pink" in result.stderr and "p.jsonl:3:" in result.stderr
    assert result.stderr.count("It knows these words") == 1
    assert not list(Path("made").glob("*.mp4"))
    Path("p.jsonl").write_text('{"prompt": "a red ball"}\n{"prompt": "a blue star", "seed": 5, "seconds": 2}\n')
    run("--prompts", "p.jsonl", "--out", "made", "-s", "1")
    assert {path.name for path in Path("made").iterdir()} == {
        "0000-a-red-ball-seed0.mp4", "0000-a-red-ball-seed0.json", "0001-a-blue-star-seed5.mp4",
        "0001-a-blue-star-seed5.json", "manifest.jsonl"}
    assert len(read_frames(Path("made/0001-a-blue-star-seed5.mp4"))) == 24
    alone = run("a blue star", "--seed", "5", "-s", "2", "-o", "alone.mp4")
    assert alone.exit_code == 0
    assert Path("alone.mp4").read_bytes() == Path("made/0001-a-blue-star-seed5.mp4").read_bytes()
    Path("made/0000-a-red-ball-seed0.mp4").unlink()
    result = run("--prompts", "p.jsonl", "--out", "made", "-s", "1", "--keep")
    assert "1 of 2 videos are complete and kept" in result.output
    manifest = [json.loads(line) for line in Path("made/manifest.jsonl").read_text().splitlines()]
    assert [line["status"] for line in manifest] == ["done", "done"]


def test_the_prompt_changes_on_the_way(run: Run) -> None:
    result = run(PROMPT, "--at", "3s,flush:the green hills", "--at", "1.5:a blue star", "-s", "5", "-o", "a.mp4",
                 "--scale", "1")  # fmt: skip
    for part in ("· 2 changes ·", "at 2 s: 'a blue star' (recache)", "at 3 s: 'the green hills' (flush)"):
        assert part in result.output
    told = record("a.json")
    assert [(cue["at"], cue["prompt"]) for cue in told["request"]["cues"]] == [
        (1.5, "a blue star"), (3.0, "the green hills")]
    assert told["request"]["cues"][1]["transition"] == {"keep": 2, "kind": "flush"}
    assert [(event["kind"], event["chunk"], event["frame"]) for event in told["result"]["events"]] == [
        ("applied", 2, 24), ("visible", 2, 24), ("applied", 3, 36), ("visible", 3, 36)]
    assert "the same bytes as recorded" in run("--from", "a.json", "-o", "b.mp4").output
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    shorter = run("--from", "a.json", "-s", "2.5", "-o", "shorter.mp4").output
    assert "at 2 s: " in shorter and "1 change: the video ended before" in shorter
    slow = run(PROMPT, "--at", "1s,keep:a blue star", "--at", "5s,blend:the hills", "-s", "6", "-o", "slow.mp4").output
    assert "at 1 s, wholly from 4 s: 'a blue star' (keep)" in slow
    assert "at 5 s, not wholly seen before the end: 'the hills' (blend)" in slow
    run(PROMPT, "-s", "5", "-o", "plain.mp4", "--scale", "1")
    steered, plain = read_frames(Path("a.mp4")), read_frames(Path("plain.mp4"))
    assert (steered[:24] == plain[:24]).all()
    assert (steered[24::4] != plain[24::4]).any(axis=(1, 2, 3)).all(), "in each latent"


def test_lines_of_a_file_have_changes_of_their_own(run: Run) -> None:
    Path("p.jsonl").write_text(
        '{"prompt": "a red ball", "at": [{"seconds": 1, "prompt": "a blue star", "transition": "flush"}]}\n'
        '{"prompt": "the hills"}\n')
    run("--prompts", "p.jsonl", "--out", "made", "-s", "2", "--at", "1s:a star", "--scale", "1")
    kept = [record(f"made/{name}-seed0.json")["request"]["cues"] for name in ("0000-a-red-ball", "0001-the-hills")]
    assert [[(cue["prompt"], cue["transition"]["kind"]) for cue in cues] for cues in kept] == [
        [("a blue star", "flush")], [("a star", "recache")]]
    Path("p.jsonl").write_text('{"prompt": "a ball", "at": [{"seconds": 1, "prompt": "a pink star"}]}\n')
    result = run("--prompts", "p.jsonl", "--out", "bad", "-s", "2", code=2)
    assert "p.jsonl:1: at 1 s: " in result.stderr and "pink" in result.stderr


def test_a_batch_goes_on_with_what_was_cut_short(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.txt").write_text("a red ball\na blue star\n")
    batch = ("--prompts", "p.txt", "--out", "made", "-s", "4", "--scale", "1")
    true_add = render.Tally.add

    def failing(self: Any, chunk: Any) -> None:
        true_add(self, chunk)
        if self.request.prompt == "a blue star" and self.streamed == 36:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(render.Tally, "add", failing)
        assert "No space left" in run(*batch, "--save-every", "0.001", code=3).stderr
    result = run(*batch, "--keep")
    assert "1 of 2 videos are complete and kept" in result.output and "s are there" in result.output
    run("a blue star", "-s", "4", "-o", "alone.mp4", "--scale", "1")
    made, alone = record("made/0001-a-blue-star-seed0.json")["result"], record("alone.json")["result"]
    assert made["frames_sha256"] == alone["frames_sha256"] and made["continued_at"]


@pytest.mark.parametrize(("words", "parts"), [
    ((PROMPT, "--at", "2s:a pink star"), ["at 2 s: ", "pink"]),
    ((PROMPT, "--at", "2s,anchors:a star"), ["at 2 s: anchors keep a junction", "--stream anchor_forcing"]),
    ((PROMPT, "--model", "nothing"), ["There is no model 'nothing'", "Bundled: tiny", "folder"]),
    (("a red balloon",), ["balloon", "ball", "bounces"]),
    (("",), ["The prompt is empty"]),
    ((PROMPT, "--seconds", "0"), ["seconds must be above 0", "got 0"]),
    ((PROMPT, "--size", "50x32"), ["width 50 is not a multiple of 16", "Nearest: 48 or 64"]),
    ((PROMPT, "--stream", "rollign"), ["no stream preset 'rollign'", "rolling"]),
    ((PROMPT, "layout.chnk=2"), ["layout.chnk: unknown setting; did you mean 'chunk'?"]),
    ((PROMPT, "layout.chunk=two"), ["layout.chunk: must be a whole number, got 'two'"]),
    ((PROMPT, "layout.kind=roling"), ["layout.kind: 'roling' is not one of", "did you mean 'rolling'?"]),
    ((PROMPT, "--device", "abacus"), ["device 'abacus' is not known"]),
    ((PROMPT, "--dtype", "float3"), ["dtype 'float3' is not known", "float32"]),
])
def test_bad_input_is_answered_in_words(run: Run, words: tuple[str, ...], parts: list[str]) -> None:
    result = run(*words, code=2)
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.output
    assert not list(Path().glob("*.mp4")) and not list(Path().glob("*.json"))


@pytest.mark.parametrize("words", [("--stream", "rollign"), ("--stream", "none.yaml"), ("--quantize", "int3"),
                                   ("--offload", "all"), ("--attention", "slow"), ("--compile", "all"),
                                   ("--device", "abacus"), ("--dtype", "float3"), ("--size", "64"),
                                   ("--size", "50x32")])  # fmt: skip
def test_plan_and_render_refuse_with_the_same_sentence(run: Run, words: tuple[str, ...]) -> None:
    planned = CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "200"})
    assert planned.exit_code == 2
    assert planned.stderr == run(PROMPT, "--model", "tiny", *words, code=2).stderr


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "rollforce", "render", "", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ConfigError" in done.stderr and "Traceback" in done.stderr


def test_out_of_memory_has_its_own_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    true_stream = Session.stream

    def failing(self: Session, seconds: float | None = None) -> Iterator[Any]:
        chunks = true_stream(self, seconds)
        yield next(chunks)
        yield next(chunks)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(Session, "stream", failing)
    result = run(PROMPT, "-s", "5", "-o", "ball.mp4", code=4)
    assert "Out of memory" in result.stderr
    assert len(read_frames(Path("ball.mp4"))) == 24
    assert record("ball.json")["result"] is None


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_render_leaves_a_playable_file(folder: Path, tmp_path: Path, kill: signal.Signals) -> None:
    video = tmp_path / "ball.mp4"
    command = [sys.executable, "-m", "rollforce", "render", PROMPT, "-s", "3600", "-o", video, "--model", folder]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and not (video.exists() and video.stat().st_size > 200_000):
        assert time.monotonic() < deadline, "no frames came"
        time.sleep(0.05)
    process.send_signal(kill)
    output, errors = process.communicate(timeout=60)
    assert len(read_frames(video)) >= 12
    told = record(str(tmp_path / "ball.json"))
    if kill is signal.SIGKILL:
        assert process.returncode == -9 and told["result"] is None
    else:
        assert process.returncode == 130, errors
        assert told["result"]["interrupted"] is True and told["result"]["frames"] == len(read_frames(video))
        assert "interrupted" in output and "Traceback" not in errors


@pytest.mark.parametrize("wait", [0.0, 0.7])
def test_it_can_be_interrupted_while_it_loads(tmp_path: Path, wait: float) -> None:
    """Also where a shell has Ctrl-C ignored, as for what runs in the background."""
    words = [sys.executable, "-m", "rollforce", "render", PROMPT, "-s", "600", "-o", str(tmp_path / "a.mp4")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))  # fmt: skip
    time.sleep(wait)
    deadline = time.monotonic() + 60
    while not _handles(process.pid, signal.SIGINT):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def _handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_help_and_version_load_nothing_heavy() -> None:
    script = ("import sys; from rollforce.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
              "assert not {'torch', 'numpy', 'av', 'omegaconf'} & set(sys.modules), sorted(sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "render" in done.stdout and "doctor" in done.stdout
    assert CliRunner().invoke(app, ["--version"]).output.startswith("rollforce 0.")


def test_doctor_and_lists() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(result.stdout)
    assert told["torch"]["usable"] and "math" in told["torch"]["attention"] and told["video"]["codecs"]
    assert "sdpa" in told["torch"]["kernels"]
    assert (result.exit_code == 0) == (not told["problems"])
    assert "memory free gb" in CliRunner().invoke(app, ["doctor"]).output
    assert "tiny" in CliRunner().invoke(app, ["models"]).output


def test_words_are_listed(folder: Path) -> None:
    assert "bounces" in CliRunner().invoke(app, ["words", "--model", str(folder)]).output


def test_the_number_of_threads_is_part_of_a_record(run: Run) -> None:
    run(PROMPT, "-s", "1", "-o", "one.mp4")
    assert record("one.json")["request"]["threads"] == 1
    run(PROMPT, "-s", "1", "-o", "two.mp4", "--threads", "2")
    assert record("two.json")["request"]["threads"] == 2
    run("--from", "one.json", "-o", "again.mp4")
    assert record("again.json")["request"]["threads"] == 1
    assert Path("again.mp4").read_bytes() == Path("one.mp4").read_bytes()
