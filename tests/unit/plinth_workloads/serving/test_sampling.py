import pytest
import torch

from plinth_workloads.serving.engine import SamplingParameters
from plinth_workloads.serving.sampling import sample_tokens, score_tokens


def wanted(**parameters):
    return SamplingParameters(max_tokens=1, **parameters)


def sample(logits_BV, uniforms=None, **parameters):
    num_rows = len(logits_BV)
    return sample_tokens(logits_BV, [wanted(**parameters)] * num_rows, uniforms=uniforms or [0.5] * num_rows)


def drawn(logits_V, **parameters):
    """All tokens that may be drawn."""
    return {sample(logits_V[None], uniforms=[u / 200], **parameters)[0] for u in range(200)}


def test_temperature_zero_takes_the_likeliest():
    logits_BV = torch.randn(4, 50)

    assert sample(logits_BV, temperature=0) == logits_BV.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_gives_none_and_spares_the_others(bad):
    logits_BV = torch.randn(3, 50)
    logits_BV[1, 7] = bad

    for temperature in (0.0, 0.7):
        tokens = sample(logits_BV, temperature=temperature, top_p=0.9)
        assert tokens[1] is None
        assert None not in (tokens[0], tokens[2])


def test_forbidden_tokens_are_never_drawn():
    logits_BV = torch.full((1, 50), float("-inf"))
    logits_BV[0, [3, 9]] = 0.0

    assert {sample(logits_BV, uniforms=[u / 100])[0] for u in range(100)} == {3, 9}
    assert sample(torch.full((1, 5), float("-inf"))) == [None]


def test_draws_follow_the_distribution():
    probs = torch.tensor([0.1, 0.6, 0.3])
    tokens = [sample(probs.log()[None], uniforms=[(u + 0.5) / 1000])[0] for u in range(1000)]

    assert [tokens.count(token) for token in range(3)] == pytest.approx([100, 600, 300], abs=1)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits_BV = torch.tensor([[0.1, 0.6, 0.3]]).log()
    drawn = {p: {sample(logits_BV, top_p=p, uniforms=[u / 50])[0] for u in range(50)} for p in (0.01, 0.5, 0.7, 1.0)}

    assert drawn == {0.01: {1}, 0.5: {1}, 0.7: {1, 2}, 1.0: {0, 1, 2}}


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 2.0])
def test_extreme_temperatures_give_a_token(temperature):
    assert sample(torch.tensor([[1e4, -1e4, 0.0]]), temperature=temperature) == [0]


PROBABILITIES = torch.tensor([0.05, 0.4, 0.3, 0.05, 0.2]).log()


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 4}, {0, 1, 2, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.49}, {1, 2, 4}),
        ({"min_p": 0.51}, {1, 2}),
        ({"min_p": 1.0}, {1}),
        # 0.4 and 0.3 of 0.7 that are left: the first alone reaches half of that.
        ({"top_k": 2, "top_p": 0.5}, {1}),
        ({"top_k": 2, "top_p": 0.6}, {1, 2}),
        ({"min_p": 0.49, "top_k": 2}, {1, 2}),
    ],
)
def test_what_may_be_drawn_is_cut(parameters, tokens):
    assert drawn(PROBABILITIES, **parameters) == tokens


def test_what_is_left_keeps_its_proportions():
    tokens = [sample(PROBABILITIES[None], uniforms=[(u + 0.5) / 700], top_k=2)[0] for u in range(700)]
    assert [tokens.count(token) for token in (1, 2)] == pytest.approx([400, 300], abs=1)


def test_a_row_draws_the_same_in_any_company():
    torch.manual_seed(0)
    logits_BV = torch.randn(8, 1000)
    uniforms = torch.rand(8).tolist()
    rows = [
        wanted(temperature=0.7, top_p=0.9),
        wanted(),
        wanted(temperature=0.0),
        wanted(temperature=1.5, top_p=0.5),
        wanted(top_p=0.99),
        wanted(temperature=2.0),
        wanted(top_k=50, min_p=0.02),
        wanted(top_k=7, top_p=0.8),
    ]
    alone = [sample_tokens(logits_BV[i : i + 1], [row], uniforms=[uniforms[i]])[0] for i, row in enumerate(rows)]

    assert sample_tokens(logits_BV, rows, uniforms=uniforms) == alone


def test_scores_are_logarithmic_probabilities_with_the_likeliest_first():
    logits_SV = torch.stack([PROBABILITIES + 3, PROBABILITIES.flip(0), PROBABILITIES])
    first, second, none = score_tokens(logits_SV, [4, 3, None], [2, 0, 1])

    assert first.logprob == pytest.approx(float(torch.tensor(0.2).log()))
    assert [token for token, _ in first.top] == [1, 2]
    assert [logprob for _, logprob in first.top] == pytest.approx(PROBABILITIES[[1, 2]].tolist())
    assert (second.logprob, second.top) == (pytest.approx(float(PROBABILITIES[1])), ())
    assert none is None
