"""`rollforce inspect`: what it draws and says, and its refusals. That the picture is clear was looked at by eye."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rollforce.cli.main import app
from rollforce.errors import ConfigError
from rollforce.evaluation.memory.inspect import inspect, page, rows, save
from rollforce.evaluation.memory.memory_map import COMMIT, KNOWN, Row, draw, nice, reach, size, thinned, tone


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(np.asarray(image).reshape(-1, 3), axis=0).tolist()}


def test_the_picture_has_a_colour_for_every_region_and_noise(tmp_path: Path) -> None:
    found = inspect("rolling_forcing", 12)
    save(found, tmp_path / "a.png")
    there = colours(Image.open(tmp_path / "a.png"))
    assert there >= {*KNOWN.values(), COMMIT}
    assert there >= {tone(level) for level in found.stream.layout.ladder}


def test_the_map_shows_the_sink_for_ever_and_the_window_moving() -> None:
    """Read back from the picture: at its left edge there is the sink in all rows of denoising calls but the first."""
    found = inspect("rolling_forcing", 20)
    image = np.asarray(draw(found.calls, page(found)))
    sink = (image == KNOWN["sink"]).all(-1)
    column = sink.any(0)[100:].argmax() + 100  # where the first map begins
    assert sink[:, column + 2].sum() > 200
    window = (image == KNOWN["window"]).all(-1)[: sink[:, column + 2].nonzero()[0].max()]
    top, bottom = (np.nonzero(window[y])[0] for y in (window.any(1).nonzero()[0][40], window.any(1).nonzero()[0][-1]))
    assert bottom.min() > top.min()


def test_the_table_tells_places() -> None:
    found = {row[0]: row for row in rows(inspect("longlive", 10))}
    assert found["window"] == ("window", "6", "885 kB", "-8 to -3", "-8 to -3")
    assert found["sink"][3] == "-29 to -3"  # it stays where it was: chunk 10 is 29 latents on
    assert found["in flight"][3] == "-2 to +0"


def test_events_land_where_they_were_said() -> None:
    never = ("cache.2.every=null",)
    plain, cut = (inspect("anchor_forcing", 14, "tiny", never, events) for events in ((), ("keep@6",)))
    held = [max((max(call.held["junction"]) for call in found.calls if call.held["junction"]), default=None)
            for found in (plain, cut)]  # fmt: skip
    assert held == [None, 20]  # the chunk of second 6, once it has left the window


def test_what_cannot_be_inspected_is_refused() -> None:
    with pytest.raises(ConfigError, match="no stream preset 'nothing'. Presets: anchor_forcing, "):
        inspect("nothing", 5)
    with pytest.raises(ConfigError, match="--seconds 0 must be above 0"):
        inspect("rolling", 0)
    with pytest.raises(ConfigError, match="--event 'melt@5' must be one of keep, blend, recache"):
        inspect("rolling", 5, events=("melt@5",))
    with pytest.raises(ConfigError, match="call it a.png"):
        save(inspect("rolling", 5), Path("a.jpg"))


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    done = CliRunner().invoke(app, ["inspect", "--stream", "chunkwise", "--seconds", "5", "-o", str(out), "--set",
                                    "cache.0.latents=6"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert Image.open(out).size[0] > 1000 and "window" in done.output and "│ 6 " in done.output
    assert CliRunner().invoke(app, ["inspect", "--stream", "nothing"]).exit_code == 2


def test_long_streams_are_thinned_by_whole_chunks() -> None:
    all_rows = [Row(look, look.own[-1]) for call in inspect("longlive", 200).calls for look in call.looks]
    few, every = thinned(all_rows, 150)
    assert every == 7 and 140 <= len(few) <= 150
    assert [row.look.start for row in few][:10] == [0] * 5 + [21] * 5  # four calls and their clean pass
    assert reach(few)[0] == -48


def test_small_things() -> None:
    assert [nice(20, 8), nice(60, 8), nice(5.5e6, 4), nice(3, 10)] == [5, 10, 2e6, 0.5]
    assert [size(1770000), size(442368), size(3)] == ["1.77 MB", "442 kB", "3 B"]
