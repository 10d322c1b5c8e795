"""What fresh inputs of exercises are drawn from: each a function of a generator alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor


def normal(generator: Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """A float64 tensor of normal numbers with standard deviation `scale`."""
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def whole(generator: Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def between(generator: Generator, low: float, high: float) -> float:
    """A real number between low and high."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def pick(generator: Generator, choices: Sequence[Any]) -> Any:
    """One of the choices."""
    return choices[whole(generator, 0, len(choices) - 1)]
