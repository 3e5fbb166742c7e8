"""Train the teacher: a transformer and its text encoder, by flow matching.

    python train/teacher.py --recipe teacher_tiny --out runs/teacher
    torchrun --nproc-per-node 2 train/teacher.py --recipe teacher_tiny --out runs/teacher --resume auto

Some windows have one noise level (the bidirectional teacher that judges), others the rising levels of a rolling stream
(so that a student can start from it), some are single latents: `noising.shares` in the recipe. A step's batch comes in
`run.parts` parts, each a pure function of its number; processes share them out.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rollforce.checkpoints.catalog import preset_file
from rollforce.config import build
from rollforce.engine import flow
from rollforce.engine.settings import StreamSettings
from rollforce.training import losses
from rollforce.training.data import TrainingBatch, WorldClips, open_data, path_of
from rollforce.training.network import Network, border_ratio, initialise, sample
from rollforce.training.noise_patterns import PATTERNS, NoisePattern, draw_level_per_video, draw_rolling
from rollforce.training.optim import build_optimisers, update_average
from rollforce.training.recipes import TeacherRecipe, World
from rollforce.training.run import Run, call_main
from rollforce.video.contact_sheet import contact_sheet
from rollforce.world.caption import KINDS


def main() -> None:
    run = Run(TeacherRecipe, __doc__, "teacher_tiny")
    recipe, seed = run.recipe, run.settings.seed

    # data, networks, optimisers
    data = open_data(recipe.data, seed)
    vocabulary = dict(KINDS) if isinstance(recipe.data, World) else None
    network, average = (
        Network.load(path_of(recipe.start)) if recipe.start else Network.create(recipe.model, vocabulary)
        for _ in range(2))
    if not recipe.start:
        initialise(network.transformer)
        average.load_state_dict(network.state_dict())
    networks = {"network": network, "average": average}
    run.prepare(networks, data, learn=("network",), text_learns=True)
    if run.settings.compile:
        network.transformer.compile_blocks(dynamic=False)
    made = build_optimisers(network, recipe.optimiser)
    run.resume(networks, made, data.fingerprint)

    # training
    stream = build(StreamSettings, preset_file(recipe.noising.stream))
    tokens = network.tokens_per_latent(data.latent)
    world = replace(recipe.data, workers=0, kept=16) if isinstance(recipe.data, World) else None
    clips = WorldClips(world, held_out=True) if world and run.settings.show_every else None
    for step in run.steps():
        for part in run.parts:
            rng = np.random.default_rng([seed, step, part, 2])
            kind, pattern = draw_pattern(recipe, stream, tokens, step, rng)
            batch = data.draw(step, part, *pattern.sigma_BT.shape)
            with run.autocast():
                loss = part_loss(network, batch, pattern, seed=(seed * 1_000_003 + step) * 64 + part)
            run.backward(loss, kind, part)
        norm = run.update(network, made, recipe.optimiser, step)
        run.metrics.add(norm=norm)
        update_average(average, network, recipe.average.keep, step + 1 - recipe.average.start)
        run.finish_step(partial(validate, average, recipe, clips) if clips else None,
                        rate=recipe.optimiser.rate(step + 1, run.settings.steps))
    run.export(average, data, recipe.noising.stream)
    run.close()


def draw_pattern(
    recipe: TeacherRecipe, stream: StreamSettings, tokens: int, step: int, rng: np.random.Generator
) -> tuple[str, NoisePattern]:
    """Draw the kind of a part's windows and their noise levels. `tokens`: per latent."""
    shares = {"image": 1.0} if step < recipe.noising.images_only else recipe.noising.shares
    total = sum(shares.values())
    kind = str(rng.choice(list(shares), p=[share / total for share in shares.values()]))
    if kind == "image":
        return kind, draw_level_per_video(rng, recipe.noising.pictures, 1)
    if kind == "together":
        return kind, draw_level_per_video(rng, recipe.videos, recipe.latents)
    return kind, draw_rolling(rng, recipe.videos, PATTERNS[kind], stream.layout.chunk, tokens, stream.layout.ladder)


def part_loss(network: Network, batch: TrainingBatch, pattern: NoisePattern, seed: int) -> Tensor:
    """Velocity error of one part: a pure function of its arguments."""
    clean = network.clean_latents(batch)
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    sigma, weight = pattern.sigma_BT.to(clean), pattern.weight_T.to(clean)
    mask = None if pattern.mask is None else pattern.mask.to(clean)
    index = torch.arange(clean.shape[1], device=clean.device)
    velocity = network.transformer(flow.noised(clean, eps, sigma), sigma, index, network.condition(batch), None, mask)
    return losses.velocity(velocity.float(), clean, eps, weight)


@torch.no_grad()
def validate(average: Network, recipe: TeacherRecipe, clips: WorldClips) -> tuple[dict[str, float], np.ndarray]:
    """Velocity error on held-out clips at four noise levels, and Euler samples of held-out prompts with guidance."""
    batch, device = clips.draw(0, 0, 16, recipe.latents), average.device
    clean, figures = average.clean_latents(batch), {}
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)).to(device)
    index, condition = torch.arange(recipe.latents, device=device), average.condition(batch)
    for level in (0.3, 0.5, 0.7, 0.9):
        sigma = torch.full(clean.shape[:2], level, device=device)
        velocity = average.transformer(flow.noised(clean, eps, sigma), sigma, index, condition)
        figures[f"val {level}"] = float(losses.velocity(velocity, clean, eps))
    figures["val"] = sum(figures.values()) / 4

    prompts = clips.full_captions(8)
    noise = torch.randn(8, recipe.latents, *clips.latent, generator=torch.Generator().manual_seed(3)).to(device)
    made = sample(average, noise, prompts, recipe.scale, steps=12, shift=recipe.noising.shift)
    frames = clips.autoencoder(made.cpu()).clamp(0, 1)
    figures["border"] = border_ratio(frames, clips.autoencoder.config.frames)
    pictures = [(f * 255).round().byte().numpy() for f in frames]
    return figures, contact_sheet(pictures, list(range(1, 4 * recipe.latents - 1, 6)), prompts, zoom=2)


if __name__ == "__main__":
    call_main(main)
