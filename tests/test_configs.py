"""Every file that ships as a setting can be used as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from goldens import rolling_forcing_memory

from rollforce.cache.policies import Window
from rollforce.checkpoints.catalog import Card, bundled, presets
from rollforce.cli.prompt_files import read_jobs
from rollforce.config import build, resource, to_dict
from rollforce.engine.settings import StreamSettings
from rollforce.models.transformer.transformer import WAN_1_3B, WAN_14B, WAN_I2V_14B, TransformerConfig
from rollforce.training.recipes import AutoencoderRecipe, CausalRecipe, DistillRecipe, TeacherRecipe
from rollforce.world import parse

RECIPES = {"teacher": TeacherRecipe, "causal": CausalRecipe, "distill": DistillRecipe, "autoencoder": AutoencoderRecipe}
FILES = sorted(resource("configs").rglob("*.yaml"))


def kind_of(path: Path) -> type:
    """What a file in configs/ describes; recipes begin with their stage."""
    if path.parent.name == "train":
        return RECIPES[path.stem.split("_")[0]]
    return {"stream": StreamSettings, "model": TransformerConfig}[path.parent.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_yaml_becomes_its_dataclass(path: Path) -> None:
    kind = kind_of(path)
    settings = build(kind, path)
    assert build(kind, to_dict(settings)) == settings


def test_wan_configs_have_the_sizes_of_wan() -> None:
    for name, size in (("wan-1.3b", WAN_1_3B), ("wan-14b", WAN_14B), ("wan-i2v-14b", WAN_I2V_14B)):
        assert build(TransformerConfig, resource(f"configs/model/{name}.yaml")) == size


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


def test_presets_of_the_papers_are_what_their_goldens_were_passed_with() -> None:
    """tests/engine/test_goldens.py walks the reference's own numbers with these memories, sights and ladders."""
    rolling = build(StreamSettings, resource("configs/stream/rolling_forcing.yaml"))
    tiers, stepping = rolling_forcing_memory({"kv_cache_frames": 24, "max_attention_frames": 21}, rolling.layout.chunk)
    assert (list(rolling.cache), rolling.stepping) == (tiers, stepping)
    assert rolling.layout.ladder == pytest.approx([1, 0.952381, 0.882353, 0.769231, 0.555556], abs=1e-6)
    forcing = build(StreamSettings, resource("configs/stream/self_forcing.yaml"))
    assert forcing.cache == (Window(21 - forcing.layout.chunk),)  # 21 latents with the chunk in work
    assert forcing.layout.ladder == pytest.approx([1, 0.9375, 0.833333, 0.625], abs=1e-6)
    assert {forcing.stepping.denoise.positions, forcing.stepping.commit.positions} == {"absolute"}
