"""Which memory is taken for constant. What kernels load from it: `test_gluon.py`; what inference declares:
`test_inference.py`; that each launch asks: `test_launch.py`."""

import torch

from lmfn_kernels.runtime import constant_weights
from lmfn_kernels.runtime.constant_weights import is_constant, keep_constant


def test_what_is_constant() -> None:
    memory, other = torch.zeros(2, 3), torch.zeros(2)
    keep_constant([memory, torch.zeros(0)])
    assert all(is_constant(x) for x in (memory, memory[1:], memory.as_strided((3,), (2,)), memory.detach()))
    assert not is_constant(other)
    assert not is_constant(torch.zeros(0))


def test_what_is_written_to_is_not_until_it_is_declared_again() -> None:
    memory = torch.zeros(2, 3)
    keep_constant([memory])
    memory[1:].add_(1)
    assert not is_constant(memory)
    keep_constant([memory])
    assert is_constant(memory)


def test_memory_that_is_freed_or_exchanged_is_not() -> None:
    memory, parameter = torch.zeros(2, 3), torch.nn.Parameter(torch.zeros(2))
    same, address = memory.data, parameter.untyped_storage().data_ptr()
    keep_constant([memory, parameter])
    before = parameter.data
    parameter.data = torch.ones(2)
    assert not is_constant(parameter)
    assert not is_constant(before), "its tensor has other memory now"
    del memory, parameter
    assert not is_constant(same), "PyTorch may write to it, and the tensor that would tell is gone"
    assert address not in constant_weights._constant


def test_memory_that_is_used_again_stays_declared() -> None:
    """The first tensor of an address may be forgotten after the second was declared."""
    memory = torch.zeros(2)
    again = memory[:1]
    keep_constant([memory])
    keep_constant([again])
    del memory
    assert is_constant(again)


def test_in_inference_mode_nothing_is() -> None:
    """There, PyTorch counts no writes."""
    with torch.inference_mode():
        memory = torch.zeros(2)
        keep_constant([memory])
        assert not is_constant(memory)
