"""Which heads are liger-kernel's, and what it is asked; tests/integration/test_liger_kernel.py runs its own kernels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from plinth_workloads.data.loader import IGNORED
from plinth_workloads.objectives import liger_loss
from plinth_workloads.objectives.chunked_loss import LogitTransform, chunked_cross_entropy
from plinth_workloads.objectives.liger_loss import chunk_budget, liger_fits, liger_is_right

VOCABULARY = 97


class Kernel:
    """Stands for liger's function: computes what it is asked for by torch, and remembers that."""

    def __init__(self, change=0.0):
        self.calls = []
        self.change = change

    def __call__(self, hidden, weight, labels, bias, *, ignore_index, reduction, accum_dtype, chunk_mem_const):
        self.calls.append((hidden.dtype, weight.dtype, reduction, accum_dtype, chunk_mem_const))
        logits = F.linear(hidden, weight, bias).float()
        return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction=reduction) * (1 + self.change)


@pytest.fixture
def on_cpus(monkeypatch):
    """Installs a kernel that serves CPUs, asked anew."""

    def install(kernel):
        monkeypatch.setattr(liger_loss, "_DEVICE", "cpu")
        monkeypatch.setattr(liger_loss, "_fused", lambda: kernel)
        liger_is_right.cache_clear()
        return kernel

    yield install
    liger_is_right.cache_clear()


def make_inputs(*, bias=False, dtype=torch.float32):
    torch.manual_seed(0)
    head = nn.Linear(32, VOCABULARY, bias=bias, dtype=dtype)
    labels_BT = torch.randint(0, VOCABULARY, (3, 20))
    labels_BT[0, :5] = IGNORED
    return torch.randn(3, 20, 32, requires_grad=True), head, labels_BT


def numbers_of(hidden_BTH, head, labels_BT, transform=None):
    """Loss and gradients."""
    leaves = [each for each in (hidden_BTH, head.weight, head.bias) if each is not None and each.requires_grad]
    loss = chunked_cross_entropy(hidden_BTH, head, labels_BT, transform or LogitTransform())
    return loss.detach(), *torch.autograd.grad(loss / 7, leaves)


def liger_rows_at_once(rows, hidden, vocabulary, budget):
    """How many rows liger computes together, by the rule of its 0.8.5."""
    parts = -(-vocabulary // (budget * hidden))
    return min(rows, 1 << (-(-rows // parts) - 1).bit_length())


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"dtype": torch.float32}, True),
        ({"head_moves": False}, True),
        ({"head_moves": False, "hidden_moves": False}, True),
        ({"device": "cpu"}, False),
        ({"dtype": torch.float64}, False),
        ({"split": True}, False),
        ({"hidden_moves": False}, False),
        ({"rows": 0}, False),
        ({"within": False}, False),
    ],
)
def test_the_kernel_is_for_whole_heads_on_gpus(change, fits):
    asked = {
        "device": "cuda",
        "dtype": torch.bfloat16,
        "split": False,
        "hidden_moves": True,
        "head_moves": True,
        "rows": 9,
        "within": True,
    }
    assert liger_fits(**{**asked, **change}) == fits


@pytest.mark.parametrize("rows", [1, 48, 1000, 2072, 16384])
@pytest.mark.parametrize("hidden", [16, 768, 8192])
@pytest.mark.parametrize("vocabulary", [97, 50257])
@pytest.mark.parametrize("limit", [2**10, 2**22, 2**27])
def test_the_budget_is_the_largest_that_keeps_logits_within_the_limit(rows, hidden, vocabulary, limit):
    within = [
        budget
        for budget in range(1, -(-vocabulary // hidden) + 1)
        if vocabulary * liger_rows_at_once(rows, hidden, vocabulary, budget) <= limit
    ]
    assert chunk_budget(rows, hidden, vocabulary, limit) == max(within, default=0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_head_is_the_kernels_and_keeps_its_numbers(bias, on_cpus):
    inputs = make_inputs(bias=bias)
    expected = numbers_of(*inputs)
    kernel = on_cpus(Kernel())
    torch.testing.assert_close(numbers_of(*inputs), expected)
    assert kernel.calls[-1] == (torch.float32, torch.float32, "sum", torch.float32, 4)


def test_hidden_states_come_in_the_type_of_the_head_without_autocast_and_as_they_are_with_it(on_cpus):
    kernel = on_cpus(Kernel())
    hidden_BTH, head, labels_BT = make_inputs(dtype=torch.bfloat16)
    _, of_hidden, of_weight = numbers_of(hidden_BTH, head, labels_BT)
    assert kernel.calls[-1][:2] == (torch.bfloat16, torch.bfloat16)
    assert (of_hidden.dtype, of_weight.dtype) == (torch.float32, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        numbers_of(*make_inputs())
    assert kernel.calls[-1][:2] == (torch.float32, torch.float32)


def test_what_is_no_plain_head_is_left_to_torch(on_cpus):
    kernel = on_cpus(Kernel())
    hidden_BTH, head, labels_BT = make_inputs()
    numbers_of(hidden_BTH, head, labels_BT, LogitTransform(cap=5.0))
    numbers_of(hidden_BTH, head, labels_BT, LogitTransform(scale=0.5))
    numbers_of(hidden_BTH.detach(), head, labels_BT)
    assert not kernel.calls


def test_an_evaluation_needs_no_gradients(on_cpus):
    kernel = on_cpus(Kernel())
    hidden_BTH, head, labels_BT = make_inputs()
    with torch.no_grad():
        ours = chunked_cross_entropy(hidden_BTH, head, labels_BT, LogitTransform())
    torch.testing.assert_close(ours, numbers_of(hidden_BTH, head, labels_BT)[0])
    assert len(kernel.calls) == 3
    assert not ours.requires_grad


@pytest.mark.parametrize("change", [0.1, float("nan")])
def test_a_kernel_with_other_numbers_is_not_used(change, on_cpus, caplog):
    inputs = make_inputs()
    expected = numbers_of(*inputs)
    kernel = on_cpus(Kernel(change))
    for _ in range(2):
        torch.testing.assert_close(numbers_of(*inputs), expected, rtol=0, atol=0)
    assert len(kernel.calls) == 1
    (said,) = caplog.messages
    assert "the loss is torch's, liger-kernel cannot be used: its output differs by" in said


def test_a_kernel_that_cannot_be_run_is_not_used(on_cpus, caplog):
    class CompilationError(Exception):
        """Triton's is no RuntimeError either."""

    def broken(*arguments, **options):
        raise CompilationError("no image for this device")

    inputs = make_inputs()
    expected = numbers_of(*inputs)
    on_cpus(broken)
    torch.testing.assert_close(numbers_of(*inputs), expected, rtol=0, atol=0)
    (said,) = caplog.messages
    assert said.endswith("CompilationError: no image for this device")


def test_without_liger_the_loss_is_torchs(on_cpus):
    inputs = make_inputs()
    expected = numbers_of(*inputs)
    on_cpus(None)
    torch.testing.assert_close(numbers_of(*inputs), expected, rtol=0, atol=0)
