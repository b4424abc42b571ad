"""By which names clients ask: each model is there by its own, and by that with the alias that it follows."""

import pytest

from plinth_workloads.serving.api_errors import ApiError
from plinth_workloads.serving.served_names import ServedNames

NAMES = ServedNames("chat", {"chat": "champion", "docs": "staging"})
ADAPTERS = ("docs", "tests")


@pytest.mark.parametrize(
    ("asked", "name"),
    [("chat", "chat"), ("chat@champion", "chat"), ("docs", "docs"), ("docs@staging", "docs"), ("tests", "tests")],
)
def test_a_name_and_the_alias_that_it_follows_are_the_same_model(asked, name):
    assert NAMES.own_name(asked, ADAPTERS) == name


@pytest.mark.parametrize("asked", ["chat@staging", "tests@champion", "other", "chat@", "@champion", "", None, ["chat"]])
def test_whatever_else_is_asked_for_is_answered_with_all_names_that_there_are(asked):
    with pytest.raises(ApiError) as raised:
        NAMES.own_name(asked, ADAPTERS)
    assert raised.value.status == 404
    served = "'chat', 'docs', 'tests', 'chat@champion', 'docs@staging'"
    assert raised.value.detail.message.endswith(f"this service serves {served}")


def test_the_alias_of_an_adapter_that_has_gone_stands_for_nothing():
    with pytest.raises(ApiError):
        NAMES.own_name("docs@staging", ("tests",))
