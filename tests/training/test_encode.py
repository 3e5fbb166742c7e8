"""Own videos become training data: what is cut, what is skipped and why, and that a stopped run ends the same."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from repository import ROOT
from small_model import make_model_folder
from tiny_wan import make_wan_folder
from train_scripts import QUICK, logged
from train_scripts import train as run_script

from rollforce.errors import ConfigError
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.autoencoder.wan import WanAutoencoder
from rollforce.models.text.encoder import TextEncoder
from rollforce.training.data import LatentFolder, write_latents
from rollforce.training.encode import CaptionedVideo, EncodeSettings, FolderEncoder
from rollforce.training.recipes import Latents

RED, BLUE = "a red ball rolls left", "a blue star bounces over the sea"
SCRIPT = ROOT / "train" / "encode.py"


def picture(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """A picture that tells its number by its brightness."""
    return np.full((height, width, 3), 16 + number * 2 % 220, np.uint8)


def write_video(
    path: Path, frames: int, fps: int = 12, size: tuple[int, int] = (32, 48), times: list[int] | None = None
) -> Path:
    """Write a video of `size` (height, width); `times` are the time stamps of its frames in 1/120 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4", "g": "6"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 120)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts = times[number] if times else number * 120 // fps
            frame.time_base = Fraction(1, 120)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def add(folder: Path, name: str, frames: int, caption: str = RED, **how: Any) -> Path:
    path = write_video(folder / name, frames, **how)
    path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small model that knows the words of the world: 48x32, 12 fps, four frames to a latent."""
    return make_model_folder(tmp_path_factory.mktemp("model") / "small", world=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos and one of every kind that must be skipped."""
    folder = tmp_path_factory.mktemp("videos")
    add(folder, "long.mp4", 52)
    add(folder, "deep/wide.mp4", 50, BLUE, fps=24, size=(32, 96))
    add(folder, "short.mp4", 5)
    write_video(folder / "silent.mp4", 30)
    add(folder, "unknown.mp4", 30, "a purple dinosaur")
    (folder / "noise.mp4").write_bytes(b"no video" * 99)
    (folder / "noise.txt").write_text(RED)
    whole = add(folder, "cut.mkv", 60)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (folder / ".hidden.mp4").write_bytes(b"what some systems leave beside a file")
    return folder


def encode(videos: Path, out: Path, model: Path | str, *more: str, latents: int = 3) -> None:
    """Run the script in this process, as `python` would."""
    argv = [str(SCRIPT), str(videos), "--out", str(out), "--model", str(model), "--device", "cpu",
            "--latents", str(latents), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        runpy.run_path(argv[0], run_name="__main__")


def refuse(*arguments: Any, **named: Any) -> str:
    with pytest.raises(SystemExit) as stopped:
        encode(*arguments, **named)
    return str(stopped.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def journal(out: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in map(json.loads, (out / "videos.jsonl").read_text().splitlines()[1:])}


def open_folder(folder: Path) -> LatentFolder:
    return LatentFolder(Latents(folder=str(folder), dropped=0.0))


# ---- what comes out


def test_what_is_made_and_what_is_skipped(
    videos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(videos, tmp_path / "out", model)
    rows = journal(tmp_path / "out")
    skipped = {name: row["skipped"] for name, row in rows.items() if row["skipped"]}
    assert skipped == {"short.mp4": "too short", "silent.mp4": "no caption", "noise.mp4": "unreadable",
                       "unknown.mp4": "caption not understood"}
    assert {name: row["clips"] for name, row in rows.items() if row["clips"]} == {
        "long.mp4": 4, "deep/wide.mp4": 2, "cut.mkv": rows["cut.mkv"]["clips"]}
    assert 0 < rows["cut.mkv"]["clips"] < 5 and rows["long.mp4"]["left_s"] == pytest.approx(4 / 12, abs=1e-3)
    said = capsys.readouterr().out
    assert "clips of 3 latents = 12 frames = 1.0 s at 12 fps" in said and "48x32, its middle cropped" in said
    assert "from 3 of 7 videos" in said and "skipped, too short: 1 (short.mp4: 0.4 s)" in said
    assert "skipped, no caption: 1 (silent.mp4)" in said and "noise.mp4: " in said and "dinosaur" in said
    data = open_folder(tmp_path / "out")
    batch = data.draw(0, 0, 8, 3)
    assert data.latent == (8, 4, 6) and set(batch.prompts) <= {RED, BLUE}
    text = TextEncoder.load(model / "text")
    assert batch.text_BLD is not None
    for vectors, prompt in zip(batch.text_BLD, batch.prompts, strict=True):
        assert torch.equal(vectors, text.encode([prompt])[0])


def test_latents_are_those_of_the_frames(model: Path, tmp_path: Path) -> None:
    """Frames by their time stamps: each stands until the next, however irregular they are."""
    times = [0, 10, 20, 70, 80, 90, 100, 150]  # in 1/120 s: 12 fps, with two gaps
    add(tmp_path / "videos", "a.mp4", len(times), times=times)
    encode(tmp_path / "videos", tmp_path / "out", model)
    shown = [sum(time <= number * 10 for time in times) - 1 for number in range(12)]
    frames = np.stack([picture(number) for number in shown])
    expected = TinyAutoencoder.load(model / "autoencoder").encode(torch.from_numpy(frames)[None])[0]
    found = open_folder(tmp_path / "out").draw(0, 0, 1, 3).latents_BTCHW
    assert found is not None
    torch.testing.assert_close(found[0], expected, atol=0.1, rtol=0.05)


def test_every_video_takes_the_size_nearest_to_its_shape(model: Path, tmp_path: Path) -> None:
    for name, size in (("tall", (96, 48)), ("wide", (48, 100)), ("square", (64, 64))):
        add(tmp_path / "videos", f"{name}.mp4", 12, size=size)
    encode(tmp_path / "videos", tmp_path / "out", model, "--size", "32x64", "--size", "64x32", "--size", "48x48")
    sizes = {name: tuple(row["size"]) for name, row in journal(tmp_path / "out").items()}
    assert sizes == {"tall.mp4": (64, 32), "wide.mp4": (32, 64), "square.mp4": (48, 48)}
    shapes = set()
    for step in range(12):
        latents = open_folder(tmp_path / "out").draw(step, 0, 2, 3).latents_BTCHW
        assert latents is not None
        shapes.add(tuple(latents.shape[-2:]))
    assert shapes == {(8, 4), (4, 8), (6, 6)}


@pytest.mark.parametrize("table", [
    ("captions.csv", f"file_name,text\nb.mp4,{BLUE}\nlost.mp4,{RED}\n"),
    ("metadata.jsonl", f'{{"path": "./b.mp4", "cap": ["{BLUE}", "x"]}}\n{{"path": "lost.mp4", "cap": "{RED}"}}\n'),
])
@pytest.mark.parametrize("whole_folder", [True, False])
def test_captions_from_a_table(table: tuple[str, str], whole_folder: bool, model: Path, tmp_path: Path) -> None:
    add(tmp_path, "a.mp4", 12)
    write_video(tmp_path / "b.mp4", 12)
    (tmp_path / table[0]).write_text("\ufeff" + table[1])
    encode(tmp_path if whole_folder else tmp_path / table[0], tmp_path / "out", model)
    rows = {name: (row["clips"], row["skipped"]) for name, row in journal(tmp_path / "out").items()}
    assert rows == {"b.mp4": (1, ""), "lost.mp4": (0, "unreadable"), **({"a.mp4": (1, "")} if whole_folder else {})}
    assert BLUE in open_folder(tmp_path / "out").prompts(0, 0, 20).prompts


def test_limit_then_all(videos: Path, model: Path, tmp_path: Path) -> None:
    encode(videos, tmp_path / "whole", model)
    encode(videos, tmp_path / "parts", model, "--limit", "2")
    assert len(journal(tmp_path / "parts")) == 2
    encode(videos, tmp_path / "parts", model)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_changed_caption_and_a_mended_video_are_encoded_again(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    add(source, "a.mp4", 24)
    write_video(source / "b.mp4", 12)
    encode(source, out, model)
    before = contents(out)
    (source / "a.txt").write_text(BLUE)
    (source / "b.txt").write_text(RED)
    encode(source, out, model)
    assert sorted(open_folder(out).prompts(0, 0, 50).prompts)[0] == BLUE
    assert {name: row["clips"] for name, row in journal(out).items()} == {"a.mp4": 2, "b.mp4": 1}
    assert not [name for name in contents(out) if name in before and name.startswith("clip-")], "old clips are gone"


@pytest.mark.parametrize("table", [False, True])
def test_clips_of_a_video_that_is_gone_stay(table: bool, model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        add(source, name, 12)
    if table:
        (source / "all.csv").write_text(f"file,caption\na.mp4,{RED}\nb.mp4,{RED}\n")
    encode(source, out, model)
    before = {name: data for name, data in contents(out).items() if name.startswith("clip-")}
    (source / "a.mp4").unlink()
    add(source, "c.mp4", 12, BLUE)
    encode(source, out, model)
    assert len(open_folder(out).files) == 3 and before.items() < contents(out).items()


# ---- stopped and gone on with


def small_encoder(videos: Path, out: Path, model: Path) -> FolderEncoder:
    found = [CaptionedVideo(p.relative_to(videos).as_posix(), p, RED) for p in sorted(videos.rglob("*.m*"))]
    autoencoder, text = TinyAutoencoder.load(model / "autoencoder"), TextEncoder.load(model / "text")
    return FolderEncoder(found, out, autoencoder, text, EncodeSettings(12, ((32, 48),), latents=3))


@pytest.mark.parametrize("stops", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_wherever_it_is_stopped_the_result_is_the_same(videos: Path, model: Path, tmp_path: Path, stops: str) -> None:
    total = sum(1 for _ in small_encoder(videos, tmp_path / "whole", model).run())
    for stop in range(total) if stops == "all" else (1, total - 1):
        out = tmp_path / f"stopped-{stop}"
        for _, _ in zip(range(stop), small_encoder(videos, out, model).run(), strict=False):
            pass
        if stop:
            with pytest.raises(ConfigError):
                open_folder(out)
            with (out / "videos.jsonl").open("a") as file:
                file.write('{"key": "cut off')
            (out / "clip-0.safetensors.1.part").write_bytes(b"half of a clip")
        done = sum(1 for _ in small_encoder(videos, out, model).run())
        assert done <= total
        assert contents(out) == contents(tmp_path / "whole")


def test_nothing_is_encoded_twice(videos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _, state in zip(range(2), small_encoder(videos, tmp_path, model).run(), strict=False):
        assert state
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("clip-*")}
    assert made
    list(small_encoder(videos, tmp_path, model).run())
    assert {path: path.stat().st_mtime_ns for path in made} == made
    monkeypatch.setattr(TinyAutoencoder, "encode", None)  # would fail
    list(small_encoder(videos, tmp_path, model).run())


def test_killed_by_the_system(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    for number in range(6):
        add(source, f"{number}.mp4", 60, size=(96, 144))
    encode(source, tmp_path / "whole", model)
    argv = [sys.executable, str(SCRIPT), str(source), "--out", str(tmp_path / "out"), "--model", str(model),
            "--latents", "3", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list((tmp_path / "out").glob("clip-*.safetensors"))) < 8:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    encode(source, tmp_path / "out", model)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_no_more_than_a_clip_is_in_memory(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def read(*_: Any) -> Iterator[np.ndarray]:
        nonlocal alive, most
        for number in range(600):
            alive, most = alive + 1, max(most, alive + 1)
            frame = picture(number)
            weakref.finalize(frame, gone)
            yield frame

    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "endless.mp4").write_bytes(b"x")
    monkeypatch.setattr("rollforce.training.encode.read_clip", read)
    list(small_encoder(tmp_path / "videos", tmp_path / "out", model).run())
    assert journal(tmp_path / "out")["endless.mp4"]["clips"] == 50
    assert most <= 2 * 12 + 2  # a clip, and the next one before the last is let go


def test_a_reader_that_fails_stops_nothing(videos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: Any) -> Iterator[np.ndarray]:
        yield from (picture(number) for number in range(15))
        raise TypeError("no time stamps")

    monkeypatch.setattr("rollforce.training.encode.read_clip", read)
    list(small_encoder(videos, tmp_path, model).run())
    assert {(row["clips"], row["trouble"]) for row in journal(tmp_path).values()} == {(1, "no time stamps")}


def test_moving_images_and_folders_of_images_are_videos(model: Path, tmp_path: Path) -> None:
    from PIL import Image

    source = tmp_path / "videos"
    (source / "heron").mkdir(parents=True)
    (source / "holiday").mkdir()  # no caption, so no video
    frames = [Image.fromarray(picture(number)) for number in range(24)]
    for number, frame in enumerate(frames):
        frame.save(source / "heron" / f"{number}.png")
    frames[0].save(source / "holiday" / "a.png")
    frames[0].save(source / "a.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    for name in ("heron", "a"):
        (source / f"{name}.txt").write_text(RED)
    encode(source, tmp_path / "out", model)
    assert {name: row["clips"] for name, row in journal(tmp_path / "out").items()} == {"heron": 2, "a.webp": 2}


# ---- refusals


def test_other_settings_are_refused(videos: Path, model: Path, tmp_path: Path) -> None:
    encode(videos, tmp_path, model, "--limit", "2")
    told = refuse(videos, tmp_path, model, "--fps", "8", latents=2)
    assert "fps 12, now 8" in told and "latents 3, now 2" in told and "choose another folder" in told
    assert "model" in refuse(videos, tmp_path, make_model_folder(tmp_path / "other", world=True, seed=5))


def test_a_folder_of_something_else_is_refused(videos: Path, model: Path, tmp_path: Path) -> None:
    write_latents(tmp_path, [(torch.zeros(1, 4, 2, 2), torch.zeros(1, 8), "x")])
    before = contents(tmp_path)
    assert "holds other files" in refuse(videos, tmp_path, model)
    assert contents(tmp_path) == before


def test_a_size_that_the_model_cannot_have_is_refused(videos: Path, model: Path, tmp_path: Path) -> None:
    for size in ("50x32", "40x32"):
        assert "is not a multiple of 16" in refuse(videos, tmp_path / "out", model, "--size", size)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"latents": 0}, {"fps": 0.0}, {"fps": float("nan")}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], model: Path, tmp_path: Path) -> None:
    autoencoder, text = TinyAutoencoder.load(model / "autoencoder"), TextEncoder.load(model / "text")
    with pytest.raises(ConfigError, match="must be above 0"):
        FolderEncoder([], tmp_path, autoencoder, text, EncodeSettings(**{"fps": 12, "sizes": ((32, 48),), **settings}))


def test_sources_that_are_none(videos: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / "two" / name).write_text("x")
    (tmp_path / "bad.csv").write_text("name;words\na.mp4;x\n")
    (tmp_path / "bad.jsonl").write_text('{"file": "a.mp4"\n')
    assert "does not exist" in refuse(tmp_path / "missing.csv", out, model)
    assert "has no videos" in refuse(tmp_path / "empty", out, model)
    assert "several tables" in refuse(tmp_path / "two", out, model)
    assert "row 1 of" in refuse(tmp_path / "bad.csv", out, model)
    assert "cannot be read" in refuse(tmp_path / "bad.jsonl", out, model)
    assert "There is no model 'nope'" in refuse(videos, out, "nope")
    assert not out.exists()


def test_a_device_that_is_not_there_is_refused(videos: Path, model: Path, tmp_path: Path) -> None:
    assert "device 'cuda:99' cannot be used" in refuse(videos, tmp_path, model, "--device", "cuda:99")


def test_only_bad_videos_say_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(tmp_path / "videos", "a.mp4", 5)
    assert "no video could be encoded" in refuse(tmp_path / "videos", tmp_path / "out", model)
    assert "skipped, too short: 1 (a.mp4: 0.4 s)" in capsys.readouterr().out
    with pytest.raises(ConfigError):
        open_folder(tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_told_of(videos: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    told = refuse(videos, tmp_path / "file" / "out", model)
    assert f"{tmp_path / 'file'} is a file; name a folder" in told


def test_a_full_disk_is_told_of_and_gone_on_from(
    videos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: bytes) -> int:
        if path.name.startswith("clip-"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return usual(path, content)

    usual = Path.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        assert "No space left" in refuse(videos, tmp_path / "out", model)
    encode(videos, tmp_path / "out", model)
    encode(videos, tmp_path / "whole", model)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_latents_that_overflow_are_not_kept(videos: Path, model: Path, tmp_path: Path) -> None:
    encoder = small_encoder(videos, tmp_path, model)
    assert isinstance(encoder.autoencoder, TinyAutoencoder)
    encoder.autoencoder.scale.mul_(1e9)
    with pytest.raises(ConfigError, match="no video could be encoded"):
        list(encoder.run())
    assert "not finite" in journal(tmp_path)["long.mp4"]["trouble"] and not list(tmp_path.glob("clip-*"))


# ---- Wan, and training on the result


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Wan 2.1 folder as diffusers lays it out."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return make_wan_folder(tmp_path_factory.mktemp("models") / "Wan2.1-T2V-tiny-Diffusers")


@pytest.fixture(scope="module")
def wan_clips(wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of six latents (21 frames) and their texts by a tiny Wan model."""
    folder = tmp_path_factory.mktemp("wan")
    add(folder / "videos", "a.mp4", 45, fps=16)
    add(folder / "videos", "b.mp4", 21, "A prompt with any word.", fps=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLLFORCE_CACHE", str(folder / "cache"))
        encode(folder / "videos", folder / "clips", wan, "--size", "48x32", latents=6)
    return folder / "clips"


def test_wan_encodes_clips_and_texts(wan: Path, wan_clips: Path) -> None:
    from rollforce.models.text.umt5 import WanText

    data = open_folder(wan_clips)
    assert data.latent == (16, 4, 6) and len(data.files) == 3
    batch = data.draw(0, 0, 6, 6)
    assert batch.latents_BTCHW is not None and batch.text_BLD is not None
    text = WanText.load(wan, cache=wan_clips.parent / "cache" / "text")
    assert torch.equal(batch.text_BLD, text.encode(batch.prompts)) and batch.text_BLD.shape[1] == 512
    frames = np.stack([picture(number) for number in range(45)])
    clips = [WanAutoencoder.load(wan).encode(torch.from_numpy(frames[None, at : at + 21]))[0] for at in (0, 21)]
    for latents in batch.latents_BTCHW:
        assert min(float((latents - clip).abs().mean()) for clip in clips) < 0.05
    assert sum(path.stat().st_size for path in wan_clips.glob("clip-*")) < 3 * 40_000, "no padding on disk"


def train(stage: str, out: Path, *settings: str) -> list[dict[str, float]]:
    """Run a training script for two steps on the CPU and return its metrics."""
    argv = [str(ROOT / "train" / f"{stage}.py"), "--out", str(out), "--cpu", *QUICK, "run.steps=2", *settings]
    with pytest.MonkeyPatch.context() as patch:
        run_script(argv, patch)
    return logged(out)


DISTILL = ("batch=4", "alone=1", "ratio=1")


@pytest.mark.parametrize("practice", ["{kind: lasting, groups: 2}", "{kind: forced, latents: 6}"])
def test_distillation_runs_on_the_result(practice: str, model: Path, tmp_path: Path) -> None:
    for name, size in (("tall", (96, 48)), ("wide", (48, 100))):
        add(tmp_path / "videos", f"{name}.mp4", 52, size=size)
    encode(tmp_path / "videos", tmp_path / "clips", model, "--size", "32x64", "--size", "64x32", latents=6)
    told = train("distill", tmp_path / "run", f"teacher={model}", *DISTILL, f"practice={practice}",
                 f"data={{kind: latents, folder: {tmp_path / 'clips'}}}")
    assert len(told) == 2 and np.isfinite(told[-1]["critic"])


def test_the_wan_recipes_run_on_the_result(wan: Path, wan_clips: Path, tmp_path: Path) -> None:
    here = (f"data.folder={wan_clips}", "run.precision='no'", "run.shard=false", "run.recompute=false")
    told = train("distill", tmp_path / "student", "--recipe", "distill_wan-1.3b", f"teacher={wan}", "start=''",
                 "batch=2", "ratio=1", "practice={kind: lessons, latents: [6], last: 6}", *here)
    assert np.isfinite(told[-1]["dmd"])
    told = train("causal", tmp_path / "causal", "--recipe", "causal_wan-1.3b", f"teacher={wan}", *here)
    assert len(told) == 2


def test_the_page_can_be_followed(tmp_path: Path) -> None:
    """Every block of shell commands runs as it stands, one after the other; what it says is what the page shows."""
    page = (ROOT / "docs" / "training-on-your-videos.md").read_text()
    found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", page, flags=re.DOTALL | re.MULTILINE)
    commands = [code for _, language, code in found if language == "sh" and not code.startswith("# Needs ")]
    shown = next(code for _, language, code in found if language == "text" and "clips from" in code)
    for name in ("train", "assets", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = f'python() {{ "{sys.executable}" "$@"; }}; rollforce() {{ python -m rollforce "$@"; }}; set -e\n'
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", "-c", programs + "\n".join(commands)], env=environment, cwd=tmp_path,
                          capture_output=True, text=True, timeout=280)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(commands) == 3 and shown in done.stdout
    assert (tmp_path / "own.mp4").stat().st_size > 1000
