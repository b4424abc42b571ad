"""What an objective tells a session, which knows none: from which class, on which batches, by which loss and measures.

A new objective is a file with a subclass of `Objective`, and a line in `by_name`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from plinth_api.run import TrainRun
from plinth_workloads.data.recipe import DataRecipe


class Objective(ABC):
    """What a run's model learns to do.

    Attributes:
        auto_class: The transformers auto class that has the head.
        pipeline_tag: The hub's word for what the model is used for.
        pipeline_class: The transformers pipeline that MLflow opens the model with; None where there is none.
    """

    auto_class: str
    pipeline_tag: ClassVar[str]
    pipeline_class: str | None = None

    def __init__(self, run: TrainRun) -> None:
        self.run = run

    def recipe(self) -> DataRecipe:
        """How examples become batches."""
        return DataRecipe(self.run)

    def implied_config(self, tokenizer: Any) -> Mapping[str, Any]:
        """Values of the model's configuration that follow from the objective, for new models and given ones."""
        return {}

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuse a model or tokenizer that the objective cannot train.

        Raises:
            UserError: InvalidSpec.
        """
        return

    def describe_adapter(self, model: Any, folder: Path) -> None:
        """Write what an adapter's folder has to tell beside the adapter itself."""
        return

    def describe(self, model: Any, folder: Path) -> None:
        """Write what the folder of a model or an adapter has to tell beside its weights."""
        return

    @abstractmethod
    def loss(self, model: Any, tokenizer: Any) -> nn.Module:
        """The module that is called with a batch's inputs and returns the loss summed over the batch's targets.

        It calls `model` in its attribute of that name.
        """

    def sums(self, loss: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What evaluation adds up over batches, then divides by the targets; `loss` is in evaluation mode."""
        return loss.sums(**inputs) if isinstance(loss, MeasuredLoss) else {"loss": loss(**inputs)}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """The metrics that spec.evaluation.metrics may name, of what `sums` gave for each target."""
        return {**means, "perplexity": math.exp(min(means["loss"], 700.0))}


class MeasuredLoss(nn.Module):
    """A loss that evaluation asks for more than its sum.

    Both ways into it, `forward` and `sums`, are known to sharding, which makes weights whole before them.
    """

    def forward(self, **inputs: Tensor) -> Tensor:
        """The loss summed over a batch's targets; arguments as in `compute`."""
        return self.compute(**inputs)["loss"]

    def sums(self, **inputs: Tensor) -> dict[str, Tensor]:
        """What evaluation adds up, `loss` among it; arguments as in `compute`."""
        return self.compute(**inputs)

    compute: Callable[..., dict[str, Tensor]]
    """The sums of a batch; each loss names its own arguments."""
