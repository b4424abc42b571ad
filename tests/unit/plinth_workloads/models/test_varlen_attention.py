"""Attention by documents on GPUs, with the operator of flash attention computed by a CPU: the numbers of a dense mask.

What the operator's own kernels give is not tested, as there is no GPU; that they are asked before they are used is.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from plinth_workloads.models.attention import (
    GPU_IMPLEMENTATION,
    attend_within_documents,
    counted_starts_of_documents,
    document_attention_forward,
)
from plinth_workloads.models.varlen_attention import (
    Heads,
    ends_of_documents,
    kernel_fits,
    kernel_is_right,
    kernel_takes,
    own_gpu,
    room_for,
    varlen_attention,
)
from plinth_workloads.train.blocks import prepare_blocks
from plinth_workloads.train.parallel import transformer_blocks
from training import make_train_run
from varlen_operator import AS_ON_A_GPU, KERNELS, attend, attend_backward

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
WIDTH = 40
OPERATOR = torch.ops.torch_attn._varlen_attn.default


def attend_to_whole_rows(query, key, value, ends, *others):
    """What a kernel would give that does not know documents."""
    whole = torch.tensor([0, len(query)], dtype=torch.int32)
    return attend(query, key, value, whole, whole, len(query), len(query), *others[3:])


@pytest.fixture
def operator():
    """torch's operator on CPUs, as flash attention has it on GPUs."""
    with torch.library._scoped_library("torch_attn", "IMPL") as library:
        for operation, computed in KERNELS.items():
            library.impl(operation, computed, "CPU")
        yield


@pytest.fixture
def gpu(operator, monkeypatch):
    """Every model attends as on a GPU."""
    for name, told in AS_ON_A_GPU.items():
        monkeypatch.setattr(name, told)


def make_model(**config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**LLAMA, **config})).train()


def make_batch():
    """Rows of three documents, of one, and of two."""
    ids_BT = torch.randint(0, 97, (3, WIDTH), generator=torch.Generator().manual_seed(0))
    positions_BT = torch.arange(WIDTH).repeat(3, 1)
    positions_BT[0, 5:] -= 5
    positions_BT[0, 20:] -= 15
    positions_BT[2, 33:] -= 33
    return ids_BT, positions_BT


def numbers_of(model, batch):
    """Logits and gradients of all weights."""
    ids_BT, positions_BT = batch
    logits_BTV = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
    logits_BTV.float().square().sum().backward()
    return {"logits": logits_BTV.detach(), **{name: p.grad for name, p in model.named_parameters()}}


def assert_same_numbers(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max() + 1))


class Operations(TorchDispatchMode):
    """Remembers what the operator was called with, and the shapes that were made."""

    def __init__(self):
        super().__init__()
        self.called = []
        self.shapes = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is OPERATOR:
            self.called.append(arguments)
        made = function(*arguments, **(options or {}))
        if isinstance(made, torch.Tensor):
            self.shapes.add(tuple(made.shape))
        return made


@pytest.mark.parametrize(
    ("starts", "room", "ends"),
    [
        ([[1, 0, 0, 1, 0]], 2, [0, 3, 5]),
        ([[1, 0, 0, 1, 0]], 4, [0, 3, 5, 5, 5]),
        ([[1, 0, 0], [1, 0, 0]], 2, [0, 3, 6]),
        ([[1, 1, 1], [1, 0, 7]], 8, [0, 1, 2, 3, 5, 6, 6, 6, 6]),
    ],
)
def test_ends_are_repeated_for_documents_that_are_not_there(starts, room, ends):
    found = ends_of_documents(torch.tensor(starts, dtype=torch.uint8), room)
    assert (found.tolist(), found.dtype) == (ends, torch.int32)


def test_ends_are_where_rows_and_documents_end():
    starts_BT = (torch.rand(5, 64, generator=torch.Generator().manual_seed(0)) < 0.2).to(torch.uint8)
    starts_BT[:, 0] = 1
    flat = starts_BT.flatten().tolist()
    expected = [place for place, start in enumerate(flat) if start] + [len(flat)]
    found = ends_of_documents(starts_BT, 100).tolist()
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) == {len(flat)}
    assert len(found) == 101


@pytest.mark.parametrize(
    ("documents", "tokens", "room"), [(1, 99, 1), (2, 99, 2), (3, 99, 4), (33, 99, 64), (65, 99, 99), (99, 99, 99)]
)
def test_room_is_a_power_of_two_and_never_more_than_there_are_tokens(documents, tokens, room):
    assert room_for(documents, tokens) == room


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"capability": (9, 0)}, True),
        ({"width": 256}, True),
        ({"precision": "fp32"}, False),
        ({"capability": (7, 5)}, False),
        ({"capability": None}, False),
        ({"width": 0}, False),
        ({"width": 20}, False),
        ({"width": 264}, False),
        ({"dropout": True}, False),
        ({"has_operator": False}, False),
    ],
)
def test_the_kernel_is_for_bf16_on_gpus_since_ampere_and_heads_that_it_takes(change, fits):
    asked = {"precision": "bf16", "capability": (8, 0), "width": 64, "dropout": False, "has_operator": True}
    assert kernel_fits(**{**asked, **change}) == fits


def test_tensors_of_a_cpu_are_not_for_the_kernel():
    tensor = torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16)
    assert not kernel_takes(tensor, tensor, tensor)


def test_without_a_gpu_a_model_that_would_train_on_one_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = make_model()
    assert own_gpu() is None
    assert not attend_within_documents(model, on_gpu=True, precision="bf16")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("keys", [4, 2, 1])
def test_packed_rows_have_the_numbers_of_a_dense_mask(keys, gpu):
    model = make_model(num_key_value_heads=keys)
    expected = numbers_of(copy.deepcopy(model), make_batch())
    assert attend_within_documents(model, on_gpu=True, precision="bf16")
    assert model.config._attn_implementation == GPU_IMPLEMENTATION
    with Operations() as made:
        found = numbers_of(model, make_batch())
    assert [arguments[3].tolist() for arguments in made.called] == [[0, 5, 20, 40, 80, 113, 120, 120, 120]] * 2
    assert not any(shape[-2:] == (WIDTH, WIDTH) for shape in made.shapes)
    assert_same_numbers(found, expected)


def test_blocks_that_are_compiled_and_computed_again_have_the_same_numbers(gpu, tmp_path):
    model = make_model()
    expected = numbers_of(copy.deepcopy(model), make_batch())
    training = {"compile": False, "activationCheckpointing": "selective", "precision": "bf16"}
    prepare_blocks(
        model, make_train_run(tmp_path, compute={"perWorker": {"gpus": 1}}, training=training), same_width=True
    )
    assert model.config._attn_implementation == GPU_IMPLEMENTATION
    for block in transformer_blocks(model):
        block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
    assert_same_numbers(numbers_of(model, make_batch()), expected)


@pytest.mark.parametrize(("mode", "again"), [("none", 0), ("selective", 0), ("full", 2)])
def test_selective_checkpointing_keeps_what_the_kernel_gave(mode, again, gpu, tmp_path):
    model = make_model()
    training = {"compile": False, "activationCheckpointing": mode, "precision": "bf16"}
    prepare_blocks(
        model, make_train_run(tmp_path, compute={"perWorker": {"gpus": 1}}, training=training), same_width=True
    )
    ids_BT, positions_BT = make_batch()
    loss = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits.sum()
    with Operations() as made:
        loss.backward()
    assert len(made.called) == again


def test_a_torch_whose_operator_knows_no_groups_gets_as_many_keys_as_queries(operator, monkeypatch):
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    starts_BT = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]])
    grouped = varlen_attention(query, key, key, starts_BT, 4, 0.3)
    monkeypatch.setattr("plinth_workloads.models.varlen_attention._GROUPED", False)
    with Operations() as made:
        torch.testing.assert_close(varlen_attention(query, key, key, starts_BT, 4, 0.3), grouped)
    assert made.called[0][1].shape == (12, 4, 8)


def test_the_backend_is_flash_attention(operator, monkeypatch):
    allowed = []

    def remember(query, *arguments, **options):
        allowed.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()))
        return query

    monkeypatch.setattr("plinth_workloads.models.varlen_attention.varlen_attn", remember)
    tensor = torch.zeros(1, 2, 3, 8)
    varlen_attention(tensor, tensor, tensor, torch.ones(1, 3), 3, 1.0)
    assert allowed == [(True, False)]


def test_under_autocast_the_kernel_gets_bf16(gpu):
    model = make_model()
    assert attend_within_documents(model, on_gpu=True, precision="bf16")
    with Operations() as made, torch.autocast("cpu", torch.bfloat16):
        numbers_of(model, make_batch())
    assert {tensor.dtype for arguments in made.called for tensor in arguments[:3]} == {torch.bfloat16}


def test_rows_of_one_document_each_need_no_documents(gpu):
    model = make_model()
    assert attend_within_documents(model, on_gpu=True, precision="bf16")
    with Operations() as made:
        found = numbers_of(model, (make_batch()[0], torch.arange(WIDTH).repeat(3, 1)))
    assert not made.called
    assert_same_numbers(found, numbers_of(make_model(), (make_batch()[0], torch.arange(WIDTH).repeat(3, 1))))


def test_a_window_that_rows_exceed_is_left_to_transformers():
    def causal_window(row, head, query, key):
        return (key <= query) & (key > query - 3)

    mask = counted_starts_of_documents(1, 8, 8, mask_function=causal_window, local_size=3)
    assert (mask.dtype, mask.shape) == (torch.bool, (1, 1, 8, 8))


@pytest.mark.parametrize(
    ("dtype", "by_kernel"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)]
)
def test_on_gpus_the_kernel_takes_half_precision_and_a_dense_mask_the_rest(dtype, by_kernel):
    with FakeTensorMode(), Operations() as made:
        tensor = torch.zeros(2, 4, 6, 8, dtype=dtype, device="cuda")
        mask = torch.ones(2, 1, 1, 6, dtype=torch.uint8, device="cuda").expand(-1, -1, 4, -1)
        assert kernel_takes(tensor, tensor, tensor) == by_kernel
        out, _ = document_attention_forward(nn.Module(), tensor, tensor, tensor, mask, is_causal=True)
    assert (out.shape, out.dtype) == ((2, 6, 4, 8), dtype)
    assert bool(made.called) == by_kernel
    assert ((2, 1, 6, 6) in made.shapes) != by_kernel


def test_a_model_whose_numbers_would_change_keeps_sdpa(gpu):
    model = make_model()
    forward = model.forward

    def tells_the_attention(**inputs):
        output = forward(**inputs)
        output.logits = output.logits + float(model.config._attn_implementation == GPU_IMPLEMENTATION)
        return output

    model.forward = tells_the_attention
    assert not attend_within_documents(model, on_gpu=True, precision="bf16")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "change",
    [{"head_dim": 12}, {"attention_dropout": 0.1}],
    ids=["a width that is no multiple of eight", "dropout of attention"],
)
def test_a_model_that_the_kernel_does_not_fit_keeps_sdpa(change, gpu):
    model = make_model(**change)
    assert not attend_within_documents(model, on_gpu=True, precision="bf16")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("heads", [Heads(2, 2, 8), Heads(4, 1, 16)])
def test_a_kernel_that_agrees_with_masked_attention_is_right(heads, operator):
    assert kernel_is_right.__wrapped__(heads, torch.device("cpu"))


def wrong_gradient(*arguments):
    of_query, of_key, of_value = attend_backward(*arguments)
    return of_query, of_key, torch.full_like(of_value, torch.nan)


@pytest.mark.parametrize(
    ("name", "kernel"), [("_varlen_attn", attend_to_whole_rows), ("_varlen_attn_backward", wrong_gradient)]
)
def test_a_kernel_with_other_results_or_gradients_is_not(name, kernel, caplog):
    with torch.library._scoped_library("torch_attn", "IMPL") as library:
        for operation, computed in {**KERNELS, name: kernel}.items():
            library.impl(operation, computed, "CPU")
        assert not kernel_is_right.__wrapped__(Heads(2, 2, 8), torch.device("cpu"))
    assert "flash attention cannot be used: its output differs by" in caplog.text


def test_a_kernel_that_cannot_be_run_is_not(caplog):
    assert not kernel_is_right.__wrapped__(Heads(2, 2, 8), torch.device("cpu"))
    assert "flash attention cannot be used: NotImplementedError" in caplog.text
