"""What a language model's logits are made from, and functions of logits that are computed some tokens at a time.

Enters: a causal language model and its input. Leaves: the states that reach its head, from which `each_chunk` makes
logits where they are used, in the forward pass and again in the backward pass: those of a batch never exist at once.
It stands beside `chunked_loss` for losses that are no sum of cross entropies, whose gradient is known only later.

Shapes: B rows, T tokens, N = B x T positions or some of them, X width of a state, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plinth_workloads.data.loader import IGNORED
from plinth_workloads.objectives.chunked_loss import CHUNK_LOGITS, LogitTransform, hidden_before_head


@dataclass(frozen=True, slots=True)
class TokenStates:
    """States, and how they become logits.

    Attributes:
        values_NX: Hidden states before the head; logits, where what the model does to them is not known.
        to_logits: Of states [n, X], logits [n, V] in float32.
        num_logits: V.
    """

    values_NX: Tensor
    to_logits: Callable[[Tensor], Tensor]
    num_logits: int


def token_states(
    model: Any, transform: LogitTransform | None, input_ids_BT: Tensor, position_ids_BT: Tensor
) -> TokenStates:
    """The states of all positions of some rows; attention stops where position ids restart.

    Args:
        model: A causal language model.
        transform: What `logit_transform` has found out about it.
        input_ids_BT: Token ids.
        position_ids_BT: Positions in each document.
    """
    inputs = {
        "input_ids": input_ids_BT,
        "position_ids": position_ids_BT,
        "attention_mask": None,
        "use_cache": False,
    }
    if transform is None:
        logits_BTV = model(**inputs).logits
        return TokenStates(logits_BTV.flatten(0, 1), Tensor.float, logits_BTV.shape[-1])
    head = model.get_output_embeddings()
    hidden_BTX = hidden_before_head(model, **inputs)[:, -input_ids_BT.shape[1] :]
    return TokenStates(
        hidden_BTX.flatten(0, 1), lambda states_NX: transform(head(states_NX).float()), int(head.weight.shape[0])
    )


def chunk_size(num_logits: int, device: torch.device, chunk_logits: int | None = None) -> int:
    """How many tokens with `num_logits` each are computed at once; `chunk_logits` is CHUNK_LOGITS when left out."""
    limit = chunk_logits or CHUNK_LOGITS.get(device.type, CHUNK_LOGITS["cpu"])
    return max(1, limit // num_logits)


def each_chunk(function: Callable[..., Tensor], size: int, *rows: Tensor) -> Tensor:
    """What `function` makes of `size` rows at a time, one after another; computed again in the backward pass."""
    starts = range(0, max(1, len(rows[0])), size)
    parts = [checkpoint(function, *(row[at : at + size] for row in rows), use_reentrant=False) for at in starts]
    return torch.cat(parts)


def labelled_positions(labels_N: Tensor) -> Tensor:
    """The positions whose label is not IGNORED; on a GPU all of them, as their number would have to be waited for."""
    if labels_N.device.type == "cpu":
        return torch.nonzero(labels_N != IGNORED).flatten()
    return torch.arange(len(labels_N), device=labels_N.device)


def row_log_probs(states: TokenStates, labels_BT: Tensor, *, chunk_logits: int | None = None) -> Tensor:
    """The log probability of each row's labels, those that are IGNORED left out: [B], in float32.

    Args:
        states: Of the rows' positions.
        labels_BT: The token that follows each position, or IGNORED.
        chunk_logits: Most logits at once.
    """
    labels_N = labels_BT.flatten()
    places = labelled_positions(labels_N)

    def log_probs(values_NX: Tensor, labels_N: Tensor) -> Tensor:
        logits_NV = states.to_logits(values_NX)
        return -F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="none")

    size = chunk_size(states.num_logits, labels_N.device, chunk_logits)
    of_labels = each_chunk(log_probs, size, states.values_NX.index_select(0, places), labels_N[places])
    return of_labels.new_zeros(len(labels_N)).index_put((places,), of_labels).view(labels_BT.shape).sum(1)
