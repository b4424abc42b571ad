"""Products of matrices are oneDNN's only where they are float32's, and only where MKL leaves the processor unused."""

import pytest
import torch
from torch import nn

from plinth_workloads.train import cpu_products
from plinth_workloads.train.cpu_products import choose_products
from plinth_workloads.train.session import open_session
from training import ALONE, make_train_run

AMD = {"avx512_bw": True, "amx_bf16": False, "amx_tile": False}


class Model(nn.Module):
    """As wide as it says."""

    def __init__(self, width):
        super().__init__()
        self.config = type("Config", (), {"hidden_size": width})()


@pytest.fixture(autouse=True)
def mkl_again():
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.fixture
def on_amd(monkeypatch):
    monkeypatch.setattr(cpu_products, "_unknown_to_mkl", lambda: True)


def precision():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_what_is_chosen_gives_the_products_of_float32(on_amd, tmp_path):
    torch.manual_seed(0)
    left, right = torch.randn(300, 400), torch.randn(400, 500)
    exact = left.double() @ right.double()
    chosen = choose_products(Model(256), make_train_run(tmp_path))
    assert precision() == ("bf16" if chosen else "none")
    torch.testing.assert_close((left @ right).double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "spec"),
    [
        (255, {}),
        (256, {"training": {"precision": "bf16"}}),
        (256, {"compute": {"perWorker": {"gpus": 1}}, "training": {"precision": "fp32", "compile": False}}),
    ],
)
def test_small_models_bf16_and_gpus_keep_what_they_have(width, spec, on_amd, tmp_path):
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    assert choose_products(Model(width), make_train_run(tmp_path, **spec)) is False
    assert precision() == "none"


def test_rounded_products_are_not_taken(on_amd, tmp_path, monkeypatch, caplog):
    products = cpu_products._products

    def rounding(width):
        found = products(width)
        return [value.bfloat16().float() for value in found] if precision() == "bf16" else found

    monkeypatch.setattr(cpu_products, "_products", rounding)
    assert choose_products(Model(256), make_train_run(tmp_path)) is False
    assert precision() == "none"
    assert "MKL's are taken" in caplog.text


@pytest.mark.parametrize(
    ("vendor", "able", "expected"),
    [
        ("AuthenticAMD", AMD, True),
        ("GenuineIntel", AMD, False),
        ("AuthenticAMD", {**AMD, "avx512_bw": False}, False),
        ("AuthenticAMD", {**AMD, "amx_bf16": True}, False),
        ("AuthenticAMD", {}, False),
    ],
)
def test_only_an_amd_with_avx512_and_without_amx_is_unknown_to_mkl(vendor, able, expected, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    assert cpu_products._unknown_to_mkl(cpuinfo) is expected
    assert cpu_products._unknown_to_mkl(tmp_path / "none") is False


def test_a_session_chooses_for_its_process(on_amd, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_products, "WIDE", 32)
    monkeypatch.setattr(cpu_products, "_near", lambda product, expected: True)
    open_session(make_train_run(tmp_path), ALONE, None, None)
    assert precision() == "bf16"
