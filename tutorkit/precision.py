"""Which device and which number format a run computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str = "auto") -> torch.device:
    """The device a run computes on; "auto" takes a GPU where one is at hand.

    Raises:
        ValueError: a device that torch does not know or this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f'device: expected "auto", "cpu", "cuda", "cuda:0", … or "mps", '
                         f"found {device!r}") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(),
             "mps": int(torch.backends.mps.is_available())}  # fmt: skip
    if (chosen.index or 0) >= count.get(chosen.type, 0):
        raise ValueError(f"device {device!r} is not on this machine: use 'auto' or 'cpu'")
    return chosen


def cpu_has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def choose_precision(precision: str, device: torch.device) -> str:
    """The precision a run computes in: "fp32", "bf16" or "fp16".

    "auto" takes bf16 where the hardware has it, fp16 on older NVIDIA GPUs, fp32 elsewhere. Weights
    and optimizer state stay in fp32 in any case; only the forward and backward products change.

    Raises:
        ValueError: an unknown precision, or fp16 off a CUDA GPU.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, found {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(
            f"precision 'fp16' needs a CUDA GPU (its gradient scaling is written for one), found "
            f"device {device.type!r}: use 'auto', 'bf16' or 'fp32'"
        )
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # emulated bf16 (before Ampere) is slower than fp16
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_fast_bf16() else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in a precision that `choose_precision` returned."""
    return torch.autocast(device.type, dtype=DTYPES[precision] if precision != "fp32" else None,
                          enabled=precision != "fp32")
