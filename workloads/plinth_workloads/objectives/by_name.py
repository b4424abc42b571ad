"""The objective of a run document."""

from collections.abc import Mapping

from plinth_api.run import TrainRun
from plinth_workloads.objectives.causal_lm import CausalLM
from plinth_workloads.objectives.objective import Objective

OBJECTIVES: Mapping[str, type[Objective]] = {
    "causalLM": CausalLM,
}


def objective_of(run: TrainRun) -> Objective:
    """What the run's model is to learn."""
    return OBJECTIVES[run.objective](run)
