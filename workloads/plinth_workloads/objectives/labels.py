"""What objectives that give labels share: the head's configuration, the recipe's tokenizer and its check, F1."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from plinth_api.run import TrainRun
from plinth_workloads.data.labelled import find_labels, listed
from plinth_workloads.data.prepare import PreparedData
from plinth_workloads.data.recipe import DataRecipe
from plinth_workloads.data.token_store import IntArray, TokenStore
from plinth_workloads.errors import UserError
from plinth_workloads.objectives.objective import Objective


class LabelObjective(Objective):
    """An objective whose head has an output for each label of the training data."""

    problem_type: str | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, by their numbers; known once the data is prepared."""
        return _labels_of(self.run)

    def implied_config(self, tokenizer: Any) -> Mapping[str, Any]:
        """The labels, and the token by which some heads find the end of a text."""
        labels = self.labels
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
            "pad_token_id": tokenizer.pad_token_id,
            **({"problem_type": self.problem_type} if self.problem_type else {}),
        }

    def describe_adapter(self, model: Any, folder: Path) -> None:
        """The configuration, which has the labels: the base's own has others, or none."""
        model.config.save_pretrained(folder)


class LabelRecipe(DataRecipe):
    """Rows with labels, of which each document of tokens holds the numbers."""

    puts_marks = True

    def special_tokens(self) -> Mapping[str, str]:
        """The marks of a text's beginning and end."""
        return {"cls_token": "<|cls|>", "sep_token": "<|sep|>"}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each label."""
        return {label: number for number, label in enumerate(_labels_of(self.run))}

    def labels_in(self, store: TokenStore, documents: IntArray) -> set[int]:
        """The numbers of the labels that some documents have."""
        raise NotImplementedError

    def check(self, data: PreparedData) -> None:
        """Refuse to measure labels that the training part of the data does not have."""
        if data.validation_store is None:
            return
        seen = self.labels_in(data.store, data.train_documents)
        unseen = sorted(self.labels_in(data.validation_store, data.validation_documents) - seen)
        if unseen:
            names = list(self.numbers)
            raise UserError(
                "InvalidData",
                f"spec.data.validation.fraction has kept out every example of {listed([names[at] for at in unseen])}, "
                "so that none is left to train on; give more of them, validation.sources, or another training.seed",
            )


def _labels_of(run: TrainRun) -> tuple[str, ...]:
    return find_labels(run, Path(run.work_dir) / "cache")


def confusion(predicted_NL: Tensor, true_NL: Tensor) -> dict[str, Tensor]:
    """How often each label was right, predicted and true: scalars by name, which add up over batches and processes."""
    counts = {"right": predicted_NL & true_NL, "predicted": predicted_NL, "true": true_NL}
    return {
        f"{name}_{label}": count
        for name, found_NL in counts.items()
        for label, count in enumerate(found_NL.sum(0).unbind())
    }


def macro_f1(means: Mapping[str, float], num_labels: int) -> float:
    """The mean of the labels' F1, over those that were predicted or true at all, as scikit-learn has it.

    Args:
        means: Sums of `confusion`, divided by whatever is the same for all of them.
        num_labels: How many labels there are.
    """
    scores = [
        2 * means[f"right_{label}"] / occurrences
        for label in range(num_labels)
        if (occurrences := means[f"predicted_{label}"] + means[f"true_{label}"])
    ]
    return float(np.mean(scores)) if scores else 0.0
