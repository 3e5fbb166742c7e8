"""The papers' own numbers (see tests/golden/README.md): finding cases, reading them, building what made them."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file
from torch import Tensor

from rollforce.cache.commit_plan import Tier
from rollforce.cache.kv_cache import KVCache
from rollforce.cache.policies import Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.checkpoints.names import to_ours
from rollforce.engine import flow
from rollforce.engine.rollout import CONTEXT_DRAW, Stepping
from rollforce.models.transformer.attention import KVShape
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer

FORWARD, ROLLOUT = 5e-5, 1e-4  # tolerances of the goldens' README, for values of order 1 in float32


def golden_folders() -> list[Path]:
    """The subset in the repository, the full sets beside it if present, and the one named by ROLLFORCE_GOLDENS."""
    beside = ROOT.parent / "shared"
    folders = [ROOT / "tests" / "golden", beside / "goldens", beside / "goldens-2026"]
    if "ROLLFORCE_GOLDENS" in os.environ:
        folders.append(Path(os.environ["ROLLFORCE_GOLDENS"]))
    return [folder for folder in folders if folder.is_dir()]


def cases(prefix: str) -> list[Any]:
    return [
        pytest.param(path, id=f"{path.parent.name}/{path.stem}")
        for folder in golden_folders()
        for path in sorted(folder.glob(f"{prefix}*.json"))
        if path.with_suffix(".safetensors").is_file()
    ]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


@cache
def transformer(weights: Path) -> VideoTransformer:
    model = VideoTransformer(config_of(json.loads(weights.with_suffix(".json").read_text())["config"]))
    model.load_state_dict(to_ours("transformer", load_file(weights)), strict=True)
    return model.eval().requires_grad_(False)


def config_of(spec: dict[str, Any]) -> TransformerConfig:
    return TransformerConfig(
        num_attention_heads=spec["num_heads"], attention_head_dim=spec["dim"] // spec["num_heads"],
        num_layers=spec["num_layers"], ffn_dim=spec["ffn_dim"], in_channels=spec["in_dim"],
        out_channels=spec["out_dim"],
        text_dim=spec["text_dim"], freq_dim=spec["freq_dim"], patch_size=tuple(spec["patch_size"]), eps=spec["eps"],
    )  # fmt: skip


def model_of(path: Path, spec: dict[str, Any]) -> VideoTransformer:
    """The weights a case names, else the folder's generator (the other two are score networks)."""
    if "weights" in spec:
        return transformer(path.parent / Path(spec["weights"]).with_suffix(".safetensors").name)
    generators = (
        w for w in sorted(path.parent.glob("weights_*.safetensors")) if w.stem.split("_")[1] not in ("real", "fake")
    )
    return transformer(next(generators))


def padded(text: Tensor, spec: dict[str, Any]) -> Tensor:
    """Zero-pad a text embedding [L, D] or [B, L, D] to text_len, as the reference does before its text MLP."""
    text = text if text.dim() == 3 else text[None]
    return torch.nn.functional.pad(text, (0, 0, 0, spec["config"]["text_len"] - text.shape[1]))


def context(tensors: dict[str, Tensor], spec: dict[str, Any], prefix: str = "ctx") -> Tensor:
    if prefix in tensors:
        return padded(tensors[prefix], spec)
    parts = sorted((key for key in tensors if key.startswith(prefix + ".")), key=lambda key: int(key.rsplit(".", 1)[1]))
    return torch.cat([padded(tensors[key], spec) for key in parts])


def video_order(x: Tensor) -> Tensor:
    """[B, C, F, H, W] <-> [B, F, C, H, W]."""
    return x.transpose(1, 2)


def close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    error = (actual - expected).abs().max().item()
    assert error <= tolerance, f"{what}: off by {error:.2e}, allowed {tolerance:.0e}"


def arena(model: VideoTransformer, tiers: list[Tier], batch: int, x: Tensor, flight: int) -> KVCache:
    config = model.config
    tokens = x.shape[-2] * x.shape[-1] // config.patch**2
    shape = KVShape(config.num_layers, batch, config.num_attention_heads, tokens, config.attention_head_dim)
    return KVCache(tiers, shape, flight)


class GoldenNoise:
    """The reference's noise, stored per chunk and step."""

    def __init__(self, tensors: dict[str, Tensor], chunk: int) -> None:
        self.entry, self.again, self.chunk = tensors["noise"], tensors["renoise"], chunk
        self.context = tensors.get("context_renoise")

    def __call__(self, index: int, draw: int) -> Tensor:
        if draw == 0:
            return self.entry[:, index]
        block, place = divmod(index, self.chunk)
        if draw == CONTEXT_DRAW:
            assert self.context is not None
            return self.context[block, place].expand_as(self.entry[:, index])
        return self.again[block, draw - 1, place].expand_as(self.entry[:, index])


def ladder_of(spec: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[float, ...]:
    levels = [step / 1000 for step in spec["steps"]]
    ladder = (
        flow.warped(levels, spec["timestep_shift"]) if spec["warp_denoising_step"] else flow.explicit(levels)
    )
    if "denoising_step_list" in tensors:
        close(torch.tensor(ladder) * 1000, tensors["denoising_step_list"].float(), 1e-3, "ladder")
    return ladder


def rolling_forcing_memory(spec: dict[str, Any], chunk: int) -> tuple[list[Tier], Stepping]:
    """The reference's two sights: a denoising call pins and re-aligns the sink, a committing call sees the newest."""
    size, budget, sink = spec["kv_cache_frames"], spec["max_attention_frames"], spec.get("sink_blocks", 1) * chunk
    stepping = Stepping(Visibility(budget), Visibility(budget, pinned=(), positions="absolute"))
    return [Sink(sink), Window(size - sink - chunk)], stepping
