"""Which texts are computed together."""

import pytest

from plinth_workloads.serving.forward_pass import next_pass


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "expected"),
    [
        pytest.param([[5]], 100, [(0, 0)], id="one"),
        pytest.param([[500]], 100, [(0, 0)], id="longer than a pass, alone"),
        pytest.param([[500], [1]], 100, [(0, 0)], id="nothing beside what fills a pass"),
        pytest.param([[10, 10, 10]], 20, [(0, 0), (0, 1)], id="no more than a pass holds"),
        pytest.param([[10, 10, 10], [9], [8]], 30, [(0, 0), (1, 0), (2, 0)], id="everybody in turn"),
        pytest.param([[10], [11], [12]], 100, [(0, 0), (1, 0), (2, 0)], id="longer ones beside the first"),
        pytest.param([[100], [1, 1]], 400, [(0, 0), (1, 0)], id="not too much padding"),
        pytest.param([[10], [90, 12]], 40, [(0, 0), (1, 1)], id="past one that is too long"),
    ],
)
def test_a_pass_is_filled(lengths, max_tokens, expected):
    assert next_pass(lengths, max_tokens) == expected


def test_everything_is_computed_once_within_the_bounds():
    left = [sorted(((7 * number * request) % 97 + 1 for number in range(60)), reverse=True) for request in range(1, 5)]
    expected = sorted(length for lengths in left for length in lengths)
    seen = []
    while left:
        taken = next_pass(left, 256)
        lengths = [left[request][place] for request, place in taken]
        assert (0, 0) in taken
        assert max(lengths) * len(lengths) <= 256
        assert max(lengths) * len(lengths) - sum(lengths) <= 64
        seen += lengths
        left = [
            [length for place, length in enumerate(row) if (request, place) not in taken]
            for request, row in enumerate(left)
        ]
        left = [row for row in left[1:] + left[:1] if row]
    assert sorted(seen) == expected
