import numpy as np
import pytest
import torch

from plinth_workloads.data.loader import IGNORED, BatchLoader, Rows, evaluation_batches
from plinth_workloads.data.packing import ConcatenatedRows, Segment, WholeDocumentRows
from plinth_workloads.data.token_store import TokenizedDocument, TokenStore, write_token_store


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    documents = [TokenizedDocument([int(x) for x in rng.integers(1, 500, rng.integers(2, 40))]) for _ in range(50)]
    write_token_store(tmp_path / "store", [documents], vocab_size=500)
    return TokenStore(tmp_path / "store")


def make_loader(store, *, rank=0, world_size=1, micro=4, global_batch=8):
    return BatchLoader(
        Rows(store, 16, pad_id=0),
        lambda epoch: ConcatenatedRows(np.arange(50), store.lengths, 16, seed=epoch),
        global_batch_size=global_batch,
        micro_batch_size=micro,
        rank=rank,
        world_size=world_size,
    )


def rows_of(batches):
    return [tuple(row.tolist()) for batch in batches for row in batch.inputs["input_ids_BT"]]


def test_a_row_has_shifted_labels_and_restarting_positions(store):
    batch = Rows(store, 16, pad_id=0).batch([[Segment(0, 0, 5), Segment(1, 2, 6)]])
    first, second = store.tokens[store.offsets[0] :][:5], store.tokens[store.offsets[1] + 2 :][:4]
    assert batch.inputs["input_ids_BT"][0].tolist() == [*first, *second, *[0] * 7]
    assert batch.inputs["labels_BT"][0].tolist() == [*first[1:], IGNORED, *second[1:], *[IGNORED] * 8]
    assert batch.inputs["position_ids_BT"][0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]


def test_only_targets_become_labels(tmp_path):
    document = TokenizedDocument([5, 6, 7, 8], [False, False, True, True])
    write_token_store(tmp_path / "store", [[document]], vocab_size=500)
    batch = Rows(TokenStore(tmp_path / "store"), 8, pad_id=0, pad_to_longest=True).batch([[Segment(0, 0, 4)]])
    assert batch.inputs["labels_BT"].tolist() == [[IGNORED, 7, 8, IGNORED]]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2])
def test_the_rows_of_a_step_do_not_depend_on_how_they_are_split(store, world_size, micro):
    whole = make_loader(store, micro=8)
    parts = [make_loader(store, rank=rank, world_size=world_size, micro=micro) for rank in range(world_size)]
    for _ in range(12):  # over the end of the first epoch
        together = [row for part in parts for row in rows_of(part.next_step())]
        assert sorted(together) == sorted(rows_of(whole.next_step()))


def test_a_loader_goes_on_where_another_stopped(store):
    first, second = make_loader(store), make_loader(store)
    for _ in range(9):
        first.next_step()
    second.load_state_dict(first.state_dict())
    for _ in range(9):
        assert rows_of(first.next_step()) == rows_of(second.next_step())


def test_an_epoch_ends_in_the_middle_of_a_step_without_losing_a_row(store):
    loader = make_loader(store)
    num_rows = ConcatenatedRows(np.arange(50), store.lengths, 16, seed=0).num_rows
    seen = [row for _ in range(num_rows // 8 + 1) for row in rows_of(loader.next_step())]
    assert loader.state_dict() == {"epoch": 1, "row": 8 - num_rows % 8}
    assert len(set(seen[:num_rows])) == num_rows


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_row_once_in_equally_many_batches(store, world_size):
    plan = WholeDocumentRows(np.arange(50), store.lengths, 40, packing=True, seed=0)
    rows = Rows(store, 40, pad_id=0)
    shares = [
        list(evaluation_batches(rows, plan, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    targets = sum(batch.num_targets for share in shares for batch in share)
    assert targets == int((store.lengths - 1).sum())


def test_the_store_round_trips_documents_of_several_sources(tmp_path):
    sources = [[TokenizedDocument([1, 2, 3]), TokenizedDocument([4])], [TokenizedDocument([70_000, 5])]]
    write_token_store(tmp_path / "store", sources, vocab_size=100_000)
    store = TokenStore(tmp_path / "store")
    assert store.tokens.tolist() == [1, 2, 3, 4, 70_000, 5]
    assert store.lengths.tolist() == [3, 1, 2]
    assert store.source_of.tolist() == [0, 0, 1]
    assert store.targets is None


def test_the_fingerprint_follows_the_content(tmp_path):
    for name, ids in (("a", [1, 2]), ("b", [1, 2]), ("c", [1, 3])):
        write_token_store(tmp_path / name, [[TokenizedDocument(ids)]], vocab_size=500)
    a, b, c = (TokenStore(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_an_empty_store_opens(tmp_path):
    write_token_store(tmp_path / "store", [[]], vocab_size=500)
    assert TokenStore(tmp_path / "store").num_documents == 0
    assert torch.from_numpy(TokenStore(tmp_path / "store").lengths).numel() == 0
