"""Means with intervals, and whether two sets of streams differ.

Streams of one prompt resemble each other, so prompts are drawn anew and each brings all of its streams (a bootstrap
clustered by prompt): ten seeds of one prompt are no ten prompts. Values and prompts are [N], one per stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rollforce.errors import ShapeError

DRAWS = 4000
EXACT = 12  # up to so many prompts every choice of signs is tried, 2**12 of them
LEVEL = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean over `streams` of `prompts`, and its 95 % interval."""

    mean: float
    low: float
    high: float
    prompts: int
    streams: int

    def numbers(self) -> dict[str, float]:
        """Return the mean and bounds, as they stand in reports."""
        return {name: round(getattr(self, name), 4) for name in ("mean", "low", "high")}


@dataclass(frozen=True)
class Difference(Interval):
    """A mean paired difference. `p`: how often chance makes one as large, by turning the signs of whole prompts."""

    p: float

    @property
    def separable(self) -> bool:
        """Whether the interval leaves out zero and chance makes such a difference in less than 5 % of the cases.

        With fewer than six prompts nothing is separable: five times the same sign happens by chance too often.
        """
        return (self.low > 0 or self.high < 0) and self.p < LEVEL

    def numbers(self) -> dict[str, float]:
        return {**super().numbers(), "p": round(self.p, 4), "separable": self.separable, "prompts": self.prompts,
                "streams": self.streams}


def interval(values: Sequence[float], prompts: Sequence[Hashable] | None = None, draws: int = DRAWS) -> Interval:
    """Return the mean of `values` [N] and its percentile bootstrap over `prompts` [N] (None: each has its own).

    Streams that all have the same value give an interval of no width; with 0 failures in N prompts the rate of
    failures may still be 3 / N. Raises ShapeError without values, or with another number of prompts.
    """
    sums, counts = _by_prompt(values, prompts)
    means = _resample_means(sums, counts, draws)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(sums), int(counts.sum()))


def difference(ours: Sequence[float], theirs: Sequence[float], prompts: Sequence[Hashable] | None = None,
               draws: int = DRAWS) -> Difference:
    """Return the mean of `ours` - `theirs`, the same streams [N] in the same order; ShapeError otherwise."""
    if len(ours) != len(theirs):
        raise ShapeError(f"{len(ours)} streams cannot be paired with {len(theirs)}; give the same ones in one order")
    apart = np.asarray(ours, float) - np.asarray(theirs, float)
    found = interval(apart.tolist(), prompts, draws)
    return Difference(**vars(found), p=_chance(_by_prompt(apart.tolist(), prompts)[0], draws))


def _by_prompt(values: Sequence[float], prompts: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and number of the values of each prompt, both [P]."""
    names = range(len(values)) if prompts is None else prompts
    if len(values) == 0 or len(names) != len(values):
        raise ShapeError(f"{len(values)} values of {len(names)} prompts; a mean needs one prompt for each value")
    row = {name: n for n, name in enumerate(dict.fromkeys(names))}
    at = np.array([row[name] for name in names])
    return np.bincount(at, np.asarray(values, float)), np.bincount(at)


def _resample_means(sums: np.ndarray, counts: np.ndarray, draws: int) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    return np.asarray(sums[drawn].sum(1) / counts[drawn].sum(1))


def _chance(sums: np.ndarray, draws: int) -> float:
    """Return the share of sign choices under which the sum over prompts is as far from zero as it is."""
    count = len(sums)
    if count <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=count)))
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(draws, count))
        signs[0] = 1  # what was observed is one of the cases
    return float(np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9))
