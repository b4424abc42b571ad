import torch

from plinth_workloads.train.staging import HostBuffers


def test_a_copy_does_not_change_with_its_tensor():
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3)}
    copies = HostBuffers().copy(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    assert torch.equal(copies["weight"], torch.arange(6.0).reshape(2, 3))
    assert copies["step"] == 3


def test_buffers_are_used_again():
    buffers, weight = HostBuffers(), torch.ones(4, requires_grad=True)
    first = buffers.copy({"weight": weight})["weight"]
    with torch.no_grad():
        weight.fill_(2)
    second = buffers.copy({"weight": weight, "new": torch.zeros(1)})["weight"]
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == [2] * 4
    assert not second.requires_grad
    assert buffers.copy({"weight": torch.zeros(5)})["weight"].shape == (5,)
