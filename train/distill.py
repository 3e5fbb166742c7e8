"""Distil the student: few steps and no guidance, by distribution matching on its own rollouts.

    python train/distill.py --recipe distill_tiny --out runs/student --export runs/student/final
    torchrun --nproc-per-node 2 train/distill.py --recipe distill_tiny --out runs/student --resume auto

The student starts as the teacher (or from train/causal.py) and walks `rollforce.rollout.Rollout` with the preset it
will be used with. The teacher (frozen, guided) and the critic (a copy that learns what the student makes) judge windows
of its video, all latents at one noise level. `practice` says what it walks: persistent streams (cheap), whole lessons
(as the papers do), or none (forced: CausVid); `loss` is dmd or sid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rollforce.config import build, resource, to_dict
from rollforce.engine import flow
from rollforce.engine.rollout_group import RolloutGroup
from rollforce.engine.settings import StreamSettings
from rollforce.training import checkpoint, losses, script
from rollforce.training.data import Batch, Data, WorldClips, open_data, path_of
from rollforce.training.export import export
from rollforce.training.fsdp import prepare, restore, states
from rollforce.training.metrics_log import Journal, border_ratio, networks_table
from rollforce.training.network import Network
from rollforce.training.noise_patterns import as_beginning, levels, window
from rollforce.training.on_policy import ForcedVideos, LastingStreams, Made, Practice, WholeLessons
from rollforce.training.optim import accelerator_of, follow, guard, optimisers, parts_of, set_rate, update
from rollforce.training.recipes import DistillRecipe, Forced, Lasting, Lessons, World
from rollforce.training.reward_weights import Weighting
from rollforce.training.scores import guided, score_of
from rollforce.video.contact_sheet import contact_sheet


def main() -> None:
    args = script.arguments(__doc__, "distill_tiny")
    recipe = script.recipe_of(DistillRecipe, args)
    run, newest = recipe.run, script.resumed(args)
    accelerator = accelerator_of(run, args.cpu)
    device, processes = accelerator.device, accelerator.num_processes
    parts = parts_of(run, accelerator.process_index, processes)
    torch.manual_seed(run.seed)

    # data, networks, optimisers
    data = open_data(recipe.data, run.seed)
    stream = preset(recipe.stream, recipe.changes)
    teacher = Network.load(path_of(recipe.teacher))
    student, critic, average = (
        Network.load(path_of(folder)) for folder in (recipe.start or recipe.teacher, recipe.teacher,
                                                     recipe.start or recipe.teacher))
    for network in (student, average):
        network.transformer.learn(stream.tiers)
    networks = {"teacher": teacher, "student": student, "critic": critic, "average": average}
    learned = {name: networks[name] for name in ("student", "critic", "average")}
    for name, network in networks.items():
        prepare(network, run, device, learns=name in ("student", "critic"))
    student_made, critic_made = optimisers(student, recipe.student), optimisers(critic, recipe.critic)
    practice, weighting = practice_of(recipe, student, stream, data), weighting_of(recipe, data)
    step = 0
    if newest:
        state = checkpoint.load(newest, to_dict(recipe), data.fingerprint, device)
        restore(state, learned, [*student_made, *critic_made])
        for part in parts:
            saved = checkpoint.load_part(newest, part, device)
            practice.load_state_dict(part, saved["practice"])
            if weighting:
                weighting.load_state_dict(part, saved["weighting"])
        step = state["step"]
    journal = Journal(args.out, accelerator.is_main_process)
    if accelerator.is_main_process:
        print(networks_table(networks, ("student", "critic"), processes if run.shard else 1))

    # training
    while step < run.steps:
        learns = step >= recipe.alone
        set_rate(student_made, recipe.student.rate(max(0, step - recipe.alone), run.steps))
        set_rate(critic_made, recipe.critic.rate(step, run.steps))
        shown: list[tuple[int, Tensor, Made]] = []
        for part in parts:
            rng = np.random.default_rng([run.seed, step, part, 5])
            with accelerator.autocast():
                made = practice.make(step, part)
                video, where = judged(recipe, made, stream, data, rng)
                shown.append((part, video.detach(), made))
                if not learns:
                    continue
                weight = weighting(video, made.prompts, step, part) if weighting else None
                loss = student_loss(recipe, networks, made, video, where, weight, step, rng)
            (loss / run.parts).backward()
            guard(float(loss.detach()), f"the student's loss of part {part}", step, args.out)
            journal.note(**{recipe.loss: float(loss.detach())})
        if learns:
            journal.note(norm=update(student, student_made, recipe.student.clip, step, args.out))
            follow(average, student, recipe.average.keep, step - recipe.alone - recipe.average.start)

        critic.zero_grad(set_to_none=True)  # what SiD's path through the critic left there
        for turn in range(recipe.ratio):
            for part, video, made in shown:
                rng = np.random.default_rng([run.seed, step, part, 6, turn])
                with accelerator.autocast():
                    loss = critic_loss(recipe, critic, video, made.text_BLD, rng)
                (loss / run.parts).backward()
                guard(float(loss.detach()), f"the critic's loss of part {part}", step, args.out)
                journal.note(critic=float(loss.detach()))
            update(critic, critic_made, recipe.critic.clip, step, args.out)
        step += 1

        if step % run.tell_every == 0:
            journal.tell(step)
        if run.show_every and (step % run.show_every == 0 or step == run.steps):
            figures, picture = show(average, stream, data)
            journal.tell(step, **figures)
            journal.picture(step, "samples", picture)
        if step % run.save_every == 0 or step == run.steps:
            state = states(learned, [*student_made, *critic_made])
            for part in parts:
                lasting = {"practice": practice.state_dict(part)}
                if weighting:
                    lasting["weighting"] = weighting.state_dict(part)
                checkpoint.save_part(args.out, step, part, lasting)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                checkpoint.save(args.out, step, state, to_dict(recipe), data.fingerprint, run.keep)
            accelerator.wait_for_everyone()
    journal.close()
    if args.export:
        export(average, args.export, data, recipe.stream, accelerator.is_main_process)
    accelerator.end_training()


def preset(name: str, changes: tuple[str, ...] = ()) -> StreamSettings:
    """A stream preset by name, with changes."""
    return build(StreamSettings, resource(f"configs/stream/{name}.yaml"), overrides=changes)


def practice_of(recipe: DistillRecipe, student: Network, stream: StreamSettings, data: Data) -> Practice:
    """What the recipe lets the student practise on."""
    count = recipe.batch // recipe.run.parts
    if isinstance(recipe.practice, Lasting):
        return LastingStreams(student, stream, recipe.practice, data, count, recipe.run.seed)
    if isinstance(recipe.practice, Forced):
        return ForcedVideos(student, stream, recipe.practice, data, count, recipe.run.seed)
    streams = (stream, preset(recipe.practice.second))
    return WholeLessons(student, streams, recipe.practice, data, count, recipe.run.seed)


def weighting_of(recipe: DistillRecipe, data: Data) -> Weighting | None:
    """How rewards weight the student's loss, if they do."""
    if recipe.rewards.kind == "none":
        return None
    assert isinstance(data, WorldClips), "rewards look at pixels of the world; set rewards.kind=none"
    return Weighting(recipe.rewards, data.autoencoder)


def judged(
    recipe: DistillRecipe, made: Made, stream: StreamSettings, data: Data, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """The latents that teacher and critic look at, and which of them learn (None: all)."""
    video = made.video_BTCHW
    if not isinstance(recipe.practice, Lessons):
        return window(video, recipe.window, rng), None
    if recipe.practice.first == "keep":
        return video[:, -recipe.practice.last :], None
    return as_beginning(video, recipe.practice.last, stream.layout.chunk, data.image_latent)


def student_loss(
    recipe: DistillRecipe, networks: dict[str, Network], made: Made, video: Tensor, where: Tensor | None,
    weight: Tensor | None, step: int, rng: np.random.Generator,
) -> Tensor:
    """DMD or SiD of one part, with the guided teacher and the critic as scores."""
    teacher, critic = networks["teacher"], networks["critic"]
    sigma, noise = drawn(recipe, video, rng)
    with torch.no_grad():
        wished, free = (teacher.transformer.condition(text) for text in (made.text_BLD, teacher.free(made.text_BLD)))
        known = critic.transformer.condition(made.text_BLD)
    scale = recipe.guidance.at(step / recipe.run.steps)
    judge = guided(score_of(teacher.transformer, wished), score_of(teacher.transformer, free), scale)
    loss = {"dmd": losses.dmd, "sid": losses.sid}[recipe.loss]
    return loss(video, judge, score_of(critic.transformer, known), sigma, noise, weight, where)


def critic_loss(
    recipe: DistillRecipe, critic: Network, video: Tensor, text_BLD: Tensor, rng: np.random.Generator
) -> Tensor:
    """Flow matching on what the student made."""
    sigma, noise = drawn(recipe, video, rng)
    index = torch.arange(video.shape[1], device=video.device)
    condition = critic.transformer.condition(text_BLD)
    predicted = critic.transformer(flow.noised(video, noise, sigma), sigma, index, condition)
    return losses.velocity(predicted.float(), video, noise)


def drawn(recipe: DistillRecipe, video: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noise level [B, T] and noise of a video."""
    batch, latents = video.shape[:2]
    sigma = levels(rng, batch, latents, recipe.shift, recipe.levels)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return sigma.to(video.device), torch.randn(video.shape, generator=generator).to(video.device)


@torch.no_grad()
def show(average: Network, stream: StreamSettings, data: Data) -> tuple[dict[str, float], np.ndarray]:
    """Stream 8 prompts never trained on for 21 latents: border ratio, contrast, and a sheet."""
    assert isinstance(data, WorldClips), "samples are shown of the world only; set run.show_every=0"
    assert isinstance(data.settings, World)
    prompts = WorldClips(data.settings, held_out=True, autoencoder=data.autoencoder).full_captions(8)
    text = average.vectors(Batch(None, tuple(prompts)))
    streams = RolloutGroup(average.transformer, stream, text, tuple(range(8)), data.latent)
    streams.rollout.end = 21
    made = torch.cat([c.latents_BTCHW for c in streams.rollout.commits()], dim=1).float().cpu()
    frames = data.autoencoder(made).clamp(0, 1)
    pictures = [(f * 255).round().byte().numpy() for f in frames]
    figures = {"border": border_ratio(frames, data.autoencoder.config.frames), "contrast": float(frames.std())}
    return figures, contact_sheet(pictures, list(range(1, 84, 8)), prompts, zoom=2)


if __name__ == "__main__":
    script.run(main)
