import pytest
import torch

from plinth_workloads.serving.sampling import sample_tokens


def sample(logits_BV, temperature=1.0, top_p=1.0, uniforms=None):
    num_rows = len(logits_BV)
    return sample_tokens(
        logits_BV,
        temperatures=[temperature] * num_rows,
        top_ps=[top_p] * num_rows,
        uniforms=uniforms or [0.5] * num_rows,
    )


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


def test_a_row_draws_the_same_in_any_company():
    torch.manual_seed(0)
    logits_BV = torch.randn(6, 1000)
    uniforms = torch.rand(6).tolist()
    alone = [
        sample_tokens(logits_BV[i : i + 1], temperatures=[t], top_ps=[p], uniforms=[uniforms[i]])[0]
        for i, (t, p) in enumerate([(0.7, 0.9), (1.0, 1.0), (0.0, 1.0), (1.5, 0.5), (1.0, 0.99), (2.0, 1.0)])
    ]

    together = sample_tokens(
        logits_BV, temperatures=[0.7, 1.0, 0.0, 1.5, 1.0, 2.0], top_ps=[0.9, 1, 1, 0.5, 0.99, 1], uniforms=uniforms
    )

    assert together == alone
