"""Blocks that wait in CPU memory and come to the device one after the other, each just ahead of its use.

On a GPU the weights lie in pinned memory and are copied on a stream of their own while earlier blocks compute, into a
few places that are made once: device memory stays constant. Between calls the model is what it was: its state dict,
LoRAs and saving see the weights in CPU memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import nn

from rollforce.errors import ConfigError
from rollforce.models.runtime.quantize import parts_of, stored_bytes
from rollforce.models.transformer.block import Block
from rollforce.models.transformer.transformer import VideoTransformer, Visit

log = logging.getLogger(__name__)


@torch.no_grad()
def offload(model: VideoTransformer, device: torch.device, resident: int = 0, ahead: int = 1) -> None:
    """Move a model from the CPU to `device`, but leave its blocks there, except the first `resident` ones.

    `ahead`: how many blocks are copied before they are needed; so many and one more have room on the device. Do it
    instead of `model.to(device)`, after quantising and compiling; for inference, one call at a time. Raises
    ConfigError if a number cannot be used, or the blocks are offloaded already."""
    blocks = list(model.blocks)
    if isinstance(model.visit, Offload):
        raise ConfigError("the blocks of this model are offloaded already. Call restore first.")
    if ahead < 1:
        raise ConfigError(f"ahead is {ahead}; at least 1 block must be copied while another computes.")
    if not 0 <= resident < len(blocks):
        raise ConfigError(f"resident is {resident}; of {len(blocks)} blocks, 0 to {len(blocks) - 1} can stay.")
    waiting = blocks[resident:]
    for part in (*blocks[:resident], *(part for name, part in model.named_children() if name != "blocks")):
        part.to(device)
    model.scale_shift_table.data = model.scale_shift_table.data.to(device)
    for block in waiting:
        _settle(block, device)
    model.visit = Offload(waiting, device, ahead, model.visit)
    log.info("%d of %d blocks wait in CPU memory; %.2f GB of the device is for those in work",
             len(waiting), len(blocks), model.visit.bytes / 1e9)  # fmt: skip


def restore(model: VideoTransformer, device: torch.device) -> None:
    """Undo `offload`: the whole model on `device`."""
    if isinstance(model.visit, Offload):
        model.visit = model.visit.inner
    model.to(device)


class Place:
    """Room on the device for the weights of one block; all blocks have the same."""

    def __init__(self, block: Block, device: torch.device) -> None:
        self.weights = {name: nn.Parameter(weight.detach().clone().to(device), requires_grad=False)
                        for name, weight in block.named_parameters()}  # fmt: skip
        self.full: torch.cuda.Event | None = None
        self.free: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.full, self.free = torch.cuda.Event(), torch.cuda.Event()
            self.free.record(torch.cuda.current_stream(device))

    @torch.no_grad()
    def fill(self, home: dict[str, nn.Parameter], stream: torch.cuda.Stream | None) -> None:
        """Copy a block's weights here, once the block before it is done with."""
        if stream is None or self.full is None or self.free is None:
            self._copy(home)
            return
        stream.wait_event(self.free)
        with torch.cuda.stream(stream):
            self._copy(home)
            self.full.record(stream)

    def _copy(self, home: dict[str, nn.Parameter]) -> None:
        for name, weight in self.weights.items():
            for here, there in zip(parts_of(weight), parts_of(home[name]), strict=True):
                here.copy_(there, non_blocking=True)


class Offload:
    """A `Visit`: goes through a model's blocks and brings those that wait to the device."""

    def __init__(self, waiting: Sequence[Block], device: torch.device, ahead: int, inner: Visit) -> None:
        self.inner, self.device, self.ahead = inner, device, ahead
        self.homes = {id(block): dict(block.named_parameters()) for block in waiting}
        self.places = [Place(block, device) for block in waiting[: ahead + 1]]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def bytes(self) -> int:
        """Bytes of device memory that all places take."""
        return sum(stored_bytes(weight) for place in self.places for weight in place.weights.values())

    def __call__(self, blocks: Sequence[Block]) -> Iterator[Block]:
        coming = self._fetch(self.inner(blocks))
        queue = deque(islice(coming, self.ahead + 1))
        while queue:
            block, place = queue.popleft()
            if place is None:
                yield block
            else:
                yield from self._lend(block, place)
            queue.extend(islice(coming, 1))

    def _fetch(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, Place | None]]:
        """Yield each block with the place that its weights are on their way to; None if it is on the device anyway.

        Every call gives a block the same place, so that addresses do not change."""
        number = 0
        for block in blocks:
            home = self.homes.get(id(block))
            if home is None:
                yield block, None
                continue
            place = self.places[number % len(self.places)]
            place.fill(home, self.stream)
            number += 1
            yield block, place

    def _lend(self, block: Block, place: Place) -> Iterator[Block]:
        """Yield the block with its weights in `place`, until the next one is asked for."""
        if place.full is not None:
            torch.cuda.current_stream(self.device).wait_event(place.full)
        _set_weights(block, place.weights)
        try:
            yield block
        finally:
            _set_weights(block, self.homes[id(block)])
            if place.free is not None:
                place.free.record(torch.cuda.current_stream(self.device))


def _settle(block: Block, device: torch.device) -> None:
    """Weights into CPU memory, pinned if they are to go to a GPU; branches of LoRAs, its buffers, to the device."""
    block.to("cpu").requires_grad_(False)
    for module in block.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    if device.type == "cuda":
        for part in (part for weight in block.parameters() for part in parts_of(weight)):
            part.data = part.data.pin_memory()


def _set_weights(block: Block, weights: dict[str, nn.Parameter]) -> None:
    """Give a block other weights. Names, not modules, lead to them: a LoRA may have replaced a linear since."""
    for prefix, part in block.named_modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = weights[f"{prefix}.{name}" if prefix else name]
