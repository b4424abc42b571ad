"""What a model can be given: how many tokens, and which ids they may have.

Enters: a model, or token ids with the size of its vocabulary. Leaves: a number, or what is wrong in a sentence. The
same for engines of models that write and of models that read.
"""

from collections.abc import Sequence
from typing import Any

_DEFAULT_CONTEXT_LENGTH = 2048
"""Of models whose configuration sets no end, as with ALiBi: a request has one all the same."""


def positions_of(model: Any) -> int:
    """How many positions a transformers model has, those that padding or virtual tokens take included."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions or _DEFAULT_CONTEXT_LENGTH


def unknown_token(token_ids: Sequence[int], vocab_size: int) -> str | None:
    """A sentence with a token id that the model does not have; None where it has all."""
    # The outermost two by C: a request may have a million ids, and the event loop waits.
    for token in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token < vocab_size:
            return f"token id {token} is outside of the model's vocabulary of {vocab_size}"
    return None
