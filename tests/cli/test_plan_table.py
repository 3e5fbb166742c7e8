"""`rollforce plan`: the stream it plans for is the one that the model is loaded with."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rollforce.cli.options import PlanOptions
from rollforce.cli.plan_table import setup_of
from rollforce.config import build, to_dict
from rollforce.engine.settings import StreamSettings
from rollforce.errors import CheckpointError, ConfigError
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


def test_a_lora_must_be_of_the_model_and_may_be_missing(folder: Path, tmp_path: Path) -> None:
    ink, words = tmp_path / "ink.safetensors", "for a weight [7]"
    save_file({"blocks.0.attn1.norm_q.diff": torch.zeros(7)}, ink)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        setup_of(PlanOptions(model=str(folder), running={"loras": [f"{ink}=0.5"]}))
    with pytest.raises(ConfigError, match="the scale is inf"):
        setup_of(PlanOptions(model=str(folder), running={"loras": [f"{tmp_path}/later.safetensors=inf"]}))
    setup_of(PlanOptions(model=str(folder), running={"loras": [f"{tmp_path}/later.safetensors=0.5"]}))
