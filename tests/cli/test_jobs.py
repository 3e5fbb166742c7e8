"""Command lines become checked plans before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from rollforce.cli.jobs import plan, write_manifest
from rollforce.cli.options import RenderOptions
from rollforce.cli.record import Request
from rollforce.engine.transitions import Cut
from rollforce.errors import ConfigError, SnapshotError
from rollforce.streaming.events import Cue
from rollforce.streaming.snapshot import VERSION
from rollforce.video.size import parse_size


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_record(name: str = "ball", **result: Any) -> Path:
    """A record such as a render leaves behind."""
    request = {"prompt": "a red ball", "seed": 3, "seconds": 4.0, "size": [32, 48], "scale": 2, "stream": "rolling"}
    Path(f"{name}.json").write_text(json.dumps({
        "video": f"{name}.mp4", "request": request, "model": {"weights_sha256": "abc"}, "versions": {"python": "3"},
        "stream": {"cache": [{"size": 3}]}, "result": {"interrupted": False, "video_sha256": "def", **result}}))
    return Path(f"{name}.json")


def test_a_prompt_and_its_overrides() -> None:
    words = ["a red ball = fun", "layout.chunk=2", "cache.0.latents=9"]
    planned = plan(RenderOptions(words=words, size="48x32", seconds="3", seed=0))
    (task,) = planned.tasks
    assert task.request == Request("a red ball = fun", seconds=3, size=(32, 48),
                                   overrides=("layout.chunk=2", "cache.0.latents=9"))
    assert task.path == Path("a-red-ball-fun.mp4") and not task.done
    assert planned.overrides == task.request.overrides


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RenderOptions(), "Say what to render: rollforce render"),
        (RenderOptions(words=[""]), "The prompt is empty"),
        (RenderOptions(words=["  "]), "The prompt is empty"),
        (RenderOptions(words=["a", "red", "ball"]), "got 3 prompts; put one prompt in quotes: 'a red ball'"),
        (RenderOptions(words=["a"], prompts="p.txt"), "a prompt and --prompts cannot be used together"),
        (RenderOptions(words=["a"], seconds=0), "or inf for no end, got 0."),
        (RenderOptions(words=["a"], seconds=-2.5), "or inf for no end, got -2.5."),
        (RenderOptions(words=["a"], seconds=float("nan")), "seconds must be above 0"),
        (RenderOptions(words=["a"], seed=-1), "seed must be from 0"),
        (RenderOptions(words=["a"], size="64"), "--size '64' must be WIDTHxHEIGHT in pixels, such as 64x64"),
        (RenderOptions(words=["a"], scale=0), "scale must be a whole number from 1 to 16384, got"),
        (RenderOptions(words=["a"], output="a.mov"), "only .mp4, .webm, .gif can be written, and folders"),
        (RenderOptions(words=["a"], output=Path("no/a.mp4")), "the folder no does not exist: mkdir -p no"),
        (RenderOptions(words=["a"], output=Path("/proc/a.mp4")), "cannot write into /proc"),
        (RenderOptions(words=["a"], output=Path("a.mp4"), out=Path("x")), "-o names a file and --out a folder"),
        (
            RenderOptions(words=["a"], at=["10s"]),
            "--at '10s': it is TIME:PROMPT or TIME,TRANSITION:PROMPT, such as 10s,flush:",
        ),
        (RenderOptions(words=["a"], at=["soon:a car"]), "'soon' is not a time; write seconds (10, 10s, 2.5s), 1m"),
        (RenderOptions(words=["a"], at=["-3:a car"]), "'-3' is not a time"),
        (
            RenderOptions(words=["a"], at=["3s,flash:a car"]),
            "'flash' is not one of keep, blend, recache, anchors, flush, cut, shot; did you mean 'flush'?",
        ),
        (RenderOptions(words=["a"], at=["3s, :a car"]), "transition.kind: '' is not one of keep, blend"),
        (RenderOptions(words=["a"], at=["3s: "]), "the prompt is empty. Say what to show from then on"),
        (RenderOptions(words=["a"], at=["20:a car"]), "--at: a change at 20 s, but the video ends at 20 s"),
        (RenderOptions(words=["a"], at=["3:a car", "3s,cut:a bus"]), "--at: two changes at 3 s"),
        (RenderOptions(words=["a"], at=["3:a car"], seconds=2), "a change at 3 s, but the video ends at 2 s"),
        (RenderOptions(words=["a"], save_every=-1), "--save-every must be 0 or more"),
        (RenderOptions(resume=Path("none.mp4")), "--resume none.mp4: none.mp4 is not there, so there is nothing"),
        (RenderOptions(resume=Path("none.webm.json")), "none.webm is not there, so there is nothing"),
        (RenderOptions(resume=Path("a.gif")), "a.gif cannot be continued: a GIF is made in one go"),
        (RenderOptions(resume=Path("-")), "a video on stdout cannot be continued"),
        (RenderOptions(words=["a"], output=""), "-o '' names no file; write one, such as -o ball.mp4"),
        (RenderOptions(words=["a"], output="frames"), "only .mp4, .webm, .gif can be written, and folders"),
        (RenderOptions(words=["a"], output="-", segment="9"), "stdout: --seconds inf and --segment write .mp4"),
        (RenderOptions(words=["a"], output="a.gif", seconds="inf"), "a.gif: --seconds inf and --segment write"),
        (RenderOptions(words=["a"], output="a/", seconds="inf"), "a: --seconds inf and --segment write"),
        (RenderOptions(words=["a"], output="a/", fps=9), "a: pictures in a folder have no rate, so fps 9"),
        (RenderOptions(words=["a"], output="a.gif", fps=60), "a.gif: a GIF shows at most 50 pictures a second, not 60"),
        (RenderOptions(words=["a"], image=Path()), "--image . is a folder; name a file in it"),
        (
            RenderOptions(words=["a"], resume=Path("a.mp4"), seconds=3),
            "as the render was begun: leave out a prompt, --seconds.",
        ),
        (RenderOptions(prompts="none.txt"), "--prompts none.txt cannot be read"),
        (RenderOptions(record=Path("none.json")), "none.json cannot be read"),
    ],
)
def test_what_cannot_be_used_is_answered(options: RenderOptions, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(options)
    assert words in str(caught.value)


def test_existing_files_are_kept_unless_asked() -> None:
    Path("a.mp4").write_bytes(b"x")
    with pytest.raises(ConfigError):
        plan(RenderOptions(words=["a"]))
    plan(RenderOptions(words=["a"], overwrite=True))
    Path("b.json").write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match="is not a record of a render"):
        plan(RenderOptions(words=["b"]))
    assert Path("b.json").read_text() == '{"mine": 1}'


def test_many_prompts() -> None:
    Path("p.jsonl").write_text('{"prompt": "a ball"}\n\n{"prompt": "a ball", "seed": 5, "seconds": 2}\n')
    planned = plan(RenderOptions(prompts="p.jsonl", out=Path("made/here"), seed=1, words=["layout.chunk=2"]))
    assert [task.path.name for task in planned.tasks] == ["0000-a-ball-seed1.mp4", "0001-a-ball-seed5.mp4"]
    assert [task.where for task in planned.tasks] == ["p.jsonl:1", "p.jsonl:3"]
    assert [task.request.seconds for task in planned.tasks] == [20.0, 2.0]
    assert Path("made/here").is_dir() and planned.overrides == ("layout.chunk=2",)
    write_manifest(planned, {planned.tasks[0].path: "done"})
    lines = [json.loads(line) for line in Path("made/here/manifest.jsonl").read_text().splitlines()]
    assert [(line["status"], line["seed"]) for line in lines] == [("done", 1), ("waiting", 5)]
    planned.tasks[0].path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"1 of 2 outputs exist.*--keep"):
        plan(RenderOptions(prompts="p.jsonl", out=Path("made/here"), seed=1))
    with pytest.raises(ConfigError, match="use --out DIR"):
        plan(RenderOptions(prompts="p.jsonl", output=Path("a.mp4")))


def test_a_stopped_render_is_resumed_as_it_was_begun() -> None:
    a_record(interrupted=True)
    with pytest.raises(ConfigError, match=r"--resume ball\.mp4: .*though ball\.json is, so there is nothing"):
        plan(RenderOptions(resume=Path("ball.mp4")))
    Path("ball.mp4").write_bytes(b"x")
    with pytest.raises(SnapshotError):
        plan(RenderOptions(resume=Path("ball.mp4")))
    save_file({}, "ball.resume.safetensors", metadata={"rollforce": json.dumps(
        {"version": VERSION, "model": "", "settings": "", "prompt": "", "seed": 0, "size": None, "state": {}})})
    for file in (Path("ball.mp4"), Path("ball.json")):
        planned = plan(RenderOptions(resume=file, quiet=True))
        (task,) = planned.tasks
        assert (task.path, task.begun, task.done) == (Path("ball.mp4"), True, False)
        assert task.request.seed == 3 and planned.overrides == ('cache=[{"size": 3}]',)
    a_record()
    assert plan(RenderOptions(resume=Path("ball.mp4"))).tasks[0].done


def test_changes_are_in_order() -> None:
    planned = plan(RenderOptions(words=["a"], at=["1m:a car", "30s,cut:a bus: red"], seconds=61))
    assert planned.request.cues == (Cue(30, "a bus: red", Cut()), Cue(60, "a car"))


def test_a_record_is_repeated_and_may_be_changed() -> None:
    planned = plan(RenderOptions(record=a_record()))
    assert planned.request.seed == 3 and planned.request.size == (32, 48)
    assert planned.tasks[0].path == Path("ball.mp4")
    assert planned.overrides == ('cache=[{"size": 3}]',)
    assert planned.record is not None and planned.record.video_sha256 == "def"
    changed = plan(RenderOptions(record=a_record(), seed=9, output=Path("b.mp4"), words=["layout.chunk=1"]))
    assert (changed.request.seed, changed.request.seconds) == (9, 4.0)
    assert changed.overrides == ('cache=[{"size": 3}]', "layout.chunk=1")
    other = plan(RenderOptions(record=a_record(), stream="chunkwise"))
    assert other.overrides == ()


@pytest.mark.parametrize(("content", "words"), [
    ("{", "is not JSON"), ("[1]", "is no record of a render"), ('{"a": 1}', "is no record of a render"),
    ('{"request": {"promt": 1}, "stream": {}, "model": {}, "versions": {}}', "unknown setting; did you mean 'prompt'?"),
])
def test_a_bad_record_is_answered(content: str, words: str) -> None:
    Path("bad.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        plan(RenderOptions(record=Path("bad.json")))
    assert words in str(caught.value)


def test_a_record_written_under_older_names_is_read() -> None:
    path = a_record()
    data = json.loads(path.read_text())
    cue = {"at": 2.0, "prompt": "a car", "transition": {"kind": "cut"}, "seed": None, "rung": None}
    data["request"]["cues"] = [cue]
    path.write_text(json.dumps(data))
    assert plan(RenderOptions(record=path)).request.cues == (Cue(2, "a car", Cut()),)


def test_sizes_are_width_by_height() -> None:
    assert parse_size("832x480") == (480, 832)
    assert parse_size(" 64X32 ") == (32, 64)
