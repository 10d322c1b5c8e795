"""Which device and number format a run takes, on machines that this is not."""

from __future__ import annotations

import pytest
import torch

from tutorkit import precision
from tutorkit.precision import autocast, choose_device, choose_precision, cpu_has_fast_bf16

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine with these parts."""

    def build(gpus: int = 0, capability: tuple = (8, 0), mps: bool = False, bf16: bool = False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(precision, "cpu_has_fast_bf16", lambda: bf16)

    return build


@pytest.mark.parametrize(("gpus", "mps", "expected"), [
    (0, False, "cpu"), (1, False, "cuda"), (0, True, "mps"), (1, True, "cuda"),
])  # fmt: skip
def test_auto_device(machine, gpus, mps, expected):
    machine(gpus=gpus, mps=mps)
    assert choose_device() == torch.device(expected)
    assert choose_device("cpu") == CPU  # what is asked for by name is what comes


def test_device_by_name(machine):
    machine(gpus=2, mps=True)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("mps") == MPS


@pytest.mark.parametrize("device", ["gpu", "", "CPU"])
def test_unknown_device(device):
    with pytest.raises(ValueError, match=rf'expected "auto", "cpu", .*found {device!r}'):
        choose_device(device)


@pytest.mark.parametrize(("gpus", "device"), [
    (0, "cuda"), (0, "mps"), (2, "cuda:2"), (2, "meta"), (2, "xpu"),
])  # fmt: skip
def test_device_that_is_not_here(machine, gpus, device):
    machine(gpus=gpus)
    with pytest.raises(ValueError, match=f"'{device}' is not on this machine: use 'auto' or 'cpu'"):
        choose_device(device)


@pytest.mark.parametrize(("parts", "device", "expected"), [
    ({"bf16": True}, CPU, "bf16"),
    ({"bf16": False}, CPU, "fp32"),
    ({"gpus": 1, "capability": (9, 0)}, CUDA, "bf16"),
    ({"gpus": 1, "capability": (8, 0)}, CUDA, "bf16"),
    ({"gpus": 1, "capability": (7, 5)}, CUDA, "fp16"),  # T4
    ({"mps": True, "bf16": True}, MPS, "fp32"),
])  # fmt: skip
def test_auto_precision(machine, parts, device, expected):
    machine(**parts)
    assert choose_precision("auto", device) == expected


def test_precision_by_name(machine):
    machine(bf16=False)
    assert choose_precision("bf16", CPU) == "bf16"  # slow there, but asked for
    assert choose_precision("fp32", CUDA) == "fp32"
    assert choose_precision("fp16", CUDA) == "fp16"


def test_precision_errors():
    with pytest.raises(ValueError, match=r"precision: expected one of .*'bf16'.*found 'half'"):
        choose_precision("half", CPU)
    for device in (CPU, MPS):
        with pytest.raises(ValueError, match=rf"'fp16' needs a CUDA GPU .*found device '{device}'"):
            choose_precision("fp16", device)


def test_fast_bf16_is_either_instruction_set(monkeypatch):
    for avx512, amx in [(False, False), (False, True), (True, False)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda v=avx512: v)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda v=amx: v)
        assert cpu_has_fast_bf16() == (avx512 or amx)


def test_fast_bf16_without_torchs_private_checks(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert cpu_has_fast_bf16() is False


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_changes_products_and_not_weights(name, dtype):
    layer = torch.nn.Linear(4, 2)
    with autocast(name, CPU):
        out = layer(torch.randn(3, 4))
    assert out.dtype == dtype
    out.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_autocast_fp32_switches_an_outer_autocast_off():
    with autocast("bf16", CPU), autocast("fp32", CPU):
        assert torch.nn.Linear(4, 2)(torch.randn(3, 4)).dtype == torch.float32
