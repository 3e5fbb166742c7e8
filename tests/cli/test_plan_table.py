"""`rollforce plan`: the stream it plans for is the one that the model is loaded with."""

from __future__ import annotations

import shutil
from pathlib import Path

from rollforce.cli.options import PlanOptions
from rollforce.cli.plan_table import setup_of
from rollforce.config import build, to_dict
from rollforce.engine.settings import StreamSettings
from rollforce.streaming.load import load


def test_a_card_s_changes_are_planned_for_unless_another_stream_is_named(folder: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(folder, tmp_path / "mine")
    with (mine / "model.yaml").open("a", encoding="utf-8") as card:
        card.write('\nchanges: ["layout.levels=[1, 0.5]"]\n')
    planned = setup_of(PlanOptions(model=str(mine))).stream
    assert planned == load(mine).stream_settings and planned.layout.levels == (1.0, 0.5)
    other = setup_of(PlanOptions(model=str(mine), stream="chunkwise")).stream
    assert other == load(mine, stream="chunkwise").stream_settings == build(StreamSettings, to_dict(other))
    assert len(other.layout.levels) > 2
