"""The past of one stream through a causal network: its features, for every tile of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rollforce.errors import ShapeError, SnapshotError
from rollforce.models.autoencoder.tiling import Mosaic, Tiling, mosaic

Features = list[Any]  # a tensor per causal layer; None before its first input; "Rep" after a first one without history


class FeatureStream:
    """Calls `step(input, features)` for every next piece of a stream and keeps the features between.

    Pictures are cut into tiles, each with features of its own, where `tiling` says so. `scale_in` and `scale_out` are
    pixels per latent pixel of what goes in and comes out; `slots` is how many features the network counts through.
    `step` may change the list of features, but no tensor in it: states that were taken stay what they were.
    """

    def __init__(
        self,
        step: Callable[[Tensor, Features], Tensor],
        slots: int,
        scale_in: int,
        scale_out: int,
        tiling: Tiling | None,
        stride: int,
    ) -> None:
        self._step, self._slots, self._tiling, self._stride = step, slots, tiling, stride
        self._scale_in, self._scale_out = scale_in, scale_out
        self._mosaic: Mosaic | None = None
        self._features: list[Features] = []

    @property
    def begun(self) -> bool:
        """Whether something has gone through."""
        return self._mosaic is not None

    def __call__(self, x: Tensor) -> Tensor:
        """The next piece, [..., H, W]. ShapeError if its size is not that of the stream."""
        if x.shape[-2] % self._scale_in or x.shape[-1] % self._scale_in:
            raise ShapeError(f"{x.shape[-2]} x {x.shape[-1]} pixels are not multiples of {self._scale_in}")
        size = (x.shape[-2] // self._scale_in, x.shape[-1] // self._scale_in)
        if self._mosaic is None:
            self._begin(*size)
        assert self._mosaic is not None
        if size != self._mosaic.size:
            was, now = (tuple(self._stride * side for side in sides) for sides in (self._mosaic.size, size))
            raise ShapeError(
                f"pictures of {now[0]} x {now[1]} in a stream of {was[0]} x {was[1]}: "
                "a stream keeps its size; reset() begins a new one."
            )
        return self._mosaic.blend(self._tiles(x, self._mosaic), self._scale_out)

    def _begin(self, height: int, width: int) -> None:
        self._mosaic = mosaic(height, width, self._tiling, self._stride)
        self._features = [[None] * self._slots for _ in range(len(self._mosaic))]

    def _tiles(self, x: Tensor, tiles: Mosaic) -> Iterator[Tensor]:
        away = self._away(tiles)
        for i, (ys, xs) in enumerate(tiles.places(self._scale_in)):
            if away:
                _move(self._features[i], x.device)
            yield self._step(x[..., ys, xs], self._features[i])
            if away:
                _move(self._features[i], torch.device("cpu"))

    def _away(self, tiles: Mosaic) -> bool:
        """Whether features wait in main memory."""
        return self._tiling is not None and self._tiling.host and len(tiles) > 1

    def reset(self) -> None:
        """Forget everything."""
        self._mosaic, self._features = None, []

    def state_dict(self) -> dict[str, Any]:
        size = None if self._mosaic is None else list(self._mosaic.size)
        return {"size": size, "features": [list(features) for features in self._features]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state_dict` told, on `device`. SnapshotError if it is of another network or tiling."""
        self.reset()
        if state["size"] is None:
            return
        self._begin(*state["size"])
        assert self._mosaic is not None
        told, own = ([len(features) for features in each] for each in (state["features"], self._features))
        if told != own:
            self.reset()
            raise SnapshotError(
                f"the saved stream has {len(told)} tile(s) of {told[0] if told else 0} features, this autoencoder "
                f"{len(own)} of {own[0]}: resume with the autoencoder and the tiling that it was saved with."
            )
        self._features = [list(features) for features in state["features"]]
        for features in self._features:
            _move(features, torch.device("cpu") if self._away(self._mosaic) else device)


def _move(features: Features, device: torch.device) -> None:
    for i, feature in enumerate(features):
        if isinstance(feature, Tensor):
            features[i] = feature.to(device)
