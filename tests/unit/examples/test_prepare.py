"""The demo's corpora: what goes in, what stays out, and that the split holds across both corpora."""

import json
from pathlib import Path
from typing import Any

import pytest

from unit.examples.examples import load_example

prepare = load_example("prepare")


def make_module(number: int) -> str:
    return f'''"""Module number {number} of the fake library."""

class Holder{number}(dict):
    """Keeps what belongs to holder {number}.

    Second paragraph.
    """

    async def fetch_{number}(self, key: str, *, default=None) -> "list[int]":
        """Return the value of the key,
        or the default."""
        return self.get(key, default) or [{number}]

if True:
    def compute_{number}(first, second={number}):
        """Compute the sum of both and of {number}."""
        return first + second + {number}

def undocumented_{number}():
    return {number}
'''


def make_library(root: Path, num_modules: int = 60) -> Path:
    for number in range(num_modules):
        (root / "package").mkdir(parents=True, exist_ok=True)
        (root / "package" / f"module_{number}.py").write_text(make_module(number))
    return root


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_both_corpora_have_their_records(tmp_path: Path) -> None:
    prepare.prepare(make_library(tmp_path / "lib"), tmp_path / "out")
    record = read_records(tmp_path / "out/pycode/train-00000.jsonl")[0]
    assert set(record) == {"content", "path", "license"}
    assert record["license"] == "PSF-2.0"
    assert record["content"] == (tmp_path / "lib" / str(record["path"])).read_text()
    chat = read_records(tmp_path / "out/docstrings/train.jsonl")[0]["messages"]
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert "PSF-2.0" in (tmp_path / "out/README.md").read_text()


def test_no_file_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    prepare.prepare(make_library(tmp_path / "lib"), tmp_path / "out")
    numbers = {}
    for split in ("train", "validation"):
        files = [r for f in (tmp_path / "out/pycode").glob(f"{split}*") for r in read_records(f)]
        modules = {str(record["path"]).partition("_")[2].removesuffix(".py") for record in files}
        text = (tmp_path / f"out/docstrings/{split}.jsonl").read_text()
        assert modules
        for number in modules:
            assert f"class Holder{number}(dict):" in text
        numbers[split] = modules
        assert text.count("class Holder") == 2 * len(modules)  # of the class and of its method
    assert not numbers["train"] & numbers["validation"]


def test_pairs_are_signatures_and_first_paragraphs() -> None:
    pairs = list(prepare.docstring_pairs(prepare.Document("m.py", make_module(7))))
    assert pairs == [
        ("class Holder7(dict):", "Keeps what belongs to holder 7."),
        (
            "class Holder7:\n    async def fetch_7(self, key: str, *, default=None) -> 'list[int]':",
            "Return the value of the key, or the default.",
        ),
        ("def compute_7(first, second=7):", "Compute the sum of both and of 7."),
    ]


@pytest.mark.parametrize(
    "docstring",
    [
        pytest.param(">>> add(1, 2)\n3", id="an example says nothing in words"),
        pytest.param("Ditto.", id="too short"),
        pytest.param("x1 = y2 + z3 * f(x4)", id="hardly a word"),
        pytest.param("word " * 100, id="too long"),
    ],
)
def test_docstrings_that_say_too_little_or_too_much_are_left_out(docstring: str) -> None:
    assert prepare.first_paragraph(docstring) == ""


def test_what_does_not_parse_is_a_document_without_pairs() -> None:
    assert list(prepare.docstring_pairs(prepare.Document("m.py", 'print "python 2" """'))) == []


def test_foreign_and_undecodable_files_stay_out(tmp_path: Path) -> None:
    root = make_library(tmp_path / "lib", 3)
    for path in ("site-packages/numpy.py", "_sysconfigdata__linux_.py", "config-3.11-x86_64/makesetup.py"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(make_module(99))
    (root / "broken.py").write_bytes(b"# coding: utf-8\n" + b"\xff" * 80)
    lines = prepare.prepare(root, tmp_path / "out")
    assert "skipped, does not decode: broken.py" in lines
    assert "Holder99" not in "".join(str(content) for content in read_tree(tmp_path / "out").values())


def test_duplicates_are_dropped(tmp_path: Path) -> None:
    body = "".join(f"value_{number} = function_{number}(argument)\n" for number in range(50))
    exact = [prepare.Document("a.py", body), prepare.Document("b.py", body.replace("\n", "  \n\n"))]
    near = [prepare.Document("a.py", body), prepare.Document("b.py", body + "one_more_line = True\n")]
    other = [prepare.Document("a.py", body), prepare.Document("b.py", body.replace("value", "result"))]
    assert [doc.path for doc in prepare.drop_exact_duplicates(exact)] == ["a.py"]
    assert [doc.path for doc in prepare.drop_near_duplicates(near)] == ["a.py"]
    assert [doc.path for doc in prepare.drop_near_duplicates(other)] == ["a.py", "b.py"]


def test_tables_are_not_code() -> None:
    assert prepare.is_prose_of_code(make_module(1))
    assert not prepare.is_prose_of_code("table = (\n" + "    '\\x00'  #  0x00 -> NULL\n" * 50 + ")\n")
    assert not prepare.is_prose_of_code("text = '" + "word " * 300 + "'\n")


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    prepare.prepare(library, tmp_path / "one")
    prepare.prepare(library, tmp_path / "two")
    assert read_tree(tmp_path / "one") == read_tree(tmp_path / "two")


def test_a_second_run_does_nothing_until_something_changed(tmp_path: Path) -> None:
    library, output = make_library(tmp_path / "lib"), tmp_path / "out"
    (output / "cache").mkdir(parents=True)
    (output / "cache" / "mine").write_text("kept")
    prepare.prepare(library, output)
    before = read_tree(output)
    assert "nothing to do" in prepare.prepare(library, output)[0]

    (output / "docstrings" / "train.jsonl").write_text("damaged")
    assert "nothing to do" not in prepare.prepare(library, output)[0]
    assert read_tree(output) == before

    (library / "new.py").write_text(make_module(100))
    prepare.prepare(library, output)
    assert read_tree(output) != before
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "cache",
        "docstrings",
        "manifest.json",
        "pycode",
    ]


def test_a_small_library_is_said_to_be_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.main(["--source", str(make_library(tmp_path / "lib")), "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "under the 10 MB" in shown
    assert "Only 180 documented signatures" in shown


def test_a_source_without_python_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare.main(["--source", str(tmp_path), "--output", str(tmp_path / "out")])
    assert "--source" in capsys.readouterr().err
