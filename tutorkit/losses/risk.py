"""The empirical risk: what training minimises in place of the error on texts yet unseen.

    L(θ) = 1/N Σ_i ℓ(M_θ(x_i), y_i)

The mean over a batch of B rows drawn at random estimates it without bias: each row is in the batch
with probability B/N, so E[1/B Σ_batch ℓ_i] = L, with a variance that falls as 1/B.

Source: Goodfellow, Bengio & Courville 2016, "Deep Learning", sections 8.1.1 and 8.1.3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutorkit.losses.cross_entropy import IGNORE_INDEX

Model = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def empirical_risk_naive(model: Model, loss: Loss, inputs: Tensor, labels: Tensor) -> Tensor:
    """L = 1/N Σ_i ℓ(M(x_i), y_i), one row at a time. Args as in `empirical_risk`."""
    _check(inputs, labels, 1)
    rows = [loss(model(inputs[i : i + 1]), labels[i : i + 1])[0] for i in range(len(inputs))]
    return torch.stack(rows).sum() / len(inputs)


def empirical_risk(
    model: Model, loss: Loss, inputs: Tensor, labels: Tensor, batch_size: int = 64
) -> Tensor:
    """The same by batches: the batches' sums, divided once by the number of rows.

    The mean of the batches' means is something else as soon as the last batch is short: its rows
    would weigh more than the others.

    Args:
        model: maps (B, …) inputs to B outputs.
        loss: maps outputs and (B,) labels to (B,) losses, one for each row.
        inputs: (N, …), N at least 1.
        labels: (N,).
        batch_size: rows in one call of the model; no influence on the result beyond rounding.

    Returns:
        L, a scalar, in the units of the loss.

    Raises:
        ValueError: no rows, unequal numbers of them, ignored labels (N would count them: leave
            such rows out), or a loss that does not give one number for each row.
    """
    _check(inputs, labels, batch_size)
    total = torch.zeros(())
    for start in range(0, len(inputs), batch_size):
        batch = slice(start, start + batch_size)
        losses = loss(model(inputs[batch]), labels[batch])
        if losses.shape != labels[batch].shape[:1]:
            raise ValueError(
                f"expected one loss for each of {len(labels[batch])} rows, found shape "
                f"{tuple(losses.shape)}: pass a loss that is not reduced (reduction='none')"
            )
        total = total.to(losses) + losses.sum()
    return total / len(inputs)


def _check(inputs: Tensor, labels: Tensor, batch_size: int) -> None:
    if not len(inputs) or len(inputs) != len(labels) or batch_size < 1:
        raise ValueError(
            f"expected as many labels as rows, at least one, and batch_size >= 1, found "
            f"{len(inputs)} rows, {len(labels)} labels and batch_size={batch_size}"
        )
    if not labels.is_floating_point() and (labels == IGNORE_INDEX).any():
        raise ValueError(
            f"expected a label for every row, found {IGNORE_INDEX} (ignored): leave these rows out "
            "of inputs and labels, so that N counts the rows that have a loss"
        )
