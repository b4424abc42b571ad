"""torch.nn.attention.varlen on a CPU: its operator, which GPUs alone have, and what lets models use it there.

`python tests/varlen_operator.py RUN_JSON WEIGHTS` is `tests/training.py` with it, also under torchrun.
"""

from itertools import pairwise
from unittest import mock

import torch

from plinth_workloads.models.attention import attend_within_documents
from training import main

_ATTENTION = "plinth_workloads.models.attention"
AS_ON_A_GPU = {
    f"{_ATTENTION}.own_gpu": lambda: (9, 0),
    f"{_ATTENTION}.torch.cuda.current_device": lambda: 0,
    f"{_ATTENTION}.kernel_is_right": lambda heads, device: True,
    f"{_ATTENTION}.kernel_takes": lambda query, key, value: True,
}
"""What is told of a GPU, and of tensors, so that a model on a CPU attends as on a GPU."""


def scores_of(query, key, scale):
    """Probabilities of one document, N x T x T."""
    scores = torch.einsum("qnd,knd->nqk", query, key) * scale
    return scores.masked_fill(torch.ones(len(query), len(query)).triu(1).bool(), -torch.inf).softmax(-1)


def each_document(ends, *tensors):
    for start, end in pairwise(ends):
        yield slice(start, end), [tensor[start:end].float() for tensor in tensors]


def grouped(query, key):
    return key.repeat_interleave(query.shape[1] // key.shape[1], 1)


def attend(query, key, value, ends, other_ends, longest, other_longest, is_causal, scale, window, *grouping):
    assert torch.equal(ends, other_ends)
    assert (longest, is_causal, window) == (other_longest, True, [-1, 0])
    assert (ends.dtype, int(ends[-1]), any(grouping)) == (torch.int32, len(query), query.shape[1] != key.shape[1])
    assert int(ends.diff().max()) <= longest
    out = torch.full_like(query, torch.nan)
    for part, (own, keys, values) in each_document(ends.tolist(), query, grouped(query, key), grouped(query, value)):
        out[part] = torch.einsum("nqk,knd->qnd", scores_of(own, keys, scale), values).to(out.dtype)
    return out, query.new_zeros(query.shape[1], len(query), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def attend_backward(grad, query, key, value, out, sums, ends, *others):
    scale = others[5]
    found = [torch.zeros(query.shape) for _ in range(3)]
    tensors = (grad, query, grouped(query, key), grouped(query, value))
    for part, (of_out, own, keys, values) in each_document(ends.tolist(), *tensors):
        shares = scores_of(own, keys, scale)
        of_shares = torch.einsum("qnd,knd->nqk", of_out, values)
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * scale
        found[0][part] = torch.einsum("nqk,knd->qnd", of_scores, keys)
        found[1][part] = torch.einsum("nqk,qnd->knd", of_scores, own)
        found[2][part] = torch.einsum("nqk,qnd->knd", shares, of_out)
    of_key, of_value = (each.unflatten(1, (key.shape[1], -1)).sum(2).to(key.dtype) for each in found[1:])
    return found[0].to(query.dtype), of_key, of_value


KERNELS = {"_varlen_attn": attend, "_varlen_attn_backward": attend_backward}


def _train() -> None:
    """Train as on a GPU; an error if the operator was not asked."""
    asked = mock.Mock(side_effect=attend)
    library = torch.library.Library("torch_attn", "IMPL")
    for operation, computed in {**KERNELS, "_varlen_attn": asked}.items():
        library.impl(operation, computed, "CPU")
    for name, told in AS_ON_A_GPU.items():
        mock.patch(name, told).start()

    def on_gpu(model, **others):
        return attend_within_documents(model, on_gpu=True, precision="bf16")

    with mock.patch("plinth_workloads.train.blocks.attend_within_documents", on_gpu):
        main()
    assert asked.called


if __name__ == "__main__":
    _train()
