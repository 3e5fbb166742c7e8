"""LoRA files as people hold them, merged and live, against the weights and velocities that they are to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import cases, close, read, video_order
from torch import Tensor

from rollforce.checkpoints.lora_names import merge_lora
from rollforce.checkpoints.names import to_ours
from rollforce.checkpoints.read import read_checkpoint
from rollforce.engine.rollout import index_range
from rollforce.models.runtime import lora
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer

WEIGHTS, FORWARD = 1e-6, 5e-5  # tolerances of the goldens' README
FILES = [pytest.param(case.values[0], kind, id=f"{case.id}/{kind}")
         for case in cases("lora_files") for kind in read(case.values[0])[0]["files"]]  # fmt: skip


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return to_ours("transformer", own)


def transformer(spec: dict[str, Any], weights: dict[str, Tensor]) -> VideoTransformer:
    known = TransformerConfig.__dataclass_fields__
    config = {key: value for key, value in spec["config"].items() if key in known}
    model = VideoTransformer(TransformerConfig(**config))
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


def velocity(model: VideoTransformer, tensors: dict[str, Tensor]) -> Tensor:
    x = video_order(tensors["x"])
    sigma = (tensors["t"] / 1000).reshape(-1, 1).expand(*x.shape[:2])
    return video_order(model(x, sigma, index_range(0, x.shape[1]), model.condition(tensors["emb"])))


@pytest.mark.parametrize(("path", "kind"), FILES)
def test_merged_weights(path: Path, kind: str) -> None:
    spec, tensors = read(path)
    base, wanted = part(tensors, "base."), part(tensors, f"merged.{kind}.")
    merged = merge_lora(base, read_checkpoint(path.parent / spec["files"][kind]).state)
    assert {key for key in merged if merged[key] is not base[key]} == wanted.keys()
    for key, value in wanted.items():
        close(merged[key], value, WEIGHTS, key)


@pytest.mark.parametrize(("path", "kind"), FILES)
@torch.no_grad()
def test_velocities_live_and_merged(path: Path, kind: str) -> None:
    spec, tensors = read(path)
    base, file = part(tensors, "base."), read_checkpoint(path.parent / spec["files"][kind])
    live, merged = transformer(spec, base), transformer(spec, base)
    close(velocity(live, tensors), tensors["out.base"], FORWARD, "without")
    lora.add(live, kind, file.state, 0.25)
    lora.rescale(live, kind, 1.0)
    lora.merge(merged, file.state)
    for model in (live, merged):
        close(velocity(model, tensors), tensors[f"out.{kind}"], FORWARD, kind)
    lora.remove(live, kind)
    assert all(torch.equal(weight, base[name]) for name, weight in live.state_dict().items())
