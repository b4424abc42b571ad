import pytest

from plinth_api.common import GateRule
from plinth_workloads.evaluate.gate import decide_gate

METRICS = {"loss": 2.0, "perplexity": 7.4, "accuracy": 0.8}
REFERENCES = {"base": {"loss": 2.1, "accuracy": 0.8}, "champion": None, "models:/m/1": {"loss": 2.0}}


@pytest.mark.parametrize(
    ("rule", "passed", "finding"),
    [
        pytest.param({"metric": "loss", "max": 2.0}, True, "passed: loss 2 <= max 2", id="at the limit"),
        pytest.param({"metric": "loss", "max": 1.9}, False, "failed: loss 2 <= max 1.9", id="above the limit"),
        pytest.param({"metric": "accuracy", "min": 0.7}, True, "passed: accuracy 0.8 >= min 0.7", id="above the least"),
        pytest.param(
            {"metric": "accuracy", "min": 0.9}, False, "failed: accuracy 0.8 >= min 0.9", id="below the least"
        ),
        pytest.param(
            {"metric": "loss", "betterThan": "base"}, True, "passed: loss 2 better than base's 2.1", id="better"
        ),
        pytest.param(
            {"metric": "loss", "betterThan": "base", "by": 0.2},
            False,
            "failed: loss 2 better than base's 2.1 by 0.2",
            id="not better by enough",
        ),
        pytest.param(
            {"metric": "loss", "betterThan": "models:/m/1"},
            False,
            "failed: loss 2 better than models:/m/1's 2",
            id="equal is not better",
        ),
        pytest.param(
            {"metric": "accuracy", "betterThan": "base"},
            False,
            "failed: accuracy 0.8 better than base's 0.8",
            id="more is better for other metrics",
        ),
        pytest.param(
            {"metric": "loss", "betterThan": "champion"},
            True,
            "passed: champion names no model yet",
            id="the first champion has nobody to beat",
        ),
    ],
)
def test_a_rule_decides(rule, passed, finding):
    verdict = decide_gate([GateRule.model_validate(rule)], METRICS, REFERENCES)
    assert (verdict.passed, verdict.findings) == (passed, (finding,))


def test_all_rules_must_pass():
    rules = [GateRule(metric="loss", max=3.0), GateRule(metric="loss", max=1.0)]
    assert not decide_gate(rules, METRICS, {}).passed
    assert decide_gate([], METRICS, {}).passed
