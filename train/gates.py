"""Learns which heads of a model need the whole memory (DuoAttention): one gate per head, the model frozen.

    python train/gates.py tiny -o configs/heads/tiny_duo.json

Streams of the model's own layout run with a long window; every tick is compared with the same tick under gates.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

import rollforce
from rollforce.cache.head_groups import write_labels
from rollforce.cache.kv_cache import KVCache
from rollforce.cache.policies import Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout
from rollforce.errors import call_main
from rollforce.training.head_gates import DualCache, Gating, label_heads
from rollforce.video.duration import parse_duration

PROMPTS = ["a red ball rolls left", "a blue star drifts right over green hills",
           "a green square bounces over a city", "a yellow star circles above the sea"]  # fmt: skip


def main(
    model: str,
    out: Annotated[Path, typer.Option("--out", "-o", help="the JSON file")],
    steps: int = 120,
    lr: float = 0.02,
    weight: Annotated[float, typer.Option(help="of the mean gate in the loss; paper: 0.05")] = 0.02,
    window: Annotated[int, typer.Option(help="latents that a retrieval head remembers")] = 9,
    sink: Annotated[int, typer.Option(help="oldest latents that a streaming head remembers")] = 1,
    recent: Annotated[int, typer.Option(help="newest latents that a streaming head remembers")] = 2,
    share: Annotated[float, typer.Option(help="of heads that become retrieval heads")] = 0.25,
    seconds: Annotated[
        float, typer.Option(parser=parse_duration, metavar="TIME", help="after which a stream begins anew: 20, 20s, 1m")
    ] = 20.0,
    prompt: Annotated[list[str], typer.Option(help="may be given several times")] = PROMPTS,
    seed: int = 0,
) -> None:
    loaded = rollforce.load(model)
    config, grid, settings = loaded.transformer.config, loaded.grid(), loaded.stream_settings
    layout = settings.layout.build()
    flight = max(layout.slots, layout.shift)
    shape = config.shape(grid)
    stepping = replace(settings.stepping, denoise=Visibility(), commit=Visibility(), ride=False)
    gates = torch.ones(config.num_layers, config.num_attention_heads, device=loaded.device, requires_grad=True)
    adam = torch.optim.Adam([gates], lr=lr)
    length, number = round(seconds * loaded.fps / loaded.frames_per_latent), 0

    def begin() -> tuple[Gating, Rollout]:
        streaming = KVCache((Sink(sink), Window(recent)), shape, flight, loaded.dtype, loaded.device)
        cache = DualCache((Window(window),), streaming, shape, flight, loaded.dtype, loaded.device)
        gating = Gating(loaded.transformer, cache, gates)
        with torch.no_grad():
            text = loaded.text.encode([prompt[number % len(prompt)]]).to(loaded.device, loaded.dtype)
            condition = loaded.transformer.condition(text)
        noise = Noise.of(seed + number, (grid.channels, grid.height, grid.width))
        return gating, Rollout(gating, condition, cache, layout, noise, stepping, length=length)  # type: ignore[arg-type]

    def held(cache: KVCache) -> set[int]:
        return {index for indices in cache.held().values() for index in indices}

    gating, rollout = begin()
    for step in range(steps):
        if not rollout.admit():
            number += 1
            gating, rollout = begin()
            rollout.admit()
        distance = gating.tick(rollout)
        if held(gating.cache) == held(gating.cache.streaming):
            continue  # the beginning of a stream, where gates change nothing
        loss = distance + weight * gates.abs().mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        with torch.no_grad():
            gates.clamp_(0, 1)
        if step % 20 == 19:
            mean = float(gates.detach().mean())
            print(f"{step + 1:5d}  distance {float(distance.detach()):.5f}  mean gate {mean:.3f}", flush=True)
    labels, found = label_heads(gates.detach(), share), gates.detach().tolist()
    description = (
        f"{loaded.name}: gates of DuoAttention, {steps} steps at {lr:g}, weight {weight:g}, full window {window}, "
        f"streaming sink {sink} + window {recent}; the {share:.0%} of heads with the largest gates are retrieval heads"
    )
    write_labels(out, labels, description, gates=found)
    for layer, row in enumerate(found):
        print(f"layer {layer}: " + "  ".join(f"{gate:.2f}" for gate in row))


if __name__ == "__main__":
    call_main(partial(typer.run, main))
