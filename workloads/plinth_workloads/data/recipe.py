"""How examples become rows and rows become batches: the part of an objective that knows data and no model.

`DataRecipe` is that of a causal language model; other objectives change the steps in which they differ.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plinth_api.run import RunSource, TrainRun
from plinth_workloads.data.formats import Example, read_examples
from plinth_workloads.data.loader import Batcher, Rows
from plinth_workloads.data.packing import ConcatenatedRows, EpochPlan, WholeDocumentRows
from plinth_workloads.data.sources import load_source
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.data.tokenize import tokenize_examples
from plinth_workloads.models.tokenizers import load_tokenizer, put_marks, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from plinth_workloads.data.prepare import PreparedData


class DataRecipe:
    """Documents of tokens, packed into rows, with the token that follows as the label."""

    puts_marks = False
    """Whether the tokenizer puts the marks that it has around a text by itself."""

    def __init__(self, run: TrainRun) -> None:
        self.run = run

    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens that a tokenizer trained for this run needs beside the usual ones, by transformers' names.

        A name that transformers does not know (`sentinel_0`) is a further special token.
        """
        return {}

    def processor(self, base_folder: Path | None, cache: Path) -> Any:
        """What turns an example into numbers and is saved with the model: its tokenizer, trained where it is new.

        Args:
            base_folder: Folder of the model or tokenizer to use; None where there is none.
            cache: Where a trained one goes.

        Raises:
            UserError: ModelLoadFailed, or what is wrong with the data that it is trained on.
        """
        model = self.run.model
        folder = base_folder or cache / "tokenizer"
        if not folder.exists():
            assert model.tokenizer_vocab_size is not None
            texts = (text for source in self.run.data.train for text in self._texts(source, cache))
            partial = cache / "tokenizer.tmp"
            train_tokenizer(texts, model.tokenizer_vocab_size, partial, self.special_tokens())
            partial.rename(folder)
        tokenizer = load_tokenizer(folder, model.uri or model.tokenizer_uri or self.run.name)
        if self.puts_marks:
            put_marks(tokenizer)
        return tokenizer

    def vocabulary_size(self, tokenizer: Any) -> int:
        """How many different numbers a document can hold."""
        return len(tokenizer)

    def documents(self, source: RunSource, tokenizer: Any, cache: Path) -> Iterator[TokenizedDocument]:
        """The examples of a source as numbers.

        Raises:
            UserError: DatasetNotFound, AccessDenied or InvalidData.
        """
        return self.tokenize(self._examples(source, cache), tokenizer)

    def tokenize(
        self, examples: Iterable[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> Iterator[TokenizedDocument]:
        """The examples as token ids.

        Raises:
            UserError: InvalidData for an example that cannot be rendered.
        """
        return tokenize_examples(examples, tokenizer, as_chat=self.run.data.task in ("instruction", "distillation"))

    def check(self, data: "PreparedData") -> None:
        """Refuse data that the objective cannot learn from or be measured on.

        Raises:
            UserError: InvalidData.
        """
        return

    def learns_something(self, document: TokenizedDocument) -> bool:
        """Whether a row holds a target of the document: one other than the first token, which is never predicted."""
        if self.cuts_documents:
            return len(document.ids) > 1
        length = min(len(document.ids), self.run.training.sequence_length)
        return length > 1 if document.targets is None else any(document.targets[1:length])

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        """The rows that hold some documents, in random order."""
        training = self.run.training
        if self.cuts_documents:
            return ConcatenatedRows(documents, store.lengths, training.sequence_length, seed=seed)
        return WholeDocumentRows(
            documents, store.lengths, training.sequence_length, packing=training.packing, seed=seed
        )

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> Batcher:
        """What makes tensors of a plan's rows, which hold no other documents of the store than these."""
        training = self.run.training
        return Rows(
            store,
            training.sequence_length,
            tokenizer.pad_token_id,
            pad_to_longest=not self.cuts_documents,
        )

    def _examples(self, source: RunSource, cache: Path) -> Iterator[Example]:
        return read_examples(load_source(source, cache / "datasets"), source, self.run.data)

    def _texts(self, source: RunSource, cache: Path) -> Iterator[str]:
        for example in self._examples(source, cache):
            yield from example.texts

    @property
    def cuts_documents(self) -> bool:
        """Whether documents are cut to fill rows: plain text in packed rows is, an example with an answer never."""
        return self.run.training.packing and self.run.data.task == "pretrain"
