"""Where a model computes and in which precision, on a GPU that is played; and after which errors it is lost."""

import pytest
import torch

from darling_plugin.errors import DarlingError
from darling_plugin.partition.base import to_tensor
from darling_plugin.partition.engine.device import breaks_accelerator, device_and_dtype


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_of_its_own_computes_in_float16(native, expected, monkeypatch):
    def supported(including_emulation=True):
        return native or including_emulation  # torch counts what a GPU before Ampere emulates, slowly

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert device_and_dtype(None) == ("cuda", expected)
    assert device_and_dtype("float32") == ("cuda", torch.float32)


def wrapped(cause):
    error = DarlingError("a tensor", "something else", "return one")
    error.__cause__ = cause
    return error


ILLEGAL = "an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("error", "breaks"),
    [
        (torch.AcceleratorError(f"CUDA error: {ILLEGAL}"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError(f"Triton Error [CUDA]: {ILLEGAL}"), True),
        (RuntimeError("CUDA driver error: unspecified launch failure"), True),
        (wrapped(torch.AcceleratorError(f"CUDA error: {ILLEGAL}")), True),
        (wrapped(wrapped(RuntimeError(f"Triton Error [CUDA]: {ILLEGAL}"))), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("Triton Error [CUDA]: out of memory"), False),
        (RuntimeError("CUDA driver error: out of memory"), False),
        (wrapped(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), False),
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), False),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), False),
        (torch.AcceleratorError("CUDA error: invalid argument"), False),
        (RuntimeError("shapes do not match"), False),
        (ZeroDivisionError(), False),
        (SystemExit("CUDA: no more"), False),
        (DarlingError("an answer", f"HTTP 400: CUDA error: {ILLEGAL}", "mend the server"), False),
        (wrapped(None), False),
    ],
)
def test_which_errors_break_the_accelerator(error, breaks):
    assert breaks_accelerator(error) == breaks


def test_one_that_shows_as_a_models_answer_is_fetched_is_found_in_the_error_about_it(monkeypatch):
    def fetched(answer):
        raise torch.AcceleratorError(f"CUDA error: {ILLEGAL}")

    monkeypatch.setattr(torch, "as_tensor", fetched)
    with pytest.raises(DarlingError, match="one similarity a pair") as caught:
        to_tensor([0.5], "one similarity a pair")
    assert breaks_accelerator(caught.value)
