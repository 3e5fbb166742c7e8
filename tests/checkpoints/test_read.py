"""Public weights in every form they are shipped in: read, recognised, renamed, refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import golden_folders
from hypothesis import given, settings
from hypothesis import strategies as st
from public_weights import (
    IMAGE,
    LORA_TARGETS,
    MAKERS,
    SIZES,
    State,
    equal,
    fsdp,
    lora_of,
    prefixed,
    random_state,
    save_sharded,
    to_original,
    umt5,
    wan_autoencoder,
    wan_transformer,
    write_diffusers,
    write_original,
)
from safetensors.torch import save_file

from rollforce.checkpoints.containers import PREFIXES, WRAPPERS, strip
from rollforce.checkpoints.lora_names import merge_lora, targets_of
from rollforce.checkpoints.names import to_ours, transformer_names
from rollforce.checkpoints.read import expect, raw_advice, read_checkpoint
from rollforce.checkpoints.safetensors_folder import write_shards
from rollforce.checkpoints.shapes import autoencoder_config_of, check_whole, config_of, same_shape, text_config_of
from rollforce.errors import CheckpointError
from rollforce.models.transformer.transformer import WAN_1_3B, WAN_14B, WAN_I2V_14B, TransformerConfig, VideoTransformer

IMAGE_NAMES = "condition_embedder.image_embedder"


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    """Random tiny weights of each kind in our names; "image" is an image-to-video transformer."""
    return {**{kind: random_state(make()) for kind, make in MAKERS.items()},
            "image": random_state(wan_transformer(**IMAGE))}  # fmt: skip


def kind_of(which: str) -> str:
    return "transformer" if which == "image" else which


# ---- names


@pytest.mark.parametrize("which", ["transformer", "image", "autoencoder", "text"])
def test_round_trip_through_the_original_names_and_the_libraries_own_classes(
    which: str, states: dict[str, State], tmp_path: Path
) -> None:
    kind, ours = kind_of(which), states[which]
    original = to_original(kind, ours)
    assert equal(to_ours(kind, original), ours) and len(original) == len(ours)
    module = MAKERS[kind](**(IMAGE if which == "image" else {}))
    for parameter in module.parameters():
        parameter.data.zero_()
    module.load_state_dict(to_ours(kind, original), strict=kind != "text")
    if kind == "text":
        assert torch.equal(module.encoder.embed_tokens.weight, ours["shared.weight"])  # type: ignore[union-attr]
    module.save_pretrained(tmp_path / "part")
    again = read_checkpoint(tmp_path / "part")
    assert again.kind == kind and equal(again.state, ours)
    assert equal(to_original(kind, again.state), original)


def key_lists() -> dict[str, Any]:
    for folder in golden_folders():
        if (folder / "state_dict_keys_1p3b.json").is_file():
            return json.loads((folder / "state_dict_keys_1p3b.json").read_text())
    pytest.skip("no state_dict_keys_1p3b.json here")


def meta(shapes: dict[str, Any]) -> State:
    return {key: torch.empty(entry["shape"], device="meta") for key, entry in shapes.items()}


@pytest.mark.parametrize(("which", "config", "count"), [
    ("WanModel_1.3B", WAN_1_3B, 825), ("CausalWanModel_1.3B", WAN_1_3B, 825), ("WanModel_14B", WAN_14B, 1095)])
def test_full_size_keys_and_shapes(which: str, config: TransformerConfig, count: int) -> None:
    """The published key lists, against our network and diffusers', without a single weight."""
    ours = to_ours("transformer", meta(key_lists()[which]["keys"]))
    assert len(ours) == count
    with torch.device("meta"):
        model = VideoTransformer(config)
        theirs = wan_transformer(**{name: getattr(config, name) for name in SIZES})
    same_shape(ours, model)
    same_shape(ours, theirs)
    check_whole(ours, which)
    assert TransformerConfig(**config_of(ours)) == config


def test_full_size_names_are_the_published_pairs() -> None:
    lists = key_lists()
    pairs = lists["_map_original_to_diffusers"]
    for kind, mapped in (("transformer", pairs["transformer_1p3b"]), ("autoencoder", pairs["vae"])):
        assert to_ours(kind, {key: key for key in mapped}) == {value: key for key, value in mapped.items()}
    ours = to_ours("autoencoder", meta(lists["original_WanVAE_z16"]["keys"]))
    with torch.device("meta"):
        same_shape(ours, wan_autoencoder(base_dim=96), "vae")
    told = lists["diffusers_AutoencoderKLWan"]["config"]
    config = autoencoder_config_of(ours)
    assert config == {key: told[key] for key in config}


def test_image_to_video_14b_against_diffusers() -> None:
    sizes = {name: getattr(WAN_14B, name) for name in SIZES} | {"in_channels": 36, "image_dim": 1280,
                                                               "added_kv_proj_dim": 5120}  # fmt: skip
    with torch.device("meta"):
        model = wan_transformer(**sizes)
    state = model.state_dict()
    assert len(state) == 1303 and set(state) == set(transformer_names(40, image=True))
    assert sum(tensor.numel() for tensor in state.values()) == 16_394_878_784
    original = to_original("transformer", state)
    assert {"img_emb.proj.0.weight", "img_emb.proj.4.bias", "blocks.39.cross_attn.k_img.weight",
            "blocks.0.cross_attn.v_img.bias", "blocks.7.cross_attn.norm_k_img.weight"} <= original.keys()  # fmt: skip
    same_shape(to_ours("transformer", original), model)
    with torch.device("meta"):
        same_shape(state, VideoTransformer(WAN_I2V_14B))
    config = config_of(state)
    assert {name: config[name] for name in sizes} == sizes


def test_umt5_xxl_without_weights() -> None:
    sizes = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
             "relative_attention_num_buckets": 32}  # fmt: skip
    with torch.device("meta"):
        model = umt5(**sizes)
    state = {key: value for key, value in model.state_dict().items() if key != "encoder.embed_tokens.weight"}
    original = to_original("text", state)
    assert len(original) == 242 and "blocks.23.pos_embedding.embedding.weight" in original
    same_shape(to_ours("text", original), model, "text_encoder")
    config = text_config_of(state)
    assert {name: config[name] for name in sizes} == sizes


# ---- containers


def student_files(state: State) -> dict[str, tuple[Any, str]]:
    """Content of .pt files as trainers write them, and the container to be taken."""
    other = {key: value + 1 for key, value in state.items()}
    return {
        "ema": ({"generator": prefixed(other, "model."), "critic": prefixed(other, "model."),
                 "generator_ema": fsdp(state)}, "generator_ema"),
        "no ema yet": ({"generator": prefixed(state, "model."), "generator_ema": None, "step": 3}, "generator"),
        "empty ema": ({"generator_ema": {}, "generator": fsdp(state)}, "generator"),
        "model": ({"model": state, "optimizer": {"state": {}}}, "model"),
        "compiled": ({"generator": prefixed(state, "model._orig_mod.")}, "generator"),
        "ddp": ({"generator": prefixed(state, "module.model.")}, "generator"),
        "outer module only": (prefixed(state, "model."), ""),
        "bare": (state, ""),
    }  # fmt: skip


@pytest.mark.parametrize("form", list(student_files({})))
def test_students(form: str, states: dict[str, State], tmp_path: Path) -> None:
    ours = states["transformer"]
    content, where = student_files(to_original("transformer", ours))[form]
    torch.save(content, tmp_path / "student.pt")
    found = read_checkpoint(tmp_path / "student.pt")
    assert (found.kind, found.where, found.causal) == ("transformer", where, None), "a container's word proves nothing"
    assert equal(found.state, ours)


def test_weights_that_no_code_reads_are_left_out(states: dict[str, State], tmp_path: Path) -> None:
    """The public I2V folders hold a norm that diffusers drops as well; older text encoders their embedding twice."""
    save_file(states["image"] | {"blocks.1.attn2.norm_added_q.weight": torch.ones(24)}, tmp_path / "i2v.safetensors")
    assert equal(read_checkpoint(tmp_path / "i2v.safetensors").state, states["image"])
    twice = states["text"] | {"encoder.embed_tokens.weight": states["text"]["shared.weight"].clone()}
    for name in ("shared.weight", "encoder.embed_tokens.weight", "neither"):
        save_file({key: value for key, value in twice.items() if key != name}, tmp_path / "text.safetensors")
        assert equal(read_checkpoint(tmp_path / "text.safetensors").state, states["text"])


def test_old_pickles_are_read_too(states: dict[str, State], tmp_path: Path) -> None:
    torch.save(states["transformer"], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "old.pt").state, states["transformer"])


@pytest.mark.parametrize("shards", [1, 3])
def test_original_folder(shards: int, tmp_path: Path) -> None:
    states = write_original(tmp_path / "wan", shards=shards)
    for kind in MAKERS:
        found = read_checkpoint(tmp_path / "wan", kind)
        assert found.kind == kind and equal(found.state, states[kind])
        assert found.causal is (False if kind == "transformer" else None)
    found = read_checkpoint(tmp_path / "wan")
    assert found.kind == "transformer" and found.config["num_heads"] == 2 and found.name == "wan"
    (tmp_path / "wan" / "config.json").unlink()
    file = next((tmp_path / "wan").glob("diffusion*.safetensors"))  # one shard stands for all
    alone = read_checkpoint(file)
    assert equal(alone.state, states["transformer"]) and alone.causal is False
    assert equal(read_checkpoint(tmp_path / "wan" / "Wan2.1_VAE.pth").state, states["autoencoder"])


def test_diffusers_folder(tmp_path: Path) -> None:
    states = write_diffusers(tmp_path / "wan", num_layers=3)
    for kind in MAKERS:
        assert equal(read_checkpoint(tmp_path / "wan", kind).state, states[kind])
    assert read_checkpoint(tmp_path / "wan").causal is False
    assert equal(read_checkpoint(tmp_path / "wan" / "vae").state, states["autoencoder"])
    moved = (tmp_path / "wan" / "transformer").rename(tmp_path / "alone")
    assert read_checkpoint(moved).causal is None
    index = {"_class_name": "CausalWanModel"}
    (moved / "config.json").write_text(json.dumps(index))
    assert read_checkpoint(moved).causal is True


def test_sharded_by_diffusers_and_by_us(states: dict[str, State], tmp_path: Path) -> None:
    module = wan_transformer()
    module.load_state_dict(states["transformer"])
    module.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert equal(read_checkpoint(tmp_path / "theirs").state, states["transformer"])
    write_shards(states["transformer"], tmp_path / "ours", "diffusion_pytorch_model", limit=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert all(path.stat().st_size < 30_000 for path in (tmp_path / "ours").glob("*.safetensors"))
    (tmp_path / "ours" / "config.json").write_text((tmp_path / "theirs" / "config.json").read_text())
    assert equal(read_checkpoint(tmp_path / "ours").state, states["transformer"])
    loaded = type(module).from_pretrained(tmp_path / "ours")
    assert equal(dict(loaded.state_dict()), states["transformer"])


def test_reading_copies_nothing(states: dict[str, State], tmp_path: Path) -> None:
    """Two tensors of one file lie in it one after the other: what was read is a map of the file."""
    big = {**states["transformer"], "proj_out.weight": torch.zeros(64, 24)}
    save_file(big, tmp_path / "a.safetensors")
    torch.save({"generator": big}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        maps = Path("/proc/self/maps")
        if not maps.exists():
            pytest.skip("no /proc here")
        found = read_checkpoint(tmp_path / name)
        assert str(tmp_path / name) in maps.read_text(), name
        assert found.state["proj_out.weight"].sum() == 0


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(transformer_names(2, image=True)),
    around=st.lists(st.sampled_from(sorted(PREFIXES)), max_size=4),
    inside=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(sorted(WRAPPERS))), max_size=4),
)
def test_any_wrapping_comes_off(name: str, around: list[str], inside: list[tuple[int, str]]) -> None:
    segments = [*around, *name.split(".")]
    for place, word in inside:
        segments.insert(min(place, len(segments) - 1), word)
    assert strip(".".join(segments)) == name


# ---- LoRA


SPELLINGS: dict[str, Callable[[str], str]] = {
    "peft": lambda key: f"base_model.model.{key}",
    "adapter": lambda key: f"base_model.model.{key.removesuffix('.weight')}.default.weight",
    "fsdp": lambda key: f"base_model.model._fsdp_wrapped_module.{key}",
    "kohya": lambda key: "lora_unet_" + key.split(".lora_")[0].replace(".", "_") + (
        ".lora_down.weight" if "lora_A" in key else ".lora_up.weight"),
    "comfy": lambda key: f"diffusion_model.{key}",
}  # fmt: skip


@pytest.mark.parametrize("spelling", list(SPELLINGS))
@pytest.mark.parametrize("container", ["generator_lora", "lora", "", "safetensors"])
def test_lora_files(spelling: str, container: str, states: dict[str, State], tmp_path: Path) -> None:
    original = to_original("transformer", states["transformer"])
    plain = lora_of(original, list(LORA_TARGETS))
    named = {SPELLINGS[spelling](key): value for key, value in plain.items()}
    if container == "safetensors":
        save_file(named, path := tmp_path / "lora.safetensors")
    else:
        torch.save({container: named, "step": 1} if container else named, path := tmp_path / "lora.pt")
    found = read_checkpoint(path)
    assert found.kind == "lora" and targets_of(found.state) == sorted(LORA_TARGETS.values())
    merged = merge_lora(states["transformer"], found.state)
    for theirs, ours in LORA_TARGETS.items():
        change = plain[f"{theirs}.lora_B.weight"] @ plain[f"{theirs}.lora_A.weight"]
        assert torch.allclose(merged[f"{ours}.weight"], original[f"{theirs}.weight"] + change, atol=1e-6)
    untouched = [key for key in merged if merged[key] is states["transformer"][key]]
    assert len(untouched) == len(merged) - len(LORA_TARGETS)


def test_lora_in_diffusers_names_and_its_alpha(states: dict[str, State], tmp_path: Path) -> None:
    ours = states["transformer"]
    named = prefixed(lora_of(ours, ["blocks.0.attn1.to_q", "patch_embedding"]), "transformer.")
    named["transformer.blocks.0.attn1.to_q.alpha"] = torch.tensor(8.0)
    save_file(named, tmp_path / "lora.safetensors")
    lora = read_checkpoint(tmp_path / "lora.safetensors").state
    q = lora["blocks.0.attn1.to_q.lora_B.weight"] @ lora["blocks.0.attn1.to_q.lora_A.weight"]
    patch = torch.einsum("orxyz,ricde->oicde", lora["patch_embedding.lora_B.weight"],
                         lora["patch_embedding.lora_A.weight"])  # fmt: skip
    for alpha, scales in ((None, (2, 1)), (4.0, (1, 1)), (2.0, (0.5, 0.5))):
        merged = merge_lora(ours, lora, alpha)
        for name, change, scale in (("blocks.0.attn1.to_q", q, scales[0]), ("patch_embedding", patch, scales[1])):
            assert torch.allclose(merged[f"{name}.weight"], ours[f"{name}.weight"] + scale * change, atol=1e-5)


def test_alpha_in_a_lora_s_settings(states: dict[str, State], tmp_path: Path) -> None:
    """peft writes it into adapter_config.json, diffusers into the file itself; a module's own comes first."""
    ours, module = states["transformer"], "blocks.0.attn1.to_q"
    plain = lora_of(ours, [module, "proj_out"])
    named = prefixed(plain, "base_model.model.") | {"base_model.model.proj_out.alpha": torch.tensor(1.0)}
    (tmp_path / "peft").mkdir()
    save_file(named, tmp_path / "peft" / "adapter_model.safetensors")
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "peft_type": "LORA"}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(settings))
    told = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in settings.items()})}
    save_file(named, tmp_path / "diffusers.safetensors", metadata=told)
    for path in (tmp_path / "peft", tmp_path / "diffusers.safetensors"):
        merged = merge_lora(ours, read_checkpoint(path).state)
        for name, scale in ((module, 2.0), ("proj_out", 0.25)):
            change = scale * plain[f"{name}.lora_B.weight"] @ plain[f"{name}.lora_A.weight"]
            assert torch.allclose(merged[f"{name}.weight"], ours[f"{name}.weight"] + change, atol=1e-5)


def test_lora_of_another_model_is_refused(states: dict[str, State]) -> None:
    ours = states["transformer"]
    wide = random_state(wan_transformer(num_attention_heads=3))
    with pytest.raises(CheckpointError, match=r"attn1.to_q: the LoRA is for a weight \[36, 36\].*have \[24, 24\]"):
        merge_lora(ours, lora_of(wide, ["blocks.0.attn1.to_q"]))
    deep = random_state(wan_transformer(num_layers=4))
    with pytest.raises(CheckpointError, match="blocks.3.attn1.to_q.*of another model"):
        merge_lora(ours, lora_of(deep, ["blocks.3.attn1.to_q"]))
    half = lora_of(ours, ["proj_out"])
    del half["proj_out.lora_B.weight"]
    with pytest.raises(CheckpointError, match="one side of proj_out"):
        merge_lora(ours, half)


# ---- what is refused, and in which words


def refused(path: Path, *parts: str, kind: str | None = None) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, kind)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("owned",))


def test_a_pickle_that_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"generator": Evil()}, "sf.pt")
    refused(Path("sf.pt"), f"sf.pt is a pickle; loading with weights_only=True failed (object {os.name}.mkdir). Refus")
    Path("plain.pt").write_bytes(pickle.dumps(Evil()))
    refused(Path("plain.pt"), "plain.pt")
    assert not Path("owned").exists()


def test_damaged_files(states: dict[str, State], tmp_path: Path) -> None:
    torch.save(states["transformer"], tmp_path / "cut.pt")
    save_file(states["transformer"], tmp_path / "cut.safetensors")
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-3000])
        refused(path, path.name, "damaged")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    refused(tmp_path / "text.pt", "text.pt is a web page (HTML), saved under the name of a file")
    (tmp_path / "empty.pt").write_bytes(b"")
    refused(tmp_path / "empty.pt", "is an empty file: fetch it again")


def test_not_there_and_not_weights(states: dict[str, State], tmp_path: Path) -> None:
    torch.save(states["transformer"], tmp_path / "self_forcing.pt")
    refused(tmp_path / "self_forcng.pt", "There is no file or folder", "Nearest: self_forcing.pt")
    (tmp_path / "x.h5").write_bytes(b"HDF5")
    refused(tmp_path / "x.h5", "x.h5: weights are read from .safetensors, .gguf, .bin")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no weights")
    torch.save({"critic": states["transformer"], "step": 1}, tmp_path / "critic.pt")
    refused(tmp_path / "critic.pt", "critic.pt holds critic, step: none of generator_ema, student_ema", "--container")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "other.pt is none of a Wan transformer", "first names: weight")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "holds a list, not a state dict")
    torch.save({**states["transformer"], "strange": torch.zeros(1)}, tmp_path / "strange.pt")
    odd = to_original("transformer", states["transformer"]) | {"blocks.0.vace.weight": torch.zeros(1)}
    torch.save(odd, tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", "1 names are not those of a Wan transformer, e.g. blocks.0.vace.weight")
    torch.save({**prefixed(states["transformer"], "model."), **states["transformer"]}, tmp_path / "twice.pt")
    refused(tmp_path / "twice.pt", "holds scale_shift_table twice", "two models in one state dict")


def test_missing_shard_and_a_choice_of_files(states: dict[str, State], tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    save_sharded(states["transformer"], tmp_path / "part", "diffusion_pytorch_model", 3)
    (tmp_path / "part" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    refused(tmp_path / "part", "1 of 3 shards are missing", "diffusion_pytorch_model-00002-of-00003.safetensors")
    (tmp_path / "two").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(states["transformer"], tmp_path / "two" / name)
    refused(tmp_path / "two", "holds 2 files of weights (a.safetensors, b.safetensors). Give the one you want")


def test_wrong_kind(states: dict[str, State], tmp_path: Path) -> None:
    torch.save(to_original("autoencoder", states["autoencoder"]), tmp_path / "Wan2.1_VAE.pth")
    found = read_checkpoint(tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match="'Wan2.1_VAE.pth' is the Wan autoencoder; a Wan transformer is needed"):
        expect(found, "transformer")
    assert expect(found, "autoencoder") is found


def test_wrong_size() -> None:
    with torch.device("meta"):
        small, large = VideoTransformer(WAN_1_3B), VideoTransformer(WAN_14B)
    with pytest.raises(CheckpointError, match=(
        "transformer/blocks.0.attn1.to_q: checkpoint 5120, config 1536: this is a 14B file in a 1.3B config")):
        same_shape(large.state_dict(), small)
    state = dict(small.state_dict())
    state.pop("proj_out.bias")
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="1 missing, first: proj_out.bias; 1 unexpected, first: extra"):
        same_shape(state, small)
    state = dict(small.state_dict()) | {"patch_embedding.weight": torch.empty(1536, 36, 1, 2, 2, device="meta")}
    with pytest.raises(CheckpointError, match=r"36 channels \(image to video\), the config 16 \(text to video\)"):
        same_shape(state, small)


def test_config_of_and_its_complaints(states: dict[str, State]) -> None:
    assert config_of(states["transformer"], heads=2) == {**SIZES, "patch_size": (1, 2, 2)}
    assert config_of(states["image"], heads=2) == {**SIZES, **IMAGE, "patch_size": (1, 2, 2)}
    with pytest.raises(CheckpointError, match="width 24 is not a multiple of 128: say how many heads"):
        config_of(states["transformer"])
    with pytest.raises(CheckpointError, match="width 24 cannot be split into 5 heads"):
        config_of(states["transformer"], heads=5)
    with pytest.raises(CheckpointError, match="there is no patch_embedding.weight"):
        config_of({})
    less = {key: value for key, value in states["image"].items() if not key.startswith("blocks.1.attn2.add_k")}
    with pytest.raises(CheckpointError):
        check_whole(less, "student.pt")
    odd = states["transformer"] | {"blocks.1.attn1.to_q.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="but block 0 has"):
        check_whole(odd, "student.pt")


def test_advice_for_a_raw_file(states: dict[str, State], tmp_path: Path) -> None:
    torch.save({"generator": fsdp(states["transformer"]), "critic": {}, "step": 1}, tmp_path / "sf.pt")
    assert raw_advice(tmp_path / "sf.pt").startswith(
        f"sf.pt holds generator, critic (FSDP prefixes). Convert once: rollforce convert {tmp_path / 'sf.pt'} --base")
