"""docs/operations.md names what there is: values, settings, metrics, reasons, files and make targets."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from plinth_operator.constants import QUEUE_PRIORITY_LABEL, UID_LABEL
from plinth_operator.leader import LEASE
from plinth_operator.settings import Settings
from plinth_operator.status.reasons import REASONS

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "operations.md"
TEXT = FILE.read_text(encoding="utf-8")
VALUES = yaml.safe_load((ROOT / "charts" / "plinth" / "values.yaml").read_text(encoding="utf-8"))
CODE = re.findall(r"`([^`\n]+)`", TEXT)
"""Everything between backticks."""

NO_VALUES = ("mlflow.db",)
"""What looks like one."""


def snake_case(name: str) -> str:
    """The setting's name in Python."""
    return re.sub(r"(?=[A-Z])", "_", name).lower()


def is_value(path: str) -> bool:
    """Whether values.yaml has the path, or it is a setting of the operator."""
    head, *rest = path.split(".")
    if head == "settings" and len(rest) == 1:
        return snake_case(rest[0]) in Settings.model_fields
    here = VALUES
    for key in (head, *rest):
        if not isinstance(here, dict) or key not in here:
            return False
        here = here[key]
    return True


def values_named() -> list[str]:
    """Paths of values that the text names: the first word of code that begins with a section of values.yaml."""
    sections = "|".join(name for name, value in VALUES.items() if isinstance(value, dict))
    found = {match for code in CODE for match in re.findall(rf"^(?:--set )?((?:{sections})\.[A-Za-z.]+)", code)}
    return sorted(path.rstrip(".") for path in found if path not in NO_VALUES)


def test_every_value_exists():
    named = values_named()
    assert {"settings.clusterName", "mlflow.persistence.keep", "networkPolicy.mlflowIngress"} <= set(named)
    assert [path for path in named if not is_value(path)] == []


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
def test_values_in_blocks_exist(block):
    for head, inner in yaml.safe_load(block).items():
        assert [key for key in inner if not is_value(f"{head}.{key}")] == []


def test_every_metric_exists():
    probes = (ROOT / "operator" / "plinth_operator" / "probes.py").read_text(encoding="utf-8")
    made = set(re.findall(r'CounterMetricFamily\(\s*"(\w+)"', probes))
    counters, gauges = {f"{name}_total" for name in made}, set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', probes))
    services = (ROOT / "workloads" / "plinth_workloads" / "serving" / "metrics.py").read_text(encoding="utf-8")
    of_services = set(re.findall(r'"(plinth_\w+)"', services))
    named = {name for code in CODE for name in re.findall(r"\bplinth_[a-z_]+", code)}
    assert named >= counters | gauges
    others = {re.sub("_(total|bucket|sum|count)$", "", name) for name in named - counters - gauges}
    assert others
    assert others <= of_services


def test_every_reason_of_an_alert_exists():
    alternatives = [words for code in CODE for words in re.findall(r'reason=~"([^"]+)"', code)]
    assert alternatives
    assert [name for words in alternatives for name in words.split("\\|") if name not in REASONS] == []


def test_what_kubernetes_is_asked_for_has_these_names():
    assert f"lease {LEASE}" in TEXT
    assert f"`{UID_LABEL}`" in TEXT
    assert f"`{QUEUE_PRIORITY_LABEL}: " in TEXT


def test_its_commands_name_files_that_exist():
    named = set(re.findall(r"(?<![\w/.])((?:charts|examples|docs)/[\w./-]+\w)", TEXT))
    assert {"charts/plinth/crds", "examples/kueue/cluster-queue.yaml"} <= named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)", TEXT)
    headings = {
        re.sub(r"[^\w\- ]", "", line).replace(" ", "-").lower() for line in re.findall(r"^## (.+)$", TEXT, re.M)
    }
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        assert (FILE.parent / path).exists(), link
        if not path:
            assert anchor in headings, link


def test_the_make_targets_and_their_variables_exist():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in re.findall(r"make (images[^`\n]*)", TEXT):
        target, *assignments = line.split()
        assert re.search(rf"^  {target} ", listed, re.MULTILINE)
        variables = [word.partition("=")[0] for word in assignments if re.match(r"[A-Z_]+=", word)]
        assert [name for name in variables if name not in listed] == []
