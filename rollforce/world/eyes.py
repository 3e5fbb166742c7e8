"""Two small networks that look at single frames: where which things are, in what surroundings, and of which shape.

They know nothing of prompts, motion or other frames; `oracle.py` draws the conclusions. Trained by train/oracle.py on
rendered scenes with blur, ghosts and noise, so that they also read soft and slightly wrong pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from rollforce.errors import CheckpointError
from rollforce.world.scenes import COLOURS, PLACES, SHAPES, TIMES

SIZE = 64  # the networks look at this many pixels
MARGIN = 16  # around them, so that the middle of a thing may lie outside of the picture
CELL = 4  # pixels per cell of the map of things
CROP = 32
SURE = 0.4  # heat from which something counts as a thing
NEAR = 0.11  # two heats nearer than this, in picture widths, are one thing
WEIGHTS = Path("assets/oracle/eyes.safetensors")  # in the package if installed, beside it in a checkout


class ThingDetector(nn.Module):
    """Frame [B, 4, 96, 96], RGB with a margin -> heat [B, 6, 24, 24], offset [B, 2, 24, 24], scene [B, 7]. Heat has a
    channel per colour and peaks at the middle of a thing; offset points from a cell's middle to the thing's, in cells;
    scene holds the logits of the four places, then of the three times."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 24, 5, 2, 2)
        self.second = nn.Conv2d(24, width, 3, 2, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, 1, d, d) for d in (1, 2, 3, 1))
        self.heat = nn.Conv2d(width, len(COLOURS), 1)
        self.offset = nn.Conv2d(width, 2, 1)
        self.scene = nn.Linear(4 * width, len(PLACES) + len(TIMES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.silu(self.second(F.silu(self.first(x))))
        for block in self.blocks:
            x = x + F.silu(block(x))
        edge = MARGIN // CELL
        bands = F.adaptive_avg_pool2d(x[:, :, edge:-edge, edge:-edge], (4, 1))
        return self.heat(x), self.offset(x), self.scene(rearrange(bands, "b c band 1 -> b (c band)"))


class ShapeClassifier(nn.Module):
    """Crop [B, 4, 32, 32] around a thing -> logits [B, 5] of the four shapes and of being torn or no shape at all."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(4, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 1, 1), nn.Conv2d(32, 48, 3, 1, 1)])
        self.hidden = nn.Linear(48 * 16, 48)
        self.name = nn.Linear(48, len(SHAPES) + 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.max_pool2d(F.silu(conv(x)), 2)
        return self.name(F.silu(self.hidden(rearrange(x, "b c h w -> b (c h w)"))))


@dataclass(frozen=True)
class Detection:
    """One thing in one frame. x, y: its middle in picture widths; `heat`: how sure, 0..1; `colour`: probabilities [6];
    `shape`: probabilities [5] of the four shapes and of being torn; None if its middle is outside of the picture."""

    x: float
    y: float
    heat: float
    colour: np.ndarray
    shape: np.ndarray | None = None


@dataclass(frozen=True)
class EyesOutput:
    """What was seen in F frames: `place` [F, 4] and `time` [F, 3] probabilities, and the things of each frame."""

    place: np.ndarray
    time: np.ndarray
    things: tuple[tuple[Detection, ...], ...]


class Eyes:
    """The two networks, ready to `look`."""

    def __init__(self, finder: ThingDetector, namer: ShapeClassifier) -> None:
        self.finder, self.namer = finder.eval(), namer.eval()

    @classmethod
    def load(cls, path: Path | None = None) -> Eyes:
        """Return the trained networks of `path`, or the bundled ones. CheckpointError if they are not there."""
        path = bundled() if path is None else path
        if not path.is_file():
            raise CheckpointError(f"the oracle's weights {path} are missing; make them with: python train/oracle.py")
        state = {name: value.float() for name, value in load_file(path).items()}
        finder, namer = ThingDetector(), ShapeClassifier()
        for part, network in (("finder.", finder), ("namer.", namer)):
            network.load_state_dict({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)})
        return cls(finder, namer)

    @torch.no_grad()
    def look(self, frames: np.ndarray, batch: int = 96) -> EyesOutput:
        """Return what is seen in every frame of uint8 [F, H, W, 3]."""
        looks = [self._look(frames[at : at + batch]) for at in range(0, len(frames), batch)]
        return EyesOutput(np.concatenate([k.place for k in looks]), np.concatenate([k.time for k in looks]),
                    tuple(things for k in looks for things in k.things))

    def _look(self, frames: np.ndarray) -> EyesOutput:
        x = pad_frames(to_input(frames))
        heat, offset, scene = self.finder(x)
        place, time = scene.split([len(PLACES), len(TIMES)], 1)
        found = [find_peaks(h, o) for h, o in zip(torch.sigmoid(heat), offset, strict=True)]
        inside = [(f, n) for f, things in enumerate(found) for n, thing in enumerate(things) if 0 < thing.x < 1]
        if inside:
            crops = torch.stack([crop(x[f], found[f][n].x, found[f][n].y) for f, n in inside])
            for (f, n), shape in zip(inside, self.namer(crops).softmax(1).numpy(), strict=True):
                found[f][n] = replace(found[f][n], shape=shape)
        return EyesOutput(place.softmax(1).numpy(), time.softmax(1).numpy(), tuple(map(tuple, found)))


def bundled() -> Path:
    """Return where the bundled weights are, or should be."""
    package = Path(__file__).resolve().parents[1]
    return package / WEIGHTS if (package / WEIGHTS).is_file() else package.parent / WEIGHTS


def to_input(frames: np.ndarray) -> Tensor:
    """Return uint8 frames [F, H, W, 3] as the networks' input, float [F, 3, 64, 64] in -1..1."""
    x = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "f h w rgb -> f rgb h w").float() / 127.5 - 1
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return x


def pad_frames(x: Tensor) -> Tensor:
    """Return [F, 3, 64, 64] with zeros around and a channel that says where the picture is: [F, 4, 96, 96]."""
    return F.pad(torch.cat([x, torch.ones_like(x[:, :1])], 1), (MARGIN,) * 4)


def crop(x: Tensor, px: float, py: float) -> Tensor:
    """Return the [4, 32, 32] pixels of one padded frame [4, 96, 96] around (px, py), in picture widths."""
    left, top = (min(max(round(p * SIZE) + MARGIN, 0), SIZE + 2 * MARGIN) for p in (px, py))
    return F.pad(x, (CROP // 2,) * 4)[:, top : top + CROP, left : left + CROP]


def find_peaks(heat: Tensor, offset: Tensor) -> list[Detection]:
    """Return the things in one frame's heat [6, h, w], surest first, without their shapes."""
    best = heat.amax(0)
    tops = (best == F.max_pool2d(best[None], 3, 1, 1)[0]) & (best > SURE)
    spots = []
    for row, column in tops.nonzero().tolist():
        dx, dy = offset[:, row, column].clamp(-2, 2).tolist()
        px, py = ((at * CELL - MARGIN) / SIZE for at in (column + 0.5 + dx, row + 0.5 + dy))
        around = heat[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean((1, 2))
        spots.append(Detection(px, py, float(best[row, column]), (around / around.sum()).numpy()))
    kept: list[Detection] = []
    for spot in sorted(spots, key=lambda s: -s.heat):
        if all(abs(spot.x - k.x) + abs(spot.y - k.y) > NEAR for k in kept):
            kept.append(spot)
    return kept
