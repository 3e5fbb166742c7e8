"""Distil the student: few steps, no guidance, by DMD on its own rolling rollouts.

    python train/distill.py --teacher runs/teacher --autoencoder runs/autoencoder/final --out runs/student --minutes 20

The student starts as the teacher and walks `rollforce.rollout.Rollout` with the stream preset it will be used with. The
teacher (frozen, guided) and the critic (a second copy that learns what the student makes) judge windows of its video,
all latents at one noise level. `--apart` trains the critic in a process of its own, through shared memory.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor

from rollforce import flow
from rollforce.config import build, resource
from rollforce.distill import losses
from rollforce.distill.checks import border_ratio
from rollforce.distill.loop import append, follow, load_state, save_state
from rollforce.distill.scores import guided, score_of
from rollforce.distill.streams import Streams
from rollforce.models.autoencoder import TinyAutoencoder
from rollforce.models.text import TextEncoder
from rollforce.models.transformer import VideoTransformer
from rollforce.schedule import shifted
from rollforce.settings import StreamSettings
from rollforce.world.caption import caption
from rollforce.world.scenes import sample_scene
from rollforce.world.sheet import sheet


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--teacher", type=Path, required=True, help="folder with transformer/ and text/")
    p.add_argument("--autoencoder", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--stream", default="rolling", help="preset in configs/stream")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--minutes", type=float, default=20)
    p.add_argument("--apart", action="store_true", help="train the critic in its own process")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--groups", type=int, default=6)
    p.add_argument("--age", type=int, default=14, help="ticks after which a group starts again")
    p.add_argument("--window", type=int, default=12, help="latents that are judged together")
    p.add_argument("--ratio", type=int, default=2, help="critic steps per student step")
    p.add_argument("--scale", type=float, default=2.0, help="guidance of the teacher")
    p.add_argument("--last-scale", type=float, default=1.5, help="guidance in the last 40 % of the time")
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--lr-critic", type=float, default=3e-4)
    p.add_argument("--alone", type=int, default=8, help="first iterations that train the critic only")
    p.add_argument("--ema", type=float, default=0.98)
    p.add_argument("--every", type=float, default=4, help="minutes between sheets")
    p.add_argument("--device", default="cpu")
    return p.parse_args()


def sigmas(batch: int, latents: int, device: torch.device) -> Tensor:
    """One noise level per video, spread evenly over the batch, shifted towards noise: [B, T]."""
    even = (torch.arange(batch) + torch.rand(batch)) / batch
    level = torch.tensor([shifted(float(s), 3.0) for s in even]).clamp(0.02, 0.98)
    return level[:, None].expand(-1, latents).to(device)


def critic_steps(
    critic: VideoTransformer, optimiser: torch.optim.Optimizer, video: Tensor, text: Tensor, ratio: int
) -> float:
    """Teach the critic what the student makes: `ratio` steps of flow matching on one batch of its videos."""
    total = 0.0
    for _ in range(ratio):
        sigma, eps = sigmas(*video.shape[:2], video.device), torch.randn_like(video)
        index = torch.arange(video.shape[1], device=video.device)
        predicted = critic(flow.noised(video, eps, sigma), sigma, index, critic.condition(text))
        loss = losses.velocity(predicted, video, eps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimiser.step()
        total += float(loss.detach())
    return total / ratio


def critic_process(critic: VideoTransformer, queue: mp.Queue, told: mp.Value, lr: float, ratio: int) -> None:
    """The critic's own process: its weights lie in shared memory, so the student's process always reads the newest."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(critic.parameters(), lr, betas=(0.5, 0.99))
    while (item := queue.get()) is not None:
        told.value = critic_steps(critic, optimiser, *item, ratio)


def started(path: Path, device: torch.device) -> VideoTransformer:
    model = VideoTransformer.load(path).float().to(device)
    model.set_attention("plain" if device.type == "cpu" else "sdpa")
    return model


@torch.no_grad()
def show(
    student: VideoTransformer, text: TextEncoder, autoencoder: TinyAutoencoder, settings: StreamSettings,
    latent: tuple[int, int, int],
) -> tuple[dict[str, float], np.ndarray]:
    """Stream 8 prompts never trained on for 7 s; border ratio, contrast, and a sheet."""
    prompts = [caption(sample_scene(10**9 + i, held_out=True), i, full=True) for i in range(8)]
    vectors = text.encode(prompts).to(student.proj_out.weight.device)
    streams = Streams(student, settings, vectors, tuple(range(8)), latent)
    streams.rollout.end = 21
    made = torch.cat([c.latents_BTCHW for c in streams.rollout.commits()], dim=1).float().cpu()
    frames = autoencoder(made).clamp(0, 1)
    pictures = [(f * 255).round().byte().numpy() for f in frames]
    border = border_ratio(frames, autoencoder.config.frames)
    figures = {"border": round(border, 3), "contrast": round(float(frames.std()), 4)}
    return figures, sheet(pictures, list(range(1, 84, 8)), prompts, zoom=2)


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    if args.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = build(StreamSettings, resource(f"configs/stream/{args.stream}.yaml"))
    autoencoder, text = TinyAutoencoder.load(args.autoencoder), TextEncoder.load(args.teacher / "text")
    teacher = started(args.teacher / "transformer", device).requires_grad_(False)
    student, critic = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(teacher).requires_grad_(True)
    optimiser = torch.optim.Adam(student.parameters(), args.lr, betas=(0.5, 0.99))
    iteration, spent = 0, 0.0
    average = copy.deepcopy(student).requires_grad_(False)
    if args.resume:
        state = load_state(args.out / "state.pt", device)
        for part, name in ((student, "student"), (critic, "critic"), (average, "average"), (optimiser, "optimiser")):
            part.load_state_dict(state[name])
        iteration, spent = state["iteration"], state["spent"]
    queue: mp.Queue | None = None
    if args.apart:
        critic.share_memory()
        queue, told = mp.get_context("spawn").Queue(maxsize=1), mp.get_context("spawn").Value("d", 0.0)
        learner = mp.get_context("spawn").Process(
            target=critic_process, args=(critic, queue, told, args.lr_critic, args.ratio), daemon=True)
        learner.start()
    else:
        critic_optimiser = torch.optim.Adam(critic.parameters(), args.lr_critic, betas=(0.5, 0.99))

    free = teacher.condition(text.encode([""] * args.batch).detach().to(device))
    size = 64 // autoencoder.config.patch
    latent = (autoencoder.config.channels, size, size)
    rng = np.random.default_rng([7, iteration])
    groups: list[Streams | None] = [None] * args.groups

    def begin(age: int) -> Streams:
        """A group with new prompts, walked `age` ticks without learning, so that groups differ in age."""
        seeds = tuple(int(s) for s in rng.integers(2**31, size=args.batch))
        prompts = [caption(sample_scene(seed, held_out=False), seed + 1) for seed in seeds]
        with torch.no_grad():
            group = Streams(student, settings, text.encode(prompts).to(device), seeds, latent)
            for _ in range(age):
                group.tick()
        return group

    begun = time.time()
    shown = reported = begun
    sums: dict[str, float] = {}
    while (minutes := spent + (time.time() - begun) / 60) < args.minutes:
        done = minutes / args.minutes
        for g in optimiser.param_groups:
            g["lr"] = args.lr * min(1.0, (iteration - args.alone + 1) / 15, (1 - done) / 0.5 + 0.03)
        place = iteration % args.groups
        if (group := groups[place]) is None:
            group = groups[place] = begin(place * args.age // args.groups)
        elif group.ticks >= args.age:
            group = groups[place] = begin(0)

        video = group.tick()
        at = int(rng.integers(max(0, video.shape[1] - args.window) + 1))
        video = video[:, at : at + args.window]
        if iteration >= args.alone:
            scale = args.scale if done < 0.6 else args.last_scale
            judge = guided(score_of(teacher, teacher.condition(group.text_BLD)), score_of(teacher, free), scale)
            with torch.no_grad():
                rival = score_of(critic, critic.condition(group.text_BLD))
            loss = losses.dmd(video, judge, rival, sigmas(*video.shape[:2], device), torch.randn_like(video))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            follow(average, student, args.ema, iteration)
            sums["dmd"] = sums.get("dmd", 0.0) + float(loss.detach())
            sums["norm"] = sums.get("norm", 0.0) + float(norm)
        item = (video.detach().clone(), group.text_BLD)
        if queue is not None:
            queue.put(item)
            sums["critic"] = sums.get("critic", 0.0) + told.value
        else:
            sums["critic"] = sums.get("critic", 0.0) + critic_steps(critic, critic_optimiser, *item, args.ratio)
        sums["count"] = sums.get("count", 0.0) + 1
        iteration += 1

        last = (time.time() - begun) / 60 + spent >= args.minutes
        if time.time() - reported > 30:
            reported = time.time()
            entry = {k: round(v / sums["count"], 5) for k, v in sums.items() if k != "count"}
            entry = {"iteration": iteration, "minutes": round(minutes, 2), **entry}
            print(entry, flush=True)
            append(args.out / "metrics.jsonl", entry)
            sums = {}
        if last or time.time() - shown > 60 * args.every:
            shown = time.time()
            average.save(args.out / "transformer")
            text.save(args.out / "text")
            save_state(args.out / "state.pt", {
                "student": student.state_dict(), "critic": critic.state_dict(), "average": average.state_dict(),
                "optimiser": optimiser.state_dict(), "iteration": iteration, "spent": minutes})
            figures, picture = show(average, text, autoencoder, settings, latent)
            entry = {"iteration": iteration, "minutes": round(minutes, 2), **figures}
            print(entry, flush=True)
            append(args.out / "metrics.jsonl", entry)
            from PIL import Image

            Image.fromarray(picture).save(args.out / f"sheet_{iteration:04d}.png")
    if queue is not None:
        queue.put(None)
        learner.join(60)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
