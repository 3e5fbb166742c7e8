"""Law 5 (a layout's windows equal the reference's) and the tables that are refused."""

import pytest

from rollforce.engine.layout import Layout, bidirectional, chunkwise, partitioned, rolling
from rollforce.engine.schedule import warped
from rollforce.errors import ConfigError

LADDER = (1.0, 0.8, 0.6, 0.4)


def walk(layout: Layout, length: int) -> list[list[tuple[int, float, int]]]:
    """Per tick: (latent, its noise, its draw) of all live slots."""
    first, row, ticks = layout.first, 0, []
    while first < length:
        ticks.append(
            [
                (first + s, layout.sigma[row][s], layout.draws[row][s])
                for s in range(layout.slots)
                if 0 <= first + s < length
            ]
        )
        row += 1
        if row == layout.ticks:
            row, first = 0, first + layout.shift
    return [tick for tick in ticks if tick]


@pytest.mark.parametrize("blocks", [1, 2, 5, 9])
def test_rolling_windows_are_the_papers(blocks):
    """Window w covers blocks max(0, w-T+1) .. min(blocks-1, w); block b is at step w - b (the goldens' README)."""
    steps, chunk = len(LADDER), 3
    expected = [
        [
            (3 * b + i, LADDER[w - b], w - b)
            for b in range(max(0, w - steps + 1), min(blocks - 1, w) + 1)
            for i in range(chunk)
        ]
        for w in range(blocks + steps - 1)
    ]
    assert walk(rolling(LADDER, chunk), 3 * blocks) == expected


@pytest.mark.parametrize("layout", [
    chunkwise(LADDER, 1), chunkwise(LADDER, 3), rolling(LADDER, 2), rolling((1.0,), 3), partitioned(LADDER, 2, 2),
    partitioned(LADDER, 1, 4), bidirectional(LADDER, 7),
])  # fmt: skip
@pytest.mark.parametrize("length", [1, 2, 6, 13])
def test_every_latent_takes_every_step_once_in_order(layout, length):
    visits: dict[int, list[tuple[float, int]]] = {}
    for tick in walk(layout, length):
        for latent, sigma, draw in tick:
            visits.setdefault(latent, []).append((sigma, draw))
    steps = len(visits[0])
    assert set(visits) == set(range(length))
    assert all(visit == [(LADDER[i] if steps > 1 else 1.0, i) for i in range(steps)] for visit in visits.values())


def test_micro_extremes_are_rolling_and_chunkwise():
    ladder = warped([1, 0.75, 0.5, 0.25], 5)
    assert partitioned(ladder, 3, 1) == rolling(ladder, 3)
    assert partitioned(ladder, 3, 4) == chunkwise(ladder, 3)


@pytest.mark.parametrize(("sigma", "shift", "words"), [
    (((1.0, 1.0), (0.5, 0.5)), 2, "end clean"),
    (((1.0, 1.0), (0.0, 0.5)), 1, "repeat"),
    (((0.5,), (0.8,), (0.0,)), 1, "rises"),
    (((1.0,),), 1, "at least one tick"),
    (((1.0, 1.0), (0.0,)), 1, "equal length"),
    (((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), 2, "divide"),
])  # fmt: skip
def test_tables_that_cannot_stream(sigma, shift, words):
    with pytest.raises(ConfigError, match=words):
        Layout(sigma, shift)


@pytest.mark.parametrize(
    "build", [lambda: rolling(LADDER, 0), lambda: partitioned(LADDER, 3, 3), lambda: chunkwise((), 3)]
)
def test_bad_sizes(build):
    with pytest.raises(ConfigError):
        build()
