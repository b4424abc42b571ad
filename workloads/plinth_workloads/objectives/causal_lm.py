"""Predict the next token, inside each document of a packed row.

Shapes: B rows, T tokens, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plinth_workloads.data.loader import IGNORED
from plinth_workloads.errors import UserError
from plinth_workloads.models.catalog import CAUSAL_LM
from plinth_workloads.models.modes import in_evaluation
from plinth_workloads.objectives.chunked_loss import chunked_cross_entropy, hidden_before_head, logit_transform
from plinth_workloads.objectives.objective import Objective


class CausalLMLoss(nn.Module):
    """A causal language model with its loss: the module that data parallelism and sharding wrap.

    The head's weight is used here and not in the model's forward pass, so a model is sharded with its loss around it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._transform = logit_transform(model)

    def forward(self, input_ids_BT: Tensor, position_ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        """Cross entropy summed over the labels that are not IGNORED.

        Without a mask and a cache, transformers keeps attention inside the documents that restarting position ids
        delimit; with either of them documents would see each other.
        """
        inputs = {
            "input_ids": input_ids_BT,
            "position_ids": position_ids_BT,
            "attention_mask": None,
            "use_cache": False,
        }
        if self._transform is not None:
            hidden_BTH = hidden_before_head(self.model, **inputs)
            return chunked_cross_entropy(hidden_BTH, self.model.get_output_embeddings(), labels_BT, self._transform)
        logits_BTV = self.model(**inputs).logits
        return F.cross_entropy(
            logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"
        )


def documents_stay_apart(model: Any) -> bool:
    """Whether the model's attention stops where position ids restart; some architectures ignore them.

    Args:
        model: A causal language model on any device; it is left in the mode that it was in.

    Returns:
        False also for a model that takes no position ids.
    """
    device = next(model.parameters()).device
    positions_BT = torch.arange(4, device=device).repeat(2)[None]
    ids_BT = torch.arange(1, 9, device=device)[None]
    others_BT = torch.cat([ids_BT[:, :4] + 8, ids_BT[:, 4:]], dim=1)
    try:
        with in_evaluation(model):
            first, second = (
                model(input_ids=ids, position_ids=positions_BT, attention_mask=None, use_cache=False).logits[:, 4:]
                for ids in (ids_BT, others_BT)
            )
    except TypeError:
        return False
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)


class CausalLM(Objective):
    """The objective of language models that generate."""

    auto_class = CAUSAL_LM
    pipeline_tag = "text-generation"
    pipeline_class = "TextGenerationPipeline"

    def check(self, model: Any, tokenizer: Any) -> None:
        """Refuse packed rows where their documents would see each other."""
        if self.run.training.packing and not documents_stay_apart(model):
            raise UserError(
                "InvalidSpec",
                f"spec.training.packing: {model.config.model_type} lets documents of one row see each other; "
                "set it to false",
            )

    def loss(self, model: Any, tokenizer: Any) -> CausalLMLoss:
        """Cross entropy of the following tokens."""
        return CausalLMLoss(model)
