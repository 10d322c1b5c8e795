"""Is a stated gradient the gradient? Asked of autograd and of central differences, in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """A stated gradient against one other way to get it, for one tensor."""

    max_abs: float  # largest absolute difference
    max_rel: float  # largest difference divided by the larger of the two values there, at least 1
    worst: tuple[int, ...]  # where that is; () for a scalar or no entry
    stated: float  # the stated value there
    found: float  # the other one
    ok: bool

    def __str__(self) -> str:
        where = f"at {list(self.worst)} " if self.worst else ""
        return (
            f"{where}stated {self.stated:.4g}, found {self.found:.4g} "
            f"(max abs error {self.max_abs:.2g}, max rel {self.max_rel:.2g})"
        )


@dataclass(frozen=True)
class TensorCheck:
    """What was found for one tensor."""

    name: str
    shape: tuple[int, ...]
    autograd: Comparison
    differences: Comparison

    @property
    def ok(self) -> bool:
        """Whether the stated gradient agrees with both."""
        return self.autograd.ok and self.differences.ok


@dataclass(frozen=True)
class GradientCheck:
    """The result of `check_gradient`; true in a condition when every tensor agrees."""

    tensors: tuple[TensorCheck, ...]
    tol: float

    @property
    def ok(self) -> bool:
        """Whether every tensor agrees with autograd and with finite differences."""
        return all(tensor.ok for tensor in self.tensors)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        """One line a tensor, two where both ways differ from it.

        Errors below the tolerance are rounding and differ between machines, so the bound that they
        keep stands for them; `tensors` has the numbers.
        """
        lines = []
        for tensor in self.tensors:
            if tensor.ok:
                # Between large values an absolute error above the bound is rounding too.
                largest = max(tensor.autograd.max_abs, tensor.differences.max_abs)
                kind = "abs and rel" if largest <= self.tol else "rel"
                found = (
                    "agrees with autograd and with finite differences: "
                    f"max {kind} error < {self.tol:.0e}"
                )
            else:
                ways = {"autograd": tensor.autograd, "finite differences": tensor.differences}
                found = "\n    ".join(f"{way}: {c}" for way, c in ways.items() if not c.ok)
            lines.append(f"{'✓' if tensor.ok else '✗'} {tensor.name} {tensor.shape}  {found}")
        return "\n".join(lines)


def check_gradient(
    f: Callable[..., Tensor],
    grad: Callable[..., Any] | Tensor | Sequence[Tensor | None],
    *inputs: Any,
    tol: float = 1e-7,
    verbose: bool = True,
) -> GradientCheck:
    """Compare a stated gradient with autograd and with central differences, in float64.

        ∂f/∂x_j ≈ (f(x + h e_j) - f(x - h e_j)) / 2h,     h = ε^(1/3) max(1, |x_j|)

    which leaves an error of about ε^(2/3) ≈ 4e-11 where f and its third derivative are of size 1.

    Args:
        f: maps the inputs to a scalar.
        grad: the gradient: a function of the same inputs, or its value. One tensor, or one for
            each tensor of real numbers among the inputs, in their order; None for one that is not
            asked about.
        inputs: tensors of real numbers (taken in float64) and whatever else f needs (labels,
            settings), which is passed on as it is.
        tol: largest difference that counts as rounding, relative to the larger value, at least 1.
        verbose: print one line for each tensor.

    Returns:
        The errors of each tensor; `bool(result)` says whether all agree.

    Raises:
        ValueError: nothing to differentiate, a gradient of another number or shape than the
            inputs, NaN or infinity anywhere, f not a scalar, or a point outside or on the edge of
            f's domain.

    Source of h: Nocedal & Wright 2006, "Numerical Optimization", section 8.1 (central differences).
    """
    values = [
        x.detach().double().clone() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs
    ]
    asked = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    if not asked:
        raise ValueError("expected a tensor of real numbers among the inputs, found none")
    names = _names(f, len(inputs))
    _evaluate(f, values, "at the inputs")  # before `grad` is called: the domain is f's to say
    stated = _stated(grad, values, asked, names)
    automatic = _autograd(f, values, asked)

    results = []
    for i, claimed, derived in zip(asked, stated, automatic, strict=True):
        if claimed is None:
            continue
        if not derived.isfinite().all():
            raise ValueError(
                f"{names[i]}: autograd's gradient has NaN or infinity in it: is an input on the "
                "edge of the formula's domain?"
            )
        measured = _central_differences(f, values, i, names[i])
        results.append(
            TensorCheck(
                names[i],
                tuple(claimed.shape),
                _compare(claimed, derived, tol),
                _compare(claimed, measured, tol),
            )
        )
    if not results:
        raise ValueError("expected a stated gradient for at least one tensor, found only None")
    result = GradientCheck(tuple(results), tol)
    if verbose:
        print(result)
    return result


def _names(f: Callable, count: int) -> list[str]:
    """The names of f's parameters, or x0, x1, … where it does not tell."""
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (names + [f"x{i}" for i in range(len(names), count)])[:count]


def _evaluate(f: Callable, values: list, where: str) -> Tensor:
    try:
        value = f(*values)
    except ValueError as error:
        raise ValueError(f"f has no value {where}: {error}") from error
    if not isinstance(value, Tensor) or value.ndim != 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected f to return a scalar tensor, found {shape}: sum or average it")
    if not value.isfinite():
        raise ValueError(
            f"expected a finite value of f {where}, found {value.item()}: is an input outside the "
            "domain of the formula?"
        )
    return value


def _stated(grad: Any, values: list, asked: list[int], names: list[str]) -> list[Tensor | None]:
    """The stated gradients, checked for number, shape and NaN."""
    given = grad(*values) if callable(grad) else grad
    given = [given] if isinstance(given, Tensor) else list(given)
    if len(given) != len(asked):
        raise ValueError(
            f"expected {len(asked)} stated gradients, one for each of "
            f"{[names[i] for i in asked]}, found {len(given)}: pass None for one not asked about"
        )
    for i, claimed in zip(asked, given, strict=True):
        if claimed is None:
            continue
        if claimed.shape != values[i].shape:
            raise ValueError(
                f"{names[i]}: expected a gradient of the input's shape {tuple(values[i].shape)}, "
                f"found {tuple(claimed.shape)}"
            )
        if not claimed.isfinite().all():
            raise ValueError(f"{names[i]}: the stated gradient has NaN or infinity in it")
    return [None if claimed is None else claimed.detach().double() for claimed in given]


def _autograd(f: Callable, values: list, asked: list[int]) -> list[Tensor]:
    leaves = list(values)
    for i in asked:
        leaves[i] = values[i].clone().requires_grad_(True)
    value = _evaluate(f, leaves, "at the inputs")
    if not value.requires_grad:
        return [torch.zeros_like(values[i]) for i in asked]  # f depends on none of them
    grads = torch.autograd.grad(
        value, [leaves[i] for i in asked], allow_unused=True, materialize_grads=True
    )
    return list(grads)


@torch.no_grad()
def _central_differences(f: Callable, values: list, which: int, name: str) -> Tensor:
    x = values[which]
    result = torch.empty_like(x)
    for flat in range(x.numel()):
        index = tuple(int(k) for k in torch.unravel_index(torch.tensor(flat), x.shape))
        h = torch.finfo(torch.float64).eps ** (1 / 3) * max(1.0, abs(x[index].item()))
        ends = []
        for sign in (1, -1):
            moved = x.clone()
            moved[index] += sign * h
            where = f"at {name}{list(index)} {'+' if sign > 0 else '-'} {h:.0e}"
            ends.append(_evaluate(f, [*values[:which], moved, *values[which + 1 :]], where).item())
        result[index] = (ends[0] - ends[1]) / (2 * h)
    return result


def _compare(stated: Tensor, found: Tensor, tol: float) -> Comparison:
    if not stated.numel():
        return Comparison(0.0, 0.0, (), math.nan, math.nan, True)
    difference = (stated - found).abs()
    relative = difference / torch.maximum(stated.abs(), found.abs()).clamp(min=1)
    worst = tuple(int(k) for k in torch.unravel_index(relative.argmax(), relative.shape))
    return Comparison(
        difference.max().item(), relative.max().item(), worst,
        stated[worst].item(), found[worst].item(), bool((relative <= tol).all()),
    )  # fmt: skip
