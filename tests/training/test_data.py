"""Training data: the tiny world, and folders of encoded clips: what is drawn, and what is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rollforce.errors import ConfigError
from rollforce.models.autoencoder.tiny import AutoencoderConfig, TinyAutoencoder
from rollforce.training.data import LatentFolder, WorldClips, write_latents
from rollforce.training.recipes import Latents, World

Clip = tuple[Tensor, Tensor, str]


# ---- the tiny world


def small_world(**settings: Any) -> WorldClips:
    autoencoder = TinyAutoencoder(AutoencoderConfig(channels=4, width=8, width_mid=8, width_high=8, blocks=1))
    held_out = settings.pop("held_out", False)
    chosen = World(**{"clips": 64, "opened": 40, "per_step": 1, "latents": 6, "size": 16, "kept": 2} | settings)
    return WorldClips(chosen, held_out=held_out, autoencoder=autoencoder)


def test_world_clips_are_a_function_of_step_and_part() -> None:
    torch.manual_seed(0)
    one, other = small_world(), small_world()
    other.autoencoder = one.autoencoder
    other.draw(7, 3, 6, 4)
    batch, again = one.draw(2, 1, 3, 4), other.draw(2, 1, 3, 4)
    assert batch.latents_BTCHW is not None and again.latents_BTCHW is not None
    assert batch.latents_BTCHW.shape == (3, 4, 4, 2, 2) and torch.equal(batch.latents_BTCHW, again.latents_BTCHW)
    assert batch.prompts == again.prompts and one.prompts(2, 1, 3) == other.prompts(2, 1, 3)
    later = one.draw(3, 1, 3, 4).latents_BTCHW
    assert later is not None and not torch.equal(later, batch.latents_BTCHW)
    assert all(not one.scene(i).held_out for i in range(4))
    assert all(small_world(held_out=True).scene(i).held_out for i in range(4))
    assert one.fingerprint == other.fingerprint != small_world(size=24).fingerprint


def test_world_clips_have_as_many_pairs_as_asked_for() -> None:
    counts = [len(small_world(two=0.6).scene(i).things) for i in range(200)]
    assert 0.5 < sum(n == 2 for n in counts) / 200 < 0.7
    assert all(len(small_world(two=0.0).scene(i).things) == 1 for i in range(40))


def test_world_clips_have_as_many_alike_pairs_as_asked_for() -> None:
    def share(alike: float) -> float:
        data = small_world(two=1.0, alike=alike)
        pairs = [data.scene(number).things for number in range(200)]
        return sum(one.motion == other.motion for one, other in pairs) / 200

    assert share(1.0) == 1.0 and 0.1 < share(0.0) < 0.35 and 0.5 < share(0.5) < 0.75


def test_other_processes_render_the_same_clips(tmp_path: Path) -> None:
    small_world().autoencoder.save(tmp_path)
    settings = World(autoencoder=str(tmp_path), clips=12, opened=4, per_step=2, latents=3, size=16, kept=12)
    alone, helped = WorldClips(settings), WorldClips(replace(settings, workers=1))
    for step in (0, 3):
        one, other = (data.draw(step, 0, 4, 2).latents_BTCHW for data in (alone, helped))
        assert one is not None and other is not None and torch.equal(one, other)
    assert alone.fingerprint == helped.fingerprint and helped._renderers is not None
    helped._renderers.close()


def test_windows_longer_than_clips_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 latents from clips of 6"):
        small_world().draw(0, 0, 1, 7)


@pytest.mark.parametrize("setting", ["clips", "opened", "latents", "kept"])
def test_a_world_without_clips_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{setting} must be a whole number of at least 1, got 0"):
        small_world(**{setting: 0})


def test_a_given_autoencoder_needs_no_renderers() -> None:
    torch.manual_seed(0)
    alone, asked = small_world(), small_world(workers=2)
    asked.autoencoder = alone.autoencoder
    one, other = (data.draw(0, 0, 2, 3).latents_BTCHW for data in (alone, asked))
    assert one is not None and other is not None and torch.equal(one, other)


# ---- folders of encoded clips


def clips_of(*shapes: tuple[int, ...]) -> list[Clip]:
    return [(torch.randn(shape), torch.randn(3, 8), f"clip {number}") for number, shape in enumerate(shapes)]


def open_folder(folder: Path, dropped: float = 0.0, seed: int = 0) -> LatentFolder:
    return LatentFolder(Latents(folder=str(folder), dropped=dropped), seed)


def test_latent_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    clips = [(torch.randn(5, 4, 2, 2), torch.randn(3, 8), f"clip {i}") for i in range(4)]
    fingerprint = write_latents(tmp_path, clips)
    data = LatentFolder(Latents(folder=str(tmp_path), dropped=0.0))
    assert data.fingerprint == fingerprint and data.latent == (4, 2, 2)
    batch = data.draw(0, 0, 6, 5)
    assert batch.latents_BTCHW is not None and batch.text_BLD is not None
    for latents, text, prompt in zip(batch.latents_BTCHW, batch.text_BLD, batch.prompts, strict=True):
        number = int(prompt.split()[1])
        assert torch.equal(latents, clips[number][0]) and torch.equal(text, clips[number][1])
    dropped = LatentFolder(Latents(folder=str(tmp_path), dropped=1.0)).draw(0, 0, 2, 3)
    assert dropped.text_BLD is not None and not dropped.text_BLD.any() and dropped.prompts == ("", "")
    assert write_latents(tmp_path / "other", clips[:3]) != fingerprint


def test_an_empty_latent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no encoded clips.*write_latents"):
        LatentFolder(Latents(folder=str(tmp_path)))


def write_old(folder: Path, clips: Sequence[Clip]) -> None:
    """A folder as it was written before data.json listed sizes."""
    for number, (latents, text, prompt) in enumerate(clips):
        save_file({"latents": latents, "text": text}, folder / f"clip-{number:06d}.safetensors", {"prompt": prompt})
    told = {"fingerprint": "0123456789abcdef", "clips": len(clips), "latent": list(clips[0][0].shape[1:])}
    (folder / "data.json").write_text(json.dumps(told) + "\n")


def test_an_old_folder_gives_the_same_draws(tmp_path: Path) -> None:
    clips = clips_of(*[(6, 4, 2, 2)] * 5)
    write_old(tmp_path, clips)
    data = open_folder(tmp_path, dropped=0.3, seed=4)
    assert data.fingerprint == "0123456789abcdef"
    batch, rng = data.draw(7, 2, 8, 3), np.random.default_rng([4, 7, 2])
    assert batch.latents_BTCHW is not None and batch.text_BLD is not None
    for window, text, prompt in zip(batch.latents_BTCHW, batch.text_BLD, batch.prompts, strict=True):
        latents, vectors, caption = clips[int(rng.integers(5))]
        at = int(rng.integers(4))
        keep = rng.random() >= 0.3
        assert torch.equal(window, latents[at : at + 3])
        assert torch.equal(text, vectors * keep) and prompt == (caption if keep else "")
    assert set(data.prompts(0, 0, 9).prompts) <= {f"clip {number}" for number in range(5)}


def test_a_draw_has_one_size(tmp_path: Path) -> None:
    write_latents(tmp_path, clips_of((4, 4, 2, 2), (4, 4, 2, 3), (4, 4, 2, 2), (4, 4, 3, 2)))
    index = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(index | {"sizes": [[4, 2, 2], [4, 2, 3], [4, 3, 2]]}))
    data, shapes = open_folder(tmp_path), set()
    for step in range(20):
        latents = data.draw(step, 0, 3, 2).latents_BTCHW
        assert latents is not None
        shapes.add(tuple(latents.shape))
    assert shapes == {(3, 2, 4, 2, 2), (3, 2, 4, 2, 3), (3, 2, 4, 3, 2)}


def test_texts_are_filled_up_with_zeros(tmp_path: Path) -> None:
    clips = clips_of((2, 4, 2, 2))
    write_latents(tmp_path, clips)
    index = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(index | {"text_length": 5}))
    text = open_folder(tmp_path).draw(0, 0, 1, 2).text_BLD
    assert text is not None and text.shape == (1, 5, 8)
    assert torch.equal(text[0, :3], clips[0][1]) and not text[0, 3:].any()


def break_clip(folder: Path, how: str) -> None:
    """Write twelve clips of which the last is not like the others."""
    last = {"other size": (20, 4, 2, 3), "short": (5, 4, 2, 2)}.get(how, (20, 4, 2, 2))
    clips = clips_of(*[(20, 4, 2, 2)] * 11, last)
    if how == "not finite":
        clips[-1][0][3, 0, 0, 0] = torch.nan
    write_latents(folder, clips)
    path = folder / "clip-000011.safetensors"
    if how == "cut off":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("how", "old"), [
    ("other size", False), ("not finite", False), ("cut off", False), ("short", False),
    ("other size", True), ("cut off", True), ("short", True)])
def test_a_bad_clip_is_named_before_the_first_step(how: str, old: bool, tmp_path: Path) -> None:
    break_clip(tmp_path, how)
    if old:
        index = json.loads((tmp_path / "data.json").read_text())
        (tmp_path / "data.json").write_text(json.dumps({k: index[k] for k in ("fingerprint", "clips", "latent")}))
    with pytest.raises(ConfigError, match="clip-000011"):
        open_folder(tmp_path).draw(0, 0, 1, 15)


def test_a_clip_that_is_not_finite_is_named_when_it_is_drawn(tmp_path: Path) -> None:
    latents, text, prompt = clips_of((2, 4, 2, 2))[0]
    write_old(tmp_path, [(latents / 0, text, prompt)])
    with pytest.raises(ConfigError, match="clip-000000.*not finite"):
        open_folder(tmp_path).draw(0, 0, 1, 2)


def test_a_clip_that_is_missing_is_told_of(tmp_path: Path) -> None:
    write_latents(tmp_path, clips_of(*[(2, 4, 2, 2)] * 3))
    (tmp_path / "clip-000001.safetensors").unlink()
    with pytest.raises(ConfigError, match="tells of 3, there are 2"):
        open_folder(tmp_path)


def test_a_damaged_index_is_told_of(tmp_path: Path) -> None:
    write_latents(tmp_path, clips_of((2, 4, 2, 2)))
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(ConfigError, match=r"data\.json is damaged"):
        open_folder(tmp_path)
