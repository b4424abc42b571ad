"""Which tokens of a row are hidden, and by what: a pure function of the row and its random numbers.

Shapes: T tokens of a row.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plinth_workloads.data.loader import IGNORED
from plinth_workloads.data.token_store import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BoolArray = npt.NDArray[np.bool_]
_KEPT, _RANDOM = 0.1, 0.1
"""Of the chosen tokens one in ten stays and one in ten becomes another: BERT, appendix A.1."""


class Masker:
    """Hides tokens as BERT does (https://arxiv.org/abs/1810.04805)."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", probability: float) -> None:
        assert tokenizer.mask_token_id is not None
        self._mask_id, self._probability = tokenizer.mask_token_id, probability
        self.is_special = np.zeros(len(tokenizer), np.bool_)
        self.is_special[list(tokenizer.all_special_ids)] = True
        self._ordinary = np.flatnonzero(~self.is_special)

    def hide(self, ids_T: IntArray, starts_T: BoolArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """A row with some of its words hidden, and the labels of these.

        Args:
            ids_T: Token ids; special ones are never hidden.
            starts_T: Which tokens start a word; the pieces of a word are hidden together.
            rng: Of this row.

        Returns:
            The row, and its labels: the hidden tokens, IGNORED elsewhere. At least one word is chosen where there is
            one, and as many as fit into the probability's share of the tokens.
        """
        usable = ~self.is_special[ids_T]
        # A special token ends a word, so what follows it starts one.
        starts_T = starts_T | np.concatenate([[True], usable[1:] != usable[:-1]])
        word_of = np.cumsum(starts_T) - 1
        sizes = np.bincount(word_of[usable], minlength=int(word_of[-1]) + 1)
        order = rng.permutation(np.flatnonzero(sizes))
        budget = max(1, round(self._probability * int(usable.sum())))
        taken = np.cumsum(sizes[order]) <= budget
        taken[:1] = True
        chosen = np.isin(word_of, order[taken]) & usable
        fate = rng.random(len(ids_T))
        hidden = np.where(chosen & (fate >= _KEPT + _RANDOM), self._mask_id, ids_T)
        others = self._ordinary[rng.integers(len(self._ordinary), size=len(ids_T))]
        hidden = np.where(chosen & (fate >= _KEPT) & (fate < _KEPT + _RANDOM), others, hidden)
        return hidden, np.where(chosen, ids_T, IGNORED)
