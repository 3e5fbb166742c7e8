"""A causal student before any self-rollout: what it starts from when train/distill.py begins.

    python train/causal.py --recipe causal_tiny --out runs/causal method=diffusion_forcing
    python train/causal.py --recipe causal_tiny --out runs/ode method=ode history=true --export runs/ode/final

    diffusion_forcing   flow matching; the past is as noisy as it happens to be (CausVid, Diffusion Forcing)
    teacher_forcing     flow matching; the past is the true one (the causal teacher of Causal Forcing)
    ode                 the student names the end of the guided teacher's path (CausVid, Self Forcing, Causal Forcing)
    consistency         the same without stored paths (Causal Forcing)
    partitions          StreamDiT's mixed training: one network for many ways to cut the buffer
    segments            StreamDiT's distillation: one step for the teacher's `micro` guided steps through a segment
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rollforce.engine import flow
from rollforce.engine.flow import linear, warped
from rollforce.engine.settings import LayoutSettings
from rollforce.models.transformer.transformer import Condition
from rollforce.training import losses, ode, streamdit
from rollforce.training.causal_masking import (
    add_past_noise,
    flow_matching,
    noise_like,
    own_past,
    score_of_velocity,
    true_past,
)
from rollforce.training.data import Data, TrainingBatch, open_data, path_of
from rollforce.training.export import changes_for
from rollforce.training.losses import Score, guide, score_of
from rollforce.training.network import Network
from rollforce.training.optim import build_optimisers, update_average
from rollforce.training.recipes import CausalRecipe
from rollforce.training.run import Run, call_main


def main() -> None:
    run = Run(CausalRecipe, __doc__, "causal_tiny")
    recipe, seed = run.recipe, run.settings.seed
    data = open_data(recipe.data, seed)
    teacher, student, average = (
        Network.load(path_of(folder or recipe.teacher)) for folder in (recipe.teacher, recipe.start, recipe.start))
    networks = {"teacher": teacher, "student": student, "average": average}
    run.prepare(networks, data, learn=("student",))
    made = build_optimisers(student, recipe.optimiser)
    run.resume({"student": student, "average": average}, made, data.fingerprint)

    for step in run.steps():
        for part in run.parts:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + part)
            with run.autocast():
                if recipe.method == "ode":
                    pairs, batch = solve_pairs(recipe, networks, data, step, part, run.out)
                    loss = ode_loss(recipe, networks, pairs, batch, generator)
                else:
                    batch = data.draw(step, part, recipe.videos, window_length(recipe))
                    loss = LOSSES[recipe.method](recipe, networks, batch, generator)
            run.backward(loss, recipe.method, part)
        norm = run.update(student, made, recipe.optimiser, step)
        run.metrics.add(norm=norm)
        update_average(average, student, recipe.average.keep, step + 1 - recipe.average.start)
        run.finish_step()
    stream, layout = trained_layout(recipe)
    run.export(average, data, stream, changes_for(stream, layout))
    run.close()


def trained_layout(recipe: CausalRecipe) -> tuple[str, LayoutSettings]:
    """The preset that is nearest to how the student was trained to stream, and the layout it was trained with."""
    if recipe.method not in ("partitions", "segments"):
        return "chunkwise", LayoutSettings("chunkwise", recipe.chunk, recipe.levels, recipe.shift)
    part = streamdit.Partition(*recipe.mix[0])
    if recipe.method == "partitions":
        return "streamdit", LayoutSettings("partitioned", part.chunk, linear(part.steps), recipe.shift, part.micro)
    return "streamdit", LayoutSettings("partitioned", part.chunk, linear(part.chunks), recipe.shift)  # a step a segment


def window_length(recipe: CausalRecipe) -> int:
    """Latents per window."""
    if recipe.method in ("partitions", "segments"):
        return max(chunk * chunks for chunk, _, chunks in recipe.mix)
    return recipe.latents


# ---- the teacher's opinion


def conditions(network: Network, batch: TrainingBatch) -> tuple[Condition, Condition]:
    """With the wish and without, for guidance."""
    text = network.vectors(batch)
    return network.transformer.condition(text), network.transformer.condition(network.empty_vectors(text))


@torch.no_grad()
def guided_teacher(recipe: CausalRecipe, teacher: Network, batch: TrainingBatch, past: Tensor | None) -> Score:
    """The guided teacher's score: of the whole video, or of each chunk after the true past."""
    wished, free = (
        score_of(teacher.transformer, c) if past is None else seeing(recipe, teacher, c, past)
        for c in conditions(teacher, batch)
    )
    return guide(wished, free, recipe.scale)


def seeing(recipe: CausalRecipe, network: Network, condition: Condition, past: Tensor) -> Score:
    """The score of a network in which each chunk sees itself and the true chunks before it."""
    return score_of_velocity(
        true_past(network.transformer, condition, past, recipe.chunk, network.tokens_per_latent(past.shape))
    )


# ---- losses of one part: functions of the batch, the generator and the weights

Networks = dict[str, Network]


def forcing_loss(recipe: CausalRecipe, networks: Networks, batch: TrainingBatch, generator: torch.Generator) -> Tensor:
    student, clean = networks["student"], networks["student"].clean_latents(batch)
    condition, tokens = student.condition(batch), student.tokens_per_latent(clean.shape)
    if recipe.method == "diffusion_forcing":
        velocity = own_past(student.transformer, condition, recipe.chunk, tokens)
    else:
        past, sigma = add_past_noise(clean, recipe.aug, recipe.chunk, generator) if recipe.aug else (clean, None)
        velocity = true_past(student.transformer, condition, past, recipe.chunk, tokens, sigma)
    return flow_matching(velocity, clean, recipe.chunk, generator, recipe.shift, recipe.weighted)


def consistency_loss(
    recipe: CausalRecipe, networks: Networks, batch: TrainingBatch, generator: torch.Generator
) -> Tensor:
    clean = networks["student"].clean_latents(batch)
    student, average = (
        seeing(recipe, networks[name], networks[name].condition(batch), clean) for name in ("student", "average"))
    teacher = guided_teacher(recipe, networks["teacher"], batch, clean)
    grid = warped(linear(recipe.solver_steps), recipe.shift)
    return ode.consistency(student, average, teacher, clean, grid, recipe.chunk, generator)


def partitions_loss(
    recipe: CausalRecipe, networks: Networks, batch: TrainingBatch, generator: torch.Generator
) -> Tensor:
    student, clean = networks["student"], networks["student"].clean_latents(batch)
    part = streamdit.draw_partition([streamdit.Partition(*p) for p in recipe.mix], generator)
    clean = clean[:, : part.latents]
    n = streamdit.draw_noise_pattern(
        part, len(clean), student.tokens_per_latent(clean.shape), generator, recipe.shift, past=0
    )
    noise, sigma = noise_like(clean, generator), n.sigma_BT.to(clean)
    index, mask = torch.arange(part.latents, device=clean.device), None if n.mask is None else n.mask.to(clean)
    noisy = flow.noised(clean, noise, sigma)
    velocity = student.transformer(noisy, sigma, index, student.condition(batch), mask=mask)
    return losses.velocity(velocity, clean, noise, n.weight_T.to(clean)[None])


def segments_loss(recipe: CausalRecipe, networks: Networks, batch: TrainingBatch, generator: torch.Generator) -> Tensor:
    student, clean = networks["student"], networks["student"].clean_latents(batch)
    part = streamdit.Partition(*recipe.mix[0])
    clean = clean[:, : part.latents]
    teacher = guided_teacher(recipe, networks["teacher"], batch, None)
    buffer = streamdit.buffer_at_tops(clean, noise_like(clean, generator), part, recipe.shift)
    s = streamdit.solve_segment(teacher, buffer, part, recipe.shift)
    return losses.regression(score_of(student.transformer, student.condition(batch))(s.noisy, s.above_BT), s.clean)


LOSSES = {"diffusion_forcing": forcing_loss, "teacher_forcing": forcing_loss, "consistency": consistency_loss,
          "partitions": partitions_loss, "segments": segments_loss}


# ---- ODE pairs: solved once, used again


def solve_pairs(
    recipe: CausalRecipe, networks: Networks, data: Data, step: int, part: int, out: Path
) -> tuple[ode.OdePairs, TrainingBatch]:
    """One of the run's batches of pairs, from OUT/pairs, solved and written there when it is first needed."""
    number = (step * recipe.run.parts + part) % recipe.pairs
    batch = data.draw(number, 0, recipe.videos, recipe.latents)
    path = out / "pairs" / f"{number:05d}.pt"
    if not path.is_file():
        teacher, clean = networks["teacher"], networks["student"].clean_latents(batch)
        noise = noise_like(clean, torch.Generator().manual_seed(number + 10**9))
        score = guided_teacher(recipe, teacher, batch, clean if recipe.history else None)
        pairs = ode.solve(score, noise, recipe.ladder, recipe.solver_steps, recipe.shift)
        path.parent.mkdir(parents=True, exist_ok=True)
        part_path = path.with_suffix(f".part{part}")
        torch.save(pairs.states.half().cpu(), part_path)
        part_path.rename(path)
    states = torch.load(path, weights_only=True).float().to(networks["student"].device)
    return ode.OdePairs(recipe.ladder, states), batch


def ode_loss(
    recipe: CausalRecipe, networks: Networks, pairs: ode.OdePairs, batch: TrainingBatch, generator: torch.Generator
) -> Tensor:
    student = networks["student"]
    condition, clean = student.condition(batch), networks["student"].clean_latents(batch)
    if recipe.history:
        return ode.regression(seeing(recipe, student, condition, clean), pairs, recipe.chunk, generator, clean=False)
    score = score_of_velocity(
        own_past(student.transformer, condition, recipe.chunk, student.tokens_per_latent(clean.shape))
    )
    return ode.regression(score, pairs, recipe.chunk, generator)


if __name__ == "__main__":
    call_main(main)
