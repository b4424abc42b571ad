"""The model's README: what it is, what it was made from and how well it does, in the hub's format."""

from collections.abc import Mapping
from typing import Any

import yaml

from plinth_api.run import TrainRun
from plinth_workloads.evaluate.gate import GateVerdict
from plinth_workloads.objectives.by_name import objective_of


def build_model_card(
    run: TrainRun, metrics: Mapping[str, float], verdict: GateVerdict, facts: Mapping[str, Any]
) -> str:
    """A model card (https://huggingface.co/docs/hub/model-cards) as Markdown with a YAML head.

    Args:
        run: The run document.
        metrics: Of the final model on the validation examples; empty where there are none.
        verdict: Of the gate.
        facts: Further lines: parameters, tokens, run id.
    """
    is_adapter = run.method.full is None and not run.output.merge
    head: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": objective_of(run).pipeline_tag,
    }
    if run.model.uri:
        head["base_model"] = run.model.uri
    origin = f"`{run.model.uri}`" if run.model.uri else f"random weights of architecture `{run.model.architecture}`"
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {run.output.model}\n",
        f"Made by the {run.kind} `{run.name}` from {origin}.\n",
        "## Evaluation\n",
        *([f"- {name}: {value:.4f}" for name, value in metrics.items()] or ["There were no validation examples."]),
        *[f"- gate {finding}" for finding in verdict.findings],
        "\n## Training\n",
        *[f"- {source.uri} (weight {source.weight:g})" for source in run.data.train],
        *[f"- {name}: {value}" for name, value in facts.items()],
        "",
    ]
    return "\n".join(lines)
