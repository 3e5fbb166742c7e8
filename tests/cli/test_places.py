"""Names that nothing is written to."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from rollforce.cli.jobs import plan
from rollforce.cli.options import RenderOptions
from rollforce.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("option", ["image", "video", "follow"])
@pytest.mark.parametrize("name", ["x.mp4", "./x.mp4", "sub/../x.mp4", "folder/x.mp4", "hard.mp4"])
def test_a_source_is_not_written_to(option: str, name: str, tmp_path: Path) -> None:
    Path("x.mp4").write_bytes(b"mine")
    Path("sub").mkdir()
    Path("folder").symlink_to(tmp_path)
    os.link("x.mp4", "hard.mp4")
    with pytest.raises(ConfigError, match=f"would be written, and --{option} x.mp4 is the same file"):
        plan(RenderOptions(words=["a"], output=Path(name), overwrite=True, **{option: Path("x.mp4")}))
    assert Path("x.mp4").read_bytes() == b"mine"


def test_frames_are_not_written_into_the_folder_that_is_read() -> None:
    Path("a").mkdir()
    Path("a/frame-000000.png").write_bytes(b"mine")
    for option, source in (("image", "a/frame-000000.png"), ("video", "a")):
        with pytest.raises(ConfigError, match="a would be written, and"):
            plan(RenderOptions(words=["a"], output="a/", overwrite=True, **{option: Path(source)}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.webm", "a.gif", "a/", "a.mp4"])
def test_one_process_writes_an_output_of_any_kind(name: str) -> None:
    with ExitStack() as held:
        plan(RenderOptions(words=["a"], output=name), held)
        assert len(list(Path().glob(".a*.lock"))) == 1
    plan(RenderOptions(words=["a"], output="-"), held)
    assert not list(Path().iterdir())


def test_other_files_of_a_render_are_not_sources_either() -> None:
    Path("manifest.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="--prompts manifest.jsonl is the same file"):
        plan(RenderOptions(prompts="manifest.jsonl"))
    Path("x-0001.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"--video x-0001\.mp4 is the same file"):
        plan(RenderOptions(words=["a"], output=Path("x.mp4"), video=Path("x-0001.mp4"), segment="1s", overwrite=True))


@pytest.mark.parametrize("name", ["a.mp4", "a.json", "a.resume.safetensors"])
@pytest.mark.parametrize("target", ["mine.mp4", "nowhere", "/dev/full"])
def test_links_are_not_followed(name: str, target: str) -> None:
    Path("mine.mp4").write_bytes(b"mine")
    Path(name).symlink_to(target)
    with pytest.raises(ConfigError, match=r"is a symbolic link \(to .*name the file itself"):
        plan(RenderOptions(words=["a"], output=Path("a.mp4"), overwrite=True))
    assert Path(name).is_symlink() and Path("mine.mp4").read_bytes() == b"mine"


def test_devices_are_not_written_to() -> None:
    os.mkfifo("a.mp4")
    with pytest.raises(ConfigError, match=r"a\.mp4 is a device, a pipe or a socket"):
        plan(RenderOptions(words=["a"], output=Path("a.mp4"), overwrite=True))


def test_segments_are_not_written_over() -> None:
    Path("a-2024.mp4").write_bytes(b"mine")
    Path("a-b.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"a-2024\.mp4 exists; use --overwrite"):
        plan(RenderOptions(words=["a"], seconds="inf"))
    plan(RenderOptions(words=["a"], seconds="inf", output=Path("b.mp4")))
    with pytest.raises(ConfigError, match="goes on with --resume"):
        plan(RenderOptions(words=["a"], seconds="inf", output=Path("b.mp4"), keep=True))
