"""What a request adds to and takes from its logits."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from plinth_workloads.serving.engine import SamplingParameters
from plinth_workloads.serving.penalties import penalties_of

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, -1.0, 0.5, 3.0, -2.0, 0.0])


def changed(prompt_ids=(), made=(), **parameters):
    """The logits after a prompt and the tokens that were made."""
    penalties = penalties_of(SamplingParameters(max_tokens=1, **parameters), prompt_ids, vocab_size=6, device=CPU)
    for token in made:
        penalties.add(token)
    logits_V = LOGITS.clone()
    penalties.apply_(logits_V)
    return logits_V


def test_who_asks_for_none_has_none():
    assert penalties_of(SamplingParameters(max_tokens=1, top_k=3), (1, 2), vocab_size=6, device=CPU) is None


def test_presence_is_taken_once_and_frequency_each_time_of_the_completion_alone():
    prompt, made = (4,), (0, 3, 3)
    assert torch.equal(changed(prompt, made, presence_penalty=0.5), LOGITS - torch.tensor([0.5, 0, 0, 0.5, 0, 0]))
    assert torch.equal(changed(prompt, made, frequency_penalty=0.5), LOGITS - torch.tensor([0.5, 0, 0, 1.0, 0, 0]))
    both = changed(prompt, made, presence_penalty=-1.0, frequency_penalty=0.25)
    assert torch.equal(both, LOGITS - torch.tensor([-0.75, 0, 0, -0.5, 0, 0]))


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_is_that_of_transformers_over_prompt_and_completion(penalty):
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[1, 5, 0, 0]]), LOGITS[None].clone())
    assert torch.equal(changed((1, 5), (0, 0), repetition_penalty=penalty), expected[0])


def test_a_bias_is_added_to_each_token_that_has_one():
    assert torch.equal(changed(logit_bias=((2, 10.0), (3, -100.0))), LOGITS + torch.tensor([0, 0, 10.0, -100.0, 0, 0]))
