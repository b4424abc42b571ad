"""What every chat with a service starts with."""

import pytest

from plinth_api.model_service import PromptExample, PromptTemplate
from plinth_workloads.serving.chat_opening import with_opening
from plinth_workloads.serving.engine import ChatMessage

SYSTEM = "You answer in verse."
EXAMPLES = (PromptExample(user="one?", assistant="fun"), PromptExample(user="two?", assistant="blue"))
ASKED = ChatMessage("user", "three?")
OWN = ChatMessage("system", "Be brief.")
TURNS = [
    ChatMessage(*turn) for turn in (("user", "one?"), ("assistant", "fun"), ("user", "two?"), ("assistant", "blue"))
]


@pytest.mark.parametrize(
    ("prompt", "asked", "read"),
    [
        pytest.param(None, [OWN, ASKED], [OWN, ASKED], id="none"),
        pytest.param(
            PromptTemplate(system=SYSTEM), [ASKED], [ChatMessage("system", SYSTEM), ASKED], id="a system message"
        ),
        pytest.param(
            PromptTemplate(system=SYSTEM),
            [OWN, ASKED],
            [ChatMessage("system", f"{SYSTEM}\n\nBe brief."), ASKED],
            id="the client's goes behind it",
        ),
        pytest.param(PromptTemplate(examples=EXAMPLES), [OWN, ASKED], [OWN, *TURNS, ASKED], id="examples"),
        pytest.param(
            PromptTemplate(system=SYSTEM, examples=EXAMPLES),
            [ASKED],
            [ChatMessage("system", SYSTEM), *TURNS, ASKED],
            id="both",
        ),
    ],
)
def test_the_service_speaks_first(prompt, asked, read):
    assert with_opening(prompt, asked) == read
