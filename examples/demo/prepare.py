"""Builds the demo's corpora from the source of the Python standard library of the interpreter that runs it.

Enters a tree of `.py` files; leave `pycode/` (documents for pretraining) and `docstrings/` (signature -> docstring
chats for fine-tuning), both split by file, so that neither validation set shares a file with a training set.

    python examples/demo/prepare.py --output .plinth/volumes/corpora
"""

import argparse
import ast
import hashlib
import inspect
import json
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import tokenize
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LICENSE = "PSF-2.0"
VALIDATION_PER_MILLE = 20
SHARD_CHARACTERS = 8_000_000
ENOUGH_BYTES = 10_000_000
ENOUGH_PAIRS = 5_000
NEAR_DUPLICATE_JACCARD = 0.8
SKETCH_SIZE = 64
PROMPT = "Write a docstring for this Python code.\n\n"
README = "README.md"
MANIFEST = "manifest.json"
ENTRIES = ("pycode", "docstrings", README, MANIFEST)

# Written at build time, so they differ between builds of one version and hold paths of the machine that built it.
GENERATED = re.compile(r"^(_sysconfigdata_|config-\d)")
OUTSIDE = frozenset({"site-packages", "dist-packages", "__pycache__"})
TABLE_ROW = re.compile(r"""^\s*(?:[rbu]?['"]|0x|[-\d(\[{])""", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """One source file: its path below the standard library, with forward slashes, and its text."""

    path: str
    content: str


@dataclass(frozen=True)
class Corpora:
    """What is written, and the counts that the README and the summary show."""

    train: list[Document]
    validation: list[Document]
    train_pairs: list[tuple[str, str]]
    validation_pairs: list[tuple[str, str]]
    skipped: dict[str, int]

    @property
    def pycode_bytes(self) -> int:
        """UTF-8 size of all documents' text, without the JSON around it."""
        return sum(len(doc.content.encode()) for doc in (*self.train, *self.validation))


def read_documents(root: Path) -> tuple[list[Document], list[str]]:
    """Reads every `.py` file below `root` that belongs to the standard library.

    Returns:
        The documents, sorted by path, and the paths of the files that do not decode as they declare.
    """
    documents: list[Document] = []
    undecodable: list[str] = []
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if OUTSIDE.intersection(relative.parts) or GENERATED.match(relative.parts[0]):
            continue
        try:
            with tokenize.open(file) as stream:
                documents.append(Document(relative.as_posix(), stream.read()))
        except (SyntaxError, UnicodeDecodeError):
            undecodable.append(relative.as_posix())
    return documents, undecodable


def is_prose_of_code(text: str) -> bool:
    """Tells code from files that are mostly data.

    The limits on line length and letters are those of StarCoder (https://arxiv.org/abs/2305.06161, section 3.1);
    the share of table rows is ours, against the character maps in `encodings/`.
    """
    lines = text.splitlines()
    if len(text.strip()) < 50 or max(map(len, lines)) > 1000 or len(text) / len(lines) > 100:
        return False
    if sum(map(str.isalnum, text)) < 0.25 * len(text):
        return False
    return sum(1 for line in lines if TABLE_ROW.match(line)) < 0.6 * len(lines)


def drop_exact_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keeps the first of the documents that differ in whitespace only."""
    first: dict[bytes, Document] = {}
    for doc in documents:
        first.setdefault(hashlib.sha256(" ".join(doc.content.split()).encode()).digest(), doc)
    return list(first.values())


def drop_near_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keeps the first of the documents whose sets of lines overlap by `NEAR_DUPLICATE_JACCARD` or more.

    Candidates share half of a bottom-k sketch (the k smallest line hashes), then the true overlap decides.
    """
    kept: list[Document] = []
    line_sets: list[frozenset[int]] = []
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for doc in documents:
        stripped = map(str.strip, doc.content.splitlines())
        lines = frozenset(zlib.crc32(line.encode()) for line in stripped if len(line) > 10)
        sketch = sorted(lines)[:SKETCH_SIZE]
        shared = Counter(index for value in sketch for index in holders[value])
        near = any(
            count * 2 >= len(sketch)
            and len(lines & line_sets[index]) >= NEAR_DUPLICATE_JACCARD * len(lines | line_sets[index])
            for index, count in shared.items()
        )
        if near:
            continue
        for value in sketch:
            holders[value].append(len(kept))
        kept.append(doc)
        line_sets.append(lines)
    return kept


def is_validation(path: str) -> bool:
    """Puts a fixed, pseudo-random share of the paths aside; the same for both corpora and on every machine."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:4]) % 1000 < VALIDATION_PER_MILLE


def first_paragraph(docstring: str) -> str:
    """The docstring's first paragraph on one line, or nothing when it says too little or is an example."""
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n", 1)[0].split())
    words = sum(word.isalpha() for word in paragraph.split())
    if paragraph.startswith(">>>") or words < 2 or not 12 <= len(paragraph) <= 400:
        return ""
    return paragraph


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """The `def` or `class` line, on one line and without decorators."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in (*node.bases, *node.keywords))
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{prefix} {node.name}({ast.unparse(node.args)}){returns}:"


def docstring_pairs(doc: Document) -> Iterator[tuple[str, str]]:
    """Yields (signature, first paragraph of the docstring) of the classes and functions, in source order.

    A method's signature stands below its class's name. Functions inside functions are left out, and so is a
    file that this interpreter cannot parse.
    """
    if '"""' not in doc.content and "'''" not in doc.content:
        return  # spares parsing the quarter of the library that documents nothing
    try:
        module = ast.parse(doc.content)
    except (SyntaxError, ValueError):
        return
    pending: list[tuple[ast.stmt, str]] = [(node, "") for node in reversed(module.body)]
    while pending:
        node, class_name = pending.pop()
        if isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *node.orelse, *(node.finalbody if isinstance(node, ast.Try) else [])]
            pending += [(child, class_name) for child in reversed(inner)]
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        text = first_paragraph(ast.get_docstring(node, clean=False) or "")
        if text:
            yield (f"class {class_name}:\n    " if class_name else "") + signature(node), text
        if isinstance(node, ast.ClassDef):
            pending += [(child, node.name) for child in reversed(node.body)]


def unique_pairs(documents: Iterable[Document], seen: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Extracts the pairs of all documents, without those in `seen`, to which it adds them."""
    fresh = [pair for pair in dict.fromkeys(p for doc in documents for p in docstring_pairs(doc)) if pair not in seen]
    seen.update(fresh)
    return fresh


def build_corpora(documents: Sequence[Document], undecodable: Sequence[str]) -> Corpora:
    """Filters, deduplicates and splits the documents, and extracts the pairs of what is left."""
    code = [doc for doc in documents if is_prose_of_code(doc.content)]
    distinct = drop_exact_duplicates(code)
    kept = drop_near_duplicates(distinct)
    # By digest, so that the first documents of a file are a sample of all and not one package's.
    kept.sort(key=lambda doc: hashlib.sha256(doc.path.encode()).digest()[::-1])
    train = [doc for doc in kept if not is_validation(doc.path)]
    validation = [doc for doc in kept if is_validation(doc.path)]
    seen: set[tuple[str, str]] = set()
    # Validation first: a pair that both sides hold (a copied method) is then missing in training, not in both.
    validation_pairs = unique_pairs(validation, seen)
    return Corpora(
        train=train,
        validation=validation,
        train_pairs=unique_pairs(train, seen),
        validation_pairs=validation_pairs,
        skipped={
            "not decodable": len(undecodable),
            "data, not code": len(documents) - len(code),
            "exact duplicates": len(code) - len(distinct),
            "near duplicates": len(distinct) - len(kept),
        },
    )


def summary_rows(corpora: Corpora) -> list[tuple[str, str, str]]:
    """(file, records, megabytes of text) of each part, for the table."""

    def row(name: str, texts: Sequence[str]) -> tuple[str, str, str]:
        return name, f"{len(texts):,}", f"{sum(len(text.encode()) for text in texts) / 1e6:.2f}"

    return [
        row("pycode/train-*.jsonl", [doc.content for doc in corpora.train]),
        row("pycode/validation.jsonl", [doc.content for doc in corpora.validation]),
        row("docstrings/train.jsonl", ["".join(pair) for pair in corpora.train_pairs]),
        row("docstrings/validation.jsonl", ["".join(pair) for pair in corpora.validation_pairs]),
    ]


def shortfalls(corpora: Corpora) -> list[str]:
    """Sentences on what is smaller than the demo was made for; none on a complete standard library."""
    found = []
    if corpora.pycode_bytes < ENOUGH_BYTES:
        found.append(
            f"The corpus has {corpora.pycode_bytes / 1e6:.2f} MB, under the 10 MB the demo was made for: this Python's "
            "standard library is incomplete (Debian and slim images leave out `test`, `idlelib` and more)."
        )
    pairs = len(corpora.train_pairs) + len(corpora.validation_pairs)
    if pairs < ENOUGH_PAIRS:
        found.append(f"Only {pairs:,} documented signatures were found, under the 5,000 the demo was made for.")
    return found


def readme_text(corpora: Corpora) -> str:
    """The output folder's README: where the data comes from, under which licence, and how much there is."""
    table = "\n".join(f"| {' | '.join(row)} |" for row in summary_rows(corpora))
    skipped = "".join(f"- {reason}: {count:,}\n" for reason, count in corpora.skipped.items())
    warning = "".join(f"\n{sentence}\n" for sentence in shortfalls(corpora))
    return (
        "# Demo corpora\n\n"
        f"Source: the standard library of {platform.python_implementation()} {platform.python_version()}, as installed "
        "here, read by `examples/demo/prepare.py`.\n"
        "Copyright (c) 2001 Python Software Foundation; All Rights Reserved.\n"
        f"Licence: {LICENSE} (https://docs.python.org/3/license.html). Further notices in files are kept in the text.\n"
        "Documents are unchanged files; pairs are a signature and the first paragraph of its docstring.\n\n"
        f"| file | records | MB of text |\n| --- | ---: | ---: |\n{table}\n\n"
        f"Left out files:\n\n{skipped}\n"
        "Files are split by path: a file in a validation set is in no training set, of either corpus.\n"
        f"{warning}"
    )


def write_lines(path: Path, records: Iterable[dict[str, object]]) -> None:
    """Writes one JSON document a line."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_corpora(corpora: Corpora, folder: Path) -> None:
    """Writes both corpora and the README into an empty folder."""
    (folder / "pycode").mkdir()
    (folder / "docstrings").mkdir()
    shards: list[list[Document]] = [[]]
    size = 0
    for doc in corpora.train:
        if size > SHARD_CHARACTERS:
            shards.append([])
            size = 0
        shards[-1].append(doc)
        size += len(doc.content)
    named = [(f"train-{index:05d}", shard) for index, shard in enumerate(shards)]
    for name, documents in (*named, ("validation", corpora.validation)):
        write_lines(
            folder / "pycode" / f"{name}.jsonl",
            ({"content": doc.content, "path": doc.path, "license": LICENSE} for doc in documents),
        )
    for name, pairs in (("train", corpora.train_pairs), ("validation", corpora.validation_pairs)):
        write_lines(folder / "docstrings" / f"{name}.jsonl", (chat(*pair) for pair in pairs))
    (folder / README).write_text(readme_text(corpora), encoding="utf-8")


def chat(prompt: str, answer: str) -> dict[str, object]:
    """One pair as a conversation."""
    return {"messages": [{"role": "user", "content": PROMPT + prompt}, {"role": "assistant", "content": answer}]}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of ours below `folder`, but the manifest."""
    files = [folder / README, *folder.glob("pycode/*"), *folder.glob("docstrings/*")]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_file()
    }


def fingerprint(documents: Iterable[Document], undecodable: Iterable[str]) -> str:
    """Changes with the sources, this program and the interpreter, whose parser decides what a pair is."""
    state = hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode())
    for doc in documents:
        state.update(f"{doc.path}\0{doc.content}\0".encode())
    state.update("\0".join(undecodable).encode())
    return state.hexdigest()


def is_complete(output: Path, expected_fingerprint: str) -> bool:
    """Whether `output` holds what this run would write, untouched."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return bool(manifest == {"fingerprint": expected_fingerprint, "files": digests(output)})


def publish(built: Path, output: Path) -> None:
    """Moves the finished entries of `built` into `output` by renames; the manifest goes first and comes last.

    Whatever else lies in `output` is left alone.
    """
    replaced = built / "replaced"
    replaced.mkdir()
    for entry in reversed(ENTRIES):
        if (output / entry).exists():
            (output / entry).rename(replaced / entry)
    for entry in ENTRIES:
        (built / entry).rename(output / entry)


def prepare(source: Path, output: Path) -> list[str]:
    """Builds the corpora below `output`, or does nothing when they are there already.

    Returns:
        The lines to show.

    Raises:
        ValueError: If `source` holds no Python file.
    """
    documents, undecodable = read_documents(source)
    if not documents:
        raise ValueError(f"{source} holds no Python source; name the standard library's folder with --source.")
    expected = fingerprint(documents, undecodable)
    if is_complete(output, expected):
        return [f"{output} is complete and its sources are unchanged: nothing to do."]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like in other people's source
        corpora = build_corpora(documents, undecodable)
    output.mkdir(parents=True, exist_ok=True)
    built = Path(tempfile.mkdtemp(prefix=".prepare-", dir=output))
    try:
        write_corpora(corpora, built)
        manifest = {"fingerprint": expected, "files": digests(built)}
        (built / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        publish(built, output)
    finally:
        shutil.rmtree(built)
    rows = [("file", "records", "MB"), *summary_rows(corpora)]
    return [
        *(f"skipped, does not decode: {path}" for path in undecodable),
        *(f"{name:<28} {records:>8} {megabytes:>8}" for name, records, megabytes in rows),
        "left out: " + ", ".join(f"{count} {reason}" for reason, count in corpora.skipped.items()),
        *(f"warning: {sentence}" for sentence in shortfalls(corpora)),
        f"written to {output} ({LICENSE}, see {README})",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and shows what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(".plinth/volumes/corpora"), help="folder to write into")
    parser.add_argument(
        "--source", type=Path, default=Path(sysconfig.get_path("stdlib")), help="standard library to read"
    )
    options = parser.parse_args(arguments)
    try:
        lines = prepare(options.source, options.output)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
