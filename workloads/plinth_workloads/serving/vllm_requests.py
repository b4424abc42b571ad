"""What a client may ask of vLLM: the body of a request enters as JSON, the one that vLLM is given leaves, or an error.

Only what a ModelService promises is looked at: its system message and examples, its model's names, its limits. All else
is vLLM's to take or to refuse. Pure, and apart from the application, which knows HTTP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plinth_api.model_service import PromptTemplate
from plinth_api.run import ServeLimits, ServingTask
from plinth_workloads.serving.chat_opening import with_opening
from plinth_workloads.serving.engine import ChatMessage, InvalidParameter
from plinth_workloads.serving.limits import DEFAULT_COMPLETION_TOKENS, check_output, check_prompt

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
EMBEDDINGS_PATH = "/v1/embeddings"

ENDPOINTS: Mapping[ServingTask, tuple[str, ...]] = {
    "generate": (CHAT_PATH, COMPLETIONS_PATH),
    "embed": (EMBEDDINGS_PATH,),
}

Body = dict[str, Any]

_CHAT_OF_TOKENIZER = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
"""What changes the tokens of a chat, by the names of vLLM's /tokenize."""

_PARAMETERS = {CHAT_PATH: "messages", COMPLETIONS_PATH: "prompt", EMBEDDINGS_PATH: "input"}


@dataclass(frozen=True, slots=True)
class Counted:
    """The tokens of a request's prompts.

    Attributes:
        prompts: Of each.
        context_length: Most of a prompt and its answer together; None where nobody was asked for it.
    """

    prompts: tuple[int, ...]
    context_length: int | None = None


def with_service_opening(path: str, body: Body, prompt: PromptTemplate | None) -> Body:
    """The body with the service's beginning of chats before what the client says; completions have none."""
    messages = body.get("messages")
    if path != CHAT_PATH or prompt is None or not isinstance(messages, list):
        return body
    own = [ChatMessage("system", _text_of(messages[0].get("content")))] if _is_system(messages) else []
    opening = [{"role": message.role, "content": message.content} for message in with_opening(prompt, own)]
    return {**body, "messages": [*opening, *messages[len(own) :]]}


def needs_count(path: str, body: Body, limits: ServeLimits) -> bool:
    """Whether the tokens of the prompts must be known: asking vLLM for them costs a request its time twice."""
    if path == CHAT_PATH and limits.max_output_tokens is not None and _asked(path, body)[1] is None:
        return True
    return limits.max_prompt_tokens is not None


def token_requests(path: str, body: Body) -> list[Body | int]:
    """Of each prompt what to ask /tokenize, or how many token ids it is already; none where vLLM will refuse it."""
    model = {"model": body["model"]} if "model" in body else {}
    if "messages" in body:
        return [{**model, **{name: body[name] for name in _CHAT_OF_TOKENIZER if body.get(name) is not None}}]
    prompts = body.get(_PARAMETERS[path])
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, list):
        return []
    if prompts and all(isinstance(token, int) for token in prompts):
        return [len(prompts)]
    return [len(one) if isinstance(one, list) else {**model, "prompt": one} for one in prompts]


def within_limits(path: str, body: Body, limits: ServeLimits, counted: Counted) -> Body:
    """The body, with as many tokens of an answer as the service makes where the client does not say.

    Args:
        path: Of the endpoint.
        body: With the service's opening.
        limits: Of the service.
        counted: Its prompts; none where `needs_count` is false.

    Raises:
        InvalidParameter: The prompt is longer, or the answer would be, than the service takes.
    """
    for count in counted.prompts:
        check_prompt(limits, count, param=_PARAMETERS[path])
    most = limits.max_output_tokens
    if path == EMBEDDINGS_PATH or most is None:
        return body
    param, asked = _asked(path, body)
    check_output(limits, asked, param=param)
    if asked is not None:
        return body
    if path == COMPLETIONS_PATH:
        return {**body, "max_tokens": min(DEFAULT_COMPLETION_TOKENS, most)}
    room = (counted.context_length or most) - max(counted.prompts, default=0)
    # A prompt that fills the context is vLLM's to refuse, with its numbers.
    return {**body, "max_completion_tokens": min(most, room)} if room > 0 else body


def parsed(body: Any) -> Body:
    """The body as an object.

    Raises:
        InvalidParameter: It is something else.
    """
    if not isinstance(body, dict):
        raise InvalidParameter("body", "body: must be a JSON object")
    return body


def _asked(path: str, body: Body) -> tuple[str, int | None]:
    """The parameter that says how many tokens an answer may have, and what it says."""
    names = ("max_completion_tokens", "max_tokens") if path == CHAT_PATH else ("max_tokens",)
    for name in names:
        if isinstance(value := body.get(name), int):
            return name, value
    return names[-1], None


def _is_system(messages: Sequence[Any]) -> bool:
    return bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") in ("system", "developer")


def _text_of(content: Any) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
