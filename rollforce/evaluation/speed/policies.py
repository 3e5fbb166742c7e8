"""What memory policies cost: each beside plain sink + window that attends to as many latents, or beside a dense window
of a longer context. Random weights; all in one run, one chunk of each in turn, so that what disturbs one disturbs all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

from rollforce.cache.head_groups import Labels
from rollforce.cache.policies import (
    AnyTier,
    Compressed,
    EmaSink,
    Junction,
    LinearMemory,
    Quantized,
    Routed,
    Segments,
    Sink,
    Spaced,
    Surprising,
    TempCache,
    Window,
)
from rollforce.cache.policies.kivi_codec import Bits
from rollforce.cache.positions import Anchored, AnyPositions, RunningAhead
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.settings import HeadSettings, LayoutSettings, StreamSettings
from rollforce.errors import ConfigError
from rollforce.evaluation.speed import clock, streaming
from rollforce.evaluation.speed.cases import Case, Setting
from rollforce.models.transformer.block_sparse import BlockSparse
from rollforce.models.transformer.hash_attention import HashAttention, HashTextAttention

Lap = tuple[float, float]  # seconds that passed, and those that this process had a processor: for busy machines
PLAIN, DENSE = "plain", "dense"
ALWAYS = ("sink", "junction")  # in view
SHORTEST = 8  # latents of the past with which every policy still has a sink, a window and what it adds
BITS: tuple[tuple[str, str, Bits], ...] = (
    ("kivi4", "4 bits", 4), ("kivi2", "2 bits", 2), ("int8", "8 bits", 8), ("fp8", "8-bit floats", "fp8"),
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """A stream that is measured beside another one (`against`). `name`: of its preset, where there is one."""

    name: str
    stream: StreamSettings
    against: str
    what: str


def policies(layout: LayoutSettings, past: int, times: int, labels: Path) -> list[Policy]:
    """Plain and dense memory, and all others beside them. `past`: latents that plain memory holds; `times`: so much
    longer is the dense one. `labels`: a file of head groups, `static` and `dynamic`. ConfigError if `past` is short."""
    if past < SHORTEST or times < 2:
        raise ConfigError(f"past {past} and times {times}: at least {SHORTEST} latents, and 2 times as many.")
    part, long = past // 4, past * times
    first, near = Sink(part), Window(past - 2 * part)  # and `part` of something else

    def beside(against: str, name: str, what: str, *tiers: AnyTier, sight: Visibility | None = None) -> Policy:
        stepping = Stepping(sight or Visibility(), sight or Visibility())
        return Policy(name, StreamSettings(layout, tiers, stepping), against, what)

    plain, dense = (Sink(part), Window(past - part)), (Sink(part), Window(long - part))
    block, buckets = BlockSparse(top=0.2, block=64), HashAttention(bits=3, chunk=64, layers=1.0)
    reach = Anchored(past + 2 * layout.chunk, {"sink": 0, "junction": part + 1})
    return [
        beside(PLAIN, PLAIN, "sink + window", *plain),
        beside(PLAIN, "absolute", "positions as they are", *plain, sight=Visibility(positions="absolute")),
        beside(PLAIN, "infinity_rope", "sink of 1", Sink(1), Window(past - 1)),
        beside(PLAIN, "reward_forcing", "EMA sink", Window(past - part), EmaSink(part)),
        beside(PLAIN, "knot_forcing", "reference ahead", *plain, sight=_sight(RunningAhead())),
        beside(PLAIN, "anchor_forcing", "three regions", first, near, Junction(part, every=past),
               sight=Visibility(pinned=ALWAYS, positions=reach)),
        beside(PLAIN, "deep_forcing", "most asked for", Sink(past // 2), Window(past - past // 2 - part),
               Compressed(part)),
        beside(PLAIN, "context_forcing", "what surprised", first, near, Surprising(part, tau=2.0, interval=1)),
        beside(PLAIN, "tempcache", "merged", first, near, TempCache(part)),
        beside(PLAIN, "longlive2", "first of so many", first, near, Junction(part, every=past),
               sight=Visibility(pinned=ALWAYS)),
        beside(PLAIN, "stream_t1", "what a search marked", Window(past - part), Routed(part, first=part)),
        beside(PLAIN, "spaced", "one in so many", first, near, Spaced(part, every=2)),
        beside(PLAIN, "annca", "part of the prompt", *plain, sight=Visibility(text=HashTextAttention(bits=3))),
        *(beside(PLAIN, name, what, first, Window(part), Quantized(past - 2 * part, bits))
          for name, what, bits in BITS),
        _grouped(beside(PLAIN, "forcing_kv", "head groups of equal length", *plain), labels, plain,
                 (first, near, Segments(part, segments=4))),
        beside(DENSE, DENSE, f"{times} x the context, all of it", *dense),
        beside(DENSE, "hybrid_forcing", "a fifth of the blocks", *dense, sight=Visibility(sparse=block)),
        beside(DENSE, "annsa", "buckets", *dense, sight=Visibility(sparse=buckets)),
        beside(DENSE, "linear_memory", "window and a state of the rest", *plain, LinearMemory()),
        beside(DENSE, "deep_forcing", "most asked for, of all", Sink(past // 2), Window(past - past // 2 - part),
               Compressed(part)),
        beside(DENSE, "tempcache", "merged, of all", first, near, TempCache(part)),
        beside(DENSE, "kivi4", "4 bits", first, Window(part), Quantized(long - 2 * part, 4)),
        _grouped(beside(DENSE, "forcing_kv", "heads that remember little, and more", *plain), labels,
                 (Sink(1), Window(1)), (first, near, Segments(part, segments=4))),
        _grouped(beside(DENSE, "duo_attention", "one head in three remembers all", *plain), labels, dense,
                 (Sink(1), Window(part))),
    ]  # fmt: skip


def _sight(positions: AnyPositions) -> Visibility:
    return Visibility(positions=positions)


def _grouped(policy: Policy, labels: Path, static: tuple[AnyTier, ...], dynamic: tuple[AnyTier, ...]) -> Policy:
    heads = HeadSettings(str(labels), {"static": static, "dynamic": dynamic})
    return replace(policy, stream=replace(policy.stream, cache=(), heads=heads))


def every_third(layers: int, heads: int) -> Labels:
    """Every third head is static: as many as in Forcing-KV's groups."""
    return (tuple("static" if head % 3 == 0 else "dynamic" for head in range(heads)),) * layers


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(found: Sequence[Policy], setting: Setting, rounds: int) -> Iterator[dict[str, Any]]:
    """A line for each policy: median seconds of a chunk, and the median and the middle half of its ratio to the policy
    it is measured against, chunk beside chunk."""
    model = streaming.random_model(setting, Case(PLAIN, found[0].stream))
    model.learn([tier for policy in found for tier in policy.stream.tiers])
    rollouts = [streaming.begin(model, setting, Case(policy.name, policy.stream), setting.ride) for policy in found]
    for policy, rollout in zip(found, rollouts, strict=True):
        for _ in range(steady(policy, rollout)):
            streaming.chunk(rollout)
    times: list[list[Lap]] = [[] for _ in found]
    for number in range(rounds):
        order = range(len(found)) if number % 2 == 0 else reversed(range(len(found)))
        for place in order:
            times[place].append(lap(rollouts[place], setting))
    base = {policy.name: place for place, policy in enumerate(found) if policy.name == policy.against}
    for place, policy in enumerate(found):
        yield told(policy, rollouts[place], times[place], times[base[policy.against]])


def lap(rollout: Rollout, setting: Setting) -> Lap:
    """Of the next chunk."""
    begun = process_time()
    passed = clock.seconds(lambda: streaming.chunk(rollout), setting.device)
    return passed, process_time() - begun


def steady(policy: Policy, rollout: Rollout) -> int:
    """Chunks until the memory is full."""
    return max(sum(tier.latents for tier in tiers) for tiers in policy.stream.memories) // rollout.layout.shift + 3


def told(policy: Policy, rollout: Rollout, times: Sequence[Lap], beside: Sequence[Lap]) -> dict[str, Any]:
    """The line of one policy; `beside`: the times of the one it is measured against, taken in the same rounds."""
    passed, busy = (sorted(one[kind] / other[kind] for one, other in zip(times, beside, strict=True))
                    for kind in (0, 1))  # fmt: skip
    seconds, ratio = statistics.median(one for one, _ in times), statistics.median(passed)
    low, high = (passed[round(share * (len(passed) - 1))] for share in (0.25, 0.75))
    return {
        "case": policy.name, "what": policy.what, "against": policy.against, "rounds": len(times),
        "bytes": rollout.cache.bytes, "mb": rollout.cache.bytes / 1e6, "seconds_per_chunk": seconds,
        "ratio": ratio, "ratio_low": low, "ratio_high": high, "spread": f"{low:.3f} to {high:.3f}",
        "cpu_ratio": statistics.median(busy), "speedup": 1 / ratio,
    }  # fmt: skip


COLUMNS: Mapping[str, str] = {
    "policy": "case", "what": "what", "against": "against", "s/chunk": "seconds_per_chunk", "time": "ratio",
    "middle half": "spread", "CPU time": "cpu_ratio", "faster": "speedup", "MB": "mb",
}  # fmt: skip
