"""What memory policies cost: each beside plain sink + window that attends to as many latents, or beside a dense window
of a longer context. Random weights; one chunk of each in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, cast

import numpy as np

from rollforce.cache.head_groups import Labels
from rollforce.cache.policies import AnyTier, LinearMemory, Sink, Window
from rollforce.cache.visibility import Anchored, Visibility
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.settings import HeadSettings, LayoutSettings, StreamSettings
from rollforce.errors import ConfigError
from rollforce.evaluation.speed import clock, streaming
from rollforce.evaluation.speed.cases import Case, Setting

ChunkTiming = tuple[float, float]  # seconds that passed, and those that this process had a processor: for busy machines
PLAIN, DENSE = "plain", "dense"
SHORTEST = 8  # latents of the past with which every policy still has a sink, a window and what it adds
BITS = {"kivi4": "4 bits", "kivi2": "2 bits", "int8": "8 bits", "fp8": "8-bit floats"}
FILLING: dict[str, dict[str, Any]] = {  # so that tiers are full whatever random weights make of a stream
    "surprising": {"tau": 2.0, "interval": 1}, "spaced": {"every": 2},
}  # fmt: skip
SPARSE: dict[str, dict[str, Any]] = {  # for latents of more tokens than the bundled model's
    "block_sparse": {"block": 64}, "buckets": {"bits": 3, "reach": 1.0, "chunk": 64, "layers": 1.0},
}  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """A stream that is measured beside another one (`against`). `name`: of its preset, where there is one."""

    name: str
    stream: StreamSettings
    against: str
    what: str


def policies(layout: LayoutSettings, past: int, times: int, labels: Path) -> list[Policy]:
    """Return plain memory of `past` latents, dense memory `times` as long, and the presets beside them, resized.
    `labels` is a file of head groups, `static` and `dynamic`. ConfigError if `past` is short."""
    if past < SHORTEST or times < 2:
        raise ConfigError(f"past {past} and times {times}: at least {SHORTEST} latents, and 2 times as many.")
    part, long = past // 4, past * times
    near, half, rest = past - 2 * part, past // 2, past - past // 2 - part  # and `part` of something else

    def plain(latents: int, *more: AnyTier, sight: Visibility | None = None) -> StreamSettings:
        sight = sight or Visibility()
        return StreamSettings(layout, (Sink(part), Window(latents - part), *more), Stepping(sight, sight))

    def preset(against: str, name: str, what: str, *sizes: tuple[int, ...]) -> Policy:
        return Policy(name, resize(name, layout, past, sizes, labels), against, what)

    return [Policy(PLAIN, plain(past), PLAIN, "sink + window"),
            Policy("absolute", plain(past, sight=Visibility(positions="absolute")), PLAIN, "positions as they are"),
            preset(PLAIN, "infinity_rope", "sink of 1", (1, past - 1)),
            preset(PLAIN, "reward_forcing", "EMA sink", (past - part, part)),
            preset(PLAIN, "knot_forcing", "reference ahead", (part, past - part)),
            preset(PLAIN, "anchor_forcing", "three regions", (part, near, part)),
            preset(PLAIN, "deep_forcing", "most asked for", (half, rest, part)),
            preset(PLAIN, "context_forcing", "what surprised", (part, near, part)),
            preset(PLAIN, "tempcache", "merged", (past - part, part)),
            preset(PLAIN, "longlive2", "first of so many", (part, near, part)),
            preset(PLAIN, "stream_t1", "what a search marked", (past - part, part)),
            preset(PLAIN, "spaced", "one in so many", (past - part, part)),
            preset(PLAIN, "annca", "part of the prompt", (past,)),
            *(preset(PLAIN, name, what, (2 * part, near)) for name, what in BITS.items()),
            preset(PLAIN, "forcing_kv", "head groups of equal length", (part, past - part), (part, near, part)),
            Policy(DENSE, plain(long), DENSE, f"{times} x the context, all of it"),
            preset(DENSE, "hybrid_forcing", "a fifth of the blocks", (part, long - part)),
            preset(DENSE, "annsa", "buckets", (long,)),
            Policy("linear_memory", plain(past, LinearMemory()), DENSE, "window and a state of the rest"),
            preset(DENSE, "deep_forcing", "most asked for, of all", (half, rest, part)),
            preset(DENSE, "tempcache", "merged, of all", (past - part, part)),
            preset(DENSE, "kivi4", "4 bits", (2 * part, long - 2 * part)),
            preset(DENSE, "forcing_kv", "heads that remember little, and more", (1, 1), (part, near, part)),
            preset(DENSE, "duo_attention", "one head in three remembers all", (long,), (1, part))]  # fmt: skip


def resize(name: str, layout: LayoutSettings, past: int, sizes: Sequence[Sequence[int]],
           labels: Path) -> StreamSettings:  # fmt: skip
    """Return a preset in another layout, with `sizes` latents in its tiers (those of each group of heads; tiers beyond
    them are left out), so that all of them are full when it is measured."""
    from rollforce.checkpoints.catalog import preset_file  # needs omegaconf, which other benchmarks do without
    from rollforce.config import build

    stream = build(StreamSettings, preset_file(name))
    filling = FILLING | {"junction": {"every": past}, "routed": {"first": sizes[0][-1]}}
    tiers = [tuple(replace(cast(Any, tier), latents=latents, **filling.get(tier.kind, {}))
                   for tier, latents in zip(memory, each, strict=False))
             for memory, each in zip(stream.memories, sizes, strict=True)]  # fmt: skip
    denoise, commit = (_resize_sight(sight, past + 2 * layout.chunk)
                       for sight in (stream.stepping.denoise, stream.stepping.commit))  # fmt: skip
    stream = replace(stream, layout=layout, stepping=Stepping(denoise, commit))
    if stream.heads is None:
        return replace(stream, cache=tiers[0])
    names = ("dynamic" if group in ("dynamic", "retrieval") else "static" for group in stream.heads.groups)
    return replace(stream, heads=HeadSettings(str(labels), dict(zip(names, tiers, strict=True))))


def _resize_sight(sight: Visibility, reach: int) -> Visibility:
    sparse = sight.sparse and replace(sight.sparse, **SPARSE[sight.sparse.kind])
    at = sight.positions
    return replace(sight, sparse=sparse, positions=replace(at, reach=reach) if isinstance(at, Anchored) else at)


def label_every_third(layers: int, heads: int) -> Labels:
    """Return labels of which every third head is static: as many as in Forcing-KV's groups."""
    return (tuple("static" if head % 3 == 0 else "dynamic" for head in range(heads)),) * layers


# -- measuring ---------------------------------------------------------------------------------------------------------

def measure(found: Sequence[Policy], setting: Setting, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each policy: median seconds of a chunk, and the median and the middle half of its ratio to the
    policy it is measured against, chunk beside chunk."""
    model = streaming.random_model(setting, Case(PLAIN, found[0].stream))
    model.learn([tier for policy in found for tier in policy.stream.tiers])
    rollouts = [streaming.begin_rollout(model, setting, Case(policy.name, policy.stream), setting.ride)
                for policy in found]  # fmt: skip
    for policy, rollout in zip(found, rollouts, strict=True):
        for _ in range(chunks_until_full(policy, rollout)):
            streaming.next_chunk(rollout)
    times: list[list[ChunkTiming]] = [[] for _ in found]
    for number in range(rounds):
        for place in range(len(found))[:: -1 if number % 2 else 1]:
            begun = process_time()
            passed = clock.time_call(partial(streaming.next_chunk, rollouts[place]), setting.device)
            times[place].append((passed, process_time() - begun))
    base = {policy.name: taken for policy, taken in zip(found, times, strict=True) if policy.name == policy.against}
    for policy, rollout, taken in zip(found, rollouts, times, strict=True):
        yield describe_result(policy, rollout, taken, base[policy.against])


def chunks_until_full(policy: Policy, rollout: Rollout) -> int:
    """Return the number of chunks until the memory is full."""
    return max(sum(tier.latents for tier in tiers) for tiers in policy.stream.memories) // rollout.layout.shift + 3


def describe_result(policy: Policy, rollout: Rollout, times: Sequence[ChunkTiming],
                    beside: Sequence[ChunkTiming]) -> dict[str, Any]:  # fmt: skip
    """Return the row of one policy; `beside`: times of the one it is measured against, of the same rounds."""
    passed, busy = np.sort(np.divide(times, beside), axis=0).T.tolist()
    seconds, ratio = statistics.median(one for one, _ in times), statistics.median(passed)
    low, high = (passed[round(share * (len(passed) - 1))] for share in (0.25, 0.75))
    return {"case": policy.name, "what": policy.what, "against": policy.against, "rounds": len(times),
            "bytes": rollout.cache.bytes, "mb": rollout.cache.bytes / 1e6, "seconds_per_chunk": seconds, "ratio": ratio,
            "ratio_low": low, "ratio_high": high, "spread": f"{low:.3f} to {high:.3f}",
            "cpu_ratio": statistics.median(busy), "speedup": 1 / ratio}  # fmt: skip


COLUMNS: Mapping[str, str] = {"policy": "case", "what": "what", "against": "against", "s/chunk": "seconds_per_chunk",
                              "time": "ratio", "middle half": "spread", "CPU time": "cpu_ratio", "faster": "speedup",
                              "MB": "mb"}  # fmt: skip
