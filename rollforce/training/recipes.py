"""Settings of training: one frozen dataclass per stage; configs/train/*.yaml map onto them.

A run is a function of its recipe: stopped and resumed, on any number of processes that divides `parts`, it sees the
same data and noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rollforce.engine.flow import Ladder, warped
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import NAMES
from rollforce.training.noise_patterns import PATTERNS
from rollforce.video.values import SIDE, THREADS, check_count, check_number, check_seed


def check_positive(settings: Any, *names: str, where: str = "") -> None:
    """ConfigError if one of the named settings is below 1, or is a list that is empty or holds such a number.

    `where`: what the error says before the setting's name, such as "run."."""
    for name in names:
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple) and value else (value,):
            check_count(each, f"{where}{name}")


def check_parts(batch: int, run: RunSettings) -> None:
    """ConfigError if a step's batch cannot be cut into `run.parts` equal parts."""
    if batch < 1 or batch % run.parts:
        raise ConfigError(f"batch must be a multiple of run.parts, {run.parts}, got {batch}. Change one of the two.")


def check_shown(run: RunSettings, data: AnyData) -> None:
    """ConfigError if pictures are to be shown of data that brings none."""
    if run.show_every and not isinstance(data, World):
        raise ConfigError(f"run.show_every {run.show_every}: samples are shown of the tiny world only, and data.kind "
                          f"is {data.kind}. Set run.show_every=0.")


@dataclass(frozen=True)
class RunSettings:
    """How a run is carried out.

    `parts`: a step's batch comes in so many parts; each process takes every n-th, so this is gradient accumulation on
    one process and data parallelism on several. `precision`: autocast of the forward pass. `shard`: FSDP2, the weights
    of all networks spread over the processes. `recompute`: no activations of a block are kept for the backward pass.
    `keep`: checkpoints kept. The `*_every` are in steps; `show_every` 0 is never."""

    steps: int
    seed: int = 0
    parts: int = 1
    precision: Literal["no", "bf16"] = "no"
    shard: bool = False
    recompute: bool = False
    compile: bool = False
    attention: str = "sdpa"
    tell_every: int = 10
    save_every: int = 200
    show_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        check_positive(self, "steps", "parts", "tell_every", "save_every", "keep", where="run.")
        check_count(self.show_every, "run.show_every", least=0, remedy="0 is never.")
        check_seed(self.seed, "run.seed")
        if self.attention not in NAMES:
            raise ConfigError(f"run.attention {self.attention!r} is not known. Use one of: {', '.join(NAMES)}.")


@dataclass(frozen=True)
class Optimiser:
    """AdamW for everything, or Muon for the matrices of the blocks (at `lr_matrices`) and AdamW for the rest.

    The rate rises over `warmup` steps, and falls linearly to `floor` of it over the last share `decay` of the run."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-4
    lr_matrices: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 30
    decay: float = 0.35
    floor: float = 0.01

    def __post_init__(self) -> None:
        for name in ("lr", "lr_matrices", "weight_decay"):
            check_number(getattr(self, name), f"optimiser {name}")
        for beta in self.betas:
            check_number(beta, "optimiser betas", 0, 1, below=True)
        check_number(self.clip, "optimiser clip", above=True)
        check_count(self.warmup, "optimiser warmup", least=0)
        check_number(self.decay, "optimiser decay", 0, 1, remedy="It is a share of the run.")
        check_number(self.floor, "optimiser floor", 0, 1, remedy="It is a share of the rate.")

    def rate(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied with at `step` of `steps`."""
        left = (steps - step) / steps
        falling = self.floor + (1 - self.floor) * left / self.decay if self.decay else 1.0
        return min(1.0, (step + 1) / max(1, self.warmup), falling)


@dataclass(frozen=True)
class Average:
    """Moving average of the weights: what is validated, shown and exported. `start`: the step at which it begins."""

    keep: float = 0.998
    start: int = 0

    def __post_init__(self) -> None:
        check_number(self.keep, "average.keep", 0, 1)
        check_count(self.start, "average.start", least=0)


@dataclass(frozen=True)
class World:
    """The tiny world as endless data: see data.WorldClips.

    `clips`: how many scenes there are; `opened`: at the first step, `per_step`: how many more with each step, so that
    training starts at once; `latents`: length of a clip; `dropped`: share of captions left empty, for guidance;
    `kept`: clips held in memory; `size`: pixels; `two`: share of scenes with two things (null: as the world has it);
    `alike`: share of these in which both move in the same way; `workers`: processes that render clips ahead."""

    kind: Literal["world"] = "world"
    autoencoder: str = "assets/tiny/autoencoder"
    clips: int = 8192
    opened: int = 512
    per_step: float = 4.0
    latents: int = 24
    dropped: float = 0.1
    kept: int = 8192
    size: int = 64
    two: float | None = None
    alike: float = 0.0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("dropped", "alike", "two"):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), f"data.{name}", 0, 1, remedy="It is a share.")
        check_number(self.per_step, "data.per_step")
        check_count(self.workers, "data.workers", least=0, most=THREADS)
        check_count(self.size, "data.size", most=SIDE)


@dataclass(frozen=True)
class Latents:
    """A folder of encoded clips with their text embeddings: see data.LatentFolder. `autoencoder`: a model folder with
    vae/, needed where a latent is made of a picture (practice.first=image)."""

    kind: Literal["latents"] = "latents"
    folder: str = ""
    dropped: float = 0.1
    autoencoder: str = ""

    def __post_init__(self) -> None:
        check_number(self.dropped, "data.dropped", 0, 1, remedy="It is a share.")


AnyData = World | Latents


@dataclass(frozen=True)
class NoisingSettings:
    """Which windows training draws, as shares: "image", "together" and the names in noise_patterns.PATTERNS.

    `stream`: the preset whose chunk and ladder rolling patterns follow; `shift` of the noise levels of the others."""

    shares: dict[str, float] = field(default_factory=lambda: {"together": 1.0})
    images_only: int = 0
    pictures: int = 48
    stream: str = "rolling"
    shift: float = 3.0

    def __post_init__(self) -> None:
        known = ("image", "together", *PATTERNS)
        if unknown := [name for name in self.shares if name not in known]:
            raise ConfigError(f"noising.shares names {', '.join(unknown)}, which is no kind of window: use some of "
                              f"{', '.join(known)}.")
        if not self.shares or min(self.shares.values()) < 0 or not sum(self.shares.values()):
            raise ConfigError(f"noising.shares {self.shares}: shares are at least 0, and one of them is above it.")
        check_positive(self, "pictures", where="noising.")


@dataclass(frozen=True)
class TeacherRecipe:
    """Flow matching of the teacher (train/teacher.py). `model`: a name in configs/model; `start`: a folder with
    transformer/ and text/ to go on from, or "" for a fresh network. `videos` and `latents`: of a part's batch."""

    run: RunSettings
    model: str = "tiny"
    start: str = ""
    data: AnyData = field(default_factory=World)
    optimiser: Optimiser = field(default_factory=Optimiser)
    average: Average = field(default_factory=Average)
    noising: NoisingSettings = field(default_factory=NoisingSettings)
    videos: int = 4
    latents: int = 15
    scale: float = 2.5

    def __post_init__(self) -> None:
        check_positive(self, "videos", "latents")
        check_shown(self.run, self.data)


@dataclass(frozen=True)
class Guidance:
    """Guidance of the judging teacher, free + scale * (wished - free): `scale`, then `last` from share `since` on."""

    scale: float = 2.0
    last: float = 1.5
    since: float = 0.6

    def at(self, done: float) -> float:
        """The scale when the share `done` of the run is over."""
        return self.scale if done < self.since else self.last


@dataclass(frozen=True)
class WholeRolloutSettings:
    """Whole rollouts from the start (on_policy.WholeRollouts), of a length drawn from `latents`; what reaches into the
    `last` ones, which the teacher can judge, has a gradient; `mix`: share of rollouts in the preset `second`.

    `first`: what longer videos begin with for the teacher, the latent as it is or a re-encoded image
    (noise_patterns.begin_with_image). `leak`: the reference's gradient path into memory (reference_cache)."""

    kind: Literal["lessons"] = "lessons"
    latents: tuple[int, ...] = (21,)
    last: int = 21
    mix: float = 0.0
    second: str = "chunkwise"
    first: Literal["keep", "image"] = "keep"
    leak: bool = False

    def __post_init__(self) -> None:
        check_positive(self, "latents", "last", where="practice.")


@dataclass(frozen=True)
class PersistentStreamSettings:
    """Persistent streams (on_policy.PersistentStreams): `groups` of them of different age, one tick of one per step.

    `age`: chunks after which a group starts again. `behind`: how many finished latents are judged together with those
    in flight; a stream of one chunk in flight needs some, or nobody sees whether its chunks follow each other. With
    `switch` > 0 a group takes new prompts at that share of its age, as a session recaches: LongLive's long tuning."""

    kind: Literal["lasting"] = "lasting"
    groups: int = 6
    age: int = 14
    behind: int = 3
    switch: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "groups", "age", where="practice.")
        check_count(self.behind, "practice.behind", least=0)
        check_number(self.switch, "practice.switch", 0, 1, remedy="It is a share of the age.")


@dataclass(frozen=True)
class TeacherForcingSettings:
    """No self-rollout: noised true videos, each chunk at a level of the ladder, restored in one call (CausVid; the
    "DF + DMD" and "TF + DMD" rows of Self Forcing's ablation). `past`: what a chunk sees behind it."""

    kind: Literal["forced"] = "forced"
    latents: int = 15
    past: Literal["noisy", "clean"] = "noisy"

    def __post_init__(self) -> None:
        check_positive(self, "latents", where="practice.")


AnyPractice = WholeRolloutSettings | PersistentStreamSettings | TeacherForcingSettings


@dataclass(frozen=True)
class RewardSettings:
    """Reward weighting of the student's loss: none, Re-DMD (Reward Forcing) or Stream-R1. See reward_weights."""

    kind: Literal["none", "re_dmd", "stream_r1"] = "none"
    reward: Literal["oracle", "eyes", "random"] = "eyes"
    beta: float = 2.0


@dataclass(frozen=True)
class DistillRecipe:
    """Distribution matching on the student's own rollouts (train/distill.py).

    `teacher`: folder with transformer/ and text/; `start`: the student's, "" for the teacher itself; `stream`: preset
    the student is made for, with `changes` such as layout.levels=[1,0.5]; `window`: latents judged together, at levels
    under `shift`, clamped to `levels`; `ratio`: critic steps per student step; `alone`: first steps of critic only."""

    run: RunSettings
    teacher: str = "assets/tiny-teacher"
    start: str = ""
    stream: str = "rolling"
    changes: tuple[str, ...] = ()
    data: AnyData = field(default_factory=World)
    practice: AnyPractice = field(default_factory=PersistentStreamSettings)
    loss: Literal["dmd", "sid"] = "dmd"
    guidance: Guidance = field(default_factory=Guidance)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    batch: int = 8
    window: int = 12
    ratio: int = 3
    alone: int = 8
    shift: float = 3.0
    levels: tuple[float, float] = (0.02, 0.98)
    student: Optimiser = field(default_factory=lambda: Optimiser(lr=2e-4, betas=(0.5, 0.99), warmup=15, decay=0.5))
    critic: Optimiser = field(default_factory=lambda: Optimiser(lr=3e-4, betas=(0.5, 0.99), warmup=1, decay=0.0))
    average: Average = field(default_factory=lambda: Average(keep=0.98))

    def __post_init__(self) -> None:
        check_parts(self.batch, self.run)
        check_shown(self.run, self.data)
        check_positive(self, "window", "ratio")
        check_count(self.alone, "alone", least=0)
        for level in self.levels:
            check_number(level, "levels", 0, 1, remedy="Two noise levels, such as [0.02, 0.98].")


@dataclass(frozen=True)
class CausalRecipe:
    """A causal student before any self-rollout (train/causal.py).

    `method`: how; see the script. `aug`: largest noise on the true past (teacher forcing). `solver_steps`: of the
    teacher's ODE and of the consistency grid; `history`: solve each chunk from its true past (Causal Forcing) or the
    whole video at once (CausVid, Self Forcing); `pairs`: how many batches of ODE pairs are solved, each used again and
    again. `mix`: StreamDiT's partitions as [chunk, micro steps, chunks in flight]; the first one is distilled."""

    run: RunSettings
    teacher: str = "assets/tiny-teacher"
    start: str = ""
    method: Literal["teacher_forcing", "diffusion_forcing", "ode", "consistency", "partitions",
                    "segments"] = "diffusion_forcing"  # fmt: skip
    data: AnyData = field(default_factory=World)
    chunk: int = 3
    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    shift: float = 3.0
    weighted: bool = False
    aug: float = 0.0
    solver_steps: int = 48
    history: bool = True
    pairs: int = 64
    mix: tuple[tuple[int, int, int], ...] = ((3, 1, 4), (3, 2, 2), (1, 2, 8))
    scale: float = 2.0
    videos: int = 4
    latents: int = 15
    optimiser: Optimiser = field(default_factory=Optimiser)
    average: Average = field(default_factory=lambda: Average(keep=0.99))

    def __post_init__(self) -> None:
        check_positive(self, "chunk", "solver_steps", "pairs", "videos", "latents")
        if not self.mix:
            raise ConfigError("mix has no partition: give at least one, e.g. [[3, 1, 4]].")

    @property
    def ladder(self) -> Ladder:
        """The student's noise levels after the shift."""
        return warped(self.levels, self.shift)


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The tiny autoencoder (train/autoencoder.py).

    `encoder`: folder of an autoencoder whose linear encoder (and decoder, to go on from) is kept; "" fits a new one to
    `fitted` clips. `workers`: processes that render ahead. `drawn`: how many of a clip's `latents` are judged. `noise`:
    the largest on latents. `student`: folder with transformer/ and text/ that redraws the share `redrawn` of clips."""

    run: RunSettings
    encoder: str = ""
    student: str = ""
    redrawn: float = 0.75
    fitted: int = 300
    size: int = 64
    workers: int = 0
    batch: int = 4
    latents: int = 12
    drawn: int = 5
    noise: float = 0.35
    optimiser: Optimiser = field(default_factory=lambda: Optimiser("muon", lr=1e-3, lr_matrices=0.01, warmup=50,
                                                                   decay=0.5, clip=1e9))  # fmt: skip
    average: Average = field(default_factory=lambda: Average(keep=0.99))

    def __post_init__(self) -> None:
        check_parts(self.batch, self.run)
        if not 1 <= self.drawn <= self.latents:
            raise ConfigError(f"drawn {self.drawn}: between 1 and latents, {self.latents}.")
