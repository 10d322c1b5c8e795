"""Two answers side by side: alike in structure, shape, dtype and values, and if not, where?

An answer is a tensor, a number, a string, or a tuple, list or dict of answers.
"""

from __future__ import annotations

import math
from typing import Any

import torch

# A subclass counts as its base: `torch.max` returns a kind of tuple.
KINDS = {
    "tensor": torch.Tensor,
    "tuple": tuple,
    "list": list,
    "dict": dict,
    "number": (bool, int, float),
    "string": str,
}


def clone(value: Any) -> Any:
    """A copy that shares no memory; a tensor becomes a leaf of the autograd graph."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: clone(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [clone(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def kind(value: Any) -> str:
    """The kind of an answer, or the name of its type if it is none of them."""
    return next((k for k, base in KINDS.items() if isinstance(value, base)), type(value).__name__)


def parts(value: Any) -> dict[str, Any]:
    """What a tuple, list or dict holds, by the index that gives it; nothing for anything else."""
    if isinstance(value, dict):
        return {f"[{key!r}]": part for key, part in value.items()}
    return {f"[{n}]": p for n, p in enumerate(value)} if isinstance(value, (tuple, list)) else {}


def describe(value: Any) -> str:
    """A value in a few words: the shape of a tensor, numbers and texts as they are."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if hasattr(value, "shape"):
        name = type(value).__name__
        article = "an" if name[0] in "aeio" else "a"
        return f"{article} {name} of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list, dict)):
        inside = [describe(part) for part in list(parts(value).values())[:3]]
        more = ", …" if len(value) > 3 else ""
        return f"a {kind(value)} of {len(value)} ({', '.join(inside)}{more})"
    return f"{value!r:.80} ({kind(value)})"


def with_values(value: Any) -> str:
    """As `describe`, with the entries of a short tensor or list, so that a case can be redone."""
    if isinstance(value, torch.Tensor) and 0 < value.numel() <= 8:
        shown = value.detach().double().round(decimals=4) if value.is_floating_point() else value
        return f"{describe(value)}, {shown.tolist()}"
    plain = isinstance(value, list) and all(kind(each) in ("number", "string") for each in value)
    if plain and 0 < len(value) <= 30:
        return f"a list of {len(value)}, {value}"
    return describe(value)


def structure_problem(expected: Any, found: Any, where: str = "answer") -> str | None:
    """What is wrong with the kinds, lengths and shapes of an answer."""
    inside, others = parts(expected), parts(found)
    problem = f"{where}: expected {describe(expected)}, found {describe(found)}."
    if kind(found) != kind(expected) or set(inside) != set(others):
        if isinstance(expected, torch.Tensor) and hasattr(found, "shape"):
            problem += " Stay with torch from the first line to the last."
        elif isinstance(expected, torch.Tensor) and kind(found) == "number":
            problem += " Keep it a tensor, without float() or .item()."
        elif kind(expected) == "number" and getattr(found, "shape", None) == ():
            problem += " Make it a Python number: `.item()`."
        return problem
    if isinstance(expected, torch.Tensor) and expected.shape != found.shape:
        return f"{problem} The shapes must be equal; nothing is broadcast."
    deeper = (structure_problem(inside[at], others[at], where + at) for at in inside)
    return next((problem for problem in deeper if problem), None)


def leaves(expected: Any, found: Any, where: str = "answer") -> list[tuple[str, Any, Any]]:
    """The tensors, numbers and texts of two answers of the same structure, side by side."""
    if not isinstance(expected, (tuple, list, dict)):
        return [(where, expected, found)]
    others = parts(found)
    deeper = [leaves(part, others[at], where + at) for at, part in parts(expected).items()]
    return [leaf for each in deeper for leaf in each]


def dtype(value: Any) -> str:
    """The dtype of a tensor or the type of a number; empty for anything else."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    return next((t.__name__ for t in (bool, int, float) if isinstance(value, t)), "")


# How to get the dtype that is asked for; for every other one, where it is lost.
TO_DTYPE = {
    "torch.int64": "`.long()` makes whole numbers.",
    "int": "A whole number is asked for: a count, or `int(…)` of one.",
}
KEEP_DTYPE = (
    "Find the line where the dtype changes (torch.tensor(1.0) is float32: x.new_tensor(1.0) has "
    "the dtype of x)."
)


def dtype_problem(expected: Any, found: Any) -> str | None:
    """What is wrong with the dtypes of an answer of the right structure."""
    for where, right, answer in leaves(expected, found):
        # An int is taken where a float is asked for, as Python itself does.
        if dtype(right) != dtype(answer) and (dtype(right), dtype(answer)) != ("float", "int"):
            return (
                f"{where}: expected dtype {dtype(right)}, found {dtype(answer)}. "
                f"{TO_DTYPE.get(dtype(right), KEEP_DTYPE)}"
            )
    return None


def as_tensor(value: torch.Tensor | float) -> torch.Tensor:
    """A tensor off the graph and on the CPU; a Python number keeps all its digits."""
    if isinstance(value, float):
        value = torch.tensor(value, dtype=torch.float64)
    return torch.as_tensor(value).detach().cpu()


def at_largest(gap: torch.Tensor) -> tuple[int, str]:
    """Where the largest entry stands: in the flat tensor, and as an index such as `[1, 2]`."""
    flat = int(gap.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), gap.shape)]
    return flat, str(index) if index else ""


def finite_problem(expected: Any, found: Any) -> str | None:
    """Where an answer is NaN or infinite and the right one is not."""
    for where, right, answer in leaves(expected, found):
        if dtype(right):
            r, a = as_tensor(right), as_tensor(answer)
            if (bad := r.isfinite() & ~a.isfinite()).any():
                flat, index = at_largest(bad.to(torch.uint8))
                return (
                    f"{where}{index} is {a.flatten()[flat].item()}, "
                    f"expected {shown(r.flatten()[flat])}."
                )
    return None


def largest_difference(expected: Any, found: Any, tolerance: float) -> tuple[float, str] | None:
    """The largest difference and its description, or None where two answers agree.

    NaN agrees with NaN and an infinity with itself. Structures and dtypes are those of the
    solution already, so nothing is broadcast or rounded here.
    """
    differences = []
    for where, right, answer in leaves(expected, found):
        if not dtype(right):
            if right != answer:
                text = f"{where}: expected {describe(right)}, found {describe(answer)}."
                differences.append((math.inf, text))
            continue
        r, a = as_tensor(right), as_tensor(answer)
        gap = (r.double() - a.double()).abs()
        agree = (r == a) | (r.isnan() & a.isnan())
        if r.is_floating_point():
            largest = r.masked_fill(~r.isfinite(), 0.0).abs().double()
            agree |= gap <= tolerance * max(1.0, largest.max().item() if r.numel() else 0.0)
        if not agree.all():
            # Where one of the two is NaN or infinite the gap is not a number to compare by.
            gap = gap.nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(agree, -1.0)
            flat, index = at_largest(gap)
            text = (
                f"The largest difference is {gap.max().item():.3g}, at {where}{index}: "
                f"expected {shown(r.flatten()[flat])}, found {shown(a.flatten()[flat])}."
            )
            differences.append((gap.max().item(), text))
    return max(differences, key=lambda each: each[0], default=None)


def shown(value: torch.Tensor) -> str:
    """A number with enough digits to see what the comparison sees."""
    return f"{value.item():.10g}" if value.is_floating_point() else str(value.item())


def same(expected: Any, found: Any, tolerance: float) -> bool:
    """Whether two answers agree in structure, shape, dtype and values."""
    return not (
        structure_problem(expected, found)
        or dtype_problem(expected, found)
        or largest_difference(expected, found, tolerance)
    )
