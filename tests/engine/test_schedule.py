import pytest
import torch

from rollforce.engine.schedule import explicit, linear, shift_level, training_weight, warped
from rollforce.errors import ConfigError


def test_published_ladders():
    rolling_forcing = warped([1, 0.8, 0.6, 0.4, 0.2], 5)
    assert [round(1000 * s, 3) for s in rolling_forcing] == [1000, 952.381, 882.353, 769.231, 555.556]
    assert [round(1000 * s, 3) for s in warped([1, 0.75, 0.5, 0.25], 8)] == [1000, 960, 888.889, 727.273]


def test_shift_fixes_the_ends_and_is_the_identity_at_one():
    assert shift_level(0, 5) == 0 and shift_level(1, 5) == 1 and shift_level(0.3, 1) == 0.3
    assert linear(4) == (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize("levels", [[], [0.5, 0.75], [1, 1], [1, 0], [1.5, 1], [-0.1]])
def test_a_ladder_that_is_none(levels):
    with pytest.raises(ConfigError):
        explicit(levels)


def test_weights_average_one():
    table = torch.tensor([shift_level(1 - i / 1000, 5) for i in range(1000)], dtype=torch.float64)
    weight = training_weight(table, 5)
    assert weight.mean().item() == pytest.approx(1) and weight.min() == 0
