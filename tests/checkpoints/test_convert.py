"""`rollforce convert`: a student and its base become a folder that we, diffusers and transformers read."""

from __future__ import annotations

import errno
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from public_weights import (
    IMAGE,
    LORA_TARGETS,
    MAKERS,
    State,
    equal,
    fsdp,
    lora_of,
    prefixed,
    random_state,
    to_original,
    wan_transformer,
    write_diffusers,
    write_original,
)
from safetensors.torch import save_file
from typer.testing import CliRunner

from rollforce.checkpoints import hub
from rollforce.checkpoints.catalog import Card, presets
from rollforce.checkpoints.convert import prepare, write
from rollforce.checkpoints.lora_names import merge_lora
from rollforce.checkpoints.read import expect, read_checkpoint
from rollforce.checkpoints.releases import RELEASES, WAN, release_of
from rollforce.checkpoints.safetensors_folder import STEM, write_shards
from rollforce.cli.main import app
from rollforce.config import build
from rollforce.errors import CheckpointError, ConfigError, ShapeError
from rollforce.models.transformer.transformer import VideoTransformer

Bases = dict[str, tuple[Path, dict[str, State]]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """One tiny base in both layouts, and its states in our names."""
    folder = tmp_path_factory.mktemp("bases")
    return {"diffusers": (folder / "diffusers", write_diffusers(folder / "diffusers")),
            "original": (folder / "original", write_original(folder / "original"))}  # fmt: skip


@pytest.fixture(scope="module")
def student() -> State:
    return random_state(wan_transformer(), seed=5)


@pytest.fixture
def file(student: State, tmp_path: Path) -> Path:
    """A student's .pt as Self Forcing publishes it."""
    original = to_original("transformer", student)
    worse = {key: value + 1 for key, value in original.items()}
    path = tmp_path / "self_forcing_dmd.pt"
    torch.save({"generator": prefixed(worse, "model."), "critic": prefixed(worse, "model."),
                "generator_ema": fsdp(original)}, path)  # fmt: skip
    return path


def convert(file: Path, base: Path | str, out: Path, **settings: Any) -> Path:
    return write(prepare(file, base, out, **settings))


def state_of(folder: Path, kind: str) -> State:
    return expect(read_checkpoint(folder, kind), kind).state


# ---- what is made


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_student_and_its_base_become_one_folder(
    layout: str, bases: Bases, student: State, file: Path, tmp_path: Path
) -> None:
    base, states = bases[layout]
    out = convert(file, base, tmp_path / "sf-tiny")
    assert equal(state_of(out, "transformer"), student) and read_checkpoint(out).causal is True
    for kind in ("autoencoder", "text"):
        assert equal(state_of(out, kind), states[kind])
    assert (out / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert build(Card, out / "model.yaml") == Card("sf-tiny", "Apache-2.0", 16, (480, 832), "self_forcing")
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "RollforceStream" and index["vae"] == ["diffusers", "AutoencoderKLWan"]
    readme = (out / "README.md").read_text()
    assert yaml.safe_load(readme.split("---")[1])["license"] == "apache-2.0"
    for part in ("self_forcing_dmd.pt`, `generator_ema`", "https://github.com/guandeh17/Self-Forcing", str(base)):
        assert part in readme
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    weights = out / "transformer" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode & 0o777 == (out / "model.yaml").stat().st_mode & 0o777


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_every_part_loads_with_the_libraries_own_classes(
    layout: str, bases: Bases, student: State, file: Path, tmp_path: Path
) -> None:
    base, states = bases[layout]
    out = convert(file, base, tmp_path / "sf")
    states = {**states, "transformer": student}
    for kind, name in (("transformer", "transformer"), ("autoencoder", "vae"), ("text", "text_encoder")):
        module: Any = type(MAKERS[kind]()).from_pretrained(out / name)
        state = dict(module.state_dict())
        state.pop("encoder.embed_tokens.weight", None)
        assert equal(state, states[kind]), name
    with pytest.raises((AttributeError, ValueError, OSError), match="RollforceStream"):
        from diffusers import DiffusionPipeline

        DiffusionPipeline.from_pretrained(out)


def test_no_pipeline_of_diffusers_runs_a_student(file: Path, tmp_path: Path) -> None:
    """WanPipeline does not look at the class that a folder names: it would make noise of a causal student."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
    from tiny_wan import make_wan_folder

    base = make_wan_folder(tmp_path / "base")
    FlowMatchEulerDiscreteScheduler().save_pretrained(base / "scheduler")
    index = {"_class_name": "WanPipeline", "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}  # fmt: skip
    (base / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected .*scheduler"):
        WanPipeline.from_pretrained(convert(file, base, tmp_path / "student"))
    teacher = convert(base, base, tmp_path / "teacher", teacher=True)
    assert WanPipeline.from_pretrained(teacher).scheduler is not None


def test_our_network_loads_it(bases: Bases, student: State, file: Path, tmp_path: Path) -> None:
    model = VideoTransformer.load(convert(file, bases["diffusers"][0], tmp_path / "sf") / "transformer")
    assert equal(dict(model.state_dict()), student)
    assert model.config.num_attention_heads == 2  # told by the base: width / 128 would not do


def test_heads_are_those_of_public_models_beside_a_base_of_another_size(bases: Bases, tmp_path: Path) -> None:
    state = random_state(wan_transformer(attention_head_dim=128))
    torch.save({"generator": prefixed(to_original("transformer", state), "model.")}, tmp_path / "wide.pt")
    for base, _ in bases.values():
        config = prepare(tmp_path / "wide.pt", base, tmp_path / "out").config
        assert (config["num_attention_heads"], config["attention_head_dim"]) == (2, 128)


def test_large_files_are_linked_and_small_ones_copied(
    bases: Bases, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollforce.checkpoints.base_model.LINKED", 10_000)
    base = bases["diffusers"][0]
    out = convert(file, base, tmp_path / "sf")
    weights, config = "vae/diffusion_pytorch_model.safetensors", "vae/config.json"
    assert (out / weights).samefile(base / weights) and not (out / config).samefile(base / config)


def test_a_lora_is_baked_in_shard_by_shard(
    bases: Bases, student: State, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lora_of(to_original("transformer", student), list(LORA_TARGETS))
    torch.save({"generator_lora": prefixed(plain, "base_model.model.")}, tmp_path / "lora.pt")
    merged = merge_lora(student, read_checkpoint(tmp_path / "lora.pt").state)
    assert not equal(merged, student)
    out = convert(file, bases["original"][0], tmp_path / "one", lora=tmp_path / "lora.pt")
    assert equal(state_of(out, "transformer"), merged)
    assert "LoRA, baked in: `lora.pt`" in (out / "README.md").read_text()

    def small(*args: Any, **kwargs: Any) -> None:
        write_shards(*args, **kwargs, limit=20_000)

    monkeypatch.setattr("rollforce.checkpoints.convert.write_shards", small)
    out = convert(file, bases["original"][0], tmp_path / "many", lora=tmp_path / "lora.pt")
    assert len(list((out / "transformer").glob(f"{STEM['transformer']}-*-of-*.safetensors"))) > 2
    assert equal(state_of(out, "transformer"), merged)
    loaded: Any = type(wan_transformer()).from_pretrained(out / "transformer")
    assert equal(dict(loaded.state_dict()), merged)


def test_several_loras_at_their_scales(bases: Bases, student: State, file: Path, tmp_path: Path) -> None:
    """As in render: FILE or FILE=SCALE; the card says which, how many times, and where alpha was read."""
    names = list(LORA_TARGETS.values())
    ink, oil = lora_of(student, names[:2]), lora_of(student, names[1:], rank=2)
    oil |= {"blocks.0.attn1.norm_k.diff": torch.ones(24), "blocks.1.diff_m": torch.ones(1, 6, 24)}
    save_file(ink, tmp_path / "ink.safetensors")
    save_file(oil, tmp_path / "oil=2.safetensors")  # a name with an equals sign is a name
    loras = [f"{tmp_path}/ink.safetensors=-0.5", f"{tmp_path}/oil=2.safetensors"]
    out = convert(file, bases["original"][0], tmp_path / "one", lora=loras)
    state = state_of(out, "transformer")
    for name, first, second in ((names[0], -0.5, 0), (names[1], -0.5, 1), (names[2], 0, 1)):
        product = [scale * lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
                   for scale, lora in ((first, ink), (second, oil)) if scale]  # fmt: skip
        assert torch.allclose(state[f"{name}.weight"], student[f"{name}.weight"] + sum(product), atol=1e-5)
    for name in ("blocks.0.attn1.norm_k.weight", "blocks.1.scale_shift_table"):
        assert torch.equal(state[name], student[name] + 1)
    card = (out / "README.md").read_text()
    assert "`ink.safetensors`, scale -0.5; LoRA on 2 modules, rank 4, alpha / rank 1" in card
    assert "`oil=2.safetensors`, scale 1; LoRA on 3 modules, rank 2" in card and "2 whole differences" in card


def test_what_a_lora_changes_is_not_rounded_to_eight_bits(bases: Bases, student: State, tmp_path: Path) -> None:
    eight = {key: value.to(torch.float8_e4m3fn) if value.dim() == 2 else value for key, value in student.items()}
    save_file(to_original("transformer", eight), tmp_path / "sf_fp8.safetensors")
    lora = {key: value * 0.02 for key, value in lora_of(student, ["proj_out"]).items()}
    save_file(lora, tmp_path / "ink.safetensors")
    options = {"base": bases["original"][0], "lora": tmp_path / "ink.safetensors"}
    for number, (dtype, stored) in enumerate(((None, torch.bfloat16), (torch.float32, torch.float32))):
        ready = prepare(tmp_path / "sf_fp8.safetensors", out=tmp_path / str(number), dtype=dtype, **options)
        said = [warning for warning in ready.warnings if "float8" in warning]
        assert bool(said) == (dtype is None) and ready.dtypes["proj_out.weight"] == stored
        state = state_of(write(ready), "transformer")
        wanted = eight["proj_out.weight"].float() + lora["proj_out.lora_B.weight"] @ lora["proj_out.lora_A.weight"]
        assert torch.equal(state["proj_out.weight"], wanted.to(stored))
        assert state["blocks.0.attn1.to_q.weight"].dtype == (dtype or torch.float8_e4m3fn)
    assert said == [] and "1 weights that LoRAs change are float8_e4m3fn in sf_fp8.safetensors" in prepare(
        tmp_path / "sf_fp8.safetensors", out=tmp_path / "again", **options).warnings[-1]  # fmt: skip


@pytest.mark.parametrize(("lora", "words"), [
    ("ink.safetensors=much", "'much' is not a scale; write FILE or FILE=0.8"), ("ink.safetensors=nan", "scale is nan"),
    ("", "names no file"), ("no.safetensors=0.5", "no.safetensors does not exist")])  # fmt: skip
def test_loras_that_cannot_be_read(lora: str, words: str, bases: Bases, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(file, bases["original"][0], tmp_path / "out", lora=[lora])


def test_stored_in_another_dtype(bases: Bases, student: State, file: Path, tmp_path: Path) -> None:
    out = convert(file, bases["original"][0], tmp_path / "half", dtype=torch.bfloat16)
    assert equal(state_of(out, "transformer"), {key: value.bfloat16() for key, value in student.items()})


def test_an_image_to_video_model_is_a_teacher_only(bases: Bases, tmp_path: Path) -> None:
    state = random_state(wan_transformer(**IMAGE))
    torch.save({"generator": prefixed(to_original("transformer", state), "model.")}, tmp_path / "i2v.pt")
    with pytest.raises(CheckpointError):
        prepare(tmp_path / "i2v.pt", bases["diffusers"][0], tmp_path / "out", teacher=True)
    base = tmp_path / "base"
    write_diffusers(base)
    (base / "image_encoder").mkdir()
    (base / "image_encoder" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an image-to-video model"):
        prepare(tmp_path / "i2v.pt", base, tmp_path / "out")
    out = convert(tmp_path / "i2v.pt", base, tmp_path / "out", teacher=True)
    loaded: Any = type(wan_transformer()).from_pretrained(out / "transformer")
    assert equal(dict(loaded.state_dict()), state) and (out / "image_encoder" / "config.json").is_file()
    assert equal(dict(VideoTransformer.load(out / "transformer").state_dict()), state)


def test_a_teacher_only_when_asked_for(bases: Bases, tmp_path: Path) -> None:
    base, states = bases["original"]
    with pytest.raises(CheckpointError, match="'original' is a bidirectional teacher: it cannot stream"):
        convert(base, base, tmp_path / "wan")
    out = convert(base, base, tmp_path / "wan", teacher=True, licence="Apache-2.0")
    assert equal(state_of(out, "transformer"), states["transformer"]) and read_checkpoint(out).causal is False
    assert not (out / "model.yaml").exists()
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == "WanPipeline"


# ---- licence and stream


@pytest.mark.parametrize(("name", "release", "stream"), [
    ("checkpoints/self_forcing_dmd.pt", "Self Forcing", "self_forcing"),
    ("gdhe17/Self-Forcing", "Self Forcing", "self_forcing"),
    ("zhuhz22/Causal-Forcing/chunkwise/causal_forcing.pt", "Causal Forcing", "causal_forcing"),
    ("longlive_models/models/longlive_base.pt", "LongLive", "longlive"),
    ("hub/models--Efficient-Large-Model--LongLive-1.3B/snapshots/abc/models/lora.pt", "LongLive", "longlive"),
    ("rolling_forcing_dmd.pt", "Rolling Forcing", "rolling_forcing"),
    ("rewardforcing.pt", "Reward Forcing", "reward_forcing"),
    ("CausVid/autoregressive_checkpoint/model.pt", "CausVid", "causvid"),
    ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan 2.1", ""),
    ("my/own.pt", None, None),
    ("self-forcing/my/very/own/deep/model.pt", None, None),
])
def test_releases_are_known_by_name(name: str, release: str | None, stream: str | None) -> None:
    found = release_of(name)
    assert (found.name if found else None, found.stream if found else None) == (release, stream)


def test_a_file_in_a_hub_s_cache_keeps_its_name(bases: Bases, file: Path, tmp_path: Path) -> None:
    """There, names are links to hashes."""
    snapshot = tmp_path / "models--gdhe17--Self-Forcing" / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (snapshot / "model.pt").symlink_to(file.rename(tmp_path / "9f86d081884c7d65"))
    found = prepare(snapshot / "model.pt", bases["original"][0], tmp_path / "out")
    assert found.release is not None and found.release.name == "Self Forcing"
    (snapshot / "transformer").mkdir()
    base = bases["original"][0]
    for path in (*base.glob("diffusion*"), base / "config.json"):
        (snapshot / "transformer" / path.name).symlink_to(path)
    for path in (snapshot, snapshot / "transformer" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(CheckpointError, match="'Self-Forcing'"):
            prepare(path, base, tmp_path / "out")


def test_licences_and_presets_of_releases() -> None:
    licence = {release.name: release.licence for release in RELEASES}
    assert "academic" in licence["Rolling Forcing"] and licence["CausVid"] == "CC-BY-NC-SA-4.0"
    assert {name for name in licence if licence[name] == "Apache-2.0"} == {
        "Self Forcing", "Causal Forcing", "Reward Forcing", "LongLive", "Wan 2.1"}
    assert {release.stream for release in RELEASES if release is not WAN} <= set(presets())


def test_unknown_licence_is_said(bases: Bases, student: State, tmp_path: Path) -> None:
    save_file(student, tmp_path / "mine.safetensors")
    base = bases["diffusers"][0]
    found = prepare(tmp_path / "mine.safetensors", base, tmp_path / "out")
    assert found.card.licence == "unknown" and found.card.stream == "self_forcing"
    assert [part for part in ("--licence", "--stream", "causal") if not any(part in w for w in found.warnings)] == []
    told = prepare(tmp_path / "mine.safetensors", base, tmp_path / "out", licence="MIT", stream="rolling_forcing",
                   name="mine", size=(832, 480))  # fmt: skip
    assert told.card == Card("mine", "MIT", 16, (832, 480), "rolling_forcing")
    with pytest.raises(ConfigError, match="no stream preset 'rollign'"):
        prepare(tmp_path / "mine.safetensors", base, tmp_path / "out", stream="rollign")
    with pytest.raises(ShapeError):
        prepare(tmp_path / "mine.safetensors", base, tmp_path / "out", size=(480, 830))


# ---- what is refused before anything is written


def test_wrong_inputs(bases: Bases, file: Path, student: State, tmp_path: Path) -> None:
    base, _ = bases["original"]
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="There is no file or folder"):
        convert(tmp_path / "no.pt", base, out)
    with pytest.raises(CheckpointError):
        convert(base / "Wan2.1_VAE.pth", base, out)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        convert(file, tmp_path / "no" / "such" / "base", out)
    with pytest.raises(CheckpointError, match="holds no vae, no text_encoder, no tokenizer"):
        convert(file, tmp_path, out)
    torch.save(lora_of(student, ["proj_out"]), tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match="'lora.pt' is a LoRA.*Give it as --lora"):
        convert(tmp_path / "lora.pt", base, out)
    with pytest.raises(CheckpointError):
        convert(file, base, out, lora=file)
    other = lora_of(random_state(wan_transformer(num_attention_heads=3)), ["blocks.0.attn1.to_q"])
    torch.save(other, tmp_path / "wide.pt")
    with pytest.raises(CheckpointError):
        convert(file, base, out, lora=tmp_path / "wide.pt")
    half = {key: value for key, value in student.items() if not key.startswith("blocks.1.ffn")}
    torch.save({"generator": half}, tmp_path / "half.pt")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "half.pt", base, out)
    assert not out.exists()


def test_out_exists(bases: Bases, file: Path, student: State, tmp_path: Path) -> None:
    base, _ = bases["original"]
    out = convert(file, base, tmp_path / "out")
    with pytest.raises(ConfigError, match="out exists; use --overwrite"):
        convert(file, base, out)
    (out / "stale.txt").write_text("from before")
    convert(file, base, out, overwrite=True)
    assert not (out / "stale.txt").exists() and equal(state_of(out, "transformer"), student)
    with pytest.raises(ConfigError, match="holds what it would be made from"):
        convert(out, out, out, overwrite=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("five years")
    with pytest.raises(ConfigError, match="is not a model folder"):
        convert(file, base, tmp_path / "precious", overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        convert(file, base, tmp_path / "precious" / "thesis.txt", overwrite=True)


def test_a_failure_leaves_the_old_folder(
    bases: Bases, file: Path, student: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _ = bases["original"]
    out = convert(file, base, tmp_path / "out")

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rollforce.checkpoints.convert.readme_of", broken)
    with pytest.raises(OSError, match="No space"):
        convert(file, base, out, overwrite=True)
    assert equal(state_of(out, "transformer"), student)
    assert {path.name for path in tmp_path.iterdir()} == {"out", file.name}


def test_disk_space_is_asked_for_first(
    bases: Bases, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("rollforce.checkpoints.convert.shutil.disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(OSError, match=r"out needs ~0\.0 GB, 0\.0 GB free"):
        convert(file, bases["original"][0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the hub, without a network


def test_a_base_from_the_hub(
    bases: Bases, file: Path, student: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked[repository] = allow_patterns
        return str(bases["diffusers"][0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    out = convert(file, "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", tmp_path / "out")
    patterns = asked["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
    assert "vae/*" in patterns and "transformer/*" not in patterns
    assert equal(state_of(out, "transformer"), student)
    assert 'base_model: "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"' in (out / "README.md").read_text()


def test_the_hub_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def answer(error: type[Exception]) -> None:
        def download(*_: Any, **__: Any) -> None:
            raise error.__new__(error)  # its own construction wants a response of the network

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    for error, words in ((errors.GatedRepoError, "gated.*hf auth login"),
                         (errors.RepositoryNotFoundError, "There is no repository a/b"),
                         (errors.LocalEntryNotFoundError, "not in the cache .*network")):  # fmt: skip
        answer(error)
        with pytest.raises(CheckpointError, match=words):
            hub.fetch("a/b")
    with pytest.raises(CheckpointError, match="not downloaded for you"):
        hub.fetch("TencentARC/RollingForcing")


# ---- the command


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["convert", *words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def test_the_command(bases: Bases, file: Path, student: State, tmp_path: Path) -> None:
    base, out = str(bases["diffusers"][0]), tmp_path / "sf"
    result = run(str(file), "--base", base, "--out", str(out), "--size", "480x832", "--name", "tall")
    for part in ("self_forcing_dmd.pt (generator_ema)", "2 blocks of width 24", "licence Apache-2.0, Self Forcing",
                 "480x832, stream self_forcing", f"wrote {out}"):
        assert part in result.output
    assert "warning" not in result.output
    assert build(Card, out / "model.yaml").size == (832, 480)
    assert "use --overwrite" in run(str(file), "--base", base, "--out", str(out), code=2).stderr
    run(str(file), "--base", base, "--out", str(out), "--overwrite", "--dtype", "bfloat16")
    assert state_of(out, "transformer")["proj_out.bias"].dtype is torch.bfloat16
    other = file.rename(tmp_path / "mine.pt")
    result = run(str(other), "--base", base, "--out", str(tmp_path / "mine"))
    assert "warning: the licence of mine.pt is not known" in result.stderr
    assert "not a multiple of 16" in run(str(other), "--base", base, "--out", "x", "--size", "500x480", code=2).stderr
    assert "dtype 'int3'" in run(str(other), "--base", base, "--out", "x", "--dtype", "int3", code=2).stderr


def test_the_command_without_room(
    bases: Bases, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("rollforce.checkpoints.convert.shutil.disk_usage", lambda _: usage(10, 9, 1))
    result = run(str(file), "--base", str(bases["diffusers"][0]), "--out", str(tmp_path / "out"), code=3)
    assert "GB free" in result.stderr
