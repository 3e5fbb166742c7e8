"""Train the teacher: one transformer and its text encoder by flow matching, for both tables of noise that matter later.

    python train/teacher.py --autoencoder runs/autoencoder/encoder --out runs/teacher --minutes 90
    torchrun --nproc-per-node 2 train/teacher.py ... --resume      # goes on, with any number of processes

Some video parts have one noise level (the bidirectional teacher that judges), the others the rising levels of a rolling
stream (the student's start). A step has `--parts` parts; processes take them from one counter, so a process on a busy
core takes fewer and nobody waits long. The learning rate falls to zero when `--minutes` are spent, over resumed runs.
Without bfloat16 units in the CPU, float32 is many times faster; nothing here uses autocast.
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rollforce import flow
from rollforce.config import build, resource
from rollforce.distill import losses
from rollforce.distill.checks import border_ratio
from rollforce.distill.data import ClipPool, PoolConfig
from rollforce.distill.loop import append, follow, load_state, save_state, sum_gradients
from rollforce.distill.muon import Muon
from rollforce.distill.start import start
from rollforce.distill.windows import PATTERNS, Noising, rolling, together
from rollforce.models.autoencoder import TinyAutoencoder
from rollforce.models.text import TextConfig, TextEncoder
from rollforce.models.transformer import Block, TransformerConfig, VideoTransformer
from rollforce.schedule import linear, shifted, warped
from rollforce.world.caption import KINDS
from rollforce.world.sheet import sheet

CHUNK, LADDER, TOKENS = 3, warped([1, 0.75, 0.5, 0.25], 3), 16
VIDEO_KINDS = ("together",) * 5 + ("past",) * 3 + ("filling 1+4", "filling 2+3")


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--autoencoder", type=Path, required=True)
    p.add_argument("--decoder", type=Path, help="autoencoder to draw samples with, if another")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--resume", action="store_true")
    p.add_argument("--minutes", type=float, default=90)
    p.add_argument("--stop", type=float, default=1e9, help="stop (to resume later) after this many minutes")
    p.add_argument("--image-minutes", type=float, default=4, help="single latents only, at first")
    p.add_argument("--images", type=float, default=0.2, help="share of image parts afterwards")
    p.add_argument("--parts", type=int, default=6)
    p.add_argument("--videos", type=int, default=4, help="videos per part")
    p.add_argument("--pictures", type=int, default=48, help="single latents per image part")
    p.add_argument("--latents", type=int, default=15)
    p.add_argument("--model", type=Path, default=resource("configs/model/tiny.yaml"), help="sizes of the transformer")
    p.add_argument("--lr-muon", type=float, default=0.02)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--ema", type=float, default=0.998)
    p.add_argument("--no-positions", action="store_true", help="start without the prior over positions")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--every", type=float, default=8, help="minutes between validations and sheets")
    p.add_argument("--device", default="cpu")
    return p.parse_args()


class Both(torch.nn.Module):
    """Transformer and text encoder, trained together."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.transformer = VideoTransformer(build(TransformerConfig, args.model))
        self.transformer.set_attention("plain" if args.device == "cpu" else "sdpa")
        self.text = TextEncoder(TextConfig(dict(KINDS), text_dim=self.transformer.config.text_dim))

    def forward(self, x: Tensor, sigma: Tensor, prompts: list[str], mask: Tensor | None = None) -> Tensor:
        condition = self.transformer.condition(self.text(self.text.numbers(prompts)))
        return self.transformer(x, sigma, torch.arange(x.shape[1], device=x.device), condition, None, mask)


args = arguments()
torch.manual_seed(0)
device = torch.device(args.device)
distributed = "RANK" in os.environ
if distributed:
    dist.init_process_group("gloo")
rank, processes = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
if distributed:
    counter = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + 1, processes, rank == 0)
args.out.mkdir(parents=True, exist_ok=True)

# ---- data, models, optimisers

autoencoder = TinyAutoencoder.load(args.autoencoder)
decoder = TinyAutoencoder.load(args.decoder or args.autoencoder)
pool = ClipPool(autoencoder, PoolConfig())
held_out = ClipPool(autoencoder, PoolConfig(clips=64, opened=64, dropped=0.0), held_out=True)
model, average = Both(args).to(device), Both(args).to(device)
start(model.transformer, positions=not args.no_positions)
average.load_state_dict(model.state_dict())
matrices = [p for n, p in model.transformer.blocks.named_parameters() if p.ndim == 2 and "norm" not in n]
others = [p for p in model.parameters() if not any(p is m for m in matrices)]
muon = Muon(matrices, args.lr_muon)
adam = torch.optim.AdamW(others, args.lr, betas=(0.9, 0.98), weight_decay=0.0)
everything = list(model.parameters())
step, spent = 0, 0.0
if args.resume and (args.out / "state.pt").exists():
    state = load_state(args.out / "state.pt", device)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    muon.load_state_dict(state["muon"])
    adam.load_state_dict(state["adam"])
    step, spent = state["step"], state["spent"]
if not args.no_compile:
    compiled = (torch.compile(part, dynamic=False) for part in (Block.before, Block.after))
    model.transformer.compiled = tuple(compiled)


def noising(kind: str, rng: np.random.Generator) -> Noising:
    if kind == "image":
        return together(rng, args.pictures, 1)
    if kind == "together":
        return together(rng, args.videos, args.latents)
    return rolling(rng, args.videos, PATTERNS[kind], CHUNK, TOKENS, LADDER)


def part_loss(step: int, part: int, images_only: bool) -> tuple[str, Tensor]:
    """The loss of one part: a pure function of (step, part) and the weights."""
    rng = np.random.default_rng([1, step, part])
    video = not images_only and rng.random() >= args.images
    kind = str(rng.choice(VIDEO_KINDS)) if video else "image"
    n = noising(kind, rng)
    clean, prompts = pool.draw(step, part, len(n.sigma_BT), n.sigma_BT.shape[1])
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(step * 64 + part))
    clean, eps, sigma = clean.to(device), eps.to(device), n.sigma_BT.to(device)
    mask = None if n.mask is None else n.mask.to(device)
    if video and mask is None:  # the same graph for all video parts
        mask = clean.new_zeros(TOKENS * args.latents, TOKENS * args.latents)
    velocity = model(flow.noised(clean, eps, sigma), sigma, prompts, mask)
    return kind, losses.velocity(velocity, clean, eps, n.weight_T.to(device))


@torch.no_grad()
def validate() -> dict[str, float]:
    """Velocity error of the average on held-out clips at four noise levels; mean over levels as "val"."""
    clean, prompts = held_out.draw(0, 0, 16, args.latents)
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    figures = {}
    for level in (0.3, 0.5, 0.7, 0.9):
        sigma = torch.full(clean.shape[:2], level)
        velocity = average(flow.noised(clean, eps, sigma).to(device), sigma.to(device), prompts).cpu()
        figures[f"val {level}"] = round(float((velocity - (eps - clean)).square().mean()), 4)
    figures["val"] = round(sum(figures.values()) / 4, 4)
    return figures


@torch.no_grad()
def sample(steps: int = 12, scale: float = 2.5, count: int = 8) -> tuple[float, np.ndarray]:
    """Euler samples of held-out prompts, all latents together, with guidance: border ratio and a sheet."""
    prompts = held_out.prompts(count)
    shape = (count, args.latents, *held_out.clip(0).shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device)
    for now, later in pairwise([*(shifted(s, 3.0) for s in linear(steps)), 0.0]):
        sigma = torch.full(x.shape[:2], now, device=device)
        wished, free = average(x, sigma, prompts), average(x, sigma, [""] * count)
        x = flow.euler(x, free + scale * (wished - free), sigma, torch.full_like(sigma, later))
    frames = decoder(x.cpu()).clamp(0, 1)
    pictures = [(f * 255).round().byte().numpy() for f in frames]
    return border_ratio(frames, decoder.config.frames), sheet(pictures, list(range(1, 59, 6)), prompts, zoom=2)


def save(seconds: float) -> None:
    average.transformer.save(args.out / "transformer")
    average.text.save(args.out / "text")
    parts = {"model": model, "average": average, "muon": muon, "adam": adam}
    states = {name: part.state_dict() for name, part in parts.items()}
    save_state(args.out / "state.pt", {**states, "step": step, "spent": seconds})


def tell(**entry: float) -> None:
    entry = {"step": step, "minutes": round(seconds / 60, 2), **entry}
    print(entry, flush=True)
    append(args.out / "metrics.jsonl", entry)


def check() -> None:
    """Save, sample, validate."""
    from PIL import Image

    save(seconds)
    ratio, picture = sample()
    tell(**validate(), border=round(ratio, 3))
    Image.fromarray(picture).save(args.out / f"sheet_{int(seconds // 60):03d}.png")


# ---- training

begun = time.time()
told = checked = begun
heard: dict[str, list[float]] = {}  # losses since they were last told
while True:
    seconds = spent + time.time() - begun
    if distributed:  # all processes must agree on the time
        agreed = torch.tensor(seconds, dtype=torch.float64)
        dist.broadcast(agreed, 0)
        seconds = float(agreed)
    done = seconds / (60 * args.minutes)
    if done >= 1 or seconds - spent > 60 * args.stop:
        break
    slow = min(1.0, (step + 1) / 30, (1 - done) / 0.35 + 0.002)
    for optimiser, lr in ((muon, args.lr_muon), (adam, args.lr)):
        for group in optimiser.param_groups:
            group["lr"] = lr * slow

    part = 0
    while (part := (counter.add(f"parts of {step}", 1) - 1) if distributed else part) < args.parts:
        kind, loss = part_loss(step, part, images_only=seconds < 60 * args.image_minutes)
        (loss / args.parts).backward()
        heard.setdefault(kind, []).append(float(loss.detach()))
        part += 1
    sum_gradients(everything)
    norm = torch.nn.utils.clip_grad_norm_(everything, 5.0)
    muon.step()
    adam.step()
    model.zero_grad(set_to_none=True)
    step += 1
    follow(average, model, args.ema, step)

    if rank == 0 and time.time() - told > 60:
        told = time.time()
        means = {kind: round(sum(values) / len(values), 4) for kind, values in heard.items()}
        heard = {}
        tell(cpu=round(time.process_time() / 60, 2), lr=round(slow, 3), norm=round(float(norm), 3), **means)
    if rank == 0 and time.time() - checked > 60 * args.every:
        check()
        checked = time.time()

if rank == 0:
    check()
if distributed:
    dist.barrier()
    dist.destroy_process_group()
