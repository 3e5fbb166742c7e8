"""Model: what was loaded, and the sessions that share it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from rollforce.engine.budget.fit import TILES, check_fits
from rollforce.engine.budget.model_sizes import WAN_TEXT, ModelSizes, TinyDecoding, WanDecoding
from rollforce.engine.budget.requirements import MemorySetup
from rollforce.errors import ConfigError, SnapshotError
from rollforce.models.autoencoder.interface import PairedAutoencoder
from rollforce.models.autoencoder.taehv import TaehvAutoencoder
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.streaming.batch import Batch
from rollforce.streaming.bundle import ModelBundle
from rollforce.streaming.events import Cue
from rollforce.streaming.inputs import FollowSettings, SessionOptions, StreamInputs
from rollforce.streaming.pace import Pace
from rollforce.streaming.session import Session
from rollforce.streaming.snapshot import Snapshot
from rollforce.video.images import Clip, Fit, Picture
from rollforce.video.values import check_kind, draw_seed

log = logging.getLogger(__name__)


def check_session(model: ModelBundle, size: tuple[int, int] | None = None) -> None:
    """Raise DoesNotFit if a stream of these pictures (height, width) has no room beside what is loaded."""
    autoencoder = model.autoencoder
    small = autoencoder.small if isinstance(autoencoder, PairedAutoencoder) else None
    tiny = TinyDecoding(autoencoder.config, 0) if isinstance(autoencoder, TinyAutoencoder) else None
    sizes = ModelSizes(model.name, model.transformer.config, tiny or WanDecoding(), 0, WAN_TEXT, "")
    tiling = TILES if model.running.tiling and tiny is None else None
    check_fits(MemorySetup(sizes, model.stream_settings, size or model.size, model.dtype, model.device, tiling=tiling,
                     loaded=True, small=isinstance(small, TaehvAutoencoder),
                     pruned=small is not None and not isinstance(small, TaehvAutoencoder)))  # fmt: skip


@dataclass(frozen=True)
class Model(ModelBundle):
    """A loaded model, and the sessions that stream from it."""

    def session(self, prompt: str, seed: int | None = 0, size: tuple[int, int] | None = None, *,
                image: Picture | None = None, video: Clip | None = None, follow: Clip | None = None,
                strength: float | None = None, fit: Fit = "crop", ahead: bool = False, cues: Sequence[Cue] = (),
                remember: float = 0.0, pace: Pace | None = None, batch: Batch | None = None) -> Session:  # fmt: skip
        """Start a stream. `size` is (height, width) in pixels; default the trained one. `seed`: a whole number from 0
        to 2^63 - 1, also NumPy's; None draws one, which `Session.seed` tells.

        Args: `image`, `video` what the stream goes on from: a path, uint8 arrays, PIL; `follow` a video (a path, an
        array, an iterator that yields pictures while they come) whose chunks enter at noise level `strength` (.7), so
        that the stream shows the prompt in its place, and ends with it; `fit` crop, pad or stretch, for pictures of
        another size; `ahead` compute the next chunk while this one is decoded and used; `cues` what changes later;
        `remember` seconds that `rewind` can go back: each chunk of them keeps a memory of its own;
        `pace` how the stream does less when it is late, and more when it has time: see streaming/pace.py; `batch` what
        makes its model calls together with those of other streams."""
        following = FollowSettings() if strength is None else FollowSettings.of_strength(strength)
        if strength is not None and follow is None:
            raise ConfigError(f"strength {strength:g} is of a video to follow, and there is none: give follow= too.")
        inputs = StreamInputs(image, video, follow, following, fit)
        cues = check_kind(cues, list | tuple, "cues", 'a list of cues, such as [Cue(10, "a blue star")]')
        return self.begin(prompt, seed, size, SessionOptions(inputs, ahead, tuple(cues), remember, pace, batch))

    def begin(self, prompt: str, seed: int | None, size: tuple[int, int] | None,
              options: SessionOptions | None = None) -> Session:  # fmt: skip
        """Start a stream as `session` does, its options as one. DoesNotFit where the device has not the memory."""
        self.check_prompt(prompt)
        self.grid(size)
        if seed is None:
            seed = draw_seed()
            log.info("seed %d was drawn", seed)
        check_session(self, size)
        return Session(self, prompt, seed, size, options)

    def batch(self, limit: int = 8, ahead: bool = True, lanes: int = 1) -> Batch:
        """Return a batch, for streams that tick together: `session(..., batch=batch)`. Args: `limit` streams at most in
        one model call; `ahead` compute the next chunk of a stream while others are pulled; `lanes` calls at a time,
        where several threads or tasks pull: for a small model on a CPU, as many as there are cores."""
        return Batch(self, limit, ahead, lanes)

    def warmup(self, size: tuple[int, int] | None = None) -> float:
        """Stream until the buffer is full and once more, and throw it away; return the seconds that it took. What is
        compiled, captured or allocated at first use is there afterwards, for this size."""
        begun, layout = perf_counter(), self.stream_settings.layout.build()
        prompt = self.complete_prompt(self.words[0] if self.words else "warm up")
        with self.session(prompt, size=size) as session:
            for _ in zip(session.stream(), range(layout.slots // layout.shift + 2), strict=False):
                pass
        return perf_counter() - begun

    def check_snapshot(self, snapshot: Snapshot) -> None:
        """Refuse a snapshot of another model or of other settings, by a SnapshotError that names them."""
        check_kind(snapshot, Snapshot, "snapshot", "what Snapshot.load(path) or session.snapshot() returns")
        if snapshot.model != self.fingerprint:
            raise SnapshotError(f"The snapshot was made with other weights than those of {self.name!r}; load the model "
                                "it came from.")  # fmt: skip
        if differences := self.identity.differences(snapshot.settings):
            raise SnapshotError(f"The snapshot was made with other settings ({', '.join(differences)}); load the model "
                                "with the same ones, dtype and threads.")  # fmt: skip

    def resume(self, snapshot: Snapshot, ahead: bool = False, pace: Pace | None = None, batch: Batch | None = None,
               remember: float = 0.0) -> Session:  # fmt: skip
        """Continue a saved stream to the same bytes. SnapshotError if it has another model or other settings."""
        self.check_snapshot(snapshot)
        options = SessionOptions(ahead=ahead, remember=remember, pace=pace, batch=batch)
        session = Session(self, snapshot.prompt, snapshot.seed, snapshot.size, options)
        session.restore(snapshot)
        return session
