from plinth_workloads.serving.prefix_index import BLOCK, PrefixIndex

TOKENS = list(range(1, 3 * BLOCK + 5))


def make_index(**contents):
    index = PrefixIndex()
    for slot, ids in contents.items():
        index.begin(int(slot[1:]))
        index.extend(int(slot[1:]), ids)
    return index


def test_the_longest_beginning_in_whole_blocks_is_found():
    index = make_index(s0=TOKENS[:BLOCK], s1=TOKENS, s2=[9, *TOKENS])
    assert index.find(TOKENS) == ({1}, 3 * BLOCK)
    assert index.find(TOKENS[: 2 * BLOCK - 1]) == ({0, 1}, BLOCK)
    assert index.find(TOKENS[: BLOCK - 1]) == (frozenset(), 0)
    assert index.find([*TOKENS[:BLOCK], 0, *TOKENS[BLOCK:]]) == ({0, 1}, BLOCK)


def test_tokens_may_come_one_by_one():
    index = make_index(s0=[])
    for token in TOKENS:
        index.extend(0, [token])
    assert index.find(TOKENS) == ({0}, 3 * BLOCK)


def test_a_block_in_another_place_is_another_block():
    index = make_index(s0=[*TOKENS[BLOCK : 2 * BLOCK], *TOKENS[:BLOCK]])
    assert index.find(TOKENS) == (frozenset(), 0)


def test_what_was_computed_differently_is_not_found():
    index = PrefixIndex()
    index.begin(0, "an adapter")
    index.extend(0, TOKENS)
    assert index.find(TOKENS) == (frozenset(), 0)
    assert index.find(TOKENS, "an adapter") == ({0}, 3 * BLOCK)


def test_a_slot_that_begins_anew_has_nothing_of_before():
    index = make_index(s0=TOKENS, s1=TOKENS)
    index.begin(0)
    assert index.find(TOKENS) == ({1}, 3 * BLOCK)
    assert not index.holds(0)
    index.forget(1)
    assert index.find(TOKENS) == (frozenset(), 0)


def test_slots_that_move_keep_what_still_fits():
    index = make_index(s0=TOKENS, s3=[9, *TOKENS])
    index.move({3: 0}, max_tokens=2 * BLOCK + 3)
    assert index.find(TOKENS) == (frozenset(), 0)
    assert index.find([9, *TOKENS]) == ({0}, 2 * BLOCK)
    index.forget(0)
    assert index.find([9, *TOKENS]) == (frozenset(), 0)


def test_slots_that_exchange_their_contents_are_found_by_them():
    index = make_index(s0=TOKENS, s1=[9, *TOKENS], s2=TOKENS)
    index.exchange(0, 1)
    index.exchange(1, 3)
    assert index.find(TOKENS) == ({2, 3}, 3 * BLOCK)
    assert index.find([9, *TOKENS]) == ({0}, 3 * BLOCK)
    assert [index.num_tokens(slot) for slot in range(4)] == [len(TOKENS) + 1, 0, len(TOKENS), len(TOKENS)]
    index.extend(3, [1] * BLOCK)
    index.exchange(2, 3)
    index.forget(3)
    assert index.find(TOKENS) == ({2}, 3 * BLOCK)
