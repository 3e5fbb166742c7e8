"""The papers' presets against traces written out by hand: noise levels, what each call sees, and where it stands.

A trace is what the released code does, from its description (research notes on CausVid, Self Forcing, LongLive and
Rolling Forcing), not what our tiers compute: `"0-2@12 15-32"` reads "latents 0 to 2, standing at 12 to 14, then 15 to
32 at their own places". The real Rollout and KVCache are walked with a stand-in for the transformer, which reads the
latent from each value and the place from the rotation of each key.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from traces import noise, settings_of, spans, walk

from rollforce.config import resource
from rollforce.engine import schedule

PRESETS = ("causal_forcing", "causvid", "longlive", "rolling_forcing", "self_forcing")


# -- ladders ----------------------------------------------------------------------------------------------------------

LADDERS = {
    "self_forcing": [1, 0.9375, 0.8333333, 0.625],  # 1000, 750, 500, 250 at shift 5
    "causal_forcing": [1, 0.9375, 0.8333333, 0.625],
    "longlive": [1, 0.9375, 0.8333333, 0.625],
    "causvid": [1, 0.757, 0.522],  # as listed; nothing is shifted
    "rolling_forcing": [1, 0.952381, 0.8823529, 0.7692308, 0.5555556],  # 1000, 800, 600, 400, 200 at shift 5
}


@pytest.mark.parametrize("name", PRESETS)
def test_ladders(name: str) -> None:
    settings = settings_of(name)
    assert settings.layout.ladder == pytest.approx(LADDERS[name], abs=1e-6)
    assert settings.layout.chunk == 3
    stepping = settings.stepping
    assert stepping.sampler == "renoise"  # fresh noise at each step, not Euler
    assert stepping.context_sigma == 0 and stepping.context_noise == 0  # released inference adds no noise to the past
    assert not settings.float32_islands  # all of them were trained and released in bfloat16 throughout


def test_the_list_of_causvid_is_one_of_shift_8() -> None:
    """Its code noises at the nearest entry of the table of 1000 levels at shift 8: within .0003 of the list."""
    table = [schedule.shift_level(1 - i / 1000, 8) for i in range(1000)]
    for level in settings_of("causvid").layout.ladder:
        assert min(abs(level - entry) for entry in table) < 3e-4
    warped = schedule.warped([1, 0.75, 0.5, 0.25], 8)  # the variant that the preset's comment names
    assert warped == pytest.approx([1, 0.96, 0.8888889, 0.7272727], abs=1e-6)


# -- one chunk at a time ----------------------------------------------------------------------------------------------

# Chunk b holds latents 3b to 3b + 2. Its denoising calls and its clean pass see the same: a cache of 21 latents with
# the chunk in work among them, keys where they were written.
TWENTY_ONE = """
    0-2
    0-5
    0-8
    0-11
    0-14
    0-17
    0-20
    3-23
    6-26
    9-29
    12-32
    15-35
    18-38
    21-41
    24-44
    27-47
""".strip().split("\n")

# LongLive: a cache of 12 latents, the first 3 never let go, the newest 9 with the chunk in work among them.
TWELVE = """
    0-2
    0-5
    0-8
    0-11
    0-2 6-14
    0-2 9-17
    0-2 12-20
    0-2 15-23
    0-2 18-26
    0-2 21-29
    0-2 24-32
    0-2 27-35
    0-2 30-38
    0-2 33-41
    0-2 36-44
    0-2 39-47
""".strip().split("\n")

CHUNKWISE = {"self_forcing": TWENTY_ONE, "causal_forcing": TWENTY_ONE, "causvid": TWENTY_ONE, "longlive": TWELVE}


@pytest.mark.parametrize("name", CHUNKWISE)
def test_one_chunk_at_a_time(name: str) -> None:
    trace, ladder = CHUNKWISE[name], LADDERS[name]
    model, _ = walk(name, len(trace))
    steps = len(ladder)
    assert len(model.denoised) == steps * len(trace) + 1 and len(model.committed) == len(trace)
    for number, line in enumerate(trace):
        for level, call in zip(ladder, model.denoised[steps * number : steps * (number + 1)], strict=True):
            assert call.start == 3 * number
            assert call.sigma == pytest.approx([level] * 3, abs=1e-6)
            assert call.seen == spans(line), f"denoising chunk {number}"
        commit = model.committed[number]
        assert (commit.start, commit.sigma) == (3 * number, (0.0, 0.0, 0.0))
        assert commit.seen == spans(line), f"clean pass of chunk {number}"


# -- Rolling Forcing --------------------------------------------------------------------------------------------------

# Window w of 14 chunks holds chunks max(0, w - 4) to min(13, w): five of them at five levels, fewer at both ends. Seen:
# the first chunk glued before the newest past, of the past what 21 latents leave room for, and the window itself.
WINDOWS = """
    0-2
    0-5
    0-8
    0-11
    0-14
    0-2@0 3-17
    0-2@0 3-20
    0-2@3 6-23
    0-2@6 9-26
    0-2@9 12-29
    0-2@12 15-32
    0-2@15 18-35
    0-2@18 21-38
    0-2@21 24-41
    0-2@21 24-41
    0-2@21 24-41
    0-2@21 24-41
    0-2@21 24-41
""".strip().split("\n")

# The clean pass of chunk b sees the newest 21 latents with itself among them, the first chunk as any other.
CLEAN_PASSES = TWENTY_ONE[:14]

# Noise levels of the chunks in a window, cleanest first.
LEVELS = [0.5555556, 0.7692308, 0.8823529, 0.952381, 1.0]


def test_rolling_forcing() -> None:
    model, clean = walk("rolling_forcing", chunks=14, length=42)
    assert len(clean) == 42 and len(model.denoised) == len(WINDOWS) == 14 + 5 - 1
    for number, (call, line) in enumerate(zip(model.denoised, WINDOWS, strict=True)):
        first, last = max(0, number - 4), min(13, number)
        levels = LEVELS[first - number + 4 : last - number + 5]
        assert call.start == 3 * first
        assert call.sigma == pytest.approx([level for level in levels for _ in range(3)], abs=1e-6), f"window {number}"
        assert call.seen == spans(line), f"window {number}"
    assert [call.start for call in model.committed] == list(range(0, 39, 3))  # the last chunk is nobody's past
    for number, call in enumerate(model.committed):
        assert call.sigma == (0.0, 0.0, 0.0)
        assert call.seen == spans(CLEAN_PASSES[number]), f"clean pass of chunk {number}"


def test_the_steady_window_of_rolling_forcing_stays_in_the_places_of_training() -> None:
    model, _ = walk("rolling_forcing", chunks=30)
    for call in model.denoised[6:]:
        first = call.start
        relative = {latent: place - first for latent, place in call.seen.items()}
        assert relative == {latent: latent - 6 for latent in range(3)} | {first + i: i for i in range(-3, 15)}


# -- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_is_what_was_handed_out(name: str) -> None:
    """Clean latents enter memory as they are: no context noise."""
    model, clean = walk(name, chunks=8)
    for call in model.committed:
        for i in range(3):
            assert torch.equal(call.x[:, i], clean[call.start + i])


@pytest.mark.parametrize("name", PRESETS)
def test_a_step_is_a_clean_estimate_noised_anew(name: str) -> None:
    """x' = (1 - s') (x - s v) + s' e, with e drawn for this latent and this step."""
    model, clean = walk(name, chunks=7)
    lives: dict[int, list[tuple[float, Tensor, Tensor]]] = {}
    for call in model.denoised:
        for i, sigma in enumerate(call.sigma):
            lives.setdefault(call.start + i, []).append((sigma, call.x[:, i], call.velocity[:, i]))
    for latent, finished in clean.items():
        life = lives[latent]
        assert [sigma for sigma, _, _ in life] == pytest.approx(LADDERS[name], abs=1e-6)
        expected = noise(latent, 0)
        for step, (sigma, x, velocity) in enumerate(life, start=1):
            torch.testing.assert_close(x, expected)
            estimate = x - sigma * velocity
            level = [*LADDERS[name], 0][step]
            expected = (1 - level) * estimate + level * noise(latent, step)
        torch.testing.assert_close(finished, estimate)


@pytest.mark.parametrize("name", PRESETS)
def test_memory_is_bounded_and_its_file_short(name: str) -> None:
    path = resource(f"configs/stream/{name}.yaml")
    text = path.read_text()
    assert len(text.splitlines()) <= 25 and text.startswith("# ") and "arXiv" in text
    in_view = {"longlive": 12}.get(name, 21)
    model, _ = walk(name, chunks=30)
    assert max(len(call.seen) for call in [*model.denoised, *model.committed]) == in_view
