"""docs/api.md speaks of every field, and its links lead somewhere."""

import re

import pytest

from plinth_api.fields import fields_of
from plinth_api.parse import KINDS
from plinth_api.reference import reference

TEXT = reference()


def section(title: str) -> str:
    return TEXT.split(f"# {title}\n")[1].split("\n#")[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_has_a_row(kind: str, part: str):
    for field in fields_of(kind, part):
        name = field.path.rpartition(".")[2]
        title = f"{kind} spec" if field.path.count(".") == 1 and part == "spec" else field.block.__name__
        assert f"| `{name}` |" in section(title), field.path


def test_links_lead_to_sections():
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)}
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links
    assert set(links) <= anchors


def test_sections_have_one_name_each():
    titles = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(
    ("title", "row"),
    [
        pytest.param(
            "Training",
            '| `precision` | one of `auto`, `bf16`, `fp32`, `fp8` | `"auto"` | **Not supported yet: `fp8`.** ',
            id="one value is not supported",
        ),
        pytest.param("JobData", "| `prepare` | [Prepare](#prepare) |  | **Not supported yet.** ", id="a whole block"),
        pytest.param("Columns", "**Not supported yet (PretrainJob).** messages is", id="in one of the kinds"),
        pytest.param("Parallelism", "**Not supported yet: 2 and more.** context", id="a range of values"),
        pytest.param("Compute", "**Cluster only.** queueName", id="for the cluster only"),
        pytest.param("Resources", "**Cluster only (ModelService).** memory", id="for the cluster only in one kind"),
        pytest.param(
            "JobData", "list of [DataSource](#datasource), 1 to 64 items | **required**", id="a list of blocks"
        ),
        pytest.param("Compute", "| `nodeSelector` | map of string, 1 to 253 characters |", id="a map"),
        pytest.param("GateRule", "| `by` | number, at least 0 |", id="a bound on one side"),
        pytest.param("Training", "- Rule: exactly one of steps, epochs, tokens must be set.", id="a rule"),
        pytest.param("KTO", "**Not supported yet.** Kahneman-", id="a block below a field that is not supported"),
        pytest.param("PretrainJob", "after that only\n`spec.suspend`", id="what may change"),
    ],
)
def test_rows_say(title: str, row: str):
    assert row in section(title)
