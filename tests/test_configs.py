"""Every file that ships as a setting can be used as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollforce.config import build, resource, to_dict
from rollforce.load import Card, bundled, presets
from rollforce.models.transformer import TransformerConfig
from rollforce.prompts import read_jobs
from rollforce.settings import StreamSettings
from rollforce.world import parse

KINDS: dict[str, type] = {"stream": StreamSettings, "model": TransformerConfig}
FILES = sorted(resource("configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_yaml_becomes_its_dataclass(path: Path) -> None:
    assert path.parent.name in KINDS, f"say in tests/test_configs.py what configs/{path.parent.name} holds"
    settings = build(KINDS[path.parent.name], path)
    assert build(KINDS[path.parent.name], to_dict(settings)) == settings


def test_every_yaml_says_what_it_is() -> None:
    for path in FILES:
        assert path.read_text().startswith("# "), f"{path} should begin with a comment that says what it is"


def test_bundled_models_name_presets_that_exist() -> None:
    assert bundled()
    for name in bundled():
        card = build(Card, resource(f"assets/{name}/model.yaml"))
        assert card.name == name and card.stream in presets()


def test_the_example_prompts_are_understood() -> None:
    jobs = read_jobs(resource("assets/prompts.txt").read_bytes(), "prompts.txt", seed=0, seconds=1)
    assert len(jobs) >= 8
    for job in jobs:
        assert parse(job.prompt).things, job.prompt
