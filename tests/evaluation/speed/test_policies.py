"""The benchmark of memory policies measures what it says; how fast they are is not a test's business."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import islice

import pytest
from repository import ROOT

from rollforce.cache.head_groups import write_labels
from rollforce.checkpoints.catalog import preset_file, presets
from rollforce.config import build
from rollforce.engine.dry_run import trace
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.errors import ConfigError
from rollforce.evaluation.speed import policies
from rollforce.models.transformer.attention import KVShape

BENCH = str(ROOT / "infer" / "bench.py")
LAYOUT = LayoutSettings("chunkwise", 3, (1.0, 0.5), 1.0)
SHAPE = KVShape(2, 1, 3, 16, 32, 4)
PAST, TIMES = 12, 4
NO_PRESET = {"plain", "dense", "absolute", "linear_memory"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[policies.Policy]:
    thirds = policies.label_every_third(SHAPE.layers, 3)
    labels = write_labels(tmp_path_factory.mktemp("labels") / "heads.json", thirds, "")
    return policies.policies(LAYOUT, PAST, TIMES, labels)


def test_all_attend_to_as_many_latents_as_what_they_stand_beside(found) -> None:
    """Of the past, in the long run: as many as plain memory; the sparse ones could see all that dense memory sees."""
    for policy in found:
        if policy.stream.heads is not None:
            continue
        calls = list(islice(trace(policy.stream, SHAPE), 80))[-2 * LAYOUT.build().ticks :]
        past = {look.attended - len(look.sigma) for call in calls for look in call.groups}
        if policy.against == policies.PLAIN:
            assert past == {PAST}, policy.name
        elif policy.stream.stepping.denoise.sparse or policy.name in ("dense", "kivi4"):
            assert past == {PAST * TIMES}, policy.name
        else:
            assert past == {PAST}, policy.name


def test_names_are_those_of_presets(found) -> None:
    assert {policy.name for policy in found} - NO_PRESET <= set(presets())
    assert [policy.name for policy in found if policy.name == policy.against] == ["plain", "dense"]


def test_streams_are_the_presets_own_but_for_their_sizes(found) -> None:
    for policy in found:
        if policy.name in NO_PRESET:
            continue
        preset = build(StreamSettings, preset_file(policy.name))
        for ours, theirs in zip(policy.stream.memories, preset.memories, strict=True):
            assert [tier.kind for tier in ours] == [tier.kind for tier in theirs][: len(ours)], policy.name
        assert policy.stream.stepping.denoise.pinned == preset.stepping.denoise.pinned
        assert type(policy.stream.stepping.denoise.positions) is type(preset.stepping.denoise.positions)


def test_a_past_too_short_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="past 7 and times 4: at least 8 latents"):
        policies.policies(LAYOUT, 7, 4, tmp_path / "heads.json")


def test_the_script_tells_of_each(monkeypatch, tmp_path, capsys, found) -> None:
    out = tmp_path / "m.json"
    sizes = ["--dim=96", "--heads=3", "--layers=2", "--tokens=16", "--steps=1", "--chunks=2", "--threads=1"]
    monkeypatch.setattr(sys, "argv", ["bench.py", "--case", "memory", "--json", str(out), *sizes])
    runpy.run_path(BENCH, run_name="__main__")
    told = json.loads(out.read_text())["results"]
    assert [(line["case"], line["against"]) for line in told] == [(one.name, one.against) for one in found]
    assert told[0]["ratio"] == 1 and all(line["rounds"] == 2 and line["ratio"] > 0 for line in told)
    sizes_of = {line["case"]: line["bytes"] for line in told if line["against"] == "plain"}
    assert sizes_of["kivi2"] < sizes_of["kivi4"] < sizes_of["int8"] < sizes_of["plain"] < sizes_of["reward_forcing"]
    assert "| plain | sink + window | plain |" in capsys.readouterr().out
