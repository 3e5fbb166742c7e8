"""What a case would take, without running it: operations per chunk and bytes, from sizes and what its calls see."""

from __future__ import annotations

from itertools import islice

from rollforce.engine.budget.model_sizes import ModelSizes, WanDecoding
from rollforce.engine.budget.requirements import MemoryPart, MemorySetup, parts
from rollforce.engine.dry_run import trace
from rollforce.evaluation.speed.cases import Case, Setting
from rollforce.models.geometry import KVShape


def count_operations(case: Case, setting: Setting) -> dict[str, int]:
    """Return the operations of the linear layers and attention calls of one chunk, once the memory is full."""
    config, layout = setting.config, case.stream.layout.build()
    width, tokens = config.width, setting.grid.tokens_per_latent
    calls = _calls(case)
    latents = sum(own for own, _ in calls)
    block = 6 * width**2 + 2 * width * config.ffn_dim  # keys and values of the text are there already
    ends = width * config.out_channels * config.patch**2
    time = width * (config.freq_dim + 7 * width)
    pairs = sum(own * seen for own, seen in calls) * tokens**2 + latents * tokens * setting.text
    assert latents == layout.slots * layout.ticks + layout.shift
    return {
        "linear": 2 * (latents * tokens * (config.num_layers * block + ends) + latents * time),
        "attention": 4 * pairs * width * config.num_layers,
    }


def estimate_memory(case: Case, setting: Setting) -> tuple[MemoryPart, ...]:
    """Return the bytes of every part; no text encoder, for texts are random too."""
    sizes = ModelSizes(case.name, setting.config, WanDecoding(), 0, setting.text, case.name)
    return parts(
        MemorySetup(sizes, case.stream, setting.size, setting.dtype, setting.device, quantize=setting.quantize)
    )


def _calls(case: Case) -> list[tuple[int, int]]:
    """Return (own latents, latents seen with them) of a chunk's attention groups, once the memory is full."""
    layout, capacity = case.stream.layout.build(), sum(tier.latents for tier in case.stream.cache)
    chunks = capacity // layout.shift + layout.slots // layout.shift + 2
    calls = list(islice(trace(case.stream, KVShape(1, 1, 1, 1, 2)), chunks * layout.ticks))[-layout.ticks :]
    return [(len(look.sigma), look.attended) for call in calls for look in call.looks]
