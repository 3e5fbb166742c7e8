"""Make the autoencoder: fit the linear encoder to rendered patches, then train the decoder on noisy latents.

    python train/autoencoder.py --out runs/autoencoder --minutes 10
    python train/autoencoder.py --out runs/autoencoder --minutes 10 --resume     # goes on where it stopped

The encoder is final after the first seconds (OUT/encoder), so the teacher can start beside the decoder. The decoder
sees latents with independent noise and is asked for the clean video: it learns to average what stands still over the
latents it remembers, and to draw whole shapes. Nothing is stored: clips are rendered as they are needed.

    python train/autoencoder.py --out runs/autoencoder --minutes 8 --resume --student runs/student

At the end it can get used to the student's hand: three quarters of the clips are noised half way and restored by the
student, and the decoder is asked for the video they came from.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rollforce import flow
from rollforce.distill.checks import border_ratio, psnr
from rollforce.distill.loop import load_state, save_state
from rollforce.distill.muon import Muon
from rollforce.distill.scores import score_of
from rollforce.models.autoencoder import TinyAutoencoder
from rollforce.models.text import TextEncoder
from rollforce.models.transformer import VideoTransformer
from rollforce.world.caption import caption
from rollforce.world.render import render, sprite_mask
from rollforce.world.scenes import sample_scene
from rollforce.world.sheet import sheet


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--encoder", type=Path, help="keep the linear encoder of this autoencoder")
    p.add_argument("--student", type=Path, help="folder with transformer/ and text/ that spoils half of the latents")
    p.add_argument("--minutes", type=float, default=10, help="of this process on a CPU, of the clock on a GPU")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--latents", type=int, default=12, help="latents per clip")
    p.add_argument("--drawn", type=int, default=4, help="of these, how many consecutive ones are drawn and judged")
    p.add_argument("--lr-muon", type=float, default=0.01)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--noise", type=float, default=0.35, help="largest noise of a clip's latents")
    p.add_argument("--device", default="cpu")
    return p.parse_args()


def clip(seed: int, frames: int, size: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """A rendered clip [F, H, W, 3] in 0..1 and its sprite mask [F, H, W]."""
    scene, start = sample_scene(seed, held_out=held_out), seed * 131 % 4096
    video = torch.from_numpy(render(scene, start, frames, size)).float() / 255
    return video, torch.from_numpy(sprite_mask(scene, start, frames, size))


def clips(seeds: range, frames: int, size: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    both = [clip(seed, frames, size, held_out) for seed in seeds]
    return torch.stack([v for v, _ in both]), torch.stack([m for _, m in both])


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

    def __init__(self, folder: Path, device: str) -> None:
        self.transformer = VideoTransformer.load(folder / "transformer").float().to(device)
        self.text, self.device = TextEncoder.load(folder / "text"), device

    @torch.no_grad()
    def redrawn(self, latents: Tensor, seeds: range, generator: torch.Generator) -> Tensor:
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
        return torch.where(first[:, :, None, None, None], *draws)


def loss_of(video: Tensor, truth: Tensor, mask: Tensor, frames: int) -> Tensor:
    """Charbonnier distance with more weight on sprites, and the same of frame differences, most where a latent of
    `frames` frames begins."""
    weight = 1 + 5 * mask[..., None]
    near = ((video - truth).square() + 1e-4).sqrt() * weight
    border = 1 + 2 * ((torch.arange(1, video.shape[1], device=video.device) % frames) == 0).float()
    moved = ((video.diff(dim=1) - truth.diff(dim=1)).square() + 1e-4).sqrt() * weight[:, 1:]
    return near.mean() + (moved * border[:, None, None, None]).mean()


@torch.no_grad()
def report(model: TinyAutoencoder, size: int, noise: float = 0.2) -> tuple[dict[str, float], np.ndarray]:
    """Figures on clips never trained on, and a sheet: truth, linear, decoded, decoded from noisy latents."""
    video, mask = clips(range(24), 48, size, held_out=True)
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
    return {k: round(v, 3) for k, v in figures.items()}, sheet(rows, list(range(30, 46, 2)), zoom=2)


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    model = TinyAutoencoder().to(args.device)
    frames = args.latents * model.config.frames
    step, spent = 0, 0.0

    # 1. the linear encoder
    if args.encoder:
        model.load_state_dict(TinyAutoencoder.load(args.encoder).state_dict())
    elif not args.resume:
        video, mask = clips(range(300), 16, args.size)
        weight = 1 + 5 * (model.patches(mask[..., None].expand(-1, -1, -1, -1, 3)).amax(-1) > 0.02).float()
        some = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))[:60_000]
        kept = model.fit(model.patches(video).flatten(0, 3)[some], weight.flatten()[some])
        model.save(args.out / "encoder")
        print(f"encoder fitted, keeps {kept:.4f} of the weighted variance; spread {model.spread.tolist()}", flush=True)

    # 2. the decoder
    average = TinyAutoencoder().to(args.device)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    muon = Muon(kernels, args.lr_muon)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1], args.lr, (0.9, 0.98), weight_decay=0.0)
    if args.resume:
        state = load_state(args.out / "state.pt", args.device)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, spent = state["step"], state["spent"]
    average.load_state_dict(state["average"] if args.resume else model.state_dict())
    student = Student(args.student, args.device) if args.student else None
    log = (args.out / "metrics.jsonl").open("a")
    clock = time.process_time if args.device == "cpu" else time.time
    begun, told, running = clock(), time.time(), 0.0
    while (left := 1 - (clock() - begun) / (60 * args.minutes)) > 0:
        for optimiser, lr in ((muon, args.lr_muon), (adam, args.lr)):
            optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 50, left / 0.5 + 0.01)
        generator = torch.Generator().manual_seed(step)
        video, mask = clips(range(step * args.batch, (step + 1) * args.batch), frames, args.size)
        video, mask = video.to(args.device), mask.to(args.device)
        z = model.encode(video)
        level = torch.rand(args.batch, generator=generator).to(args.device) * args.noise
        at = int(torch.randint(args.latents - args.drawn + 1, (), generator=generator))
        pixels = slice(at * model.config.frames, (at + args.drawn) * model.config.frames)
        if student and args.batch > 1:  # most of the clips, with less noise on top
            most = args.batch * 3 // 4
            z[:most] = student.redrawn(z[:most], range(step * args.batch, step * args.batch + most), generator)
            level[:most] *= 0.4
        out = model(z + latent_noise(z, model.spread, level, generator), slice(at, at + args.drawn))
        loss = loss_of(out, video[:, pixels], mask[:, pixels], model.config.frames)
        model.zero_grad(set_to_none=True)
        loss.backward()
        muon.step()
        adam.step()
        step += 1
        keep = min(0.99, step / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        running = float(loss.detach()) if step == 1 else 0.98 * running + 0.02 * float(loss.detach())
        if time.time() - told > 60 or step == 20:
            told = time.time()
            minutes = round((spent + clock() - begun) / 60, 2)
            entry = {"step": step, "minutes": minutes, "loss": round(running, 4)}
            print(entry, flush=True)
            log.write(json.dumps(entry) + "\n")
            log.flush()

    spent += clock() - begun
    average.save(args.out / "final")
    parts = {"model": model, "average": average, "muon": muon, "adam": adam}
    states = {name: part.state_dict() for name, part in parts.items()}
    save_state(args.out / "state.pt", {**states, "step": step, "spent": spent})
    figures, picture = report(TinyAutoencoder.load(args.out / "final").to(args.device), args.size)
    print(json.dumps(figures, indent=1), flush=True)
    log.write(json.dumps({"step": step, **figures}) + "\n")
    from PIL import Image

    Image.fromarray(picture).save(args.out / "sheet.png")


if __name__ == "__main__":
    main()
