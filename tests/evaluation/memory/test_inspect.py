"""`rollforce inspect`: what it draws and says, and its refusals. That the picture is clear was looked at by eye."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rollforce.cli.main import app
from rollforce.errors import ConfigError
from rollforce.evaluation.memory.inspect import inspect, page, rows, save
from rollforce.evaluation.memory.memory_map import COMMIT, EDGE, KNOWN, format_bytes, paint_map, reach, thin, tone


def colours_of(cells: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(cells[..., :3].reshape(-1, 3), axis=0).tolist()}


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return colours_of(np.asarray(image))


def test_the_picture_has_a_colour_for_every_region_and_noise(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    found = inspect("rolling_forcing", 12)
    save(found, tmp_path / "a.png")
    there = colours(Image.open(tmp_path / "a.png").convert("RGB"))
    assert there >= {*KNOWN.values(), COMMIT}
    assert there >= {tone(level) for level in found.stream.layout.ladder}
    assert dict(matplotlib.rcParams) == before


def test_the_map_shows_the_sink_for_ever_and_the_window_moving() -> None:
    looks = [look for call in inspect("rolling_forcing", 20).calls for look in call.groups if not look.commit]
    cells = paint_map(looks, KNOWN, 0, looks[-1].own[-1] + 1)
    sink, window = ((cells[..., :3] == KNOWN[name]).all(-1) & (cells[..., 3] > 0) for name in ("sink", "window"))
    begun = sink.any(1).argmax()
    assert sink[begun:, EDGE].all() and not cells[:, :EDGE].any()
    first = [row.argmax() for row in window[begun + 8 :]]
    assert all(earlier <= later for earlier, later in pairwise(first)) and first[-1] > first[0]


def test_what_stands_too_far_back_is_marked_at_the_edge(tmp_path: Path) -> None:
    found = inspect("longlive", 60)
    looks = [look for call in found.calls for look in call.groups]
    cells = paint_map(looks, page(found).colours, *reach(looks), placed=True)
    assert (cells[-1, 0] == (*KNOWN["sink"], 255)).all() and not cells[0, 0].any()
    save(found, tmp_path / "a.png")


def test_groups_of_heads_lie_one_below_another() -> None:
    found = inspect("duo_attention", 10)
    looks = [look for call in found.calls for look in call.groups]
    cells = paint_map(looks, page(found).colours, 0, looks[-1].own[-1] + 1)
    assert len(cells) == 2 * len(looks)
    last = cells[-2:][(cells[-2:, :, 3] > 0)]
    assert {tuple(page(found).colours[name]) for name in ("retrieval window", "streaming window")} <= colours_of(last)


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
    with pytest.raises(ConfigError):
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
    all_rows = [look for call in inspect("longlive", 200).calls for look in call.groups]
    few, every = thin(all_rows, 150)
    assert every == 7 and 140 <= len(few) <= 150
    assert [look.start for look in few][:10] == [0] * 5 + [21] * 5  # four calls and their clean pass
    assert reach(few)[0] == -48


def test_bytes_are_written_for_a_person() -> None:
    assert [format_bytes(count) for count in (1770000, 442368, 3)] == ["1.77 MB", "442 kB", "3 B"]
