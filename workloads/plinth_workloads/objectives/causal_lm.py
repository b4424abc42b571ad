"""Predict the next token, inside each document of a packed row.

Shapes: B rows, T tokens, V vocabulary.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from plinth_workloads.data.loader import IGNORED


class CausalLMLoss(nn.Module):
    """A causal language model with its loss: the module that data parallelism and compilation wrap."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids_BT: Tensor, position_ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """Cross entropy summed over the labels that are not IGNORED.

        Without a mask and a cache, transformers keeps attention inside the documents that restarting position ids
        delimit; with either of them documents would see each other.
        """
        logits_BTV = self.model(
            input_ids=input_ids_BT, position_ids=position_ids_BT, attention_mask=None, use_cache=False
        ).logits
        return F.cross_entropy(
            logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )
