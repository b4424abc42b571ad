import sys

import pytest
from pydantic import ValidationError

from plinth_workloads.serving.protocol import ChatBody, ChatText, CompletionBody


def completion(**parameters):
    return CompletionBody.model_validate({"model": "m", "prompt": "p", **parameters})


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        pytest.param("a", ("a",), id="a string"),
        pytest.param(["a", "b"], ("a", "b"), id="strings"),
        pytest.param([1, 2], ((1, 2),), id="token ids"),
        pytest.param([[1, 2], [3]], ((1, 2), (3,)), id="lists of token ids"),
    ],
)
def test_all_forms_of_a_prompt_are_read(prompt, prompts):
    assert completion(prompt=prompt).prompt == prompts


@pytest.mark.parametrize("prompt", [[], [[]], 3, {}, [True], [1.5], [None]])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(ValidationError, match="must be a string, a list of strings"):
        completion(prompt=prompt)


@pytest.mark.parametrize(("stop", "strings"), [(None, ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ("", ()), ([], ())])
def test_all_forms_of_stop_are_read(stop, strings):
    assert completion(stop=stop).stop == strings


@pytest.mark.parametrize(
    "neutral",
    [
        {"best_of": 1, "echo": False, "logprobs": None, "suffix": None, "logit_bias": {}, "frequency_penalty": 0.0},
        {"user": "someone", "metadata": {"team": "a"}},
        {"unheard_of": None},
        {"temperature": None, "max_tokens": None, "n": None, "stream_options": None},
    ],
)
def test_parameters_at_values_that_change_nothing_are_accepted(neutral):
    completion(**neutral)


@pytest.mark.parametrize(
    ("name", "value"),
    [("suffix", "x"), ("echo", True), ("best_of", 2), ("functions", [{"name": "f"}]), ("unheard_of", 1)],
)
def test_parameters_that_are_not_served_are_refused_by_name(name, value):
    with pytest.raises(ValidationError, match=f"{name} is not supported"):
        completion(**{name: value})


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"max_tokens": 0},
        {"n": 0},
        {"n": 17},
        {"top_k": -2},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        {"logprobs": 21},
        {"logit_bias": [1]},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {"-1": 1}},
        {"logit_bias": {"1": 101}},
        {"logit_bias": {"1": True}},
        {"logit_bias": {str(token): 0 for token in range(1025)}},
        {"stop": ["a"] * 5},
        {"stop": [1]},
    ],
)
def test_values_out_of_bounds_are_refused(bad):
    with pytest.raises(ValidationError):
        completion(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"prompt": "a\ud83d"}, id="a string"),
        pytest.param({"prompt": ["a", "\ude00"]}, id="in a list"),
        pytest.param({"metadata": {"team": {"of": "\ud83d"}}}, id="inside of an object"),
        pytest.param({"metadata": {"\ud83d": 1}}, id="a name"),
    ],
)
def test_half_of_a_character_is_refused_wherever_it_is(bad):
    with pytest.raises(ValidationError, match="half of a Unicode character, a lone surrogate; leave it out"):
        completion(**bad)


def test_whole_characters_and_token_ids_are_no_halves():
    assert completion(prompt="a\U0001f600", metadata={"\U0001f600": [1, 2.5, None]}).prompt == ("a\U0001f600",)


def test_a_body_that_is_nested_too_deeply_is_refused():
    nested: list[object] = []
    for _ in range(sys.getrecursionlimit()):
        nested = [nested]
    with pytest.raises(ValidationError, match="is nested too deeply; make it flatter"):
        completion(metadata=nested)


def test_parameters_of_sampling_are_read_as_clients_write_them():
    body = completion(top_k=-1, logit_bias={"7": -100, "3": 0.5}, logprobs=False)
    assert (body.top_k, body.logit_bias, body.num_logprobs) == (0, ((7, -100.0), (3, 0.5)), None)
    assert (completion(top_k=4).top_k, completion(logprobs=0).num_logprobs) == (4, 0)


@pytest.mark.parametrize(
    ("parameters", "number"), [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)]
)
def test_a_chat_asks_for_probabilities_in_two_parameters(parameters, number):
    assert chat({"role": "user", "content": "x"}, **parameters).num_logprobs == number


def test_likeliest_tokens_are_told_beside_the_one_that_was_made_only():
    with pytest.raises(ValidationError, match="top_logprobs needs logprobs: true"):
        chat({"role": "user", "content": "x"}, top_logprobs=3)


def chat(*messages, **parameters):
    return ChatBody.model_validate({"model": "m", "messages": list(messages), **parameters})


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert chat({"role": "user", "content": parts}).messages[0].content == "ab"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
        {"role": "narrator", "content": "x"},
        {"role": "assistant", "tool_calls": [{"id": "1"}]},
    ],
)
def test_messages_that_the_model_cannot_read_are_refused(message):
    with pytest.raises(ValidationError):
        chat(message)


def test_a_chat_without_messages_is_refused():
    with pytest.raises(ValidationError):
        chat()


def test_a_delta_without_a_role_has_no_key_for_it():
    assert ChatText(content="").model_dump() == {"content": ""}
