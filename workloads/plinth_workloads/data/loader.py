"""From a token store and an epoch plan to the batches of one process; its position is part of the checkpoint.

Tensor shapes: B rows of a micro batch, T tokens of a row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from plinth_workloads.data.packing import EpochPlan, Segment
from plinth_workloads.data.token_store import TokenStore

IGNORED = -100
"""The label of a position that predicts nothing, as torch's cross_entropy spells it."""


Draw = tuple[int, ...]
"""What the random numbers of a row follow from, beside the run's seed: (0, epoch, row) in training, (1, 0, row) in
evaluation. The same row of another epoch is masked differently, the same row of a resumed run equally."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro batch.

    Attributes:
        inputs: What the objective's loss module is called with, by the names of its arguments.
        num_tokens: Tokens of documents, padding not counted; what speed is measured in.
        num_targets: What the summed loss is divided by: labels that count, pairs, or masked patches.
    """

    inputs: Mapping[str, Tensor]
    num_tokens: int
    num_targets: int

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(moved, self.num_tokens, self.num_targets)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a copy to a GPU need not be waited for."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return Batch(pinned, self.num_tokens, self.num_targets)


class StepLoader(Protocol):
    """What the training loop reads from; the position is part of the checkpoint."""

    def next_step(self) -> list[Batch]:
        """This process's micro batches of the next optimizer step."""
        ...

    def skip_steps(self, count: int) -> None:
        """Move past the rows of the next optimizer steps."""
        ...

    def state_dict(self) -> dict[str, int]:
        """The position, as JSON types."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position."""
        ...


class Batcher(Protocol):
    """What makes tensors of rows: one for each way in which objectives read examples."""

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw], /) -> Batch:
        """The tensors of some rows; an empty row is padding that counts for nothing.

        Args:
            rows: The segments of each row.
            draws: What each row's random numbers follow from.
        """
        ...


def padded_texts(texts: Sequence[np.ndarray], pad_id: int, width: int | None = None) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask of some texts, [B, T].

    Args:
        texts: Token ids. One without any may look at its first position, for attention to nothing has no softmax.
        pad_id: What fills a row that is not full.
        width: T; the longest text's when left out.
    """
    width = width or max(1, *map(len, texts))
    lengths = np.array([max(1, len(text)) for text in texts])
    mask = np.arange(width) < lengths[:, None]
    return padded(texts, width, pad_id), torch.from_numpy(mask.astype(np.int64))


def padded(rows: Sequence[np.ndarray], width: int, fill: int) -> Tensor:
    """Numbers of some rows, each filled up to `width`, [B, T]."""
    whole = np.full((len(rows), width), fill, np.int64)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
    return torch.from_numpy(whole)


@dataclass(slots=True)
class LoaderPosition:
    """The next row to read, the same for all processes whatever their number."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """How rows become input_ids_BT, position_ids_BT and labels_BT of a causal language model.

    Positions start at 0 in every document; where they restart, attention stops. The label of a token is the one that
    follows, IGNORED at a document's end and where nothing is to be learned.

    Attributes:
        store: The documents.
        sequence_length: T.
        pad_id: What fills a row that is not full; it is a document of its own and predicts nothing.
        pad_to_longest: Cut the batch to its longest row, for rows that are mostly not full.
    """

    store: TokenStore
    sequence_length: int
    pad_id: int
    pad_to_longest: bool = False

    def batch(self, rows: Sequence[Sequence[Segment]], draws: Sequence[Draw] = ()) -> Batch:
        """The tensors of some rows; nothing in them is random."""
        used = [sum(segment.stop - segment.start for segment in row) for row in rows]
        width = max([2, *used]) if self.pad_to_longest else self.sequence_length
        ids = np.full((len(rows), width), self.pad_id, np.int64)
        positions = np.zeros((len(rows), width), np.int64)
        labels = np.full((len(rows), width), IGNORED, np.int64)
        for index, row in enumerate(rows):
            filled = self._fill(row, ids[index], positions[index], labels[index])
            positions[index, filled:] = np.arange(width - filled)
        inputs = {"input_ids_BT": ids, "position_ids_BT": positions, "labels_BT": labels}
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return Batch(tensors, sum(used), int((labels != IGNORED).sum()))

    def _fill(self, row: Sequence[Segment], ids_T: np.ndarray, positions_T: np.ndarray, labels_T: np.ndarray) -> int:
        at = 0
        for document, start, stop in row:
            offset, length = int(self.store.offsets[document]), stop - start
            tokens = self.store.tokens[offset + start : offset + stop]
            ids_T[at : at + length] = tokens
            positions_T[at : at + length] = np.arange(length)
            following = tokens[1:].astype(np.int64)
            if self.store.targets is not None:
                learned = self.store.targets[offset + start + 1 : offset + stop]
                following = np.where(learned, following, IGNORED)
            labels_T[at : at + length - 1] = following
            at += length
        return at


class BatchLoader:
    """The endless stream of one process's micro batches: epochs follow each other, every process takes its share.

    A step's rows are the same for any number of processes and any micro batch size; only their split differs.
    """

    def __init__(
        self,
        rows: Batcher,
        plan_epoch: Callable[[int], EpochPlan],
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows = rows
        self._plan_epoch = plan_epoch
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rank = rank
        self._world_size = world_size
        self._position = LoaderPosition()
        self._plan = plan_epoch(0)

    def next_step(self) -> list[Batch]:
        """This process's micro batches of the next optimizer step."""
        taken = self._take(self._global_batch_size)[self._rank :: self._world_size]
        parts = [
            taken[start : start + self._micro_batch_size] for start in range(0, len(taken), self._micro_batch_size)
        ]
        return [self._rows.batch([row for row, _ in part], [draw for _, draw in part]) for part in parts]

    def skip_steps(self, count: int) -> None:
        """Move past the rows of the next optimizer steps."""
        self._take(count * self._global_batch_size)

    def _take(self, count: int) -> list[tuple[Sequence[Segment], Draw]]:
        rows: list[tuple[Sequence[Segment], Draw]] = []
        while len(rows) < count:
            if self._position.row >= self._plan.num_rows:
                self._position = LoaderPosition(self._position.epoch + 1, 0)
                self._plan = self._plan_epoch(self._position.epoch)
            at = self._position
            rows.append((self._plan.row(at.row), (0, at.epoch, at.row)))
            self._position.row += 1
        return rows

    def state_dict(self) -> dict[str, int]:
        """The position, as JSON types."""
        return asdict(self._position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position."""
        self._position = LoaderPosition(**state)
        self._plan = self._plan_epoch(self._position.epoch)


def evaluation_batches(
    rows: Batcher, plan: EpochPlan, *, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """This process's share of every row of a plan, once.

    Every process gets the same number of batches, as collectives in the forward pass need; one that has no row left
    gets a row of padding that counts for nothing.
    """
    for start in range(0, plan.num_rows, batch_size * world_size):
        mine = range(start + rank * batch_size, min(start + (rank + 1) * batch_size, plan.num_rows))
        shares = [(plan.row(index), (1, 0, index)) for index in mine] or [((), (1, 0, plan.num_rows))]
        yield rows.batch([row for row, _ in shares], [draw for _, draw in shares])
