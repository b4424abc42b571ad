"""One vector of the states of a text's tokens: the same with padding behind them as without."""

import pytest
import torch

from plinth_workloads.models.pooling import POOLINGS, pooled

STATES = torch.tensor([[1.0, 2.0], [3.0, -4.0], [-8.0, 9.0]])


def unit(values):
    vector = torch.tensor(values)
    return vector / vector.norm()


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [2.0, -1.0]), ("cls", [1.0, 2.0]), ("lasttoken", [3.0, -4.0]), ("max", [3.0, 2.0])],
)
def test_padding_is_no_part_of_a_text(pooling, expected):
    (vector,) = pooled(STATES[None], torch.tensor([[1, 1, 0]]), (pooling,))
    torch.testing.assert_close(vector, unit(expected))
    torch.testing.assert_close(pooled(STATES[None, :2], torch.ones(1, 2, dtype=torch.long), (pooling,))[0], vector)


def test_several_poolings_follow_each_other():
    (vector,) = pooled(STATES[None], torch.tensor([[1, 1, 0]]), ("cls", "mean"))
    torch.testing.assert_close(vector, unit([1.0, 2.0, 2.0, -1.0]))


def test_half_precision_is_pooled_in_full():
    assert pooled(STATES[None].bfloat16(), torch.ones(1, 3, dtype=torch.long), tuple(POOLINGS)).dtype == torch.float32
