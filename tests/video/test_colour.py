"""HDR becomes what a common screen shows: white is white, greys stay grey and in order, BT.2020 becomes BT.709."""

from __future__ import annotations

import numpy as np
import pytest

from rollforce.video.colour import Curve, map_picture, to_sdr


@pytest.mark.parametrize(("curve", "white", "peak"), [("PQ", 0.5807, 0.7518), ("HLG", 0.75, 1.0)])
def test_white_of_203_nit_is_nearly_white_and_1000_nit_is(curve: Curve, white: float, peak: float) -> None:
    """Signals from BT.2408, table 1, and BT.2100."""
    assert 0.93 < to_sdr(np.full(3, white), curve).mean() < 0.96
    assert to_sdr(np.full(3, peak), curve).mean() == pytest.approx(1, abs=2e-3)
    assert to_sdr(np.zeros(3), curve).max() < 0.01


@pytest.mark.parametrize("curve", ["PQ", "HLG"])
def test_greys_stay_grey_and_in_order(curve: Curve) -> None:
    grey = np.repeat(np.linspace(0, 1, 200)[:, None], 3, axis=1)
    seen = to_sdr(grey, curve)
    assert np.ptp(seen, axis=1).max() < 1e-3 and (np.diff(seen[:, 0]) >= 0).all()


def test_light_below_the_knee_stays_as_it_is() -> None:
    """A grey of 26 nit, an eighth of white, in PQ: (26 / 203) ** (1 / 2.4)."""
    assert to_sdr(np.full(3, 0.3812), "PQ").mean() == pytest.approx((26 / 203) ** (1 / 2.4), abs=0.01)


@pytest.mark.parametrize("curve", ["PQ", "HLG"])
def test_pictures_are_mapped_by_a_table_that_is_near(curve: Curve) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    error = np.abs(map_picture(picture, curve) - 255 * to_sdr(picture / 255, curve))
    assert error.mean() < 0.6 and np.quantile(error, 0.99) < 6
