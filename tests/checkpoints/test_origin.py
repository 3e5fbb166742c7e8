"""Causal or not, licence and preset: what tells them, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rollforce.checkpoints.origin import causality_of, origin_of
from rollforce.checkpoints.releases import is_expert


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(("name", "config", "value", "foreign"), [
    ("mine.safetensors", {}, None, False),
    ("mine.safetensors", {"_class_name": "WanTransformer3DModel"}, None, False),
    ("mine.safetensors", {"_class_name": "WanModel"}, False, False),
    ("mine.safetensors", {"_class_name": "CausalWanTransformer3DModel"}, True, False),
    ("mine.safetensors", {"_class_name": "SkyReelsV2Transformer3DModel"}, None, True),
    ("mine.safetensors", {"_class_name": "WanVACETransformer3DModel"}, None, True),
    ("mine.pt", {"_class_name": "WanModel"}, None, False),
    ("longlive_base.pt", {"_class_name": "WanModel"}, True, False),
    ("wan2.1_t2v_1.3B_fp16.safetensors", {}, False, False),
    ("Wan2_1-T2V-14B_fp8_e4m3fn.safetensors", {}, False, False),
    ("Wan21_T2V_14B_lightx2v_causvid.safetensors", {}, True, False),
    ("Wan2_1-SkyReels-V2-DF-1_3B-540P_fp32.safetensors", {}, None, True),
])  # fmt: skip
def test_what_tells_whether_a_file_streams(name: str, config: dict, value: bool | None, foreign: bool,
                                           tmp_path: Path) -> None:
    known = causality_of(tmp_path / name, config)
    assert (known.value, known.foreign) == (value, foreign)
    assert bool(known.by) == (value is not None or foreign), "how it is known is said"


def test_class_names_of_the_model_s_folder_tell_and_those_above_do_not(tmp_path: Path) -> None:
    write(tmp_path / "model_index.json", {"_class_name": "WanPipeline"})
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    assert causality_of(weights, {}).value is False
    assert causality_of(tmp_path / "a" / "diffusion_pytorch_model.safetensors", {}).value is None
    write(tmp_path / "model.yaml", "name: x")
    assert causality_of(weights, {}).value is True


@pytest.mark.parametrize("place", ["self_forcing/a/b/c/model.pt", "longlive/runs/model.pt", "rolling-forcing/x/y.pt"])
def test_folders_further_up_say_nothing(place: str, tmp_path: Path) -> None:
    origin = origin_of(tmp_path / place)
    assert (origin.licence, origin.stream, origin.release_by) == ("", "", "")


def test_what_says_the_licence_is_told(tmp_path: Path) -> None:
    named = origin_of(tmp_path / "rolling_forcing_dmd.pt")
    assert "academic" in named.licence and named.licence_by == "by its name rolling_forcing_dmd.pt"
    folder = origin_of(tmp_path / "LongLive-1.3B" / "model.pt")
    assert (folder.stream, folder.release_by) == ("longlive", "by the name of its folder LongLive-1.3B")
    write(tmp_path / "own" / "README.md", "---\nlicense: other\nlicense_name: my-licence\n---\n# Mine\n")
    card = origin_of(tmp_path / "own" / "self_forcing.pt")
    assert card.licence == "my-licence" and card.licence_by.endswith("README.md"), "a card counts before a name"
    part = origin_of(tmp_path / "own" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert part.licence == "my-licence"
    cached = tmp_path / "models--me--odd" / "snapshots" / ("0123456789" * 4)
    write(cached / "README.md", "---\nlicense: apache-2.0\n---\n")
    assert origin_of(cached / "deep" / "er" / "model.pt").licence == "Apache-2.0"


@pytest.mark.parametrize("damaged", [
    "---\nlicense: [\n---\n", "---\nlicense: 3\n---\n", "---\n- a\n---\n", "no head", ""])
def test_a_card_that_says_nothing(damaged: str, tmp_path: Path) -> None:
    write(tmp_path / "README.md", damaged)
    assert origin_of(tmp_path / "x.pt").licence == ""


@pytest.mark.parametrize("name", [
    "wan2.2_t2v_high_noise_14B_fp16.safetensors", "Wan2_2-T2V-A14B-LOW_fp8.safetensors",
    "Wan2.2-T2V-A14B-HighNoise-Q4_K_M.gguf", "low_noise_model/diffusion_pytorch_model.safetensors",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers"])  # fmt: skip
def test_names_of_experts(name: str) -> None:
    assert is_expert(name) and not is_expert("self_forcing_dmd.pt")
