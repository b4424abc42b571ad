"""embedding: what a query is compared with, and what is trained, saved and loaded."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from label_runs import make_base, make_task_run
from objective_runs import validation_batches
from plinth_workloads.errors import UserError
from plinth_workloads.models.load import load_model
from plinth_workloads.objectives.by_name import objective_of
from plinth_workloads.train.export import export_model
from training import ALONE, open_alone, weights_of

TASK = {"embedding": {"temperature": 0.2}}
ROWS = [
    {"query": f"def f{at}(x)", "positive": f"Return {at}.", "negative": None if at % 3 else f"Raise {at}."}
    for at in range(40)
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_base(folder / name, name) for name in ("bert", "llama")}


def embeddings_of(model, inputs):
    """The mean of the hidden states of each text by itself, of length one."""
    found = []
    for ids, mask in zip(inputs["input_ids_MT"], inputs["attention_mask_MT"], strict=True):
        hidden = model(input_ids=ids[mask > 0][None]).last_hidden_state[0]
        found.append(hidden.mean(0) / hidden.mean(0).norm())
    return torch.stack(found).chunk(3)


def test_a_query_finds_its_positive_among_all_positives_and_negatives(tmp_path, bases):
    session, _ = open_alone(make_task_run(tmp_path, bases["bert"], TASK, ROWS))
    session.loss.eval()
    inputs = next(iter(validation_batches(session))).inputs
    has_negative = inputs["is_negative_B"]
    assert 0 < has_negative.sum() < len(has_negative)
    with torch.no_grad():
        query, positive, negative = embeddings_of(session.model, inputs)
        to_texts = query @ torch.cat([positive, negative[has_negative]]).T / 0.2
        to_queries = positive @ query.T / 0.2
        own = torch.arange(len(query))
        both = F.cross_entropy(to_texts, own, reduction="sum") + F.cross_entropy(to_queries, own, reduction="sum")
        found = session.loss.sums(**inputs)
    torch.testing.assert_close(found["loss"], both / 2, rtol=1e-4, atol=1e-3)
    order = to_texts.argsort(dim=1, descending=True)
    ranks = [1 + row.tolist().index(at) for at, row in enumerate(order)]
    assert float(found["mrr"]) == pytest.approx(sum(1 / rank for rank in ranks), rel=1e-4)
    assert float(found["accuracy"]) == ranks.count(1)


def test_data_without_negatives_computes_no_text_for_them(tmp_path, bases):
    rows = [{"query": row["query"], "positive": row["positive"]} for row in ROWS]
    session, _ = open_alone(make_task_run(tmp_path, bases["bert"], TASK, rows))
    session.loss.eval()
    inputs = next(iter(validation_batches(session))).inputs
    assert len(inputs["input_ids_MT"]) == 2 * len(inputs["is_pair_B"])
    with torch.no_grad():
        found = session.loss.sums(**inputs)
        # An empty text for each query, as among data where some have one.
        empty_MT = torch.zeros_like(inputs["input_ids_MT"][: len(inputs["is_pair_B"])])
        mask_MT = empty_MT.clone()
        mask_MT[:, 0] = 1
        more = {"input_ids_MT": empty_MT, "attention_mask_MT": mask_MT}
        padded = session.loss.sums(**{**inputs, **{name: torch.cat([inputs[name], more[name]]) for name in more}})
    for name, value in found.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-5, atol=1e-5)


def test_padding_is_nobodys_partner(tmp_path, bases):
    session, _ = open_alone(make_task_run(tmp_path, bases["llama"], TASK, ROWS))
    session.loss.eval()
    data = session.data
    plan = data.recipe.plan(data.train_documents, data.store, seed=0)
    rows = [plan.row(index) for index in range(4)]
    alone, padded = data.training_rows.batch(rows, []), data.training_rows.batch([*rows, []], [])
    assert padded.num_targets == 4
    with torch.no_grad():
        torch.testing.assert_close(session.loss(**padded.inputs), session.loss(**alone.inputs), rtol=1e-5, atol=1e-4)
        assert session.loss(**data.training_rows.batch([[]], []).inputs) == 0


@pytest.mark.parametrize(
    ("base", "method"), [("bert", {"lora": {"r": 2}}), ("llama", {"ia3": {}}), ("bert", {"full": {}})]
)
def test_the_exported_model_embeds_as_it_was_trained_to(tmp_path, bases, base, method):
    run = make_task_run(tmp_path, bases[base], TASK, ROWS, method={"lora": None, **method})
    session, _ = open_alone(run)
    before = weights_of(session)
    session.loop.train()
    moved = {name for name, value in weights_of(session).items() if not torch.equal(value, before[name])}
    assert moved
    assert not any("pooler" in name for name in moved)
    assert "full" in method or all("lora_" in name or "ia3_" in name for name in moved)
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    again = load_model(tmp_path / "model", "it", auto_class="AutoModel", tracking_uri="", cache_dir=tmp_path)
    session.loss.eval()
    inputs = next(iter(validation_batches(session))).inputs
    with torch.no_grad():
        loaded = objective_of(run).loss(again, session.data.tokenizer).eval()
        torch.testing.assert_close(loaded(**inputs), session.loss(**inputs), rtol=1e-4, atol=1e-4)


def test_a_text_is_read_as_its_tokenizer_writes_it(tmp_path, bases):
    run = make_task_run(tmp_path, bases["bert"], TASK, ROWS)
    session, _ = open_alone(run)
    export_model(run, session.model, session.data.tokenizer, ALONE, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = next(iter(validation_batches(session))).inputs
    ids = inputs["input_ids_MT"][0][inputs["attention_mask_MT"][0] > 0].tolist()
    assert ids in [tokenizer(row["query"])["input_ids"] for row in ROWS]
    assert ids[0] == tokenizer.cls_token_id
    AutoModel.from_pretrained(tmp_path / "model")


def test_a_row_without_query_or_positive_is_left_out(tmp_path, bases):
    rows = [*ROWS, {"query": "alone", "positive": "", "negative": None}]
    session, _ = open_alone(make_task_run(tmp_path, bases["bert"], TASK, rows))
    assert session.data.store.num_documents == 40


@pytest.mark.parametrize(
    ("rows", "data", "message"),
    [
        ([{"query": "a", "positive": None}], {}, "rows.jsonl row 1, column positive: is empty, must be text"),
        (
            [{"query": "a", "answer": "b"}],
            {},
            "rows.jsonl has the columns query, answer and none of positive, document, completion; name the one to use "
            "in spec.data.columns.completion",
        ),
        (
            [{"query": "a", "positive": "b"}],
            {"columns": {"rejected": "worst"}},
            "rows.jsonl has the columns query, positive and none of worst; name the one to use in "
            "spec.data.columns.rejected",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_refused(tmp_path, bases, rows, data, message):
    with pytest.raises(UserError) as error:
        open_alone(make_task_run(tmp_path, bases["bert"], TASK, rows, data=data))
    assert error.value.reason == "InvalidData"
    assert error.value.message.endswith(message)
