"""`identify`: what a file or folder is, how that is known, and where it leads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from public_weights import (
    SIZES,
    State,
    lora_of,
    prefixed,
    random_state,
    to_original,
    umt5,
    wan_autoencoder,
    wan_transformer,
    write_original,
)
from safetensors.torch import save_file
from small_model import make_model_folder
from tiny_wan import make_wan_folder
from typer.testing import CliRunner

from rollforce.checkpoints.identify import identify
from rollforce.cli.main import app
from rollforce.errors import CheckpointError
from rollforce.models.autoencoder.taehv import TaehvAutoencoder, TaehvConfig
from rollforce.streaming.load import load

SMALL = {**SIZES, "attention_head_dim": 128}  # whose heads are those of public models: they need no config


@pytest.fixture(scope="module")
def original() -> State:
    return to_original("transformer", random_state(wan_transformer(**SMALL)))


def saved(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(("name", "causal", "stream", "then"), [
    ("self_forcing_dmd.pt", True, "self_forcing", "--out self_forcing_dmd"),
    ("rolling_forcing_dmd.safetensors", True, "rolling_forcing", "--out rolling_forcing_dmd"),
    ("mine.pt", None, "", "--out mine --stream PRESET"),
    ("wan2.1_t2v_1.3B_fp16.safetensors", False, "", "--teacher"),
    ("SkyReels-V2-DF.safetensors", None, "", "--teacher"),
])  # fmt: skip
def test_transformers(name: str, causal: bool | None, stream: str, then: str, original: State, tmp_path: Path) -> None:
    named = prefixed(original, "model.")
    found = identify(path := saved(tmp_path / name, {"generator_ema": named} if name.endswith("pt") else named))
    assert (found.kind, found.causal, found.stream, found.obstacles) == ("transformer", causal, stream, ())
    assert found.family == "Wan 2.1" and found.facts["blocks"] == 2 and found.facts["numbers"] == "float32"
    assert found.then.startswith(f"rollforce convert {path} --base ") and found.then.endswith(then)
    assert ("generator_ema" in found.format) == name.endswith("pt")
    assert bool(found.causal_by) == (name != "mine.pt") and bool(found.licence_by) == (name != "mine.pt")


def test_what_it_says_leads_on(original: State, tmp_path: Path) -> None:
    """The command of a student's file is typed, with a base that is here, and so is the one of what it makes."""
    base = make_wan_folder(tmp_path / "base")
    path = saved(tmp_path / "self forcing.pt", {"generator": prefixed(to_original(
        "transformer", random_state(wan_transformer())), "model.")})  # fmt: skip
    words = identify(path).then.replace("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", str(base)).replace(
        "--out self-forcing", f"--out {tmp_path / 'out'}")  # fmt: skip
    import shlex

    made = CliRunner().invoke(app, shlex.split(words)[1:])
    assert made.exit_code == 0, made.output
    found = identify(tmp_path / "out")
    assert found.streams and found.causal and found.stream == "self_forcing" and found.licence == "Apache-2.0"
    assert found.then == f'rollforce render "a red ball bounces over green hills" --model {tmp_path / "out"}'
    assert load(tmp_path / "out").licence == "Apache-2.0"


def test_what_cannot_stream_leads_nowhere(original: State, tmp_path: Path) -> None:
    expert = identify(saved(tmp_path / "wan2.2_t2v_low_noise_14B.safetensors", original))
    assert expert.what == "one expert of Wan 2.2 A14B" and not expert.then and not expert.streams
    vace = {**original, "vace_patch_embedding.weight": torch.zeros(1)}
    found = identify(saved(tmp_path / "wan_vace.safetensors", vace))
    assert found.obstacles and not found.then
    cut = {key: value for key, value in original.items() if not key.startswith("blocks.1.ffn")}
    assert "4 missing" in identify(saved(tmp_path / "cut.safetensors", cut)).obstacles[0]
    cut = {key: value for key, value in original.items() if not key.startswith("blocks.0.ffn")}
    with pytest.raises(CheckpointError, match="cut.safetensors: these weights are not whole"):
        identify(saved(tmp_path / "cut.safetensors", cut))


def test_parts_and_adapters(original: State, tmp_path: Path) -> None:
    lora = prefixed(lora_of(original, ["blocks.0.self_attn.q", "blocks.1.ffn.0"]), "diffusion_model.")
    found = identify(path := saved(tmp_path / "ink.safetensors", lora))
    assert (found.kind, found.facts["modules"], found.facts["rank"]) == ("lora", 2, 4)
    assert found.then.endswith(f"--lora {path}")
    states = write_original(tmp_path / "wan")
    assert states and identify(tmp_path / "wan").causal is False
    vae = identify(tmp_path / "wan" / "Wan2.1_VAE.pth")
    assert (vae.kind, vae.facts["channels"], vae.then) == ("autoencoder", 16, "")
    text = identify(tmp_path / "wan" / "models_t5_umt5-xxl-enc-bf16.pth")
    assert (text.kind, text.what, text.obstacles) == ("text", "a UMT5 text encoder", ())
    bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    t5 = {key: value for key, value in random_state(umt5()).items() if key != bias}
    assert "this is T5" in identify(saved(tmp_path / "t5.safetensors", t5)).obstacles[0]
    pruned = to_original("autoencoder", wan_autoencoder().state_dict())
    assert "--decoder" in identify(saved(tmp_path / "lightvaew2_1.pth", pruned)).then


def test_decoders(tmp_path: Path) -> None:
    state = TaehvAutoencoder(TaehvConfig()).layers.state_dict()
    right = identify(saved(tmp_path / "lighttaew2_1.safetensors", state))
    assert right.family == "Wan 2.1" and "as the autoencoder" in right.facts["latents"] and "--decoder" in right.then
    for name in ("taehv.pth", "mine.pth"):
        wrong = identify(saved(tmp_path / name, state))
        assert wrong.kind == "decoder" and "taew2_1.pth" in wrong.obstacles[0] and not wrong.then


def test_folders_records_and_snapshots(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "small")
    assert identify("tiny").streams and identify(folder).then.endswith(f"--model {folder}")
    with load(folder).session("a red ball") as session:
        next(session.stream())
        session.snapshot().save(tmp_path / "ball.resume.safetensors")
    saved_stream = identify(tmp_path / "ball.resume.safetensors")
    assert saved_stream.kind == "snapshot" and saved_stream.facts["prompt"] == "a red ball"
    assert saved_stream.then == f"rollforce render --resume {tmp_path / 'ball.mp4'}"
    record = {"video": "ball.mp4", "request": {"prompt": "a star"}, "stream": {}, "model": {"licence": "MIT"}}
    (tmp_path / "ball.json").write_text(json.dumps(record | {"result": {"interrupted": False}}))
    found = identify(tmp_path / "ball.json")
    assert found.kind == "record" and found.licence == "MIT" and "--from" in found.then
    (tmp_path / "ball.json").write_text(json.dumps(record | {"result": None}))
    assert "--resume" in identify(tmp_path / "ball.json").then
    (tmp_path / "live.json").write_text(json.dumps(record | {"video": "live.mp4", "result": None}))
    assert "--from" in identify(tmp_path / "live.json").then  # there is nothing beside it to go on from
    several = record | {"video": "ball-%04d.mp4", "result": {"interrupted": True}}
    (tmp_path / "ball.json").write_text(json.dumps(several))
    assert identify(tmp_path / "ball.json").then.endswith(f"--resume {tmp_path / 'ball.mp4'}")
    for name, video in (("sea.webm", "sea.webm"), ("frames/record", "frames")):
        place = tmp_path / f"{name}.resume.safetensors"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((tmp_path / "ball.resume.safetensors").read_bytes())
        assert identify(place).then.endswith(f"--resume {tmp_path / video}")
    (tmp_path / "run" / "checkpoint-000020").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-000020" / "state.pt").touch()
    assert "1 checkpoints, the newest checkpoint-000020" in identify(tmp_path / "run").what
    base = make_wan_folder(tmp_path / "base")
    teacher = identify(base)
    assert teacher.causal is False and f"convert STUDENT --base {base}" in teacher.then


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.json", b"{}", "no record of a render"), ("a.json", b'{"request": 1', "cannot be read as JSON"),
    ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("a.pt", b"<html>", "web page"), ("a.bin", b"\x80\x02x", "damaged"), ("a.gguf", b"GGUF", "GGUF"),
    ("a", b"\x00\x01\x02", "weights are read from"),
])  # fmt: skip
def test_what_is_nothing_is_said_in_words(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        identify(tmp_path / name)


def test_records_whose_inside_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"request": [], "stream": 1, "model": None, "result": "x", "video": 3}))
    assert identify(tmp_path / "a.json").kind == "record"


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no file or folder .*Bundled models: tiny"):
        identify(tmp_path / "no")
    with pytest.raises(CheckpointError, match="holds no model, no weights and no training run"):
        identify(tmp_path)
