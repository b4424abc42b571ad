"""liger-kernel's own kernels give our loss and gradients, run on a CPU by Triton's interpreter.

The interpreter is chosen before Triton is imported, so they run in a process of their own.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

CASES = """
import json, sys, torch
from torch import nn
from plinth_workloads.data.loader import IGNORED
from plinth_workloads.objectives import liger_loss
from plinth_workloads.objectives.chunked_loss import LogitTransform, chunked_cross_entropy

liger_loss._DEVICE = "cpu"

def liger(hidden_NH, head, labels_N):
    return liger_loss.liger_cross_entropy(hidden_NH, head, labels_N, 16 * 97)

def torch_alone(hidden_NH, head, labels_N):
    # A scale makes it nothing for liger.
    return chunked_cross_entropy(hidden_NH[None], head, labels_N[None], LogitTransform(scale=1 + 1e-12))

def numbers(way, hidden_NH, head, labels_N, autocast):
    leaves = [hidden_NH, *(each for each in head.parameters() if each.requires_grad)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = way(hidden_NH, head, labels_N)
    return type(loss.grad_fn).__name__, [loss.detach(), *torch.autograd.grad(loss / 7, leaves)]

found = {}
for name, settings in json.loads(sys.argv[1]).items():
    torch.manual_seed(0)
    dtype = getattr(torch, settings.get("dtype", "float32"))
    head = nn.Linear(32, 97, bias=settings.get("bias", False), dtype=dtype)
    head.requires_grad_(not settings.get("frozen", False))
    labels_N = torch.randint(0, 97, (40,))
    labels_N[: settings.get("ignored", 5)] = IGNORED
    inputs = torch.randn(40, 32, requires_grad=True), head, labels_N, settings.get("autocast", False)
    way, ours = numbers(liger, *inputs)
    _, expected = numbers(torch_alone, *inputs)
    found[name] = {
        "way": way,
        "dtypes": [[str(each.dtype) for each in side] for side in (ours, expected)],
        "differences": [
            float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-6))
            for a, b in zip(ours, expected, strict=True)
        ],
    }
print(json.dumps(found))
"""

SETTINGS = {
    "fp32": {},
    "bias": {"bias": True},
    "frozen head": {"frozen": True},
    "nothing to learn": {"ignored": 40},
    "autocast": {"autocast": True},
    "bf16 weights": {"dtype": "bfloat16"},
}
BF16 = 0.02


def test_its_kernels_give_our_loss_and_gradients():
    ran = subprocess.run(
        [sys.executable, "-c", CASES, json.dumps(SETTINGS)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert {name: of["way"] for name, of in found.items()} == dict.fromkeys(
        SETTINGS, "LigerFusedLinearCrossEntropyFunctionBackward"
    )
    for name, of in found.items():
        ours, expected = of["dtypes"]
        assert ours == expected, name
        assert max(of["differences"]) < (BF16 if name in ("autocast", "bf16 weights") else 1e-5), (name, of)
