"""Train the oracle's eyes (rollforce/world/eyes.py): a few CPU-minutes on one thread, deterministic.

    OMP_NUM_THREADS=1 python train/oracle.py            # writes assets/oracle/eyes.safetensors

Data is rendered on the way: natural scenes of the training half of the world, and arrangements that nature does not
have (no thing, three things, two of one colour, half outside). Frames are blurred, sharpened, ghosted and made noisy,
because generated frames are; shapes are also torn on purpose, to teach the fifth class.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from rollforce.errors import call_main
from rollforce.video.values import check_arguments, make_folder
from rollforce.world import COLOURS, FPS, PLACES, SHAPES, TIMES, Scene, Thing, render, sample_scene
from rollforce.world.eyes import (
    CELL,
    CROP,
    MARGIN,
    SIZE,
    ShapeClassifier,
    ThingDetector,
    bundled,
    crop,
    pad_frames,
    to_input,
)
from rollforce.world.scenes import GAP, WIDEST

CELLS = (SIZE + 2 * MARGIN) // CELL
TORN = len(SHAPES)
Moment = tuple[np.ndarray, Scene, int]  # a frame, its scene and its number


def arrangement(rng: np.random.Generator) -> Scene:
    """Zero to three things anywhere, of any colours and shapes, not on top of each other."""
    count = int(rng.choice([0, 1, 2, 3], p=[0.1, 0.5, 0.3, 0.1]))
    radius = rng.uniform(0.135, 0.195)
    spots: list[np.ndarray] = []
    while len(spots) < count:
        spot = rng.uniform((-0.2, 0.12), (1.2, 0.8))
        if all(np.hypot(*(spot - other)) > 1.5 * radius for other in spots):
            spots.append(spot)
    things = tuple(
        Thing(str(rng.choice(COLOURS)), str(rng.choice(SHAPES)), "rolls left" if rng.random() < 0.3 else "drifts left",
              radius=radius, y=float(y)) for _, y in spots)
    starts = ((x + WIDEST * radius + GAP / 2) / t.lap for t, (x, _) in zip(things, spots, strict=True))
    things = tuple(replace(t, phase=float(start)) for t, start in zip(things, starts, strict=True))
    return replace(sample_scene(int(rng.integers(1 << 40)), count=1), things=things)


def moment(rng: np.random.Generator) -> Moment:
    """One frame uint8 [64, 64, 3], its scene and its number. A quarter of the frames carry a ghost of the next ones."""
    natural = rng.random() < 0.55
    scene = sample_scene(int(rng.integers(1 << 40)), held_out=False) if natural else arrangement(rng)
    at = int(rng.integers(2000)) if natural else 0
    frame = render(scene, at, 1)[0].astype(np.float32)
    if rng.random() < 0.25:
        ghost = render(scene, at + int(rng.choice([-2, -1, 1, 2])), 1)[0]
        frame += rng.uniform(0, 0.45) * (ghost - frame)
    return frame.astype(np.uint8), scene, at


def places_of(scene: Scene, at: int) -> list[tuple[Thing, float, float, float, bool]]:
    """(thing, x, y, visible share, free of others) of every thing at frame `at`."""
    seconds = np.array([at / FPS])
    spots = [tuple(float(c[0]) for c in thing.track(seconds)) for thing in scene.things]
    result = []
    for n, (thing, (x, y)) in enumerate(zip(scene.things, spots, strict=True)):
        reach = 1.05 * thing.radius
        visible = np.clip((min(x + reach, 1) - max(x - reach, 0)) / (2 * reach), 0, 1)
        gap = min((np.hypot(x - u, y - v) for m, (u, v) in enumerate(spots) if m != n), default=9.0)
        result.append((thing, x, y, float(visible), gap > 1.5 * thing.radius))
    return result


def targets(scene: Scene, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """heat [6, 24, 24], offset [2, 24, 24], where offsets count [24, 24], where heat counts [24, 24]."""
    heat, counted = np.zeros((len(COLOURS), CELLS, CELLS), np.float32), np.ones((CELLS, CELLS), np.float32)
    offset, near = np.zeros((2, CELLS, CELLS), np.float32), np.zeros((CELLS, CELLS), np.float32)
    middles = np.arange(CELLS) + 0.5
    for thing, x, y, visible, free in places_of(scene, at):
        du = (x * SIZE + MARGIN) / CELL - middles[None, :] + np.zeros((CELLS, 1))
        dv = (y * SIZE + MARGIN) / CELL - middles[:, None] + np.zeros((1, CELLS))
        bump = np.exp(-(du**2 + dv**2) / (2 * 1.0**2)).astype(np.float32)
        if visible < 0.1:
            continue
        if visible < 0.35 or not free:
            counted[bump > 0.01] = 0
            continue
        bump[bump >= bump.max()] = 1.0
        heat[COLOURS.index(thing.colour)] = np.maximum(heat[COLOURS.index(thing.colour)], bump)
        close = bump > 0.25
        offset[:, close] = np.stack([du, dv])[:, close]
        near[close] = 1
    return heat, offset, near, counted


def soften(x: Tensor, rng: torch.Generator) -> Tensor:
    """Blur or sharpen, shift brightness and contrast, add white, smooth and blocky noise: [B, 3, 64, 64] in -1..1."""
    b = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, 1, 1, 1, generator=rng)

    ticks = torch.arange(-3, 4).float()
    kernel = torch.exp(-(ticks**2) / (2 * 1.3**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 7)
    blurred = F.conv2d(F.pad(x, (3, 3, 3, 3), mode="replicate"), kernel[:, :, None, :], groups=3)
    blurred = F.conv2d(blurred, kernel[..., None], groups=3)
    y = x + uniform(-0.5, 1.0) * (blurred - x)
    y = uniform(0.8, 1.2) * y + uniform(-0.12, 0.12)
    for cells, mode, most in ((SIZE, "nearest", 0.12), (8, "bicubic", 0.15), (8, "nearest", 0.08)):
        noise = torch.randn(b, 3, cells, cells, generator=rng)
        y = y + uniform(0, most) * F.interpolate(noise, (SIZE, SIZE), mode=mode)
    kept = (torch.rand(b, 1, 1, 1, generator=rng) < 0.2).float()
    return (kept * x + (1 - kept) * y).clamp(-1, 1)


def heat_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Focal loss around the peaks: cells near a peak are forgiven, easy cells weigh little."""
    p = torch.sigmoid(logits).clamp(1e-4, 1 - 1e-4)
    peak = (target >= 1).float()
    hit = peak * (1 - p) ** 2 * p.log()
    miss = (1 - peak) * (1 - target) ** 4 * p**2 * (1 - p).log()
    return -((hit + miss) * counted[:, None]).sum() / peak.sum().clamp(min=1)


def tear(c: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop [4, 32, 32] that no longer shows a shape: shuffled tiles, two halves, holes, or strongly bent."""
    c, kind = c.clone(), rng.integers(5)
    if kind == 0:
        tile = int(rng.choice([8, 16]))
        tiles = [c[:, i : i + tile, j : j + tile].clone() for i in range(0, CROP, tile) for j in range(0, CROP, tile)]
        order = rng.permutation(len(tiles))
        for n, (i, j) in enumerate((i, j) for i in range(0, CROP, tile) for j in range(0, CROP, tile)):
            c[:, i : i + tile, j : j + tile] = tiles[order[n]]
    elif kind == 1:
        shift = int(rng.integers(7, 14)) * (1 if rng.random() < 0.5 else -1)
        if rng.random() < 0.5:
            c[:, CROP // 2 :] = c[:, CROP // 2 :].roll(shift, 2)
        else:
            c[:, :, CROP // 2 :] = c[:, :, CROP // 2 :].roll(shift, 1)
    elif kind == 2:
        if rng.random() < 0.5:
            c[:, CROP // 2 :] = other[:, CROP // 2 :]
        else:
            c[:, :, CROP // 2 :] = other[:, :, CROP // 2 :]
    elif kind == 3:
        for _ in range(3):
            i, j = rng.integers(5, 20, 2)
            c[:3, i : i + 8, j : j + 8] = c[:3, 0:1, 0:1]
    else:
        c = bend(c, rng, rng.uniform(5.0, 8.0))
    return c


def bend(c: Tensor, rng: np.random.Generator, pixels: float) -> Tensor:
    """A crop warped smoothly by about `pixels`."""
    field = torch.from_numpy(rng.normal(size=(1, 2, 4, 4)).astype(np.float32)) * pixels * 2 / CROP
    field = F.interpolate(field, (CROP, CROP), mode="bicubic").permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 4, CROP, CROP], align_corners=False)
    return F.grid_sample(c[None], grid + field, padding_mode="border", align_corners=False)[0]


def crops_of(x: Tensor, moments: list[Moment], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Crops around what is in the padded frames and the names they should get."""
    crops, names = [], []
    for frame, (_, scene, at) in zip(x, moments, strict=True):
        for thing, px, py, visible, free in places_of(scene, at):
            if visible >= 0.47 and free:
                jx, jy = rng.normal(0, 1.0 / SIZE, 2)
                crops.append(crop(frame, px + jx, py + jy))
                names.append(SHAPES.index(thing.shape))
        empty = all(np.hypot(px - 0.5, py - 0.35) > 0.45 for _, px, py, _, _ in places_of(scene, at))
        if rng.random() < 0.1 and empty:
            crops.append(crop(frame, 0.5, 0.35))
            names.append(TORN)
    for n in range(len(crops)):
        draw = rng.random()
        if draw < 0.25:
            other = int(rng.integers(len(crops)))
            if names[n] != TORN and names[other] not in (TORN, names[n]):
                crops[n], names[n] = tear(crops[n], crops[other], rng), TORN
        elif draw < 0.5:
            crops[n] = bend(crops[n], rng, rng.uniform(0.3, 1.2))
    return torch.stack(crops), torch.tensor(names)


def losses_of(moments: list[Moment], finder: ThingDetector, namer: ShapeClassifier, rng: np.random.Generator,
              noise: torch.Generator) -> list[Tensor]:
    """Heat, offset, scene and shape loss of one batch."""
    x = pad_frames(soften(to_input(np.stack([frame for frame, _, _ in moments])), noise))
    aims = zip(*(targets(s, at) for _, s, at in moments), strict=True)
    heat, offset, near, counted = (torch.from_numpy(np.stack(part)) for part in aims)
    place = torch.tensor([PLACES.index(s.place) for _, s, _ in moments])
    hour = torch.tensor([TIMES.index(s.time) for _, s, _ in moments])
    said_heat, said_offset, said_scene = finder(x)
    losses = [heat_loss(said_heat, heat, counted),
              ((said_offset - offset).abs() * near[:, None]).sum() / near.sum().clamp(min=1),
              F.cross_entropy(said_scene[:, :4], place) + F.cross_entropy(said_scene[:, 4:], hour)]
    crops, names = crops_of(x, moments, rng)
    losses.append(F.cross_entropy(namer(crops), names))
    return losses


def main() -> None:
    """Train both networks side by side and write them as float16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=bundled())
    a = parser.parse_args()
    check_arguments(a, counts=("steps", "batch"), seeds=("seed",))
    make_folder(a.out, "--out")
    torch.manual_seed(a.seed)
    rng, noise = np.random.default_rng(a.seed), torch.Generator().manual_seed(a.seed)
    finder, namer = ThingDetector(), ShapeClassifier()
    assert finder.heat.bias is not None
    torch.nn.init.constant_(finder.heat.bias, -3.0)
    weights = [*finder.parameters(), *namer.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=3e-3, weight_decay=1e-3)
    began, means = time.process_time(), np.zeros(4)
    for step in range(a.steps):
        warm, left = min((step + 1) / 30, 1.0), 1 - step / a.steps
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * warm * (0.02 + 0.98 * left)
        moments = [moment(rng) for _ in range(a.batch)]
        losses = losses_of(moments, finder, namer, rng, noise)
        loss = losses[0] + 0.5 * losses[1] + 0.3 * losses[2] + losses[3]
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        optimiser.step()
        means += (np.array([float(part.detach()) for part in losses]) - means) * max(0.05, 1 / (step + 1))
        if step % 25 == 24:
            print(f"step {step + 1}  heat {means[0]:.3f}  offset {means[1]:.3f}  scene {means[2]:.4f}"
                  f"  shape {means[3]:.3f}  {time.process_time() - began:.0f} CPU-s", flush=True)
    state = {f"finder.{k}": v for k, v in finder.state_dict().items()}
    state |= {f"namer.{k}": v for k, v in namer.state_dict().items()}
    a.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in state.items()}, a.out)
    print(f"wrote {a.out}, {a.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    call_main(main)
