"""Offloaded blocks: the same bytes, a bounded number of them on the device, each copied before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from lora_files import make_lora, velocity
from policies import LADDER, latents, start
from tiny_transformer import TINY, tiny_transformer
from torch import Tensor

from rollforce.cache.policies import Window
from rollforce.engine.layout import chunkwise
from rollforce.engine.rollout import Stepping
from rollforce.errors import ConfigError
from rollforce.models.runtime import lora, offload, quantize
from rollforce.models.runtime.offload import Offload, Place
from rollforce.models.transformer.transformer import VideoTransformer

CPU = torch.device("cpu")
DEEP = replace(TINY, num_layers=6)


class Watched:
    """Remembers, in order, which block is copied into which place, and which block runs with weights from where."""

    def __init__(self, model: VideoTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(model.visit, Offload)
        self.events: list[tuple[str, int, int]] = []
        blocks, places, fill = list(model.blocks), model.visit.places, Place.fill
        homes = {id(home): next(i for i, block in enumerate(blocks) if id(block) == key)
                 for key, home in model.visit.homes.items()}  # fmt: skip

        def filled(place: Place, home: dict[str, torch.nn.Parameter], stream: object) -> None:
            self.events.append(("copy", homes[id(home)], places.index(place)))
            fill(place, home, None)

        def before(block: object, *inputs: object) -> object:
            weight = block.attn1.to_q.weight  # type: ignore[attr-defined]
            found = [i for i, place in enumerate(places) if place.weights["attn1.to_q.weight"] is weight]
            self.events.append(("run", blocks.index(block), found[0] if found else -1))  # type: ignore[arg-type]
            return first(block, *inputs)

        first, second = model.halves
        model.halves = (before, second)
        monkeypatch.setattr(Place, "fill", filled)


def offloaded(resident: int = 0, ahead: int = 1) -> VideoTransformer:
    model = tiny_transformer(config=DEEP)
    offload.offload(model, CPU, resident, ahead)
    return model


@pytest.mark.parametrize(("resident", "ahead"), [(0, 1), (0, 2), (2, 1), (5, 3), (0, 9)])
def test_same_bytes_and_each_block_comes_just_in_time(
    resident: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, expected = offloaded(resident, ahead), velocity(tiny_transformer(config=DEEP))
    assert len(model.visit.places) == min(ahead + 1, 6 - resident)
    watched = Watched(model, monkeypatch)
    for _ in range(2):
        watched.events.clear()
        assert torch.equal(velocity(model), expected)
        calls = watched.events[len(watched.events) - (6 + 6 - resident) :]  # the condition's copies come first
        holds: dict[int, int] = {}
        for kind, block, place in calls:
            if kind == "copy":
                holds[place] = block
            else:
                assert place == -1 if block < resident else holds[place] == block
        runs = [event[1] for event in calls if event[0] == "run"]
        assert runs == list(range(6))
        for block in range(resident, 6):  # copied while block - ahead was still to run
            copied, ran = calls.index(("copy", block, (block - resident) % len(model.visit.places))), [
                i for i, event in enumerate(calls) if event[:2] == ("run", max(0, block - ahead))]  # fmt: skip
            assert copied < ran[0]


class Stream:
    """A queue that only remembers what it was told to wait for."""

    def __init__(self, name: str, told: list[tuple[str, str, object]]) -> None:
        self.name, self.told = name, told

    def wait_event(self, event: Event) -> None:
        self.told.append((self.name, "wait", event))


class Event:
    def record(self, stream: Stream) -> None:
        stream.told.append((stream.name, "record", self))


@pytest.mark.parametrize("ahead", [1, 2])
def test_on_a_gpu_copies_and_use_of_a_place_take_turns(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side stream: wait until a place is free, copy, say it is full. Main stream: wait until full, use, say free."""
    model = offloaded(ahead=ahead)
    visit, told = model.visit, []
    main, side = Stream("main", told), Stream("side", told)
    visit.stream = side
    for place in visit.places:
        place.full, place.free = Event(), Event()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for _ in range(2):
        for block in visit(model.blocks):
            told.append(("main", "use", block.attn1.to_q.weight))
    used = [what for who, act, what in told if act == "use"]
    assert len(used) == 12
    for place in visit.places:
        mine = [(who, act) for who, act, what in told
                if what is place.full or what is place.free or what is place.weights["attn1.to_q.weight"]]  # fmt: skip
        turn = [("side", "wait"), ("side", "record"), ("main", "wait"), ("main", "use"), ("main", "record")]
        assert mine == turn * (len(mine) // 5) and len(mine) == 5 * 12 // len(visit.places)


def test_a_whole_stream_is_the_same() -> None:
    layout, tiers, stepping = chunkwise(LADDER, 2), (Window(5),), Stepping()
    plain, moved = tiny_transformer(), tiny_transformer()
    offload.offload(moved, CPU)
    one, two = (latents(start(model, layout, tiers, stepping), 8) for model in (plain, moved))
    assert torch.equal(one, two)


def test_between_calls_the_model_is_what_it_was(tmp_path) -> None:
    model, plain = offloaded(), tiny_transformer(config=DEEP)
    velocity(model)
    same(model, plain)
    model.save(tmp_path)
    same(VideoTransformer.load(tmp_path), plain)
    homes = {id(weight) for home in model.visit.homes.values() for weight in home.values()}
    assert all(id(weight) in homes for block in model.blocks for weight in block.parameters())


def same(one: VideoTransformer, two: VideoTransformer) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_call_that_breaks_off_leaves_the_weights_at_home() -> None:
    model, plain = offloaded(), tiny_transformer(config=DEEP)

    def broken(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        raise KeyboardInterrupt

    attend, model.attend = model.attend, broken
    with pytest.raises(KeyboardInterrupt):
        velocity(model)
    model.attend = attend
    assert torch.equal(velocity(model), velocity(plain))
    same(model, plain)


def test_restored() -> None:
    model = offloaded()
    with pytest.raises(ConfigError, match="offloaded already"):
        offload.offload(model, CPU)
    offload.restore(model, CPU)
    assert model.visit is iter and torch.equal(velocity(model), velocity(tiny_transformer(config=DEEP)))
    offload.offload(model, CPU)


@pytest.mark.parametrize(
    ("numbers", "words"), [({"ahead": 0}, "ahead is 0; at least 1"), ({"resident": 6}, "of 6 blocks, 0 to 5 can stay")]
)
def test_numbers_that_cannot_be(numbers: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        offload.offload(tiny_transformer(config=DEEP), CPU, **numbers)


def test_room_on_the_device_is_that_of_the_places() -> None:
    model = offloaded(ahead=1)
    block = sum(weight.nbytes for weight in model.blocks[0].parameters())
    assert model.visit.bytes == 2 * block


@pytest.mark.parametrize("early", [True, False], ids=["LoRA first", "offload first"])
def test_with_a_live_lora(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = tiny_transformer(config=DEEP), tiny_transformer(config=DEEP)
    state = make_lora(plain)
    lora.add(plain, "ink", state)
    steps = [lambda: lora.add(model, "ink", state), lambda: offload.offload(model, CPU)]
    for step in steps if early else steps[::-1]:
        step()
    watched = Watched(model, monkeypatch)
    assert torch.equal(velocity(model), velocity(plain))
    assert all(place >= 0 for kind, _, place in watched.events if kind == "run")  # the LoRA's linears too
    lora.remove(model, "ink")
    assert torch.equal(velocity(model), velocity(tiny_transformer(config=DEEP)))


def test_a_lora_merged_while_offloaded_is_seen() -> None:
    model, plain = offloaded(), tiny_transformer(config=DEEP)
    for each in (model, plain):
        lora.merge(each, make_lora(plain))
    assert torch.equal(velocity(model), velocity(plain))


def test_with_compiled_blocks_nothing_is_compiled_again() -> None:
    model = tiny_transformer(config=DEEP)
    model.compile_blocks(backend="eager", fullgraph=True)
    offload.offload(model, CPU)
    expected = velocity(tiny_transformer(config=DEEP))
    torch.testing.assert_close(velocity(model), expected)
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(velocity(model), expected)
    torch.compiler.reset()


def test_graphs_begin_a_step_at_each_call_and_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    options: list[dict[str, object]] = []

    def kept(function: object, **given: object) -> object:
        options.append(given)
        return function

    monkeypatch.setattr(torch, "compile", kept)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    model = tiny_transformer(config=DEEP)
    model.compile_blocks(graphs=True)
    assert options == 2 * [{"mode": "reduce-overhead", "dynamic": False}]
    offload.offload(model, CPU)
    assert torch.equal(velocity(model), velocity(tiny_transformer(config=DEEP)))
    assert len(steps) == 2  # the condition, and one call


def test_with_quantised_weights() -> None:
    pytest.importorskip("torchao")
    models: Sequence[VideoTransformer] = [tiny_transformer(config=DEEP) for _ in range(2)]
    for model in models:
        quantize.quantise(model, "int8")
    offload.offload(models[1], CPU)
    assert torch.equal(velocity(models[1]), velocity(models[0]))
    assert models[1].visit.bytes < 2 * sum(weight.nbytes for weight in tiny_transformer().blocks[0].parameters())
