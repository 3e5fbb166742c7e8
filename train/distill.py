"""Distil the student: few steps and no guidance, by distribution matching on its own rollouts.

    python train/distill.py --recipe distill_tiny --out runs/student --export runs/student/final
    torchrun --nproc-per-node 2 train/distill.py --recipe distill_tiny --out runs/student --resume auto

The student starts as the teacher (or from train/causal.py) and walks `rollforce.engine.rollout.Rollout` with the preset
it will be used with. The teacher (frozen, guided) and the critic (a copy that learns what the student makes) judge
windows of its video, all latents at one noise level. `practice` says what it walks: persistent streams (lasting:
cheap), whole rollouts (lessons: as the papers do), or none (forced: CausVid); `loss` is dmd or sid.
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
from rollforce.engine.rollout_group import RolloutGroup
from rollforce.engine.settings import StreamSettings
from rollforce.training import losses
from rollforce.training.data import Data, TrainingBatch, WorldClips, open_data, path_of
from rollforce.training.losses import guide, score_of
from rollforce.training.network import Network, border_ratio
from rollforce.training.noise_patterns import begin_with_image, draw_levels, draw_window
from rollforce.training.on_policy import StudentVideo, open_practice
from rollforce.training.optim import build_optimisers, update_average
from rollforce.training.recipes import DistillRecipe, WholeRolloutSettings
from rollforce.training.rewards import RewardWeighting
from rollforce.training.run import Lasting, Run, call_main
from rollforce.video.contact_sheet import contact_sheet


def main() -> None:
    run = Run(DistillRecipe, __doc__, "distill_tiny")
    recipe, seed = run.recipe, run.settings.seed

    # data, networks, optimisers
    data = open_data(recipe.data, seed)
    stream = build(StreamSettings, preset_file(recipe.stream), overrides=recipe.changes)
    begin = recipe.start or recipe.teacher
    teacher, student, critic, average = (
        Network.load(path_of(folder)) for folder in (recipe.teacher, begin, recipe.teacher, begin))
    for network in (student, average):
        network.transformer.learn(stream.tiers)
    networks = {"teacher": teacher, "student": student, "critic": critic, "average": average}
    run.prepare(networks, data, learn=("student", "critic"))
    student_made, critic_made = build_optimisers(student, recipe.student), build_optimisers(critic, recipe.critic)
    practice = open_practice(recipe, student, stream, data)
    weighting = RewardWeighting.open(recipe.rewards, data)
    lasting: dict[str, Lasting] = {"practice": practice} | ({"weighting": weighting} if weighting else {})
    learned = {name: network for name, network in networks.items() if network is not teacher}
    run.resume(learned, [*student_made, *critic_made], data.fingerprint, lasting)

    # training
    for step in run.steps():
        learns = step >= recipe.alone
        shown: list[tuple[int, Tensor, StudentVideo]] = []
        for part in run.parts:
            rng = np.random.default_rng([seed, step, part, 5])
            with run.autocast():
                made = practice.generate(step, part)
                video, where = judged_latents(recipe, made, stream, data, rng)
                shown.append((part, video.detach(), made))
                if not learns:
                    continue
                weight = weighting(video, made.prompts, step, part) if weighting else None
                loss = student_loss(recipe, networks, made, video, where, weight, step, rng)
            run.backward(loss, recipe.loss, part)
        if learns:
            norm = run.update(student, student_made, recipe.student, step - recipe.alone)
            run.metrics.add(norm=norm)
            update_average(average, student, recipe.average.keep, step - recipe.alone - recipe.average.start)

        critic.zero_grad(set_to_none=True)  # what SiD's path through the critic left there
        for turn in range(recipe.ratio):
            for part, video, made in shown:
                rng = np.random.default_rng([seed, step, part, 6, turn])
                with run.autocast():
                    loss = critic_loss(recipe, critic, video, made.text_BLD, rng)
                run.backward(loss, "critic", part)
            run.update(critic, critic_made, recipe.critic, step)
        run.finish_step(partial(validate, average, stream, data) if isinstance(data, WorldClips) else None)
    run.export(average, data, recipe.stream, recipe.changes)
    run.close()


def judged_latents(
    recipe: DistillRecipe, made: StudentVideo, stream: StreamSettings, data: Data, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """The latents that teacher and critic look at, and which of them learn (None: all)."""
    video = made.video_BTCHW
    if not isinstance(recipe.practice, WholeRolloutSettings):
        return draw_window(video, recipe.window, rng), None
    if recipe.practice.first == "keep":
        return video[:, -recipe.practice.last :], None
    return begin_with_image(video, recipe.practice.last, stream.layout.chunk, data.image_latent)


def student_loss(
    recipe: DistillRecipe, networks: dict[str, Network], made: StudentVideo, video: Tensor, where: Tensor | None,
    weight: Tensor | None, step: int, rng: np.random.Generator,
) -> Tensor:
    """DMD or SiD of one part, with the guided teacher and the critic as scores."""
    teacher, critic = networks["teacher"], networks["critic"]
    sigma, noise = draw_noise(recipe, video, rng)
    with torch.no_grad():
        texts = made.text_BLD, teacher.empty_vectors(made.text_BLD)
        wished, free = (teacher.transformer.condition(text) for text in texts)
        known = critic.transformer.condition(made.text_BLD)
    scale = recipe.guidance.at(step / recipe.run.steps)
    judge = guide(score_of(teacher.transformer, wished), score_of(teacher.transformer, free), scale)
    given = video, judge, score_of(critic.transformer, known), sigma, noise, weight, where
    return losses.sid(*given) if recipe.loss == "sid" else losses.dmd(*given)


def critic_loss(
    recipe: DistillRecipe, critic: Network, video: Tensor, text_BLD: Tensor, rng: np.random.Generator
) -> Tensor:
    """Flow matching on what the student made."""
    sigma, noise = draw_noise(recipe, video, rng)
    index = torch.arange(video.shape[1], device=video.device)
    condition = critic.transformer.condition(text_BLD)
    predicted = critic.transformer(flow.noised(video, noise, sigma), sigma, index, condition)
    return losses.velocity(predicted.float(), video, noise)


def draw_noise(recipe: DistillRecipe, video: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noise level [B, T] and noise of a video."""
    batch, latents = video.shape[:2]
    sigma = draw_levels(rng, batch, latents, recipe.shift, recipe.levels)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return sigma.to(video.device), torch.randn(video.shape, generator=generator).to(video.device)


@torch.no_grad()
def validate(average: Network, stream: StreamSettings, data: WorldClips) -> tuple[dict[str, float], np.ndarray]:
    """Stream 8 prompts never trained on for 21 latents: border ratio, contrast, and a sheet."""
    settings = replace(data.settings, workers=0, kept=1)
    prompts = WorldClips(settings, held_out=True, autoencoder=data.autoencoder).full_captions(8)
    text = average.vectors(TrainingBatch(None, tuple(prompts)))
    streams = RolloutGroup(average.transformer, stream, text, tuple(range(8)), data.latent)
    streams.rollout.end = 21
    made = torch.cat([c.latents_BTCHW for c in streams.rollout.commits()], dim=1).float().cpu()
    frames = data.autoencoder(made).clamp(0, 1)
    pictures = [(f * 255).round().byte().numpy() for f in frames]
    figures = {"border": border_ratio(frames, data.autoencoder.config.frames), "contrast": float(frames.std())}
    return figures, contact_sheet(pictures, list(range(1, 84, 8)), prompts, zoom=2)


if __name__ == "__main__":
    call_main(main)
