"""AdamW whose states are of 8 bits, by bitsandbytes, with the states that our checkpoints can hold.

Enters: parameter groups as of torch's AdamW. Leaves: bitsandbytes' optimizer (https://arxiv.org/abs/2110.02861), whose
state dictionary is flat and of tensors alone: the library nests its own, which distributed checkpoints refuse, and
counts steps in an integer, which a checkpoint that is loaded in place would lose.
"""

from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit as _AdamW8bit
from torch import Tensor

_CONSTANTS = frozenset({"qmap1", "qmap2"})
"""The values that 8 bits stand for, the same for all weights and made anew by whoever loads."""


class AdamW8bit(_AdamW8bit):
    """See torch.optim.AdamW; steps are counted in tensors of one element on the CPU."""

    def init_state(self, group: Any, p: Tensor, gindex: int, pindex: int) -> None:
        """As the library, with the count as a tensor."""
        super().init_state(group, p, gindex, pindex)
        self.state[p]["step"] = torch.zeros(())

    def update_step(self, group: Any, p: Tensor, gindex: int, pindex: int) -> None:
        """As the library, which wants an integer."""
        state = self.state[p]
        count = state["step"]
        state["step"] = int(count)
        try:
            super().update_step(group, p, gindex, pindex)
        finally:
            state["step"] = count
        count += 1

    def state_dict(self) -> dict[str, Any]:
        """What torch's optimizers give, without what is the same for all weights."""
        whole: dict[str, Any] = torch.optim.Optimizer.state_dict(self)
        states = {
            index: {name: value for name, value in state.items() if name not in _CONSTANTS}
            for index, state in whole["state"].items()
        }
        return {**whole, "state": states}
