"""Bring embeddings of texts that belong together close, and those of all other texts of the step apart.

Shapes: B pairs of this process, N pairs of all processes, T tokens, D dimensions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from plinth_api.objectives import ContrastiveText as Settings
from plinth_api.run import TrainRun
from plinth_workloads.data.formats import Example
from plinth_workloads.data.loader import Batch, Draw, padded_texts
from plinth_workloads.data.packing import EpochPlan, PieceRows, Segment
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenizedDocument, TokenStore
from plinth_workloads.models.pooling import pooled
from plinth_workloads.models.sentence_files import write_sentence_settings
from plinth_workloads.objectives.objective import MeasuredLoss, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 512


class ContrastiveText(Objective):
    """The objective of text embeddings (https://arxiv.org/abs/2201.10005)."""

    auto_class = "AutoModel"
    pipeline_tag = "feature-extraction"
    pipeline_class = "FeatureExtractionPipeline"

    def __init__(self, run: TrainRun) -> None:
        super().__init__(run)
        self.temperature = Settings.model_validate(run.objective_settings).temperature

    def recipe(self) -> DataRecipe:
        """Pairs of texts."""
        return _PairRecipe(self.run)

    def loss(self, model: Any, tokenizer: Any) -> "ContrastiveLoss":
        """Cross entropy of finding a text's partner among those of all pairs."""
        return ContrastiveLoss(model, self.temperature)

    def describe(self, model: Any, folder: Path) -> None:
        """How a text becomes a vector, as sentence-transformers says it."""
        write_sentence_settings(folder, model.config.get_text_config().hidden_size)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """Loss and accuracy: chance is one of the rows of a step."""
        return dict(means)


class ContrastiveLoss(MeasuredLoss):
    """A text model with the symmetric cross entropy over similarities, summed over this process's pairs.

    Text embeddings are means over tokens, of length one. The other texts are those of all processes: the loss does not
    depend on how many processes share a step.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        pooler = getattr(model, "pooler", None)
        if isinstance(pooler, nn.Module):
            # The mean does not go through it, and data parallelism waits for the gradient of whatever may move.
            pooler.requires_grad_(False)

    def compute(self, input_ids_2BT: Tensor, attention_mask_2BT: Tensor, is_pair_B: Tensor) -> dict[str, Tensor]:
        """Loss and right answers, summed.

        Args:
            input_ids_2BT: The first texts of all pairs, then their partners.
            attention_mask_2BT: 1 for tokens, 0 for padding.
            is_pair_B: False for padding, which is nobody's partner.
        """
        first_BD, second_BD = self.embedded(input_ids_2BT, attention_mask_2BT).chunk(2)
        pairs = Partners.of(is_pair_B, self.training)
        loss, right = torch.zeros((), device=first_BD.device), torch.zeros((), device=first_BD.device)
        for texts_BD, partners_BD in ((first_BD, second_BD), (second_BD, first_BD)):
            logits_BN = pairs.masked(texts_BD @ pairs.gathered(partners_BD).T / self.temperature)
            loss = loss + pairs.loss(logits_BN) / 2
            right = right + (logits_BN.detach().argmax(-1) == pairs.mine_B)[is_pair_B].sum() / 2
        return {"loss": loss, "accuracy": right}

    def embedded(self, input_ids_NT: Tensor, attention_mask_NT: Tensor) -> Tensor:
        """The embeddings of texts, [N, D], of length one."""
        hidden_NTD = self.model(input_ids=input_ids_NT, attention_mask=attention_mask_NT).last_hidden_state
        return pooled(hidden_NTD, attention_mask_NT)


@dataclass(frozen=True, slots=True)
class Partners:
    """Where this process's pairs are among those of all processes.

    Attributes:
        is_pair_B: False for padding, which is nobody's partner.
        is_pair_N: The same of all processes.
        mine_B: The place of each pair of this process among all.
        num_rows: The most rows that a process has.
    """

    is_pair_B: Tensor
    is_pair_N: Tensor
    mine_B: Tensor
    num_rows: int

    @classmethod
    def of(cls, is_pair_B: Tensor, training: bool) -> "Partners":
        """Every process calls this with its own pairs; in training all have as many."""
        rank, num_rows = _same_size(is_pair_B, training)
        mine_B = rank * num_rows + torch.arange(len(is_pair_B), device=is_pair_B.device)
        return cls(is_pair_B, _gathered(_filled(is_pair_B, num_rows)), mine_B, num_rows)

    def gathered(self, rows_BD: Tensor) -> Tensor:
        """The rows of all processes, [N, D]; gradients flow back to where each row is from."""
        return _gathered(_filled(rows_BD, self.num_rows))

    def masked(self, logits_BN: Tensor) -> Tensor:
        """Similarities in which padding is found by nobody."""
        return logits_BN.masked_fill(~self.is_pair_N, -torch.inf)

    def loss(self, logits_BN: Tensor) -> Tensor:
        """Cross entropy of each text's partner, summed; further candidates may follow behind the N of `masked`."""
        return F.cross_entropy(logits_BN[self.is_pair_B], self.mine_B[self.is_pair_B], reduction="sum")


class _Gather(torch.autograd.Function):
    """Rows of all processes; each row's gradient is the sum of what all processes found for it."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows_BD.contiguous())
        ctx.num_rows = len(rows_BD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total_ND = gradients[0].contiguous()
        dist.all_reduce(total_ND)
        start = dist.get_rank() * ctx.num_rows
        return total_ND[start : start + ctx.num_rows]


def _gathered(rows: Tensor) -> Tensor:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def _same_size(is_pair_B: Tensor, training: bool) -> tuple[int, int]:
    """This process's rank, and the most rows that a process has: equal in training, not so in the last evaluation."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return 0, len(is_pair_B)
    most = torch.tensor(len(is_pair_B), device=is_pair_B.device)
    if not training:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return dist.get_rank(), int(most)


def _filled(rows: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


class _PairRecipe(DataRecipe):
    """Documents that are pairs: the tokens of the second text are marked as targets."""

    # So that whoever loads the model reads texts as it did: `tokenize` puts the marks before it cuts.
    puts_marks = True

    def special_tokens(self) -> Mapping[str, str]:
        return {"cls_token": "<|cls|>", "sep_token": "<|sep|>"}

    def tokenize(
        self, examples: Iterable[Example], tokenizer: "PreTrainedTokenizerBase"
    ) -> Iterator[TokenizedDocument]:
        first = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
        last = [tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id]
        room = self.run.training.sequence_length - len(first) - len(last)
        remaining = iter(examples)
        while chunk := list(islice(remaining, _CHUNK)):
            both = [
                tokenizer([getattr(example, part) for example in chunk], add_special_tokens=False)["input_ids"]
                for part in ("prompt", "completion")
            ]
            for texts in zip(*both, strict=True):
                one, other = ([*first, *ids[:room], *last] if ids else [] for ids in texts)
                yield TokenizedDocument([*one, *other], [False] * len(one) + [True] * len(other))

    def learns_something(self, document: TokenizedDocument) -> bool:
        assert document.targets is not None
        return any(document.targets) and not all(document.targets)

    def plan(self, documents: IntArray, store: TokenStore, *, seed: int) -> EpochPlan:
        return PieceRows(documents, store.lengths, 2 * self.run.training.sequence_length, seed=seed)

    def batcher(self, tokenizer: "PreTrainedTokenizerBase", store: TokenStore, documents: IntArray) -> "_PairRows":
        width = self.run.training.sequence_length if self.run.training.compile else None
        return _PairRows(store, tokenizer.pad_token_id, width)


class _PairRows:
    """Makes the inputs of `ContrastiveLoss`."""

    def __init__(self, store: TokenStore, pad_id: int, width: int | None) -> None:
        self._store, self._pad_id, self._width = store, pad_id, width

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw]) -> Batch:
        """The tensors of some pairs; nothing in them is random."""
        pairs = [self._texts(row) for row in rows]
        texts = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        ids_2BT, mask_2BT = padded_texts(texts, self._pad_id, self._width)
        is_pair = torch.tensor([len(row) > 0 for row in rows])
        inputs = {"input_ids_2BT": ids_2BT, "attention_mask_2BT": mask_2BT, "is_pair_B": is_pair}
        num_tokens = sum(segment.stop - segment.start for row in rows for segment in row)
        return Batch(inputs, num_tokens, int(is_pair.sum()))

    def _texts(self, row: Sequence[Segment]) -> tuple[IntArray, IntArray]:
        if not row:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing
        assert self._store.targets is not None
        offset = int(self._store.offsets[row[0].document])
        tokens = self._store.tokens[offset : offset + row[0].stop].astype(np.int64)
        is_second = self._store.targets[offset : offset + row[0].stop]
        return tokens[~is_second], tokens[is_second]
