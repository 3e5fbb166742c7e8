"""The memory plan against what is really allocated, and the advice that follows from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tensors import LiveTensors
from small_model import make_model_folder
from typer.testing import CliRunner

from rollforce.cli.main import app
from rollforce.config import build, resource
from rollforce.engine.budget.fit import TILES, check_fits, fit
from rollforce.engine.budget.model_sizes import (
    ModelSizes,
    TaehvDecoding,
    TinyDecoding,
    WanDecoding,
    parameters_of,
    sizes_of,
)
from rollforce.engine.budget.requirements import (
    MemorySetup,
    activation_bytes,
    memory_bytes,
    needs,
    needs_with_prompt,
    parts,
    transformer_bytes,
)
from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError, DoesNotFit
from rollforce.models.autoencoder.tiny import AutoencoderConfig, TinyAutoencoder
from rollforce.models.transformer.attention import KVShape
from rollforce.models.transformer.transformer import WAN_1_3B, WAN_14B, TransformerConfig, VideoTransformer
from rollforce.streaming.model import check_session

PRESETS = sorted(path.stem for path in resource("configs/stream").glob("*.yaml"))
GB = 1e9
BF16, F32 = torch.bfloat16, torch.float32
SMALL = TransformerConfig(num_attention_heads=2, attention_head_dim=64, num_layers=2, ffn_dim=512, text_dim=16)


def preset(name: str) -> StreamSettings:
    return build(StreamSettings, resource(f"configs/stream/{name}.yaml"))


def wan(stream: str = "self_forcing", model: str = "wan-1.3b", **changes: Any) -> MemorySetup:
    setup = MemorySetup(sizes_of(model), preset(stream), (480, 832), BF16, torch.device("cuda"))
    return dataclasses.replace(setup, **changes)


def small(stream: str) -> MemorySetup:
    grouped = preset(stream).heads is not None  # labels are of the bundled model, and segments cut latents in four
    config = dataclasses.replace(SMALL, num_layers=6, num_attention_heads=4) if grouped else \
        dataclasses.replace(SMALL, num_layers=1)
    sizes = ModelSizes("small", config, WanDecoding(), text=0, text_len=8, stream=stream)
    return MemorySetup(sizes, preset(stream), (32, 32) if grouped else (16, 16), F32, torch.device("cpu"))


def part(setup: MemorySetup, name: str) -> int:
    return sum(part.bytes for part in parts(setup) if part.name == name)


def rollout_of(setup: MemorySetup) -> Rollout:
    config, grid = setup.sizes.transformer, setup.grid
    model = VideoTransformer(config).to(setup.dtype).eval().requires_grad_(False)
    shape = KVShape(config.num_layers, 1, config.num_attention_heads, grid.tokens_per_latent, config.attention_head_dim)
    cache = setup.stream.memory(shape, setup.dtype)
    condition = model.condition(torch.zeros(1, 8, config.text_dim, dtype=setup.dtype))
    noise = Noise.of(0, (config.in_channels, grid.height, grid.width))
    return Rollout(model, condition, cache, setup.stream.layout.build(), noise, setup.stream.stepping)


# -- figures against what is there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_the_cache_is_what_a_full_cache_holds(name: str) -> None:
    setup = small(name)
    rollout = rollout_of(setup)
    planned = memory_bytes(setup)[0]
    for _ in range(rollout.cache.capacity // rollout.layout.shift + 3):
        with torch.no_grad():
            while True:
                rollout.tick()
                if rollout.commit() is not None:
                    break
        assert rollout.cache.bytes <= planned
    assert rollout.cache.bytes == planned == part(setup, "KV cache")


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("hidden", [128, 768])
@pytest.mark.parametrize("islands", [True, False])
def test_activations_are_within_a_tenth_of_the_measured_peak(islands: bool, hidden: int, dtype: torch.dtype) -> None:
    config, latents, side = dataclasses.replace(SMALL, ffn_dim=hidden), 3, 32
    model = VideoTransformer(config).to(dtype).eval().requires_grad_(False)
    model.float32_islands = islands
    condition = model.condition(torch.zeros(1, 8, config.text_dim, dtype=dtype))
    x = torch.zeros(1, latents, 16, side, side, dtype=dtype)
    with torch.no_grad(), LiveTensors() as live:
        model(x, torch.zeros(1, latents), torch.arange(latents), condition)
    planned = activation_bytes(config, latents, (side // 2) ** 2, dtype.itemsize, islands=islands)
    assert live.peak == pytest.approx(planned, rel=0.1)


def test_what_a_call_gathers_of_the_past_counts() -> None:
    """Rolling Forcing's call sees its sink, what lies between not, and the newest past: not one slice."""
    setup = wan("rolling_forcing")
    assert memory_bytes(setup)[1] == 2 * 21 * 1560 * 1536 * 2
    assert memory_bytes(wan("self_forcing"))[1] == 0
    assert activation_bytes(SMALL, 3, 64, 2, gathered=10**9) > 10**9


@pytest.mark.parametrize("config", [WAN_1_3B, WAN_14B, SMALL], ids=["1.3b", "14b", "small"])
def test_the_transformer_is_its_parameters(config: TransformerConfig) -> None:
    with torch.device("meta"):
        model = VideoTransformer(config)
    count = sum(tensor.numel() for tensor in model.parameters())
    assert parameters_of(config) == count
    setup = dataclasses.replace(wan(), sizes=dataclasses.replace(sizes_of("wan-1.3b"), transformer=config))
    assert transformer_bytes(setup) == part(setup, "transformer") == 2 * count
    matrices = [layer.weight for layer in model.blocks.modules() if isinstance(layer, torch.nn.Linear)]
    quantised = dataclasses.replace(setup, quantize="int8")
    saved = sum(weight.numel() - 4 * weight.shape[0] for weight in matrices)
    assert transformer_bytes(setup) - transformer_bytes(quantised) == saved


@pytest.mark.parametrize(("width", "dtype"), [(96, BF16), (16, F32)])
def test_the_wan_decoder_keeps_and_uses_what_is_planned(
    width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKLWan

    from rollforce.models.autoencoder.wan import WanAutoencoder

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))
    with torch.device("meta"):  # full size, and nothing is computed; attention there would not be fused
        vae = AutoencoderKLWan(base_dim=width).requires_grad_(False)
    drawing, planned, size = WanAutoencoder(vae.to(dtype)).drawing(), WanDecoding(base_dim=width), (60, 104)
    with torch.no_grad(), LiveTensors() as live:
        for _ in range(3):
            drawing(torch.zeros(1, 1, 16, *size, device="meta"))
    kept = sum(tensor.nbytes for tensor in drawing.state_dict()["features"][0] if isinstance(tensor, torch.Tensor))
    assert kept == planned.features(*size, dtype.itemsize)
    assert live.peak - kept == pytest.approx(planned.activations(*size, dtype.itemsize), rel=0.1)
    if width == 96:
        assert planned.parameters == sum(tensor.numel() for tensor in vae.parameters())


@pytest.mark.parametrize("sizes", [{}, {"width": 16, "width_mid": 16, "width_high": 16, "channels": 8, "blocks": 1}])
def test_the_bundled_decoder_keeps_and_uses_what_is_planned(sizes: dict[str, int]) -> None:
    model = TinyAutoencoder(AutoencoderConfig(**sizes)).requires_grad_(False)
    planned, past = TinyDecoding(model.config, 0), None
    with torch.no_grad(), LiveTensors() as live:
        for _ in range(3):
            past = model.decode(torch.zeros(1, 1, model.channels, 8, 12), past)[1]
    assert sum(tensor.nbytes for tensor in past) == planned.features(8, 12, 4)
    assert live.peak - planned.features(8, 12, 4) == pytest.approx(planned.activations(8, 12, 4), rel=0.1)


def test_a_small_decoder_keeps_and_uses_what_is_planned() -> None:
    from rollforce.models.autoencoder.taehv import TaehvAutoencoder, TaehvConfig

    with torch.device("meta"):
        model = TaehvAutoencoder(TaehvConfig()).to(BF16).requires_grad_(False)
    drawing, planned = model.drawing(), TaehvDecoding()
    with torch.no_grad(), LiveTensors() as live:
        for _ in range(3):
            drawing(torch.zeros(1, 1, 16, 60, 104, device="meta"))
    kept = sum(tensor.nbytes for tensor in drawing.state_dict()["features"][0] if isinstance(tensor, torch.Tensor))
    assert kept == planned.features(60, 104, 2) and live.peak - kept == pytest.approx(
        planned.activations(60, 104, 2), rel=0.1)  # fmt: skip
    assert planned.parameters == sum(tensor.numel() for tensor in model.parameters())
    whole, small = wan(), wan(small=True)
    assert part(small, "decoding") < part(whole, "decoding") and part(small, "decoder features") == kept


def test_a_pruned_autoencoder_is_planned_with_a_quarter_of_the_channels() -> None:
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKLWan

    whole, pruned = wan(), wan(pruned=True)
    assert part(pruned, "decoder features") / part(whole, "decoder features") == pytest.approx(0.25, rel=0.02)
    with torch.device("meta"):
        count = sum(tensor.numel() for tensor in AutoencoderKLWan(base_dim=24).parameters())
    assert part(pruned, "autoencoder") == part(whole, "autoencoder") + 2 * count


def test_the_figures_of_wan() -> None:
    """research/algorithms.md 1.2 to 1.5."""
    setup = wan("self_forcing")
    longer = setup.with_window(19)
    assert (part(longer, "KV cache") - part(setup, "KV cache")) / GB == pytest.approx(0.2875, abs=1e-4)
    assert part(setup, "KV cache") / GB == pytest.approx(6.04, abs=0.01)
    assert part(setup, "transformer") / GB == pytest.approx(2.84, abs=0.01)
    assert part(setup, "text encoder") / GB == pytest.approx(11.4, abs=0.05)
    assert part(setup, "text keys") / GB == pytest.approx(0.094, abs=0.001)
    assert part(setup, "decoder features") / GB == pytest.approx(1.9, abs=0.02)
    assert part(setup, "autoencoder") == 2 * 126_892_531
    large = wan("self_forcing", "wan-14b")
    assert (part(large.with_window(19), "KV cache") - part(large, "KV cache")) / GB == pytest.approx(1.278, abs=1e-3)


# -- laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(PRESETS), st.integers(3, 40), st.integers(1, 10))
def test_more_window_never_costs_less(name: str, window: int, more: int) -> None:
    setup = wan(name)
    if setup.window is None:
        return
    assert needs(parts(setup.with_window(window + more))) >= needs(parts(setup.with_window(window)))


def test_larger_pictures_and_wider_numbers_cost_more() -> None:
    base = needs(parts(wan("rolling_forcing")))
    assert needs(parts(wan("rolling_forcing", size=(720, 1280)))) > 1.5 * base
    assert needs(parts(wan("rolling_forcing", dtype=F32))) > 1.5 * base
    assert needs(parts(wan("rolling_forcing", size=(832, 480)))) == base
    assert activation_bytes(WAN_1_3B, 18, 1560, 2) > activation_bytes(WAN_1_3B, 6, 1560, 2)


def test_tiles_draw_less_at_once() -> None:
    whole, tiled = wan(), wan(tiling=TILES)
    assert part(tiled, "decoding") < part(whole, "decoding") / 4
    assert part(tiled, "decoder features") < part(whole, "decoder features")
    tiny = dataclasses.replace(whole, sizes=sizes_of("tiny"), size=(512, 512))
    assert parts(dataclasses.replace(tiny, tiling=TILES)) == parts(tiny)


def test_a_text_encoder_that_is_let_go_costs_only_while_it_is_there() -> None:
    """See models/text/umt5.py: it is loaded for a prompt that is not in the cache, and let go again."""
    here, offloaded = parts(wan("longlive")), parts(wan("longlive", offload=("text",)))
    reading = sum(part.bytes for part in here if part.name in ("text encoder", "transformer", "autoencoder"))
    assert needs(here) == reading > needs(offloaded)
    assert needs_with_prompt(here) - needs_with_prompt(offloaded) == part(wan(), "text encoder")
    on_cpu = wan(device=torch.device("cpu"))
    assert parts(dataclasses.replace(on_cpu, offload=("text",))) == parts(on_cpu)
    wide = dataclasses.replace(on_cpu, dtype=F32)
    assert part(wide, "text encoder") == part(on_cpu, "text encoder"), "as in its files"


def test_blocks_that_wait_leave_room_for_two() -> None:
    whole, ends = wan(), parameters_of(dataclasses.replace(WAN_1_3B, num_layers=0))
    block = (parameters_of(WAN_1_3B) - ends) // 30
    assert part(wan(offload=("blocks",)), "transformer") == 2 * (ends + 2 * block)
    here = wan(device=torch.device("cpu"), offload=("blocks",))
    assert part(here, "transformer") == part(whole, "transformer")


def test_loaded_weights_are_not_counted_again() -> None:
    assert {part.name for part in parts(wan(loaded=True))} == {
        "KV cache", "text keys", "activations", "decoder features", "decoding"}  # fmt: skip


# -- advice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["self_forcing", "rolling_forcing", "longlive"])
@pytest.mark.parametrize("free", range(4, 24, 2))
def test_remedies_make_it_fit_and_none_is_needless(stream: str, free: int) -> None:
    found = fit(wan(stream), int(free * GB))
    assert found.fits == (not found.remedies) and found.helps == (found.then <= free * GB)
    for remedy in found.remedies:
        assert remedy.saves > 0
        if found.helps:
            assert found.then + remedy.saves > free * GB, "it fits without"


def test_the_cheapest_advice_comes_first() -> None:
    """20 GB for the stream, 14 while a prompt is encoded."""
    options = [remedy.option for remedy in fit(wan("rolling_forcing"), int(16 * GB)).remedies]
    assert len(options) == 1 and options[0].startswith("--window ")
    window, setup = int(options[0].split()[1]), wan("rolling_forcing")
    assert needs(parts(setup.with_window(window))) <= 16 * GB < needs(parts(setup.with_window(window + 1)))
    assert [remedy.option for remedy in fit(wan("longlive"), int(13 * GB)).remedies] == ["--offload text"]
    assert fit(wan(), int(80 * GB)).remedies == ()


def test_what_does_not_fit_is_said_before_anything_is_allocated() -> None:
    with pytest.raises(DoesNotFit) as caught:
        check_fits(wan("rolling_forcing"), int(15.7 * GB))
    said = str(caught.value)
    assert "Needs ~19.7 GB, 15.7 free on cuda: KV cache 10.8, transformer 2.8, decoding 2.1" in said
    assert "Try --window " in said and "then ~15." in said
    with pytest.raises(DoesNotFit, match="Needs ~14.5 GB, 12.0 free on cuda: text encoder 11.4, transformer 2.8"):
        check_fits(wan("longlive"), int(12 * GB))
    with pytest.raises(DoesNotFit, match="Even .* use a smaller --size"):
        check_fits(wan(), int(2 * GB))
    assert isinstance(caught.value, MemoryError)
    assert check_fits(wan(), int(40 * GB)).fits


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"height 481 is not a multiple of 16 \(autoencoder stride 8 x patch 2\). Nearest: 480 or 496"
    ):
        wan(size=(481, 832))
    with pytest.raises(ConfigError):
        wan(offload=("all",))
    with pytest.raises(ConfigError, match="There is no model 'huge'.*wan-1.3b"):
        sizes_of("huge")


# -- folders and the command -----------------------------------------------------------------------------------------


def test_a_folder_is_measured_by_its_headers(tmp_path: Path) -> None:
    from rollforce.streaming.load import load

    folder = make_model_folder(tmp_path / "small")
    sizes, model = sizes_of(folder), load(folder)
    assert sizes.size == (32, 48) and sizes.stream == "rolling"
    assert sizes.transformer == model.transformer.config
    for count, loaded in ((sizes.parameters, model.transformer), (sizes.text, model.text)):
        assert count == sum(tensor.numel() for tensor in loaded.parameters())
    setup = MemorySetup(sizes, model.stream_settings, model.size, F32, torch.device("cpu"))
    with model.session("a red ball") as session:
        list(session.stream(3))
        assert not session.closed and session.state.rollout.cache.bytes == part(setup, "KV cache")


def test_a_session_is_checked_beside_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollforce.streaming.load import load

    model = load(make_model_folder(tmp_path / "small"))
    check_session(model)
    monkeypatch.setattr("rollforce.engine.budget.fit.free_bytes", lambda device: 10**6)
    with pytest.raises(DoesNotFit, match="0.0 free on cpu: decoding .*activations") as caught:
        check_session(model, (640, 960))
    assert "transformer" not in str(caught.value)


def test_original_and_diffusers_folders_are_understood(tmp_path: Path) -> None:
    original = tmp_path / "Wan2.1-T2V-14B"
    original.mkdir()
    sizes = {"model_type": "t2v", "dim": 5120, "num_heads": 40, "num_layers": 40, "ffn_dim": 13824, "freq_dim": 256}
    (original / "config.json").write_text(json.dumps(sizes))
    (original / "models_t5_umt5-xxl-enc-bf16.pth").touch()
    found = sizes_of(original)
    assert found.transformer == WAN_14B and found.text == sizes_of("wan-14b").text
    assert parts(dataclasses.replace(wan(), sizes=found)) == parts(wan(model="wan-14b"))
    bare = tmp_path / "student" / "transformer"
    bare.mkdir(parents=True)
    fields = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960}
    (bare / "config.json").write_text(json.dumps(fields))
    assert sizes_of(bare.parent).transformer == WAN_1_3B and sizes_of(bare.parent).text == 0


@pytest.mark.parametrize(("free", "code"), [("40", 0), ("13", 0), ("3", 4)])
def test_the_command_says_it_with_an_exit_code(free: str, code: int) -> None:
    words = ["plan", "--model", "wan-1.3b", "--stream", "rolling_forcing", "--size", "832x480", "--device", "cuda"]
    result = CliRunner().invoke(app, [*words, "--free", free], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    for name in ("text encoder", "11.36", "KV cache", "transformer", "2.84", "decoder features", "1.89"):
        assert name in result.output
    assert ("--offload text" in result.output) == (free != "40")
    told = json.loads(CliRunner().invoke(app, [*words, "--free", free, "--json"]).stdout)
    assert told["needs"] == fit(wan("rolling_forcing"), int(float(free) * GB)).needs and told["helps"] == (code == 0)


def test_an_image_to_video_model_is_refused_whatever_is_free() -> None:
    result = CliRunner().invoke(app, ["plan", "--model", "wan-i2v-14b", "--device", "cuda", "--free", "500"])
    assert result.exit_code == 2 and "image-to-video" in result.stderr


def test_the_command_takes_its_own_advice() -> None:
    words = ["plan", "--model", "wan-1.3b", "--device", "cuda", "--free", "12.5", "--json"]
    planned = json.loads(CliRunner().invoke(app, words).stdout)
    advice = planned["remedies"]
    taken = [word for remedy in advice for word in remedy["option"].split()]
    told = json.loads(CliRunner().invoke(app, [*words, *taken]).stdout)
    assert advice and told["fits"] and told["needs"] == planned["then"]


def test_a_device_that_is_not_here_needs_its_memory_told() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    result = CliRunner().invoke(app, ["plan", "--model", "wan-1.3b", "--device", "cuda"])
    assert result.exit_code == 2
