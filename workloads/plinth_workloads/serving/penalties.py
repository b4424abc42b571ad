"""What a request adds to and takes from the logits of its next token, by what it has said so far.

Enters: a row's logits before each token, and the token. Leaves: the same logits, changed in place. It stands alone
because it is the only part of sampling that remembers.

Shapes: V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plinth_workloads.serving.engine import SamplingParameters


class Penalties:
    """The bias and the penalties of one request.

    repetition_penalty is that of CTRL (https://arxiv.org/abs/1909.05858) over prompt and completion; presence and
    frequency count the completion alone, as OpenAI's API has them.
    """

    def __init__(
        self, parameters: SamplingParameters, prompt_ids: Sequence[int], *, vocab_size: int, device: torch.device
    ) -> None:
        self._parameters = parameters
        self._bias_ids = torch.tensor([token for token, _ in parameters.logit_bias], dtype=torch.long, device=device)
        self._bias = torch.tensor([bias for _, bias in parameters.logit_bias], dtype=torch.float32, device=device)
        self._counts_V = torch.zeros(vocab_size, device=device)
        self._seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        if parameters.repetition_penalty != 1:
            self._seen_V[torch.tensor(list(prompt_ids), dtype=torch.long, device=device)] = True

    def apply_(self, logits_V: Tensor) -> None:
        """Change the logits of the next token in place."""
        wanted = self._parameters
        if wanted.repetition_penalty != 1:
            factor = wanted.repetition_penalty
            changed_V = torch.where(logits_V > 0, logits_V / factor, logits_V * factor)
            logits_V.copy_(torch.where(self._seen_V, changed_V, logits_V))
        if wanted.frequency_penalty:
            logits_V.sub_(self._counts_V, alpha=wanted.frequency_penalty)
        if wanted.presence_penalty:
            logits_V.sub_((self._counts_V > 0).float(), alpha=wanted.presence_penalty)
        if wanted.logit_bias:
            logits_V.index_add_(0, self._bias_ids, self._bias)

    def add(self, token: int) -> None:
        """Take a token into account that was made."""
        self._counts_V[token] += 1
        self._seen_V[token] = True


def penalties_of(
    parameters: SamplingParameters, prompt_ids: Sequence[int], *, vocab_size: int, device: torch.device
) -> Penalties | None:
    """The penalties of a request, None where it asks for none: most do not, and theirs would cost a pass over V."""
    neutral = parameters.repetition_penalty == 1 and not (
        parameters.presence_penalty or parameters.frequency_penalty or parameters.logit_bias
    )
    return None if neutral else Penalties(parameters, prompt_ids, vocab_size=vocab_size, device=device)
