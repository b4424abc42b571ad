"""From the logits of a batch to one token a row, each row by its own parameters and its own random number.

A row's token depends on its own logits, parameters and number only, so that a seed means the same in every company.
The order is temperature, min_p, top_k, top_p, each over what the one before it has left; vLLM has the same.

Shapes: B rows, S rows that are sampled, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plinth_workloads.serving.engine import SamplingParameters

_MIN_TEMPERATURE = 1e-6
"""Below, float32 would divide by zero; the likeliest token has all the probability long before."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How likely the model held a token, and which others it held likeliest.

    Attributes:
        logprob: Natural logarithm of its probability, before temperature, penalties and bias.
        top: Token ids with theirs, the likeliest first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def sample_tokens(
    logits_BV: Tensor, parameters: Sequence[SamplingParameters], *, uniforms: Sequence[float]
) -> list[int | None]:
    """The next token of each row.

    Args:
        logits_BV: Unnormalised log-probabilities.
        parameters: Per row; a temperature of 0 takes the likeliest token.
        uniforms: Per row a number in [0, 1); the same number draws the same token.

    Returns:
        Token ids; None for a row whose logits are not finite, from which nothing can be drawn.
    """
    # A row may hold -inf (a token that the model forbids), so what counts is whether its largest logit is a number.
    max_B, greedy_B = logits_BV.max(dim=-1)
    token_B = greedy_B.clone()
    sampled = [row for row, wanted in enumerate(parameters) if wanted.temperature > 0]
    if sampled:
        token_B[sampled] = _draw(
            logits_BV[sampled], [parameters[row] for row in sampled], [uniforms[row] for row in sampled]
        )
    finite = torch.isfinite(max_B).tolist()
    return [token if ok else None for token, ok in zip(token_B.tolist(), finite, strict=True)]


def score_tokens(logits_SV: Tensor, tokens: Sequence[int | None], num_top: Sequence[int]) -> list[TokenScore | None]:
    """How likely the model held the token of each row; None where there is no token.

    Args:
        logits_SV: As the model gave them.
        tokens: Per row.
        num_top: Per row, how many of the likeliest tokens are wanted beside it.
    """
    logprob_SV = logits_SV.log_softmax(dim=-1)
    top = logprob_SV.topk(min(max(num_top), logits_SV.shape[-1]), dim=-1)
    values, ids = top.values.tolist(), top.indices.tolist()
    return [
        None
        if token is None
        else TokenScore(float(logprob_SV[row, token]), tuple(zip(ids[row][:count], values[row][:count], strict=True)))
        for row, (token, count) in enumerate(zip(tokens, num_top, strict=True))
    ]


def _draw(logits_SV: Tensor, parameters: Sequence[SamplingParameters], uniforms: Sequence[float]) -> Tensor:
    temperatures = [wanted.temperature for wanted in parameters]
    temperature_S1 = logits_SV.new_tensor(temperatures).clamp(min=_MIN_TEMPERATURE)[:, None]
    scaled_SV = (logits_SV - logits_SV.amax(dim=-1, keepdim=True)) / temperature_S1
    # float64: the running sum over a vocabulary of 10^5 must not lose the unlikely tokens.
    probs_SV = scaled_SV.double().softmax(dim=-1)
    _drop_below(probs_SV, {row: wanted.min_p for row, wanted in enumerate(parameters) if wanted.min_p > 0})
    _keep_likeliest(probs_SV, {row: wanted.top_k for row, wanted in enumerate(parameters) if wanted.top_k > 0})
    _keep_nucleus(probs_SV, {row: wanted.top_p for row, wanted in enumerate(parameters) if wanted.top_p < 1})
    cumulative_SV = probs_SV.cumsum(dim=-1)
    target_S1 = probs_SV.new_tensor(uniforms)[:, None] * cumulative_SV[:, -1:]
    token_S = torch.searchsorted(cumulative_SV, target_S1, right=True).squeeze(-1)
    return token_S.clamp(max=logits_SV.shape[-1] - 1)


def _drop_below(probs_SV: Tensor, min_ps: dict[int, float]) -> None:
    """Zero what is less likely than min_p times the likeliest token (https://arxiv.org/abs/2407.01082)."""
    if min_ps:
        rows, bound_S1 = list(min_ps), probs_SV.new_tensor(list(min_ps.values()))[:, None]
        wanted_SV = probs_SV[rows]
        probs_SV[rows] = wanted_SV.masked_fill(wanted_SV < bound_S1 * wanted_SV.amax(dim=-1, keepdim=True), 0)


def _keep_likeliest(probs_SV: Tensor, top_ks: dict[int, int]) -> None:
    """Zero what is not among the top_k likeliest tokens; of equally likely ones the first are kept."""
    for row, top_k in top_ks.items():
        kept_K = probs_SV[row].sort(descending=True, stable=True).indices[:top_k]
        probs_SV[row] = torch.zeros_like(probs_SV[row]).scatter(0, kept_K, probs_SV[row, kept_K])


def _keep_nucleus(probs_SV: Tensor, top_ps: dict[int, float]) -> None:
    """Zero what is not among the likeliest tokens whose probabilities reach top_p (https://arxiv.org/abs/1904.09751)."""
    if not top_ps:
        return
    rows = list(top_ps)
    sorted_SV, order_SV = probs_SV[rows].sort(dim=-1, descending=True, stable=True)
    before_SV = sorted_SV.cumsum(dim=-1) - sorted_SV
    outside_SV = before_SV >= probs_SV.new_tensor(list(top_ps.values()))[:, None] * sorted_SV.sum(dim=-1, keepdim=True)
    outside_SV[:, 0] = False
    probs_SV[rows] = torch.zeros_like(sorted_SV).scatter(-1, order_SV, sorted_SV.masked_fill(outside_SV, 0))
