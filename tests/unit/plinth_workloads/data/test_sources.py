import gzip
import json

import datasets
import fsspec
import pytest

from plinth_api.run import RunData, RunSource
from plinth_workloads.data.formats import read_examples
from plinth_workloads.data.sources import load_source, source_files
from plinth_workloads.errors import UserError

ROWS = [{"text": "first document"}, {"text": "second\ndocument"}]


def source(uri, **changes):
    return RunSource(**{"uri": str(uri), "weight": 1.0, "format": None, "split": None, **changes})


def data(**changes):
    fields = {
        "train": (),
        "validation": (),
        "validation_fraction": None,
        "columns": {},
        "format": None,
        "task": "pretrain",
    }
    return RunData(**{**fields, **changes})


def texts_of(uri, tmp_path, **changes):
    described = source(uri, **changes)
    return [example.text for example in read_examples(load_source(described, tmp_path / "cache"), described, data())]


def write_all_formats(folder):
    table = datasets.Dataset.from_list(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "data.jsonl").write_text(lines)
    (folder / "data.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    table.to_parquet(folder / "data.parquet")
    table.to_csv(folder / "data.csv")
    table.save_to_disk(folder / "saved")
    (folder / "saved" / "data-00000-of-00001.arrow").rename(folder / "data.arrow")


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.parquet", "data.csv", "data.arrow"])
def test_each_format_gives_the_same_documents(tmp_path, name):
    write_all_formats(tmp_path)
    assert texts_of(f"file://{tmp_path}/{name}", tmp_path) == [row["text"] for row in ROWS]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    assert texts_of(f"file://{tmp_path}/*.txt", tmp_path) == ["one\n\ntwo\n", "three"]


def test_a_folder_stands_for_its_files_in_the_order_of_their_names(tmp_path):
    for name in ("z/1.jsonl", "a/2.jsonl", "a/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [file.removeprefix(str(tmp_path)) for file in source_files(f"file://{tmp_path}")] == [
        "/a/2.jsonl",
        "/z/1.jsonl",
    ]


def test_object_stores_are_reached_through_fsspec():
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/part-1.jsonl", b"{}")
    store.pipe("/bucket/part-2.jsonl", b"{}")
    assert source_files("memory://bucket/*.jsonl") == ["memory:///bucket/part-1.jsonl", "memory:///bucket/part-2.jsonl"]


def test_the_hub_is_asked_for_the_named_set(tmp_path, monkeypatch):
    asked = {}

    def load_dataset(name, **options):
        asked.update(name=name, **options)
        return "rows"

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_source(source("hf://datasets/org/set@abc", split="test"), tmp_path) == "rows"
    assert asked == {"name": "org/set", "split": "test", "revision": "abc", "cache_dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl line 2 is not JSON", id="broken JSON line"),
        pytest.param(
            "a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl line 2 is not an object but list", id="not an object"
        ),
        pytest.param(
            "a.csv", b"text\n\xff\xfe\n", r"a\.csv is not UTF-8 text: byte 0xff", id="csv of another encoding"
        ),
        pytest.param("a.parquet", b"no parquet", r"a\.parquet cannot be read as parquet", id="not parquet"),
        pytest.param("a.dat", b"x", r"holds files of no single known format", id="unknown ending"),
    ],
)
def test_what_does_not_decode_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_source(source(f"file://{tmp_path}/{name}"), tmp_path / "cache")
    assert error.value.reason == "InvalidData"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl matches no file") as error:
        source_files(f"file://{tmp_path}/nowhere.jsonl")
    assert error.value.reason == "DatasetNotFound"


def test_a_hub_that_does_not_answer_is_a_sentence(tmp_path, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"hf://datasets/org/set cannot be loaded from the hub: no route;"):
        load_source(source("hf://datasets/org/set"), tmp_path)


def rows_from(*rows):
    return datasets.Dataset.from_list(list(rows))


def examples_of(rows, **changes):
    return list(read_examples(rows, source("file:///d.jsonl"), data(**changes)))


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        pytest.param("pretrain", {"content": "x"}, {"text": "x"}, id="text under a usual name"),
        pytest.param("completion", {"text": "x"}, {"text": "x"}, id="text to go on with"),
        pytest.param(
            "completion", {"prompt": "p", "completion": "c", "text": "x"}, {"prompt": "p", "completion": "c"}, id="pair"
        ),
        pytest.param(
            "instruction",
            {"messages": [{"role": "assistant", "content": "hi", "name": None}]},
            {"messages": [{"role": "assistant", "content": "hi"}]},
            id="chat",
        ),
    ],
)
def test_the_format_is_told_from_the_columns(task, row, expected):
    (example,) = examples_of(rows_from(row), task=task)
    assert {key: getattr(example, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        pytest.param([{"body": "x"}], {}, r"has the columns body, task pretrain needs text", id="no usual column"),
        pytest.param(
            [{"body": "x"}],
            {"columns": {"text": "contents"}, "format": "text"},
            r"no column contents; it has body: name the one to use in spec\.data\.columns\.text",
            id="named column is not there",
        ),
        pytest.param([{"text": "x"}, {"text": None}], {}, r"row 2, column text: is empty, must be text", id="empty"),
        pytest.param([{"text": 3}], {}, r"row 1, column text: is int, must be text", id="a number"),
        pytest.param(
            [{"messages": [{"role": "user", "content": "q"}]}],
            {"task": "instruction"},
            r"row 1, column messages: has no message of the assistant",
            id="no answer",
        ),
        pytest.param(
            [{"messages": [{"role": "user"}]}],
            {"task": "instruction"},
            r"every message needs a role and a content",
            id="message without content",
        ),
        pytest.param(
            [{"messages": []}], {"task": "instruction", "format": "chat"}, r"must be a list", id="no messages"
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, changes, message):
    with pytest.raises(UserError, match=message) as error:
        examples_of(rows_from(*rows), **changes)
    assert error.value.reason == "InvalidData"
