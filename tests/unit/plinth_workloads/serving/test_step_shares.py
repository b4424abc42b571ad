import pytest

from plinth_workloads.serving.step_shares import has_room, shares_in_pieces, shares_whole


@pytest.mark.parametrize(
    ("pending", "shares"),
    [
        ([], []),
        ([1, 1, 1], [1, 1, 1]),
        ([100], [16]),
        ([1, 100, 1], [1, 14, 1]),
        ([10], [10]),
        ([100, 4, 100], [8, 4, 4]),  # the long one that came first holds up no short one
        ([100, 100, 100], [8, 4, 4]),
        ([1] * 20 + [100], [1] * 20 + [1]),  # and is not held up for ever
        ([2, 3, 4], [2, 3, 4]),
    ],
)
def test_prompts_share_what_rows_that_make_text_leave(pending, shares):
    assert shares_in_pieces(pending, 16) == shares


def test_a_prompt_is_not_begun_before_a_part_of_it_would_be_read():
    assert has_room([], 16)
    assert has_room([1, 1, 1], 16)
    assert has_room([100], 16)
    assert not has_room([100, 100, 100, 100], 16)
    assert not has_room([1] * 15, 16)
    # Whichever came first, those that make text have theirs before prompts share the rest: 4 are left.
    assert has_room([1] * 8 + [100], 16)
    assert has_room([100] + [1] * 8, 16)


@pytest.mark.parametrize(
    ("pending", "shares"),
    [
        ([1, 1], [1, 1]),
        ([1, 100, 100], [1, 100, 0]),  # one in any case
        ([5, 1, 6, 7], [5, 1, 6, 0]),
        ([8, 8, 8], [8, 8, 0]),
        ([2, 100, 1], [2, 0, 1]),
    ],
)
def test_whole_prompts_are_as_many_as_fit_with_their_padding(pending, shares):
    assert shares_whole(pending, 16) == shares
