"""What every chat with a service starts with: its system message and its examples, before what the client says.

Enters: the service's template and a client's messages. Leaves: the messages that the model reads.
"""

from collections.abc import Sequence

from plinth_api.model_service import PromptTemplate
from plinth_workloads.serving.engine import ChatMessage

_SYSTEM = "system"


def with_opening(prompt: PromptTemplate | None, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The client's messages behind the service's.

    A chat template knows one system message at most, so a client's follows the service's within one; examples are turns
    of user and assistant between that and what the client says.
    """
    if prompt is None:
        return list(messages)
    asked = list(messages)
    system = [prompt.system] if prompt.system else []
    if asked and asked[0].role == _SYSTEM:
        system.append(asked.pop(0).content)
    opening = [ChatMessage(_SYSTEM, "\n\n".join(system))] if system else []
    for example in prompt.examples or ():
        opening += [ChatMessage("user", example.user), ChatMessage("assistant", example.assistant)]
    return [*opening, *asked]
