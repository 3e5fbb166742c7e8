"""Make the autoencoder: fit the linear encoder to rendered patches, then train the decoder on noisy latents.

    python train/autoencoder.py --recipe autoencoder_tiny --out runs/autoencoder --export runs/autoencoder/final
    python train/autoencoder.py --recipe autoencoder_tiny --out runs/autoencoder --resume auto

The encoder is final after the first seconds (OUT/encoder), so the teacher can start beside the decoder. The decoder
sees latents with independent noise and is asked for the clean video: it learns to average what stands still over the
latents it remembers, and to draw whole shapes. Nothing is stored: clips are rendered as they are needed.

    python train/autoencoder.py --out runs/decoder encoder=runs/autoencoder/final student=runs/student/final

At the end it can get used to the student's hand: three quarters of the clips are noised half way and restored by the
student, and the decoder is asked for the video they came from.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rollforce.engine import flow
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.text.encoder import TextEncoder
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training.data import digest, path_of
from rollforce.training.losses import score_of
from rollforce.training.network import border_ratio, psnr
from rollforce.training.optim import build_optimisers, update_average
from rollforce.training.recipes import AutoencoderRecipe
from rollforce.training.run import Run, call_main
from rollforce.video.contact_sheet import contact_sheet
from rollforce.world.caption import caption
from rollforce.world.processes import Renderers
from rollforce.world.render import render, sprite_mask
from rollforce.world.scenes import sample_scene

Clip = tuple[np.ndarray, np.ndarray]
AHEAD = 32  # steps for which renderers make clips beforehand


def main() -> None:
    run = Run(AutoencoderRecipe, __doc__, "autoencoder_tiny")
    recipe = run.recipe

    # 1. the linear encoder
    model, average = TinyAutoencoder(), TinyAutoencoder()
    if recipe.encoder:
        model = TinyAutoencoder.load(path_of(recipe.encoder)).train()
    elif not run.newest:
        kept = fit(model, recipe)
        if run.is_main:
            model.save(run.out / "encoder")
            print(f"encoder fitted, keeps {kept:.4f} of the weighted variance; spread {model.spread.tolist()}")
    average.load_state_dict(model.state_dict())
    model.to(run.device), average.to(run.device).requires_grad_(False)

    # 2. the decoder
    made = build_optimisers(model, recipe.optimiser, [p for p in model.parameters() if p.ndim > 1])
    run.resume(
        {"model": model, "average": average}, made, digest([render(sample_scene(0), 0, 1, recipe.size).tobytes()])
    )
    student = Student(path_of(recipe.student), run.device) if recipe.student else None
    frames = recipe.latents * model.config.frames
    renderers = (
        Renderers(partial(render_clip, frames=frames, size=recipe.size), recipe.workers) if recipe.workers else None
    )
    for step in run.steps():
        if renderers:
            renderers.reach((step + AHEAD) * recipe.batch, start=step * recipe.batch)
        for part in run.parts:
            with run.autocast():
                loss = part_loss(model, recipe, student, renderers, step, part)
            run.backward(loss, "loss", part)
        norm = run.update(model, made, recipe.optimiser, step)
        run.metrics.add(norm=norm)
        update_average(average, model, recipe.average.keep, step + 1 - recipe.average.start)
        run.finish_step(partial(validate, average, recipe.size))
    if run.exported and run.is_main:
        average.save(run.exported)
    run.close()


def fit(model: TinyAutoencoder, recipe: AutoencoderRecipe) -> float:
    """Fit the linear encoder to patches of rendered clips, those that show a thing counting six times."""
    video, mask = render_clips(range(recipe.fitted), 16, recipe.size)
    weight = 1 + 5 * (model.patches(mask[..., None].expand(-1, -1, -1, -1, 3)).amax(-1) > 0.02).float()
    some = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))[:60_000]
    return model.fit(model.patches(video).flatten(0, 3)[some], weight.flatten()[some])


def part_loss(
    model: TinyAutoencoder, recipe: AutoencoderRecipe, student: Student | None, renderers: Renderers[Clip] | None,
    step: int, part: int,
) -> Tensor:
    """Loss of one part of a step's clips: a pure function of (step, part) and the weights."""
    count, frames = recipe.batch // recipe.run.parts, model.config.frames
    first = step * recipe.batch + part * count
    generator = torch.Generator().manual_seed(step * 64 + part)
    take = renderers.take if renderers else partial(render_clip, frames=recipe.latents * frames, size=recipe.size)
    video, mask = (x.to(model.basis.device) for x in stack([take(n) for n in range(first, first + count)]))
    z = model.encode(video)
    level = torch.rand(count, generator=generator).to(z) * recipe.noise
    if student:  # most of the clips, with less noise on top
        most = int(count * recipe.redrawn + float(torch.rand((), generator=generator)))  # the share, on average
        z[:most] = student.redraw(z[:most], range(first, first + most), generator)
        level[:most] *= 0.4
    at = int(torch.randint(recipe.latents - recipe.drawn + 1, (), generator=generator))
    pixels = slice(at * frames, (at + recipe.drawn) * frames)
    out = model(z + latent_noise(z, model.spread, level, generator), slice(at, at + recipe.drawn))
    return loss_of(out, video[:, pixels], mask[:, pixels], frames)


def render_clip(seed: int, frames: int, size: int, held_out: bool = False) -> Clip:
    """A rendered clip, uint8 [F, H, W, 3], and its sprite mask [F, H, W]."""
    scene, start = sample_scene(seed, held_out=held_out), seed * 131 % 4096
    return render(scene, start, frames, size), sprite_mask(scene, start, frames, size)


def stack(some: list[Clip]) -> tuple[Tensor, Tensor]:
    """Videos [B, F, H, W, 3] in 0..1, and masks."""
    videos, masks = (torch.from_numpy(np.stack(parts)) for parts in zip(*some, strict=True))
    return videos.float() / 255, masks


def render_clips(seeds: range, frames: int, size: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    return stack([render_clip(seed, frames, size, held_out) for seed in seeds])


def latent_noise(latents: Tensor, spread: Tensor, level_B: Tensor, generator: torch.Generator) -> Tensor:
    """Noise as generated latents have it: independent from latent to latent, white or smooth in space.

    A channel gets `level` times the square root of its spread: generated latents err less, but not proportionally less,
    in the fine channels."""
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    smooth = F.avg_pool2d(noise.flatten(0, 1), 3, 1, 1).view_as(noise) * 3
    some = (torch.rand(len(latents), generator=generator) < 0.4).to(latents.device)[:, None, None, None, None]
    return torch.where(some, smooth, noise) * spread.sqrt()[:, None, None] * level_B[:, None, None, None, None]


class Student:
    """Latents as the student would have made them: noised half way, restored in one step.

    Each latent comes from one of two draws, as a stream finishes its latents in different ticks: outlines waver."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.transformer = VideoTransformer.load(folder / "transformer").float().to(device)
        self.text, self.device = TextEncoder.load(folder / "text"), device

    @torch.no_grad()
    def redraw(self, latents: Tensor, seeds: range, generator: torch.Generator) -> Tensor:
        """`latents` [B, T, C, h, w] of the scenes `seeds`, redrawn."""
        prompts = [caption(sample_scene(seed, held_out=False), seed) for seed in seeds]
        condition = self.transformer.condition(self.text.encode(prompts).to(self.device))
        sigma = (0.35 + 0.25 * torch.rand(len(latents), 1, generator=generator)).expand(-1, latents.shape[1])
        sigma = sigma.to(self.device)
        score = score_of(self.transformer, condition)
        draws = [
            score(flow.noised(latents, torch.randn(latents.shape, generator=generator).to(self.device), sigma), sigma)
            for _ in range(2)
        ]
        first = (torch.rand(latents.shape[:2], generator=generator) < 0.5).to(self.device)
        return torch.where(first[:, :, None, None, None], draws[0], draws[1])


def loss_of(video: Tensor, truth: Tensor, mask: Tensor, frames: int) -> Tensor:
    """Charbonnier distance with more weight on sprites, and the same of frame differences, most where a latent of
    `frames` frames begins."""
    weight = 1 + 5 * mask[..., None]
    near = ((video - truth).square() + 1e-4).sqrt() * weight
    border = 1 + 2 * ((torch.arange(1, video.shape[1], device=video.device) % frames) == 0).float()
    moved = ((video.diff(dim=1) - truth.diff(dim=1)).square() + 1e-4).sqrt() * weight[:, 1:]
    return near.mean() + (moved * border[:, None, None, None]).mean()


@torch.no_grad()
def validate(model: TinyAutoencoder, size: int, noise: float = 0.2) -> tuple[dict[str, float], np.ndarray]:
    """Figures on clips never trained on, and a sheet: truth, linear, decoded, decoded from noisy latents."""
    video, mask = render_clips(range(24), 48, size, held_out=True)
    z = model.encode(video)
    generator = torch.Generator().manual_seed(7)
    noisy = z + latent_noise(z, model.spread, torch.full((len(z),), noise), generator)
    outputs = {"linear": model.linear(z), "clean": model(z), "noisy linear": model.linear(noisy), "noisy": model(noisy)}
    figures = {"border real": border_ratio(video, model.config.frames)}
    for name, out in outputs.items():
        out = outputs[name] = out.clamp(0, 1)
        figures[f"psnr {name}"] = psnr(out, video)
        figures[f"psnr sprite {name}"] = psnr(out, video, mask)
        figures[f"border {name}"] = border_ratio(out, model.config.frames)
    rows = [(v[i] * 255).round().byte().numpy() for i in range(6) for v in (video, outputs["clean"], outputs["noisy"])]
    return {k: round(v, 3) for k, v in figures.items()}, contact_sheet(rows, list(range(30, 46, 2)), zoom=2)


if __name__ == "__main__":
    call_main(main)
