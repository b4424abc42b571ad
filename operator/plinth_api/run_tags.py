"""Tags on a job's MLflow run by which the workload tells how the job stands, and whoever runs it reads that.

The workload writes them, the operator reads them: these names are the only thing they agree on beside the run document.
Values are text, as MLflow keeps it. How far the training is, the metrics say, whose latest values have their step.
"""

from typing import Final, Literal

Phase = Literal["preparing", "training", "evaluating", "finished", "stopped", "failed"]
"""In this order; `evaluating` is the end of the run, with registration, not an evaluation between steps.

`finished` comes with the tags of the model, `stopped` was asked for and its state is saved, `failed` has a reason.
"""

UID: Final = "plinth.uid"
"""Identity of the job over all its attempts; set when the run is made."""
KIND: Final = "plinth.kind"
"""PretrainJob or FineTuneJob; set when the run is made."""

PHASE: Final = "plinth.phase"
"""One of `Phase`, of the newest attempt."""
TOTAL_STEPS: Final = "plinth.totalSteps"
"""Optimizer steps of the whole run, known from `training` on."""
START_STEP: Final = "plinth.startStep"
"""The step that the newest attempt went on from: 0, or a checkpoint's."""
TRAINING_SINCE: Final = "plinth.trainingSince"
"""When the newest attempt was ready for its first step: ISO 8601, in UTC, by the workload's clock."""
CHECKPOINT_STEP: Final = "plinth.checkpointStep"
"""The step of the newest complete checkpoint."""
CHECKPOINT_URI: Final = "plinth.checkpointUri"
"""Where that checkpoint is: file:///..."""
ROLLBACKS: Final = "plinth.rollbacks"
"""Where the loss was not a number and the run went back: "38->30 41->30", steps, by watchdog.onNaN."""

MODEL_NAME: Final = "plinth.modelName"
"""The registered model, with the registry's prefix."""
MODEL_VERSION: Final = "plinth.modelVersion"
"""The version that this run registered."""
GATE: Final = "plinth.gate"
"""Passed, Failed or NotConfigured; of the run and of the model version, which is registered in any case."""
METRIC_PREFIX: Final = "plinth.metric."
"""Before the name of each metric of the final model; of the run and of the model version."""

FAILURE_REASON: Final = "plinth.failureReason"
"""The documented reason; there only while the newest attempt has failed."""
FAILURE_MESSAGE: Final = "plinth.failureMessage"
"""The sentence of the failure, cut to `MAX_MESSAGE_LENGTH` characters."""

MAX_MESSAGE_LENGTH: Final = 1000
"""MLflow takes 5000 characters a tag since 1.0; a status message needs fewer."""


def metric_tag(name: str) -> str:
    """The tag of a metric of the final model."""
    return f"{METRIC_PREFIX}{name}"
