"""What a body becomes on its way to vLLM: looked at only as far as the service promises something."""

import pytest

from plinth_api.model_service import PromptExample, PromptTemplate
from plinth_api.run import ServeLimits
from plinth_workloads.serving.engine import InvalidParameter
from plinth_workloads.serving.vllm_requests import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    EMBEDDINGS_PATH,
    Counted,
    needs_count,
    token_requests,
    with_service_opening,
    within_limits,
)

PROMPT = PromptTemplate(system="Be kind.", examples=(PromptExample(user="a", assistant="b"),))
OPENING = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
HI = {"role": "user", "content": [{"type": "text", "text": "hi"}]}


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(
    "content", ["Be brief.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]]
)
def test_a_clients_system_message_follows_the_services_within_one(role, content):
    body = with_service_opening(CHAT_PATH, {"messages": [{"role": role, "content": content}, HI]}, PROMPT)
    system = {"role": "system", "content": "Be kind.\n\nBe brief."}
    assert body["messages"] == [system, *OPENING, HI]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS_PATH, {"prompt": "a"}),
        (CHAT_PATH, {"messages": "not a list"}),
        (CHAT_PATH, {}),
    ],
)
def test_what_is_no_chat_has_no_opening(path, body):
    assert with_service_opening(path, body, PROMPT) == body


def test_messages_that_are_no_objects_are_left_to_vllm():
    assert with_service_opening(CHAT_PATH, {"messages": ["hi"]}, PROMPT)["messages"][-1] == "hi"


@pytest.mark.parametrize(
    ("path", "body", "limits", "needed"),
    [
        (CHAT_PATH, {}, {}, False),
        (CHAT_PATH, {}, {"max_output_tokens": 5}, True),
        (CHAT_PATH, {"max_tokens": 3}, {"max_output_tokens": 5}, False),
        (COMPLETIONS_PATH, {}, {"max_output_tokens": 5}, False),
        (EMBEDDINGS_PATH, {}, {"max_prompt_tokens": 5}, True),
    ],
)
def test_vllm_is_asked_for_tokens_only_where_their_number_matters(path, body, limits, needed):
    assert needs_count(path, body, ServeLimits(**limits)) is needed


@pytest.mark.parametrize(
    ("path", "body", "requests"),
    [
        (COMPLETIONS_PATH, {"model": "m", "prompt": "ab"}, [{"model": "m", "prompt": "ab"}]),
        (COMPLETIONS_PATH, {"prompt": ["a", "b"]}, [{"prompt": "a"}, {"prompt": "b"}]),
        (COMPLETIONS_PATH, {"prompt": [1, 2, 3]}, [3]),
        (EMBEDDINGS_PATH, {"input": [[1, 2], [3]]}, [2, 1]),
        (EMBEDDINGS_PATH, {"input": 7}, []),
        (
            CHAT_PATH,
            {"messages": [HI], "tools": [{"type": "function"}], "temperature": 1, "chat_template_kwargs": {"a": 1}},
            [{"messages": [HI], "tools": [{"type": "function"}], "chat_template_kwargs": {"a": 1}}],
        ),
    ],
)
def test_each_prompt_is_counted_with_all_that_adds_tokens_to_it(path, body, requests):
    assert token_requests(path, body) == requests


def test_a_completion_that_does_not_say_has_openais_sixteen_tokens_or_fewer():
    assert within_limits(COMPLETIONS_PATH, {}, ServeLimits(max_output_tokens=99), Counted(()))["max_tokens"] == 16
    assert within_limits(COMPLETIONS_PATH, {}, ServeLimits(max_output_tokens=9), Counted(()))["max_tokens"] == 9


def test_embeddings_have_no_answer_to_limit():
    body = {"input": "a"}
    assert within_limits(EMBEDDINGS_PATH, body, ServeLimits(max_output_tokens=9), Counted(())) == body


def test_the_longest_of_several_prompts_counts():
    with pytest.raises(InvalidParameter, match=r"prompt: the prompt has 7 tokens, and this service takes at most 6"):
        within_limits(COMPLETIONS_PATH, {}, ServeLimits(max_prompt_tokens=6), Counted((5, 7)))
