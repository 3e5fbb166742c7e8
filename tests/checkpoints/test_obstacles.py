"""One comparison of parts: what loading, planning, converting and naming refuse, with the same sentences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from public_weights import AUTOENCODER, SIZES, TEXT, to_original, wan_autoencoder, wan_transformer
from safetensors.torch import load_file, save_file
from small_model import make_model_folder
from tiny_wan import make_wan_folder
from typer.testing import CliRunner

from rollforce.checkpoints.convert import prepare
from rollforce.checkpoints.obstacles import check, obstacles
from rollforce.checkpoints.parts import read_model
from rollforce.cli.main import app
from rollforce.engine.budget.model_sizes import sizes_of
from rollforce.errors import CheckpointError
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.streaming.load import load

CARD = "name: tiny-wan\nlicence: Apache-2.0\nfps: 16\nsize: [32, 48]\nstream: self_forcing\n"
FIVE_B = {"z_dim": 48, "decoder_base_dim": 4, "is_residual": True, "in_channels": 12, "out_channels": 12,
          "patch_size": 2, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
          "scale_factor_spatial": 16}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that streams."""
    folder = make_wan_folder(tmp_path_factory.mktemp("whole") / "student")
    (folder / "model.yaml").write_text(CARD)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "student"))


def settings(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def float8(path: Path) -> None:
    state = {key: value.to(torch.float8_e4m3fn) if value.dim() > 1 else value for key, value in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})


def scaled(path: Path) -> None:
    state = load_file(path)
    save_file(state | {"blocks.0.attn1.to_q.scale_weight": torch.ones(1)}, path, metadata={"format": "pt"})


def remake(folder: Path, part: str, module: torch.nn.Module) -> None:
    shutil.rmtree(folder / part)
    module.save_pretrained(folder / part)  # type: ignore[operator]


STEM = "diffusion_pytorch_model.safetensors"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "5B": (lambda f: (remake(f, "vae", wan_autoencoder(**FIVE_B)),
                      remake(f, "transformer", wan_transformer(in_channels=48, out_channels=48))), "Wan 2.2 TI2V 5B"),
    "the 5B autoencoder": (lambda f: remake(f, "vae", wan_autoencoder(**FIVE_B)), "makes latents of 16 channels.* 48"),
    "A14B": (lambda f: shutil.copytree(f / "transformer", f / "transformer_2"), "two transformers, as Wan 2.2 A14B"),
    "A14B by its index": (lambda f: settings(f / "model_index.json", transformer_2=["diffusers", "X"]),
                          "two transformers"),
    "2.2 image to video": (lambda f: remake(f, "transformer", wan_transformer(in_channels=36)), "reads 36 channels"),
    "VACE": (lambda f: settings(f / "transformer/config.json", _class_name="WanVACETransformer3DModel"), "WanVACE"),
    "SkyReels": (lambda f: settings(f / "transformer/config.json", _class_name="SkyReelsV2Transformer3DModel"),
                 "SkyReels"),
    "quantised by settings": (lambda f: settings(f / "transformer/config.json", quantization_config={
        "quant_method": "bitsandbytes"}), r"transformer are quantised \(bitsandbytes\)"),
    "quantised by names": (lambda f: scaled(f / "transformer" / STEM), r"quantised \(fp8_scaled"),
    "a float8 text encoder": (lambda f: float8(f / "text_encoder/model.safetensors"),
                              r"text encoder are quantised \(fp8\)"),
    "a foreign text encoder": (lambda f: settings(f / "text_encoder/config.json", model_type="llama"), "kind 'llama'"),
    "a foreign autoencoder": (lambda f: settings(f / "vae/config.json", _class_name="AutoencoderKLHunyuanVideo"),
                              "an autoencoder of HunyuanVideo"),
    "another text width": (lambda f: remake(f, "transformer", wan_transformer(text_dim=12)),
                           "text vectors of 12 numbers"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "has no tokenizer: make it again"),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "has no text encoder"),
    "no weights": (lambda f: (f / "vae" / STEM).unlink(), "vae holds no weights"),
    "other settings": (lambda f: settings(f / "transformer/config.json", num_layers=5), "says num_layers 5.* have 2"),
    "moments of others": (lambda f: settings(f / "vae/config.json", latents_mean=[0.0] * 3),
                          "latents_mean has 3 numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_nothing_that_cannot_run_is_loaded_or_said_to_fit(case: str, folder: Path) -> None:
    spoil, words = WRONG[case]
    spoil(folder)
    with pytest.raises(CheckpointError, match=words) as loading:
        load(folder)
    with pytest.raises(CheckpointError) as comparing:
        check(read_model(folder))
    assert str(loading.value) == str(comparing.value)
    planned = CliRunner().invoke(app, ["plan", "--model", str(folder)])
    assert planned.exit_code == 2 and planned.stderr.split() == str(loading.value).split()
    named = CliRunner().invoke(app, ["identify", str(folder), "--json"])
    told = json.loads(named.stdout)
    assert told["streams"] is False and told["fits"] is None and told["then"] == ""
    assert all(reason in str(loading.value) for reason in told["obstacles"]) and told["obstacles"]


def test_all_reasons_are_told_at_once(folder: Path) -> None:
    for case in ("a foreign text encoder", "quantised by names", "no tokenizer"):
        WRONG[case][0](folder)
    assert len(obstacles(read_model(folder))) == 3


def test_what_is_whole_has_no_obstacles(whole: Path, tmp_path: Path) -> None:
    assert obstacles(read_model(whole)) == () == obstacles(read_model(make_model_folder(tmp_path / "small")))
    planned = CliRunner().invoke(app, ["plan", "--model", str(whole), "--json"])
    assert planned.exit_code == 0, planned.output


@pytest.mark.parametrize("name", ["taehv.pth", "taecvx.pth", "taew2_2.pth", "decoder.pth"])
def test_a_decoder_of_others_is_refused_by_all(name: str, whole: Path, tmp_path: Path) -> None:
    from rollforce.models.autoencoder.taehv import TaehvAutoencoder, TaehvConfig

    torch.save(TaehvAutoencoder(TaehvConfig()).layers.state_dict(), file := tmp_path / name)
    with pytest.raises(CheckpointError, match=r"--decoder .*For Wan 2\.1 take taew2_1\.pth"):
        load(whole, running=RuntimeOptions(decoder=str(file)))
    for model in (str(whole), "wan-1.3b"):
        for decoder in (str(file), name):  # a file that is not here is known by its name alone
            found = CliRunner().invoke(app, ["plan", "--model", model, "--decoder", decoder, "--free", "99"])
            assert found.exit_code == 2 and "take taew2_1.pth" in found.stderr.replace("\n", " ")


def test_two_variants_are_one_model_and_one_alone_is_read(folder: Path) -> None:
    once = sizes_of(folder)
    for part, name in (("transformer", STEM), ("text_encoder", "model.safetensors"), ("vae", STEM)):
        path = folder / part / name
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
    twice = sizes_of(folder)
    assert (once.parameters, once.text, once.decoding) == (twice.parameters, twice.text, twice.decoding)
    (folder / "transformer" / STEM).unlink()
    assert sizes_of(folder).parameters == once.parameters
    assert len(VideoTransformer.load(folder / "transformer").blocks) == 2
    shutil.copy(folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors",
                folder / "transformer" / "diffusion_pytorch_model.bf16.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError, match="in the variants bf16, fp16"):
        read_model(folder)


# ---- converting: the student and its base, before a byte is written


def student(tmp_path: Path, name: str = "student.pt", **sizes: Any) -> Path:
    state = to_original("transformer", wan_transformer(**sizes).state_dict())
    torch.save({"generator_ema": state}, path := tmp_path / name)
    return path


BASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    name: WRONG[name] for name in ("the 5B autoencoder", "a float8 text encoder", "a foreign text encoder",
                                   "a foreign autoencoder", "moments of others")}  # fmt: skip


@pytest.mark.parametrize("case", [*BASES, "an empty tokenizer", "a cut autoencoder"])
def test_a_base_is_compared_before_anything_is_written(case: str, folder: Path, tmp_path: Path) -> None:
    more = {"an empty tokenizer": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "no tokenizer"),
            "a cut autoencoder": (lambda f: (f / "vae" / STEM).write_bytes((f / "vae" / STEM).read_bytes()[:-9]),
                                  "damaged, not complete")}  # fmt: skip
    spoil, words = (BASES | more)[case]
    spoil(folder)
    with pytest.raises(CheckpointError, match=words):
        prepare(student(tmp_path), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("sizes", "words"), [
    ({"in_channels": 48, "out_channels": 48}, "Wan 2.2 TI2V 5B"), ({"in_channels": 36}, "reads 36 channels"),
    ({"text_dim": 20}, "text vectors of 20 numbers"), ({"num_layers": 1}, "holds 1 of 2 blocks"),
])  # fmt: skip
def test_a_student_that_does_not_go_with_its_base(sizes: dict[str, int], words: str, whole: Path,
                                                  tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        prepare(student(tmp_path, **sizes), whole, tmp_path / "out")


def test_teachers_are_not_taken_for_students(whole: Path, tmp_path: Path) -> None:
    state = to_original("transformer", wan_transformer().state_dict())
    wrapped = {f"model.diffusion_model.{key}": value.contiguous() for key, value in state.items()}
    for name in ("wan2.1_t2v_1.3B_fp16.safetensors", "Wan2_1-SkyReels-V2-DF-1_3B.safetensors"):
        save_file(wrapped, tmp_path / name)
        with pytest.raises(CheckpointError, match="--teacher converts it all the same; .* --stream self_forcing"):
            prepare(tmp_path / name, whole, tmp_path / "out")
        assert prepare(tmp_path / name, whole, tmp_path / "out", stream="longlive").card.stream == "longlive"
        assert prepare(tmp_path / name, whole, tmp_path / "out", teacher=True).teacher
    save_file(wrapped, tmp_path / "wan2.2_t2v_high_noise_14B.safetensors")
    for how in ({}, {"stream": "self_forcing"}, {"teacher": True}):
        with pytest.raises(CheckpointError, match="one expert of two"):
            prepare(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors", whole, tmp_path / "out", **how)


def test_one_expert_of_a_diffusers_folder(folder: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    for part in ("", "transformer", "transformer_2", f"transformer/{STEM}"):
        with pytest.raises(CheckpointError, match="one expert of two"):
            prepare(folder / part, whole, tmp_path / "out", stream="self_forcing")


def test_sizes_of_the_tests_go_together() -> None:
    assert TEXT["d_model"] == SIZES["text_dim"] and AUTOENCODER["z_dim"] == SIZES["in_channels"]
