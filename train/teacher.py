"""Train the teacher: a transformer and its text encoder, by flow matching.

    python train/teacher.py --recipe teacher_tiny --out runs/teacher
    torchrun --nproc-per-node 2 train/teacher.py --recipe teacher_tiny --out runs/teacher --resume auto

Some windows have one noise level (the bidirectional teacher that judges), others the rising levels of a rolling stream
(so that a student can start from it), some are single latents: `noising.shares` in the recipe. A step's batch comes in
`run.parts` parts, each a pure function of its number; processes share them out.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rollforce.config import build, resource, to_dict
from rollforce.engine import flow
from rollforce.engine.schedule import linear, shift_level
from rollforce.engine.settings import StreamSettings
from rollforce.training import checkpoint, losses, script
from rollforce.training.data import Batch, WorldClips, open_data, path_of
from rollforce.training.export import export
from rollforce.training.fsdp import prepare, restore, states
from rollforce.training.init_weights import start
from rollforce.training.metrics_log import Journal, border_ratio, networks_table
from rollforce.training.network import Network
from rollforce.training.noise_patterns import PATTERNS, Noising, rolling, together
from rollforce.training.optim import accelerator_of, follow, guard, optimisers, parts_of, set_rate, update
from rollforce.training.recipes import TeacherRecipe, World
from rollforce.video.contact_sheet import contact_sheet
from rollforce.world.caption import KINDS


def main() -> None:
    args = script.arguments(__doc__, "teacher_tiny")
    recipe = script.recipe_of(TeacherRecipe, args)
    run, newest = recipe.run, script.resumed(args)
    accelerator = accelerator_of(run, args.cpu)
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    torch.manual_seed(run.seed)

    # data, networks, optimisers
    data = open_data(recipe.data, run.seed)
    vocabulary = dict(KINDS) if isinstance(recipe.data, World) else None
    network = Network.load(path_of(recipe.start)) if recipe.start else Network.fresh(recipe.model, vocabulary)
    average = Network.load(path_of(recipe.start)) if recipe.start else Network.fresh(recipe.model, vocabulary)
    if not recipe.start:
        start(network.transformer)
        average.load_state_dict(network.state_dict())
    networks = {"network": network, "average": average}
    prepare(network, run, device, learns=True, text_learns=True)
    prepare(average, run, device, learns=False)
    if run.compile:
        network.transformer.compile_blocks(dynamic=False)
    made = optimisers(network, recipe.optimiser)
    step = 0
    if newest:
        state = checkpoint.load(newest, to_dict(recipe), data.fingerprint, device)
        restore(state, networks, made)
        step = state["step"]
    journal = Journal(args.out, accelerator.is_main_process)
    if accelerator.is_main_process:
        print(networks_table(networks, ("network",), processes if run.shard else 1))

    # training
    stream = build(StreamSettings, resource(f"configs/stream/{recipe.noising.stream}.yaml"))
    tokens = data.latent[1] * data.latent[2] // network.transformer.config.patch**2
    while step < run.steps:
        set_rate(made, recipe.optimiser.rate(step, run.steps))
        for part in parts_of(run, rank, processes):
            rng = np.random.default_rng([run.seed, step, part, 2])
            kind, noising = noising_of(recipe, stream, tokens, step, rng)
            batch = data.draw(step, part, *noising.sigma_BT.shape)
            with accelerator.autocast():
                loss = part_loss(network, batch, noising, seed=(run.seed * 1_000_003 + step) * 64 + part)
            (loss / run.parts).backward()
            guard(float(loss.detach()), f"the loss of part {part} ({kind})", step, args.out)
            journal.note(**{kind: float(loss.detach())})
        journal.note(norm=update(network, made, recipe.optimiser.clip, step, args.out))
        step += 1
        follow(average, network, recipe.average.keep, step - recipe.average.start)

        if step % run.tell_every == 0:
            journal.tell(step, rate=recipe.optimiser.rate(step, run.steps))
        if run.show_every and (step % run.show_every == 0 or step == run.steps):
            figures, picture = show(average, recipe, device)
            journal.tell(step, **figures)
            journal.picture(step, "samples", picture)
        if step % run.save_every == 0 or step == run.steps:
            state = states(networks, made)
            if accelerator.is_main_process:
                checkpoint.save(args.out, step, state, to_dict(recipe), data.fingerprint, run.keep)
            accelerator.wait_for_everyone()
    journal.close()
    if args.export:
        export(average, args.export, data, recipe.noising.stream, accelerator.is_main_process)
    accelerator.end_training()


def noising_of(
    recipe: TeacherRecipe, stream: StreamSettings, tokens: int, step: int, rng: np.random.Generator
) -> tuple[str, Noising]:
    """Draw the kind of a part's windows and their noise levels. `tokens`: per latent."""
    shares = {"image": 1.0} if step < recipe.noising.images_only else recipe.noising.shares
    total = sum(shares.values())
    kind = str(rng.choice(list(shares), p=[share / total for share in shares.values()]))
    if kind == "image":
        return kind, together(rng, recipe.noising.pictures, 1)
    if kind == "together":
        return kind, together(rng, recipe.videos, recipe.latents)
    return kind, rolling(rng, recipe.videos, PATTERNS[kind], stream.layout.chunk, tokens, stream.layout.ladder)


def part_loss(network: Network, batch: Batch, noising: Noising, seed: int) -> Tensor:
    """Velocity error of one part: a pure function of its arguments."""
    assert batch.latents_BTCHW is not None
    clean = batch.latents_BTCHW.to(network.device)
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    sigma, weight = noising.sigma_BT.to(clean), noising.weight_T.to(clean)
    mask = None if noising.mask is None else noising.mask.to(clean)
    index = torch.arange(clean.shape[1], device=clean.device)
    velocity = network.transformer(flow.noised(clean, eps, sigma), sigma, index, network.condition(batch), None, mask)
    return losses.velocity(velocity.float(), clean, eps, weight)


@torch.no_grad()
def show(average: Network, recipe: TeacherRecipe, device: torch.device) -> tuple[dict[str, float], np.ndarray]:
    """Velocity error on held-out clips at four noise levels, and Euler samples of held-out prompts with guidance."""
    assert isinstance(recipe.data, World), "samples are shown of the world only; set run.show_every=0"
    clips = WorldClips(recipe.data, held_out=True)
    batch, figures = clips.draw(0, 0, 16, recipe.latents), {}
    assert batch.latents_BTCHW is not None
    clean = batch.latents_BTCHW.to(device)
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)).to(device)
    index, condition = torch.arange(recipe.latents, device=device), average.condition(batch)
    for level in (0.3, 0.5, 0.7, 0.9):
        sigma = torch.full(clean.shape[:2], level, device=device)
        velocity = average.transformer(flow.noised(clean, eps, sigma), sigma, index, condition)
        figures[f"val {level}"] = float(losses.velocity(velocity, clean, eps))
    figures["val"] = sum(figures.values()) / 4

    prompts = clips.full_captions(8)
    x = torch.randn(8, recipe.latents, *clips.latent, generator=torch.Generator().manual_seed(3)).to(device)
    wished, free = (average.condition(Batch(None, tuple(p))) for p in (prompts, [""] * 8))
    for now, later in pairwise([*(shift_level(s, recipe.noising.shift) for s in linear(12)), 0.0]):
        sigma = torch.full(x.shape[:2], now, device=device)
        base = average.transformer(x, sigma, index, free)
        velocity = base + recipe.scale * (average.transformer(x, sigma, index, wished) - base)
        x = flow.euler(x, velocity, sigma, torch.full_like(sigma, later))
    frames = clips.autoencoder(x.cpu()).clamp(0, 1)
    figures["border"] = border_ratio(frames, clips.autoencoder.config.frames)
    pictures = [(f * 255).round().byte().numpy() for f in frames]
    return figures, contact_sheet(pictures, list(range(1, 4 * recipe.latents - 1, 6)), prompts, zoom=2)


if __name__ == "__main__":
    script.run(main)
