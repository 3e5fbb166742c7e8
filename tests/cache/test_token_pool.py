"""Pool: what is chosen stays as it was made, and stands where a call wants it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from rollforce.cache.commit_plan import Candidates, Role
from rollforce.cache.region import Evicted, LayerCommit, Placement
from rollforce.cache.token_pool import TokenPool, Tokens, pick_best
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVBlock, KVShape

ROWS, COLUMNS = 2, 3
SHAPE = KVShape(layers=2, batch=2, heads=2, tokens=ROWS * COLUMNS, width=16)


@dataclass(frozen=True)
class Picky:
    """Takes of what falls the latents whose index is in `wanted`, in the first row one less than in the second."""

    latents: int
    wanted: tuple[int, ...]
    kind: str = "picky"
    role: ClassVar[Role] = "past"

    def keep(self, held: Candidates) -> tuple[int, ...]:
        return held.indices

    def choose(self, held: Tokens, evicted: Tokens, commit: LayerCommit) -> Tokens:
        both = held.append(evicted)
        wanted = torch.isin(both.index, torch.tensor(self.wanted)) & (both.mass > 0)
        wanted[0] &= both.index[0] != self.wanted[0]
        which = pick_best(both.index, wanted, held.index.shape[1])
        kept = both.pick(which)
        return Tokens(kept.key, kept.value, kept.index, wanted.gather(1, which).float())


def unturned(latent: int) -> KVBlock:
    generator = torch.Generator().manual_seed(latent)
    return KVBlock(*(torch.randn(2, 2, SHAPE.tokens, 16, generator=generator) for _ in range(2)))


def at(latent: int, place: int) -> Tensor:
    """The keys of a latent as they are made at `place`, by rope.rotate itself."""
    return rope.rotate(unturned(latent).key, rope.angles(torch.tensor([place]), ROWS, COLUMNS, 16))


def given(pool: TokenPool, *latents: int) -> None:
    key = torch.cat([at(latent, latent) for latent in latents], dim=2)
    value = torch.cat([unturned(latent).value for latent in latents], dim=2)
    for layer in range(SHAPE.layers):
        own = KVBlock(key, value)
        pool.absorb(Evicted(latents, own), LayerCommit(layer, max(latents) + 1, own, key))


def filled(holes: bool = False, packed: bool = False) -> TokenPool:
    """Row 0 holds latents 4 and 7, row 1 also 2."""
    pool = TokenPool(Picky(3, (2, 4, 7)), 3, SHAPE, torch.float32, "cpu", holes=holes, packed=packed)
    given(pool, 1, 2, 3)
    given(pool, 4, 5, 6)
    given(pool, 7, 8, 9)
    return pool


@pytest.mark.parametrize(
    ("placed", "places"),
    [
        (Placement(0, None, 3), {2: 2, 4: 4, 7: 7}),
        (Placement(0, 3, 3), {2: 3, 4: 4, 7: 7}),
        (Placement(5, 8, 3), {2: 8, 4: 9, 7: 12}),
        (Placement(-3, 3, 3), {2: 3, 4: 3, 7: 4}),
        (Placement(100_000, 100_007, 3), {2: 100_007, 4: 100_007, 7: 100_007}),
    ],
)
def test_a_token_stands_at_its_moved_place_but_not_below_the_lowest(placed: Placement, places: dict[int, int]) -> None:
    pool = filled(holes=True)
    for layer in range(SHAPE.layers):
        seen = pool.read(layer, placed)
        assert seen is not None
        wanted = torch.cat([at(latent, place) for latent, place in places.items()], dim=2)[1]
        torch.testing.assert_close(seen.key[1], wanted, atol=2e-5, rtol=0)
        kept = torch.cat([unturned(latent).value for latent in places], dim=2)
        assert torch.equal(seen.value[1], kept[1])
        both = 2 * SHAPE.tokens  # row 0 has two of them
        torch.testing.assert_close(seen.key[0, :, :both], torch.cat([at(4, places[4]), at(7, places[7])], 2)[0],
                                   atol=2e-5, rtol=0)  # fmt: skip


def test_packed_latents_stand_side_by_side_and_end_with_the_region() -> None:
    pool = filled(holes=True, packed=True)
    seen = pool.read(0, Placement(move=2, lowest=9, filled=3))  # the region spans 7, 8, 9, moved by two
    assert seen is not None
    torch.testing.assert_close(seen.key[1], torch.cat([at(2, 9), at(4, 10), at(7, 11)], 2)[1], atol=2e-5, rtol=0)
    both = torch.cat([at(4, 10), at(7, 11)], dim=2)[0]
    torch.testing.assert_close(seen.key[0, :, : both.shape[1]], both, atol=2e-5, rtol=0)
    left = pool.read(0, Placement(0, None, 3))  # positions that move nothing move nothing
    assert left is not None
    torch.testing.assert_close(left.key[1], torch.cat([at(2, 2), at(4, 4), at(7, 7)], 2)[1], atol=2e-5, rtol=0)


def test_empty_places_weigh_nothing_and_others_as_many_as_they_stand_for() -> None:
    pool = filled(holes=True)
    pool.held[0].mass[1, :6] = 4.0
    seen = pool.read(0, Placement(0, None, 3))
    assert seen is not None and seen.bias is not None and seen.bias.shape == (2, 1, 1, 18)
    query = torch.randn(2, 2, 5, 16)
    weights = (query @ seen.key.mT + seen.bias).softmax(dim=-1)
    assert torch.equal(weights[0, :, :, 12:], torch.zeros(2, 5, 6))
    tokens = torch.arange(18).repeat_interleave(torch.tensor([4] * 6 + [1] * 12))  # four copies instead of a mass of 4
    copies = (query[1] @ seen.key[1].mT)[:, :, tokens].softmax(dim=-1)
    torch.testing.assert_close(weights[1], torch.zeros(2, 5, 18).index_add(2, tokens, copies))


def test_without_holes_what_has_not_come_is_not_seen() -> None:
    pool = TokenPool(Picky(3, (-1, 1, 2, 3)), 3, SHAPE, torch.float32, "cpu", holes=False)
    given(pool, 1, 2)
    seen = pool.read(1, Placement(0, None, 2))
    assert seen is not None and seen.bias is None
    torch.testing.assert_close(seen.key, torch.cat([at(1, 1), at(2, 2)], dim=2), atol=2e-5, rtol=0)


def test_a_call_sees_what_came_with_the_last_commit() -> None:
    """Turned keys are kept between calls; not beyond a commit, a new place, or a loaded state."""
    pool, placed = TokenPool(Picky(2, (-1, 1, 2)), 2, SHAPE, torch.float32, "cpu", holes=True), Placement(1, None, 2)
    given(pool, 1)
    first = pool.read(0, placed)
    assert first is not None and pool.read(0, placed).key is first.key
    state = pool.state_dict()
    given(pool, 2)
    torch.testing.assert_close(pool.read(0, placed).key[:, :, 6:], at(2, 3), atol=2e-5, rtol=0)
    torch.testing.assert_close(pool.read(0, Placement(4, None, 2)).key[:, :, 6:], at(2, 6), atol=2e-5, rtol=0)
    pool.load_state_dict(state)
    assert torch.equal(pool.read(0, placed).key[:, :, :6], first.key[:, :, :6])
    assert pool.read(0, placed).bias[0, 0, 0].isfinite().tolist() == [True] * 6 + [False] * 6


def test_a_state_goes_round_and_is_nobodys() -> None:
    pool = filled(holes=True)
    state = pool.state_dict()
    given(pool, 10)
    other = TokenPool(Picky(3, (2, 4, 7)), 3, SHAPE, torch.float32, "cpu", holes=True)
    other.load_state_dict(state)
    given(other, 10)
    for name, mine in pool.state_dict().items():
        assert all(torch.equal(one, two) for one, two in zip(mine, other.state_dict()[name], strict=True))
        assert not any(one.data_ptr() == two.data_ptr() for one, two in zip(state[name], mine, strict=True))
    assert torch.equal(state["index"][0], filled().held[0].index)  # what came later is not in it


def test_bytes_are_those_of_all_that_is_kept() -> None:
    pool = TokenPool(Picky(3, (1,)), 3, SHAPE, torch.bfloat16, "cpu", holes=False)
    tokens = SHAPE.batch * 3 * SHAPE.tokens
    # keys as made and as shown, values; index; mass
    assert pool.bytes == SHAPE.layers * tokens * (3 * 2 * 16 * 2 + 8 + 4)


def test_the_best_against_a_list() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        score = torch.randint(-3, 4, (3, 9), generator=generator).float()
        has = torch.rand(3, 9, generator=generator) < 0.6
        for count in (1, 4, 9):
            found = pick_best(score, has, count).tolist()
            for row in range(3):
                places = sorted(range(9), key=lambda i, row=row: (not has[row, i], -float(score[row, i]), i))[:count]
                places = [i for i in places if has[row, i]]
                assert found[row][: len(places)] == sorted(places)
                assert not any(has[row, i] for i in found[row][len(places) :]) and len(set(found[row])) == count
