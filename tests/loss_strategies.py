"""What the tests of the formulas draw from: shapes, dtypes, logits and labels, by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tutorkit.losses import IGNORE_INDEX

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = st.sampled_from(list(TOLERANCE))
MODERATE, EXTREME = 8.0, 1e4  # logits within the first leave the naive forms finite


def f64(*values) -> torch.Tensor:
    """A tensor of these numbers in float64."""
    return torch.tensor(*values, dtype=torch.float64)


def close(dtype: torch.dtype) -> dict[str, float]:
    """The tolerances of `torch.testing.assert_close` for values of about 1."""
    return {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}


def sizes(smallest: int = 0, largest: int = 4) -> st.SearchStrategy[int]:
    return st.integers(smallest, largest)


@st.composite
def tensors(draw, shape: tuple[int, ...], dtype=torch.float64, low=-MODERATE, high=MODERATE):
    """A tensor of this shape whose entries hypothesis chooses, extremes among them."""
    count = torch.Size(shape).numel()
    numbers = st.floats(low, high, width=32, allow_subnormal=False)
    entries = draw(st.lists(numbers, min_size=count, max_size=count))
    return torch.tensor(entries, dtype=dtype).reshape(shape)


@st.composite
def label_tensors(draw, shape: tuple[int, ...], classes: int):
    """Labels of this shape in 0 … classes - 1, some of them (or all) ignored."""
    count = torch.Size(shape).numel()
    numbers = st.sampled_from([*range(classes), IGNORE_INDEX])
    entries = draw(st.lists(numbers, min_size=count, max_size=count))
    return torch.tensor(entries, dtype=torch.long).reshape(shape)


@st.composite
def labelled_rows(draw, dtype=torch.float64, bound=MODERATE):
    """Logits (N, C) with N from 0 and C from 1, and labels (N,)."""
    rows, classes = draw(sizes()), draw(sizes(1))
    logits = draw(tensors((rows, classes), dtype, -bound, bound))
    return logits, draw(label_tensors((rows,), classes))


@st.composite
def labelled_tokens(draw, dtype=torch.float64, bound=MODERATE):
    """Logits (B, T, C) with B and T from 0, and labels (B, T)."""
    batch, tokens, classes = draw(sizes(0, 2)), draw(sizes(0, 3)), draw(sizes(1, 3))
    logits = draw(tensors((batch, tokens, classes), dtype, -bound, bound))
    return logits, draw(label_tensors((batch, tokens), classes))


def autograd(f, *inputs):
    """The gradients of a scalar f with respect to all inputs, zeros where it depends on none."""
    leaves = [x.detach().clone().requires_grad_(True) for x in inputs]
    grads = torch.autograd.grad(f(*leaves), leaves, allow_unused=True, materialize_grads=True)
    return grads[0] if len(grads) == 1 else grads
