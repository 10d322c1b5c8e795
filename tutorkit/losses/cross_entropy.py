"""Softmax cross-entropy: the loss that training minimises, and the gradients of a linear head.

For logits z (N, C) and labels y (N,), with the softmax p_c = exp(z_c) / Σ_k exp(z_k):

    ℓ_i = -log p_{y_i} = log Σ_k exp(z_ik) - z_{i,y_i}          L = 1/N Σ_i ℓ_i

The gradient follows term by term, with ∂/∂z_c log Σ_k exp(z_k) = exp(z_c) / Σ_k exp(z_k) = p_c:

    ∂ℓ_i/∂z_i = p_i - onehot(y_i)          ∂L/∂z_i = (p_i - onehot(y_i)) / N

Source: Goodfellow, Bengio & Courville 2016, "Deep Learning", section 6.2.2.3, equations 6.29
(softmax) and 6.30 (its logarithm).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE_INDEX = -100  # rows with this label count for nothing; the value is torch's own default
REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str) -> None:
    """Raise ValueError for an unknown reduction."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, found {reduction!r}")


def _check(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Check shapes, labels and reduction; return the mask of the rows that count."""
    check_reduction(reduction)
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


def without_ignored(logits: Tensor, kept: Tensor) -> Tensor:
    """The logits with 0 in the rows that do not count: infinity there times a weight 0 is NaN."""
    return logits.where(kept if logits.ndim == 1 else kept[:, None], 0.0)


def reduce_losses(losses: Tensor, kept: Tensor, reduction: str) -> Tensor:
    """Mean, sum or neither of the losses of the rows that count; the others give 0."""
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
    chosen = p.gather(1, labels.where(kept, 0).long()[:, None])[:, 0]  # (N,)
    return reduce_losses(-chosen.log(), kept, reduction)


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
    logits = without_ignored(logits, kept)
    chosen = logits.gather(1, labels.where(kept, 0).long()[:, None])[:, 0]  # (N,)
    return reduce_losses(torch.logsumexp(logits, dim=1) - chosen, kept, reduction)


def cross_entropy_grad(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"]
) -> Float[Tensor, "rows classes"]:
    """Gradient of the mean cross-entropy with respect to the logits: (p - onehot(y)) / N.

    N counts the rows that are not ignored; ignored rows have gradient 0.
    """
    kept = _check(logits, labels, "mean")
    grad = torch.softmax(without_ignored(logits, kept), dim=1)  # (N, C)
    onehot = torch.nn.functional.one_hot(labels.where(kept, 0).long(), logits.shape[1])
    return (grad - onehot) * kept[:, None] / kept.sum().clamp(min=1)


class HeadGrads(NamedTuple):
    """Gradients of the mean loss of a linear head z = W h + b, in the order of its inputs."""

    hidden: Float[Tensor, "rows hidden"]
    weight: Float[Tensor, "classes hidden"]
    bias: Float[Tensor, " classes"]


def linear_head_grads(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "classes hidden"],
    bias: Float[Tensor, " classes"],
    labels: Int[Tensor, " rows"],
) -> HeadGrads:
    """Gradients of the mean cross-entropy of z = h Wᵀ + b with respect to W, b and h.

    With G = ∂L/∂z = (p - onehot(y)) / N, of shape (N, C):

        ∂L/∂W = Gᵀ h  (C, H)          ∂L/∂b = Σ_i G_i  (C,)          ∂L/∂h = G W  (N, H)

    ∂L/∂h is what flows on into the backbone.

    Args:
        hidden: (N, H) pooled hidden states h.
        weight: (C, H) W.
        bias: (C,) b.
        labels: (N,) class numbers, or `IGNORE_INDEX`.

    Raises:
        ValueError: shapes that do not match, or a label out of range.
    """
    grad = cross_entropy_grad(_head_logits(hidden, weight, bias), labels)  # (N, C)
    return HeadGrads(hidden=grad @ weight, weight=grad.T @ hidden, bias=grad.sum(dim=0))


def linear_head_grads_naive(
    hidden: Float[Tensor, "rows hidden"],
    weight: Float[Tensor, "classes hidden"],
    bias: Float[Tensor, " classes"],
    labels: Int[Tensor, " rows"],
) -> HeadGrads:
    """The same by the chain rule with every Jacobian written out, row by row.

        ∂ℓ/∂z (1, C) · ∂z/∂W (C, C·H),   with ∂z_c/∂W_kj = [c = k] h_j
        ∂ℓ/∂z (1, C) · ∂z/∂b (C, C),     the identity
        ∂ℓ/∂z (1, C) · ∂z/∂h (C, H),     W itself

    Args and errors as in `linear_head_grads`.
    """
    grad = cross_entropy_grad(_head_logits(hidden, weight, bias), labels)  # (N, C)
    identity = torch.eye(len(weight), dtype=hidden.dtype)
    grad_weight, grad_bias, grad_hidden = (torch.zeros_like(t) for t in (weight, bias, hidden))
    for i in range(len(hidden)):
        to_weight = torch.kron(identity, hidden[i])  # (C, C·H)
        grad_weight += (grad[i] @ to_weight).reshape(weight.shape)
        grad_bias += grad[i] @ identity
        grad_hidden[i] = grad[i] @ weight
    return HeadGrads(grad_hidden, grad_weight, grad_bias)


def _head_logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if hidden.ndim != 2 or weight.shape[1:] != hidden.shape[1:] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"expected hidden (N, H), weight (C, H) and bias (C,), found {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    return hidden @ weight.T + bias


def label_smoothing_cross_entropy_naive(
    logits: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " rows"],
    smoothing: float = 0.1,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """ℓ_i = -Σ_c q_c log p_c with the smoothed labels q = (1 - ε) onehot(y) + ε/C.

    Args, returns and raises as in `label_smoothing_cross_entropy`.
    """
    kept = _check(logits, labels, reduction)
    q = _smoothed(logits, labels, kept, smoothing)  # (N, C)
    return reduce_losses(-(q * torch.log_softmax(logits, dim=1)).sum(dim=1), kept, reduction)


def label_smoothing_cross_entropy(
    logits: Float[Tensor, "rows classes"],
    labels: Int[Tensor, " rows"],
    smoothing: float = 0.1,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy against labels of which a share ε is spread evenly over all C classes.

        ℓ_i = logsumexp(z_i) - (1 - ε) z_{i,y_i} - ε · mean_c z_ic

    The minimum is not 0 but the entropy of the smoothed label, reached at finite logits.

    Args:
        logits: (N, C) scores before the softmax.
        labels: (N,) class numbers, or `IGNORE_INDEX` for rows to leave out.
        smoothing: ε in [0, 1]; 0 gives `cross_entropy`.
        reduction: "mean" over the rows that count, "sum" over them, or "none" for (N,) losses.

    Returns:
        The loss in nats.

    Raises:
        ValueError: as `cross_entropy`, or a smoothing outside [0, 1].

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """
    kept = _check(logits, labels, reduction)
    _check_smoothing(smoothing)
    logits = without_ignored(logits, kept)
    chosen = logits.gather(1, labels.where(kept, 0).long()[:, None])[:, 0]  # (N,)
    target = (1 - smoothing) * chosen + smoothing * logits.mean(dim=1)
    return reduce_losses(torch.logsumexp(logits, dim=1) - target, kept, reduction)


def label_smoothing_cross_entropy_grad(
    logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"], smoothing: float = 0.1
) -> Float[Tensor, "rows classes"]:
    """Gradient of the mean loss with respect to the logits: (p - q) / N; ignored rows give 0."""
    kept = _check(logits, labels, "mean")
    p = torch.softmax(without_ignored(logits, kept), dim=1)
    grad = p - _smoothed(logits, labels, kept, smoothing)
    return grad * kept[:, None] / kept.sum().clamp(min=1)


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: expected a number in [0, 1], found {smoothing}")


def _smoothed(logits: Tensor, labels: Tensor, kept: Tensor, smoothing: float) -> Tensor:
    _check_smoothing(smoothing)
    classes = logits.shape[1]
    onehot = torch.nn.functional.one_hot(labels.where(kept, 0).long(), classes).to(logits.dtype)
    return (1 - smoothing) * onehot + smoothing / classes
