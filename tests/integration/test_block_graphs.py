"""A block is one graph for torch.compile, and trains in it as without."""

import pytest
import torch

from plinth_workloads.train.parallel import transformer_blocks
from prepared_blocks import loss_and_gradients, make_batch, make_model, prepared

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("name", "mode"), [("llama", "none"), ("llama", "selective"), ("gpt2", "none")])
def test_a_block_is_one_graph(name, mode, tmp_path):
    torch.compiler.reset()
    model = make_model(name)
    compiled = prepared(model, tmp_path, mode)
    for block in transformer_blocks(compiled):
        block.forward = torch.compile(block.forward, backend="eager", fullgraph=True)
    if name == "gpt2":
        model.eval()
        compiled.eval()
    expected, found = (loss_and_gradients(each, make_batch())[0] for each in (model, compiled))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
