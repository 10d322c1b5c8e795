"""The loss that training minimises, written as in the text and as it is used.

For logits z (N, C) and labels y (N,), with the softmax p_c = exp(z_c) / Σ_k exp(z_k):

    ℓ_i = -log p_{y_i} = log Σ_k exp(z_ik) - z_{i,y_i}          L = 1/N Σ_i ℓ_i

The gradient follows term by term, with ∂/∂z_c log Σ_k exp(z_k) = exp(z_c) / Σ_k exp(z_k) = p_c:

    ∂ℓ_i/∂z_i = p_i - onehot(y_i)          ∂L/∂z_i = (p_i - onehot(y_i)) / N

Source: Goodfellow, Bengio & Courville 2016, "Deep Learning", section 6.2.2.3, equations 6.29
(softmax) and 6.30 (its logarithm).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE_INDEX = -100  # rows with this label count for nothing; the value is torch's own default
REDUCTIONS = ("mean", "sum", "none")


def _check(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Check shapes, labels and reduction; return the mask of the rows that count."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, found {reduction!r}")
    # One label for three rows would be spread over all of them without a word.
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (N, C) and labels (N,), found shapes {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    kept = labels != IGNORE_INDEX
    wrong = kept & ((labels < 0) | (labels >= logits.shape[1]))
    if wrong.any():
        raise ValueError(
            f"expected labels in 0…{logits.shape[1] - 1} or {IGNORE_INDEX} (ignored), "
            f"found {labels[wrong][0].item()}"
        )
    return kept


def _reduce(losses: Tensor, kept: Tensor, reduction: str) -> Tensor:
    losses = torch.where(kept, losses, torch.zeros_like(losses))
    if reduction == "none":
        return losses
    # With no row left the sum is 0 and so is the mean: 0/0 would poison every weight with NaN.
    return losses.sum() if reduction == "sum" else losses.sum() / kept.sum().clamp(min=1)


def cross_entropy_naive(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"], reduction: str = "mean"
) -> Float[Tensor, "..."]:
    """Softmax cross-entropy exactly as the formula reads; overflows for large logits.

    Args, returns and raises as in `cross_entropy`.
    """
    kept = _check(logits, labels, reduction)
    p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)  # (N, C)
    chosen = p.gather(1, labels.where(kept, 0)[:, None])[:, 0]  # (N,)
    return _reduce(-chosen.log(), kept, reduction)


def cross_entropy(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"], reduction: str = "mean"
) -> Float[Tensor, "..."]:
    """Softmax cross-entropy in the stable form  ℓ = logsumexp(z) - z_y,  in nats.

    It does not overflow; its absolute error is about that of the logits, ε · max|z|.

    Args:
        logits: (N, C) scores before the softmax.
        labels: (N,) class numbers, or `IGNORE_INDEX` for rows to leave out.
        reduction: "mean" over the rows that count, "sum" over them, or "none" for (N,) losses.

    Returns:
        The loss, a scalar for "mean" and "sum"; 0 where every row is ignored.

    Raises:
        ValueError: a label out of range, shapes that do not match, or an unknown reduction.
    """
    kept = _check(logits, labels, reduction)
    chosen = logits.gather(1, labels.where(kept, 0)[:, None])[:, 0]  # (N,)
    return _reduce(torch.logsumexp(logits, dim=1) - chosen, kept, reduction)


def cross_entropy_grad(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, "rows classes"]:
    """Gradient of the mean cross-entropy with respect to the logits: (p - onehot(y)) / N.

    N counts the rows that are not ignored; ignored rows have gradient 0.
    """
    kept = _check(logits, labels, "mean")
    grad = torch.softmax(logits, dim=1)  # (N, C)
    onehot = torch.nn.functional.one_hot(labels.where(kept, 0).long(), logits.shape[1])
    return (grad - onehot) * kept[:, None] / kept.sum().clamp(min=1)
