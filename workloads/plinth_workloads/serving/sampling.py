"""From the logits of a batch to one token a row, each row by its own temperature and top_p and its own random number.

A row's token depends on its own logits, parameters and number only, so that a seed means the same in every company.

Shapes: B rows, S rows that are sampled, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_MIN_TEMPERATURE = 1e-6
"""Below, float32 would divide by zero; the likeliest token has all the probability long before."""


def sample_tokens(
    logits_BV: Tensor,
    *,
    temperatures: Sequence[float],
    top_ps: Sequence[float],
    uniforms: Sequence[float],
) -> list[int | None]:
    """The next token of each row.

    Args:
        logits_BV: Unnormalised log-probabilities.
        temperatures: Per row; 0 takes the likeliest token.
        top_ps: Per row, in (0, 1].
        uniforms: Per row a number in [0, 1); the same number draws the same token.

    Returns:
        Token ids; None for a row whose logits are not finite, from which nothing can be drawn.
    """
    # A row may hold -inf (a token that the model forbids), so what counts is whether its largest logit is a number.
    max_B, greedy_B = logits_BV.max(dim=-1)
    token_B = greedy_B.clone()
    sampled = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if sampled:
        token_B[sampled] = _draw(
            logits_BV[sampled],
            temperatures=[temperatures[row] for row in sampled],
            top_ps=[top_ps[row] for row in sampled],
            uniforms=[uniforms[row] for row in sampled],
        )
    finite = torch.isfinite(max_B).tolist()
    return [token if ok else None for token, ok in zip(token_B.tolist(), finite, strict=True)]


def _draw(
    logits_SV: Tensor, *, temperatures: Sequence[float], top_ps: Sequence[float], uniforms: Sequence[float]
) -> Tensor:
    temperature_S1 = logits_SV.new_tensor(temperatures).clamp(min=_MIN_TEMPERATURE)[:, None]
    scaled_SV = (logits_SV - logits_SV.amax(dim=-1, keepdim=True)) / temperature_S1
    # float64: the running sum over a vocabulary of 10^5 must not lose the unlikely tokens.
    probs_SV = scaled_SV.double().softmax(dim=-1)
    nucleus = [row for row, top_p in enumerate(top_ps) if top_p < 1]
    if nucleus:
        probs_SV[nucleus] = _keep_nucleus(probs_SV[nucleus], [top_ps[row] for row in nucleus])
    cumulative_SV = probs_SV.cumsum(dim=-1)
    target_S1 = probs_SV.new_tensor(uniforms)[:, None] * cumulative_SV[:, -1:]
    token_S = torch.searchsorted(cumulative_SV, target_S1, right=True).squeeze(-1)
    return token_S.clamp(max=logits_SV.shape[-1] - 1)


def _keep_nucleus(probs_SV: Tensor, top_ps: Sequence[float]) -> Tensor:
    """Zeroes what is not among the likeliest tokens whose probabilities reach top_p (https://arxiv.org/abs/1904.09751)."""
    sorted_SV, order_SV = probs_SV.sort(dim=-1, descending=True, stable=True)
    before_SV = sorted_SV.cumsum(dim=-1) - sorted_SV
    outside_SV = before_SV >= probs_SV.new_tensor(top_ps)[:, None]
    outside_SV[:, 0] = False
    return torch.zeros_like(probs_SV).scatter(-1, order_SV, sorted_SV.masked_fill(outside_SV, 0))
