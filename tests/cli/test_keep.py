"""What is kept, gone on with, or left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_model import make_model_folder

from rollforce.cli.jobs import plan
from rollforce.cli.keep import find_kept
from rollforce.cli.options import RenderOptions
from rollforce.cli.record import Request
from rollforce.cli.render import render
from rollforce.errors import ConfigError
from rollforce.streaming.load import load, read_origin
from rollforce.video.writer import VideoCodec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Request, Path]:
    """A request and its whole video."""
    place = tmp_path_factory.mktemp("made")
    folder = make_model_folder(place / "small", world=True)
    request = Request("a red ball", seed=3, seconds=1, scale=1, model=str(folder))
    render(load(folder), request, place / "ball.mp4")
    return request, place / "ball.mp4"


def look(request: Request, path: Path) -> tuple[bool, bool]:
    return find_kept(path, request, lambda: read_origin(request.model, request.stream, request.overrides))


def test_the_same_is_kept(made: tuple[Request, Path]) -> None:
    request, path = made
    assert look(request, path) == (True, False)
    assert look(replace(request, size=(32, 48), threads=1), path) == (True, False)
    assert look(request, path.with_name("other.mp4")) == (False, False)


@pytest.mark.parametrize("name", ["frames", "ball.webm", "ball.gif"])
def test_every_kind_of_video_is_kept(made: tuple[Request, Path], tmp_path: Path, name: str) -> None:
    request, path = made[0], tmp_path / name
    assert look(request, path) == (False, False)
    if name == "frames":
        path.mkdir()
        assert look(request, path) == (False, False)
    render(load(request.model), request, path)
    assert look(request, path) == (True, False)
    (next(path.glob("*3.png")) if name == "frames" else path).write_bytes(b"mine")
    with pytest.raises(ConfigError, match="describes another"):
        look(request, path)


def test_anything_else_is_named(made: tuple[Request, Path], tmp_path: Path) -> None:
    request, path = made
    other = make_model_folder(tmp_path / "other", world=True, seed=5)
    changes = {
        "prompt 'a red ball', now 'a blue star'": {"prompt": "a blue star"}, "seed 3, now 4": {"seed": 4},
        "seconds 1, now 2": {"seconds": 2.0}, "size 48x32, now 64x32": {"size": (32, 64)},
        "scale 1, now 2": {"scale": 2},
        f"model {request.model}, now {other}": {"model": str(other)}, "stream.layout.kind": {"stream": "chunkwise"},
        "stream.layout.levels": {"overrides": ("layout.levels=[1,0.5]",)}, "fps None, now 24": {"fps": 24.0},
        "codec": {"codec": VideoCodec(quality=20)}, "threads 1, now 2": {"threads": 2},
    }  # fmt: skip
    for words, change in changes.items():
        with pytest.raises(ConfigError) as caught:
            look(replace(request, **change), path)
        assert words in str(caught.value) and "--overwrite in place of --keep" in str(caught.value)


def test_weights_that_changed_in_place_are_others(made: tuple[Request, Path], tmp_path: Path) -> None:
    request, _ = made
    folder = make_model_folder(tmp_path / "own", world=True)
    request = replace(request, model=str(folder))
    render(load(folder), request, tmp_path / "a.mp4")
    make_model_folder(folder, world=True, seed=9)
    with pytest.raises(ConfigError, match="now with other weights"):
        look(request, tmp_path / "a.mp4")


@pytest.mark.parametrize("content", [b"my notes", b"\0\0\0\x18ftypmp42 somebody's own", b""])
def test_what_is_not_ours_is_left_alone(made: tuple[Request, Path], tmp_path: Path, content: bytes) -> None:
    request, path = made
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ConfigError, match=r"not a video that render made \(a\.json is not there\)"):
        look(request, tmp_path / "a.mp4")
    (tmp_path / "a.json").write_text(path.with_suffix(".json").read_text())
    with pytest.raises(ConfigError, match=r"\(a\.json describes another\)"):
        look(request, tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="not a video that render made"):
        plan(RenderOptions(words=["a red ball"], model=request.model, output=tmp_path / "a.mp4", keep=True, seed=3))
    assert (tmp_path / "a.mp4").read_bytes() == content


def test_one_cut_short_is_begun(made: tuple[Request, Path], tmp_path: Path) -> None:
    request = replace(made[0], seconds=4)
    render(load(request.model), request, tmp_path / "a.mp4", stopping=lambda: True)
    assert look(request, tmp_path / "a.mp4") == (False, True)
    (tmp_path / "a.resume.safetensors").unlink()
    assert look(request, tmp_path / "a.mp4") == (False, False), "it is made anew"
    with pytest.raises(ConfigError, match="seconds 4, now 5"):
        look(replace(request, seconds=5.0), tmp_path / "a.mp4")


def test_the_seed_that_was_drawn_is_kept(made: tuple[Request, Path]) -> None:
    request, path = made
    words = RenderOptions(words=["a red ball"], model=request.model, output=path, keep=True, seconds="1s", scale=1)
    assert plan(words).tasks[0].done
    with pytest.raises(ConfigError, match="--keep keeps what is there and --overwrite replaces it: use one"):
        plan(replace(words, overwrite=True))
