"""The parts of a base as people hold them: variants, pickles, ComfyUI's files; and what is refused before a byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from public_weights import (
    MAKERS,
    State,
    equal,
    random_state,
    to_original,
    wan_autoencoder,
    wan_transformer,
    write_diffusers,
)
from safetensors.torch import load_file, save_file
from weight_formats import comfy_int8, fp8_scaled, save, spiece_model, write_gguf

from rollforce.checkpoints.convert import prepare, write
from rollforce.checkpoints.read import read_checkpoint
from rollforce.errors import CheckpointError
from rollforce.models.transformer.transformer import VideoTransformer


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    return {kind: random_state(make()) for kind, make in MAKERS.items()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny base in diffusers' layout."""
    write_diffusers(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A student's .pt as Self Forcing publishes it."""
    state = to_original("transformer", random_state(wan_transformer(), seed=5))
    torch.save({"generator_ema": state}, tmp_path / "self_forcing_dmd.pt")
    return tmp_path / "self_forcing_dmd.pt"


def test_variants_and_pickles_get_their_usual_names(base: Path, student: Path, tmp_path: Path) -> None:
    vae, text = base / "vae" / "diffusion_pytorch_model.safetensors", base / "text_encoder" / "model.safetensors"
    own, words = load_file(vae), {key: value.half() for key, value in load_file(text).items()}
    torch.save(own, vae.with_suffix(".bin"))
    save_file(words, text.with_name("model.fp16.safetensors"))
    for path in (vae, text):
        path.unlink()
    out = write(prepare(student, base, tmp_path / "out"))
    assert equal(load_file(out / "vae" / vae.name), own)
    assert load_file(out / "text_encoder" / text.name)["shared.weight"].dtype == torch.float16
    for part in ("vae", "text_encoder"):
        assert (out / part / "config.json").read_text() == (base / part / "config.json").read_text()
    save_file(words, text.with_name("model.fp8.safetensors"))
    with pytest.raises(CheckpointError, match="in the variants fp16, fp8, and none without a word in its name"):
        prepare(student, base, tmp_path / "again")


@pytest.mark.parametrize("folders", [("vae", "text_encoders"), ("vae", "clip"), (".", ".")])
def test_comfy_s_models_folder_is_a_base(
    folders: tuple[str, str], base: Path, states: dict[str, State], student: Path, tmp_path: Path
) -> None:
    comfy = tmp_path / "models"
    for folder in folders:
        (comfy / folder).mkdir(parents=True, exist_ok=True)
    shutil.copytree(base / "transformer", comfy / "transformer")
    save(comfy / folders[0] / "wan_2.1_vae.safetensors", to_original("autoencoder", states["autoencoder"]))
    text = fp8_scaled(states["text"])
    text["spiece_model"] = torch.tensor(list(spiece_model(["<pad>", "</s>", "<unk>", "▁a"])), dtype=torch.uint8)
    save(comfy / folders[1] / "umt5_xxl_fp8_e4m3fn_scaled.safetensors", text)
    out = write(prepare(student, comfy, tmp_path / "out"))
    assert equal(load_file(out / "vae" / "diffusion_pytorch_model.safetensors"), states["autoencoder"])
    assert json.loads((out / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"][3] == ["▁a", -7.0]
    made = load_file(out / "text_encoder" / "model.safetensors")
    assert made.keys() == states["text"].keys()
    assert made["encoder.block.0.layer.0.SelfAttention.q.weight"].dtype == torch.bfloat16
    for key, value in states["text"].items():
        assert (made[key].float() - value).abs().max() <= 0.04 * value.abs().max(), key


def test_codes_beside_a_config_are_decoded_too(base: Path, student: Path, tmp_path: Path) -> None:
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    own = load_file(file)
    name = "decoder.conv_in"
    codes = {**own, f"{name}.weight": (own[f"{name}.weight"] / 0.01).to(torch.float8_e4m3fn),
             f"{name}.scale_weight": torch.tensor([0.01]), "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    save(file, codes)
    out = write(prepare(student, base, tmp_path / "out"))
    made = load_file(out / "vae" / file.name)
    assert made[f"{name}.weight"].dtype == torch.bfloat16
    assert torch.allclose(made[f"{name}.weight"].float(), own[f"{name}.weight"], rtol=0.07, atol=0.01)


def test_a_light_autoencoder_is_a_wan_autoencoder_of_fewer_channels(student: Path, base: Path, tmp_path: Path) -> None:
    light = random_state(wan_autoencoder(base_dim=2))
    shutil.rmtree(base / "vae")
    save(base / "lightvaew2_1.safetensors", to_original("autoencoder", light))
    out = write(prepare(student, base, tmp_path / "out"))
    assert equal(load_file(out / "vae" / "diffusion_pytorch_model.safetensors"), light)
    assert json.loads((out / "vae" / "config.json").read_text())["base_dim"] == 2


@pytest.mark.parametrize("place", ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
                                   "tokenizer/tokenizer.json", "vae/config.json"])  # fmt: skip
def test_stand_ins_are_named_before_a_byte_is_written(place: str, base: Path, student: Path, tmp_path: Path) -> None:
    (base / place).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(CheckpointError, match=f"{place} is a Git LFS pointer, .*git lfs pull"):
        prepare(student, base, tmp_path / "out")
    (base / place).write_text("<html>Log in</html>")
    with pytest.raises(CheckpointError, match=f"{place} is a web page"):
        prepare(student, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- students in other forms


def test_students_in_codes_become_bfloat16(base: Path, tmp_path: Path) -> None:
    ours = random_state(wan_transformer(num_attention_heads=2, attention_head_dim=16, ffn_dim=64), seed=5)
    config = json.loads((base / "transformer" / "config.json").read_text())
    (base / "transformer" / "config.json").write_text(json.dumps(config | {"attention_head_dim": 16}))
    state = to_original("transformer", ours)
    files = [save(tmp_path / "self_forcing_fp8_scaled.safetensors", fp8_scaled(state)),
             save(tmp_path / "self_forcing_int8.safetensors", comfy_int8(state)),
             write_gguf(tmp_path / "self_forcing-Q8_0.gguf", state)]  # fmt: skip
    for file, form in zip(files, ("fp8_scaled", "comfy_quant (int8)", "GGUF (F32, Q8_0)"), strict=True):
        ready = prepare(file, base, tmp_path / "out", overwrite=True)
        assert form in ready.summary()[0]
        out = write(ready)
        made = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
        assert sum(value.nbytes for value in made.values()) < 0.7 * sum(value.nbytes for value in ours.values())
        assert made["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
        assert made["blocks.0.attn1.to_q.bias"].dtype == torch.float32
        for key, value in ours.items():
            assert (made[key].float() - value).abs().max() <= 0.05 * value.abs().max(), key
        VideoTransformer.load(out / "transformer")
    exact = write(prepare(files[0], base, tmp_path / "exact", dtype=torch.float32))
    made = load_file(exact / "transformer" / "diffusion_pytorch_model.safetensors")
    decoded = read_checkpoint(files[0]).state
    assert all(torch.equal(value, decoded[key].float()) for key, value in made.items())


def test_fastvideo_s_folder_streams(base: Path, tmp_path: Path) -> None:
    student = tmp_path / "SFWan2.1-T2V-1.3B-Diffusers"
    shutil.copytree(base, student)
    (student / "model_index.json").write_text('{"_class_name": "WanCausalDMDPipeline"}')
    config = json.loads((student / "transformer" / "config.json").read_text())
    config |= {"_class_name": "CausalWanTransformer3DModel", "local_attn_size": -1, "sink_size": 0,
               "num_frames_per_block": 3, "sliding_window_num_frames": 21}  # fmt: skip
    (student / "transformer" / "config.json").write_text(json.dumps(config))
    found = read_checkpoint(student)
    assert found.causal is True
    VideoTransformer.load(student / "transformer")
    out = write(prepare(student, base, tmp_path / "out", stream="self_forcing"))
    assert equal(load_file(out / "transformer" / "diffusion_pytorch_model.safetensors"), found.state)


def test_the_state_dict_that_is_taken_is_said_and_can_be_named(base: Path, tmp_path: Path) -> None:
    state = to_original("transformer", random_state(wan_transformer(), seed=5))
    content = {"generator": state, "generator_ema": {"shadow": {key: value + 1 for key, value in state.items()}}}
    torch.save(content, tmp_path / "self_forcing.pt")
    ready = prepare(tmp_path / "self_forcing.pt", base, tmp_path / "out")
    assert "(generator_ema.shadow)" in ready.summary()[0]
    assert "a pickle of torch.save; it also holds generator (--container)" in ready.summary()[0]
    assert prepare(tmp_path / "self_forcing.pt", base, tmp_path / "out", container="generator").checkpoint.others


def test_a_state_dict_without_its_last_blocks_is_refused(base: Path, tmp_path: Path) -> None:
    """It would be a smaller model: the base's settings, or what all public models of a width have, tell."""
    state = to_original("transformer", random_state(wan_transformer(), seed=5))
    cut = {key: value for key, value in state.items() if not key.startswith("blocks.1.")}
    torch.save({"generator": cut}, tmp_path / "self_forcing.pt")
    with pytest.raises(CheckpointError, match="self_forcing.pt holds 1 of 2 blocks: the last 1 are missing"):
        prepare(tmp_path / "self_forcing.pt", base, tmp_path / "out")
    with torch.device("meta"):
        wide = wan_transformer(num_attention_heads=12, attention_head_dim=128, num_layers=28).state_dict()
    gap = {key: value for key, value in state.items() if not key.startswith("blocks.0.")}
    torch.save({"generator": gap}, tmp_path / "gap.pt")
    with pytest.raises(CheckpointError, match="these weights are not whole: there is no blocks.0"):
        prepare(tmp_path / "gap.pt", base, tmp_path / "out")
    from rollforce.checkpoints.shapes import check_whole

    with pytest.raises(CheckpointError, match="wide holds 28 of 30 blocks"):
        check_whole(wide, "wide")
