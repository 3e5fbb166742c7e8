"""State dicts in every wrapping that trainers save them in: which is taken, what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from public_weights import MAKERS, State, equal, fsdp, prefixed, random_state, to_original
from safetensors.torch import save_file

from rollforce.checkpoints.containers import unpack
from rollforce.checkpoints.read import read_checkpoint
from rollforce.errors import CheckpointError


@pytest.fixture(scope="module")
def ours() -> State:
    """Tiny weights in our names."""
    return random_state(MAKERS["transformer"]())


def wrappings(state: State) -> dict[str, tuple[Any, str, tuple[str, ...]]]:
    """What a file holds, the container to be taken, and the others."""
    other = {key: value + 1 for key, value in state.items()}
    return {
        "net": ({"net": state, "step": 3}, "net", ()),
        "DeepSpeed": ({"module": prefixed(state, "module."), "optimizer": None, "dp_world_size": 8}, "module", ()),
        "student": ({"student": state, "critic": other}, "student", ()),
        "lightning": ({"model_state_dict": prefixed(state, "net."), "epoch": 1}, "model_state_dict", ()),
        "ema": ({"model": other, "ema": state}, "ema", ("model",)),
        "shadow": ({"generator": other, "generator_ema": {"shadow": state, "decay": 0.99}}, "generator_ema.shadow",
                   ("generator",)),
        "inner": ({"model": {"module": fsdp(state)}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, "model.module",
                  ()),
        "flat": ({**prefixed(other, "generator."), **prefixed(state, "generator_ema."), "step": torch.ones(1)},
                 "generator_ema", ("generator",)),
        "flat shadow": (prefixed(state, "ema.shadow."), "ema.shadow", ()),
        "flat with a critic": ({**prefixed(state, "generator.model."), **prefixed(other, "critic.")}, "generator", ()),
        "net in front": (prefixed(state, "net."), "", ()),
    }  # fmt: skip


@pytest.mark.parametrize("form", list(wrappings({})))
def test_wrappings(form: str, ours: State, tmp_path: Path) -> None:
    content, where, others = wrappings(to_original("transformer", ours))[form]
    torch.save(content, tmp_path / "student.pt")
    found = read_checkpoint(tmp_path / "student.pt")
    assert (found.where, found.others) == (where, others) and equal(found.state, ours)
    assert found.format == "a pickle of torch.save"


def test_prefixes_of_containers_in_safetensors(ours: State, tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in ours.items()}
    save_file(prefixed(ours, "generator_ema.") | prefixed(other, "generator."), tmp_path / "s.safetensors")
    found = read_checkpoint(tmp_path / "s.safetensors")
    assert (found.where, found.others, found.format) == ("generator_ema", ("generator",), "safetensors")
    assert equal(found.state, ours)
    assert equal(read_checkpoint(tmp_path / "s.safetensors", container="generator").state, other)


def test_a_state_dict_can_be_named(ours: State, tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in ours.items()}
    content = {"generator": ours, "generator_ema": {"shadow": other}, "critic": {key: -ours[key] for key in ours}}
    torch.save(content, tmp_path / "sf.pt")
    assert equal(read_checkpoint(tmp_path / "sf.pt", container="generator").state, ours)
    found = read_checkpoint(tmp_path / "sf.pt", container="critic")
    assert found.where == "critic" and equal(found.state, content["critic"])
    words = "sf.pt holds no state dict 'ema', but generator_ema.shadow, generator"
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "sf.pt", container="ema")


def test_a_container_in_itself_ends() -> None:
    content: dict[str, Any] = {"weight": torch.ones(1)}
    content["model"] = content
    assert unpack(content, "loop.pt")[0] == "model"
