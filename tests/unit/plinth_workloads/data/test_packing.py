import numpy as np
import pytest

from plinth_workloads.data.packing import ConcatenatedRows, WholeDocumentRows, shuffled_documents

LENGTHS = np.array([5, 130, 1, 64, 17, 3, 64, 90, 2, 40])
DOCUMENTS = np.arange(len(LENGTHS))


def all_rows(plan):
    return [plan.row(index) for index in range(plan.num_rows)]


def used(row):
    return sum(segment.stop - segment.start for segment in row)


def test_concatenated_rows_are_full_and_hold_every_token_once():
    plan = ConcatenatedRows(DOCUMENTS, LENGTHS, 64, seed=0)
    rows = all_rows(plan)
    assert plan.num_rows == LENGTHS.sum() // 64
    assert {used(row) for row in rows} == {64}
    tokens = [(s.document, position) for row in rows for s in row for position in range(s.start, s.stop)]
    assert len(tokens) == len(set(tokens)) == plan.num_rows * 64


def test_a_set_smaller_than_a_row_is_one_incomplete_row():
    plan = ConcatenatedRows(np.array([0]), np.array([10]), 64, seed=0)
    assert all_rows(plan) == [[(0, 0, 10)]]


def test_an_empty_set_has_no_rows():
    empty = np.array([], np.int64)
    assert ConcatenatedRows(empty, LENGTHS, 64, seed=0).num_rows == 0
    assert WholeDocumentRows(empty, LENGTHS, 64, packing=True, seed=0).num_rows == 0


def test_rows_of_one_long_document_do_not_follow_each_other():
    plan = ConcatenatedRows(np.arange(4), np.array([6400, 6400, 6400, 6400]), 64, seed=0)
    documents = [row[0].document for row in all_rows(plan)]
    assert len(set(documents[:16])) > 1


@pytest.mark.parametrize("packing", [True, False])
def test_whole_documents_are_cut_only_at_the_row_length(packing):
    plan = WholeDocumentRows(DOCUMENTS, LENGTHS, 64, packing=packing, seed=0)
    rows = all_rows(plan)
    segments = {segment for row in rows for segment in row}
    assert segments == {(document, 0, min(64, length)) for document, length in enumerate(LENGTHS)}
    assert max(map(used, rows)) <= 64


def test_packing_needs_fewer_rows():
    packed = WholeDocumentRows(DOCUMENTS, LENGTHS, 64, packing=True, seed=0)
    assert packed.num_rows == 6  # 323 tokens in rows of 64 cannot do with fewer
    assert WholeDocumentRows(DOCUMENTS, LENGTHS, 64, packing=False, seed=0).num_rows == len(LENGTHS)


def test_best_fit_packs_many_documents_almost_without_waste():
    lengths = np.random.default_rng(0).integers(5, 300, 2000)
    plan = WholeDocumentRows(np.arange(2000), lengths, 512, packing=True, seed=0)
    assert lengths.sum() / (plan.num_rows * 512) > 0.98


@pytest.mark.parametrize("plan", [ConcatenatedRows, lambda *a, seed: WholeDocumentRows(*a, packing=True, seed=seed)])
def test_a_plan_follows_from_its_seed(plan):
    assert all_rows(plan(DOCUMENTS, LENGTHS, 32, seed=3)) == all_rows(plan(DOCUMENTS, LENGTHS, 32, seed=3))
    assert all_rows(plan(DOCUMENTS, LENGTHS, 32, seed=3)) != all_rows(plan(DOCUMENTS, LENGTHS, 32, seed=4))


def test_an_epoch_holds_each_document_as_often_as_its_weight_says():
    drawn = shuffled_documents(DOCUMENTS, [1.0, 2.0, *[1.0] * 8], seed=1, epoch=0)
    assert sorted(drawn) == sorted([*DOCUMENTS, 1])


def test_a_fractional_weight_takes_a_new_part_in_each_epoch():
    documents = np.arange(10_000)
    first, second = (shuffled_documents(documents, [0.3] * 10_000, seed=1, epoch=epoch) for epoch in (0, 1))
    assert 2800 < len(first) < 3200
    assert set(first) != set(second)


def test_epochs_have_different_orders():
    first, second = (list(shuffled_documents(DOCUMENTS, [1.0] * 10, seed=1, epoch=epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second
