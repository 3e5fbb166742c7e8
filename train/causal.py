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

from rollforce.config import to_dict
from rollforce.engine import flow
from rollforce.engine.flow import linear, warped
from rollforce.models.transformer.transformer import Condition
from rollforce.training import checkpoint, losses, ode, script, streamdit
from rollforce.training.causal_masking import augmented, drawn_like, flow_matching, own_past, score_by, true_past
from rollforce.training.data import Batch, Data, open_data, path_of
from rollforce.training.export import export
from rollforce.training.fsdp import prepare, restore, states
from rollforce.training.metrics_log import Journal, networks_table
from rollforce.training.network import Network
from rollforce.training.optim import accelerator_of, follow, guard, optimisers, parts_of, set_rate, update
from rollforce.training.recipes import CausalRecipe
from rollforce.training.scores import Score, guided, score_of


def main() -> None:
    args = script.arguments(__doc__, "causal_tiny")
    recipe = script.recipe_of(CausalRecipe, args)
    run, newest = recipe.run, script.resumed(args)
    accelerator = accelerator_of(run, args.cpu)
    device, processes = accelerator.device, accelerator.num_processes
    torch.manual_seed(run.seed)

    data = open_data(recipe.data, run.seed)
    teacher = Network.load(path_of(recipe.teacher))
    student, average = (Network.load(path_of(recipe.start or recipe.teacher)) for _ in range(2))
    networks = {"teacher": teacher, "student": student, "average": average}
    learned = {"student": student, "average": average}
    for name, network in networks.items():
        prepare(network, run, device, learns=name == "student")
    made = optimisers(student, recipe.optimiser)
    step = 0
    if newest:
        state = checkpoint.load(newest, to_dict(recipe), data.fingerprint, device)
        restore(state, learned, made)
        step = state["step"]
    journal = Journal(args.out, accelerator.is_main_process)
    if accelerator.is_main_process:
        print(networks_table(networks, ("student",), processes if run.shard else 1))

    while step < run.steps:
        set_rate(made, recipe.optimiser.rate(step, run.steps))
        for part in parts_of(run, accelerator.process_index, processes):
            generator = torch.Generator().manual_seed((run.seed * 1_000_003 + step) * 64 + part)
            with accelerator.autocast():
                if recipe.method == "ode":
                    loss = ode_loss(recipe, networks, solved(recipe, networks, data, step, part, args.out), generator)
                else:
                    batch = data.draw(step, part, recipe.videos, length(recipe))
                    loss = LOSSES[recipe.method](recipe, networks, batch, generator)
            (loss / run.parts).backward()
            guard(float(loss.detach()), f"the loss of part {part}", step, args.out)
            journal.note(**{recipe.method: float(loss.detach())})
        journal.note(norm=update(student, made, recipe.optimiser.clip, step, args.out))
        step += 1
        follow(average, student, recipe.average.keep, step - recipe.average.start)

        if step % run.tell_every == 0:
            journal.tell(step)
        if step % run.save_every == 0 or step == run.steps:
            state = states(learned, made)
            if accelerator.is_main_process:
                checkpoint.save(args.out, step, state, to_dict(recipe), data.fingerprint, run.keep)
            accelerator.wait_for_everyone()
    journal.close()
    if args.export:
        export(average, args.export, data, "chunkwise", accelerator.is_main_process)
    accelerator.end_training()


def length(recipe: CausalRecipe) -> int:
    """Latents per window."""
    if recipe.method in ("partitions", "segments"):
        return max(chunk * chunks for chunk, _, chunks in recipe.mix)
    return recipe.latents


def tokens_of(network: Network, clean: Tensor) -> int:
    """Tokens per latent."""
    return clean.shape[-2] * clean.shape[-1] // network.transformer.config.patch**2


# ---- the teacher's opinion


def conditions(network: Network, batch: Batch) -> tuple[Condition, Condition]:
    """With the wish and without, for guidance."""
    text = network.vectors(batch)
    return network.transformer.condition(text), network.transformer.condition(network.free(text))


@torch.no_grad()
def guided_teacher(recipe: CausalRecipe, teacher: Network, batch: Batch, past: Tensor | None) -> Score:
    """The guided teacher's score: of the whole video, or of each chunk after the true past."""
    wished, free = (
        score_of(teacher.transformer, c) if past is None else seeing(recipe, teacher, c, past)
        for c in conditions(teacher, batch)
    )
    return guided(wished, free, recipe.scale)


def seeing(recipe: CausalRecipe, network: Network, condition: Condition, past: Tensor) -> Score:
    """The score of a network in which each chunk sees itself and the true chunks before it."""
    return score_by(true_past(network.transformer, condition, past, recipe.chunk, tokens_of(network, past)))


# ---- losses of one part: functions of the batch, the generator and the weights

Networks = dict[str, Network]


def forcing_loss(recipe: CausalRecipe, networks: Networks, batch: Batch, generator: torch.Generator) -> Tensor:
    student, clean = networks["student"], clean_of(networks, batch)
    condition, tokens = student.condition(batch), tokens_of(student, clean)
    if recipe.method == "diffusion_forcing":
        velocity = own_past(student.transformer, condition, recipe.chunk, tokens)
    else:
        past, sigma = augmented(clean, recipe.aug, recipe.chunk, generator) if recipe.aug else (clean, None)
        velocity = true_past(student.transformer, condition, past, recipe.chunk, tokens, sigma)
    return flow_matching(velocity, clean, recipe.chunk, generator, recipe.shift, recipe.weighted)


def consistency_loss(recipe: CausalRecipe, networks: Networks, batch: Batch, generator: torch.Generator) -> Tensor:
    clean = clean_of(networks, batch)
    student, average = (
        seeing(recipe, networks[name], networks[name].condition(batch), clean) for name in ("student", "average"))
    teacher = guided_teacher(recipe, networks["teacher"], batch, clean)
    grid = warped(linear(recipe.solver_steps), recipe.shift)
    return ode.consistency(student, average, teacher, clean, grid, recipe.chunk, generator)


def partitions_loss(recipe: CausalRecipe, networks: Networks, batch: Batch, generator: torch.Generator) -> Tensor:
    student, clean = networks["student"], clean_of(networks, batch)
    part = streamdit.draw([streamdit.Partition(*p) for p in recipe.mix], generator)
    clean = clean[:, : part.latents]
    n = streamdit.noising(part, len(clean), tokens_of(student, clean), generator, recipe.shift, past=0)
    noise, sigma = drawn_like(clean, generator), n.sigma_BT.to(clean)
    index, mask = torch.arange(part.latents, device=clean.device), None if n.mask is None else n.mask.to(clean)
    noisy = flow.noised(clean, noise, sigma)
    velocity = student.transformer(noisy, sigma, index, student.condition(batch), mask=mask)
    return losses.velocity(velocity, clean, noise, n.weight_T.to(clean)[None])


def segments_loss(recipe: CausalRecipe, networks: Networks, batch: Batch, generator: torch.Generator) -> Tensor:
    student, clean = networks["student"], clean_of(networks, batch)
    part = streamdit.Partition(*recipe.mix[0])
    clean = clean[:, : part.latents]
    teacher = guided_teacher(recipe, networks["teacher"], batch, None)
    buffer = streamdit.buffer_at_tops(clean, drawn_like(clean, generator), part, recipe.shift)
    s = streamdit.segment(teacher, buffer, part, recipe.shift)
    return losses.regression(score_of(student.transformer, student.condition(batch))(s.noisy, s.above_BT), s.clean)


def clean_of(networks: Networks, batch: Batch) -> Tensor:
    assert batch.latents_BTCHW is not None
    return batch.latents_BTCHW.to(networks["student"].device)


LOSSES = {"diffusion_forcing": forcing_loss, "teacher_forcing": forcing_loss, "consistency": consistency_loss,
          "partitions": partitions_loss, "segments": segments_loss}


# ---- ODE pairs: solved once, used again


def solved(
    recipe: CausalRecipe, networks: Networks, data: Data, step: int, part: int, out: Path
) -> tuple[ode.OdePairs, Batch]:
    """One of the run's batches of pairs, from OUT/pairs, solved and written there when it is first needed."""
    number = (step * recipe.run.parts + part) % recipe.pairs
    batch = data.draw(number, 0, recipe.videos, recipe.latents)
    path = out / "pairs" / f"{number:05d}.pt"
    if not path.is_file():
        teacher, clean = networks["teacher"], clean_of(networks, batch)
        noise = drawn_like(clean, torch.Generator().manual_seed(number + 10**9))
        score = guided_teacher(recipe, teacher, batch, clean if recipe.history else None)
        pairs = ode.solve(score, noise, recipe.ladder, recipe.solver_steps, recipe.shift)
        path.parent.mkdir(parents=True, exist_ok=True)
        part_path = path.with_suffix(f".part{part}")
        torch.save(pairs.states.half().cpu(), part_path)
        part_path.rename(path)
    states = torch.load(path, weights_only=True).float().to(networks["student"].device)
    return ode.OdePairs(recipe.ladder, states), batch


def ode_loss(
    recipe: CausalRecipe, networks: Networks, pairs_and_batch: tuple[ode.OdePairs, Batch], generator: torch.Generator
) -> Tensor:
    pairs, batch = pairs_and_batch
    student = networks["student"]
    condition, clean = student.condition(batch), clean_of(networks, batch)
    if recipe.history:
        return ode.regression(seeing(recipe, student, condition, clean), pairs, recipe.chunk, generator, clean=False)
    score = score_by(own_past(student.transformer, condition, recipe.chunk, tokens_of(student, clean)))
    return ode.regression(score, pairs, recipe.chunk, generator)


if __name__ == "__main__":
    script.run(main)
